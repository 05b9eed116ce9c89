"""Turns the records of a run into numbers: rates, percentiles and throughput over time."""

from collections import Counter
from collections.abc import Iterable, Sequence

import numpy as np
from numpy.typing import NDArray

from .client import Record
from .document import Distribution, Summary, Timeline

Floats = NDArray[np.float64]

_NUM_INTERVALS = 60
_QUANTILES = np.linspace(0, 100, 201)


def distribution(samples: Sequence[float] | Floats) -> Distribution | None:
    """Mean, percentiles and extremes of some samples, None if there are none."""
    if len(samples) == 0:
        return None
    values: Floats = np.asarray(samples, dtype=np.float64)
    quantiles: list[float] = np.percentile(values, _QUANTILES).tolist()
    return Distribution(
        count=len(values),
        mean=float(values.mean()),
        p50=quantiles[100],
        p90=quantiles[180],
        p99=quantiles[198],
        max=quantiles[200],
        quantiles=quantiles,
    )


def summarise(records: Iterable[Record], seconds: float) -> Summary:
    """The summary of some records.

    Args:
        records: of one endpoint or of all.
        seconds: the time that rates are taken over.
    """
    records = list(records)
    good = [record for record in records if record.error is None]
    streamed = [record for record in good if record.arrivals]
    generated = [record for record in good if not record.num_texts]
    kinds: Counter[str] = Counter()
    examples: dict[str, str] = {}
    for record in records:
        if record.error is not None:
            kinds[record.error] += 1
            examples.setdefault(record.error, record.message)
    sum_prompt, sum_output = (
        sum(record.prompt_tokens for record in good),
        sum(record.output_tokens for record in good),
    )
    sum_texts = sum(record.num_texts for record in good)
    num_pieces = sum(len(record.arrivals) for record in streamed)
    gaps = [np.diff(np.frombuffer(record.arrivals)) for record in streamed]
    return Summary(
        num_requests=len(records),
        num_failed=len(records) - len(good),
        errors=dict(kinds.most_common()),
        error_examples=examples,
        num_without_usage=sum(not record.has_usage for record in good),
        requests_per_s=len(good) / seconds,
        output_tokens_per_s=sum_output / seconds,
        total_tokens_per_s=(sum_prompt + sum_output) / seconds,
        texts_per_s=sum_texts / seconds,
        sum_prompt_tokens=sum_prompt,
        sum_cached_tokens=sum(record.cached_tokens for record in good),
        sum_output_tokens=sum_output,
        sum_wanted_tokens=sum(record.wanted_tokens for record in good),
        sum_texts=sum_texts,
        tokens_per_piece=sum(record.output_tokens for record in streamed) / num_pieces if num_pieces else 0.0,
        ttft_ms=distribution([1000 * (record.arrivals[0] - record.start) for record in streamed]),
        itl_ms=distribution(1000 * np.concatenate(gaps)) if gaps else None,
        tpot_ms=distribution(
            [
                1000 * (record.arrivals[-1] - record.arrivals[0]) / (record.output_tokens - 1)
                for record in streamed
                if record.output_tokens > 1
            ]
        ),
        latency_ms=distribution([1000 * (record.end - record.start) for record in good]),
        prompt_tokens=distribution([record.prompt_tokens for record in good if record.has_usage]),
        output_tokens=distribution([record.output_tokens for record in generated]),
    )


def timeline(records: Iterable[Record], start: float, seconds: float) -> Timeline:
    """Throughput in equal intervals from `start` on.

    The tokens of a streamed answer count when their piece arrives, each piece as its answer's average; everything
    else counts at its end.
    """
    times: list[float] = []
    tokens: list[float] = []
    ends: list[float] = []
    texts: list[float] = []
    for record in records:
        if record.error is not None:
            continue
        ends.append(record.end)
        texts.append(record.num_texts)
        arrivals: Sequence[float] = record.arrivals or [record.end]
        times.extend(arrivals)
        tokens.extend([record.output_tokens / len(arrivals)] * len(arrivals))
    interval = seconds / _NUM_INTERVALS

    def per_second(when: list[float], amounts: list[float]) -> list[float]:
        sums, _ = np.histogram(when, _NUM_INTERVALS, (start, start + seconds), weights=amounts)
        rates: list[float] = (sums / interval).tolist()
        return rates

    return Timeline(interval, per_second(times, tokens), per_second(ends, texts))
