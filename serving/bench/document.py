"""The result file of one run: its schema, which is the dataclasses below, and how it is written and read.

    version        int, 1
    label          the user's name for the run
    command        the command line, without the key
    date           ISO 8601, UTC, when the run ended
    machine        {cpu, cores, os, python} of the client
    settings       every setting of the run, as `settings.BenchSettings` names them
    calibration    by endpoint: {tokens_per_word, overhead}; overhead is the chat template's and the like
    warnings       sentences on what makes the numbers less than they seem
    duration_s     from the start to the end of the last request
    client_load    CPU seconds per second of the busiest client process
    total          a summary of all requests
    endpoints      by endpoint: a summary of its requests
    timeline       {interval_s, output_tokens_per_s: [..], texts_per_s: [..]}, 60 equal intervals

A summary has counts, rates over `duration_s`, and distributions; a distribution with no sample is null. Only requests
that succeeded count in rates and distributions. Percentiles interpolate linearly between the nearest samples.

    ttft_ms        time to first token: from sending a request to the first piece of output
    itl_ms         inter-token latency: between two pieces of one answer. It is what a reader sees: a piece of several
                   tokens is one sample, and pieces that arrive together are 0 apart; `tokens_per_piece` tells
    tpot_ms        time per output token: (last piece - first piece) / (output tokens - 1), one sample per answer, the
                   one to compare servers with that group their tokens differently
    latency_ms     from sending a request to the end of its answer
    prompt_tokens, output_tokens    per request, as the server's usage object counts them
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

from .machine import Machine
from .prompts import WordCost

VERSION = 1


@dataclass(frozen=True, slots=True)
class Distribution:
    """Samples of one quantity."""

    count: int
    mean: float
    p50: float
    p90: float
    p99: float
    max: float
    quantiles: list[float]
    """201 of them, from the least sample to the greatest in steps of half a percent."""


@dataclass(frozen=True, slots=True)
class Summary:
    """What a group of requests came to."""

    num_requests: int
    num_failed: int
    errors: dict[str, int]
    """Failed requests by kind: http_<status>, timeout, connection, malformed, server_error."""
    error_examples: dict[str, str]
    """The first message of each kind."""
    num_without_usage: int
    """Answers without a usage object: their pieces stand in for output tokens, and prompt tokens are missing."""

    requests_per_s: float
    output_tokens_per_s: float
    total_tokens_per_s: float
    """Prompt and output."""
    texts_per_s: float
    """Embedded texts."""

    sum_prompt_tokens: int
    sum_cached_tokens: int
    """Prompt tokens that the server says it took from a prefix cache."""
    sum_output_tokens: int
    sum_wanted_tokens: int
    """Output tokens asked for."""
    sum_texts: int
    tokens_per_piece: float
    """Output tokens per piece of streamed output; 0 without streams."""

    ttft_ms: Distribution | None
    itl_ms: Distribution | None
    tpot_ms: Distribution | None
    latency_ms: Distribution | None
    prompt_tokens: Distribution | None
    output_tokens: Distribution | None


@dataclass(frozen=True, slots=True)
class Timeline:
    """Throughput over the run."""

    interval_s: float
    output_tokens_per_s: list[float]
    texts_per_s: list[float]


@dataclass(frozen=True, slots=True)
class RunDocument:
    """One run."""

    version: int
    label: str
    command: str
    date: str
    machine: Machine
    settings: dict[str, Any]
    calibration: dict[str, WordCost]
    warnings: list[str]
    duration_s: float
    client_load: float
    total: Summary
    endpoints: dict[str, Summary]
    timeline: Timeline


def write_document(document: RunDocument, path: Path) -> None:
    """Write a result file."""
    path.write_bytes(msgspec.json.encode(document) + b"\n")


def read_document(path: Path) -> RunDocument:
    """Read a result file.

    Raises:
        OSError: it cannot be read.
        ValueError: it is no result file of this version.
    """
    try:
        document = msgspec.json.decode(path.read_bytes(), type=RunDocument)
    except ValueError as error:
        raise ValueError(f"{path} is no result file of penstock bench: {error}") from None
    if document.version != VERSION:
        raise ValueError(f"{path} has version {document.version}, but only {VERSION} can be read: run it again")
    return document
