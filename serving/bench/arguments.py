"""The options of `penstock bench`, and the settings that they mean."""

import argparse
import os
import secrets
from pathlib import Path
from urllib.parse import urlsplit

from .lengths import SHAREGPT_INPUTS, SHAREGPT_OUTPUTS, parse_lengths
from .settings import ENDPOINT_NAMES, BenchSettings

_DEFAULT_CONCURRENCY = 8
_DEFAULT_NUM_REQUESTS = 100


def make_parser() -> argparse.ArgumentParser:
    """The parser of `penstock bench`."""
    parser = argparse.ArgumentParser(
        prog="penstock bench",
        description="Load an OpenAI-compatible server and measure what its clients feel.",
        allow_abbrev=False,  # so that --api-key has one spelling, which the published command leaves out
    )
    where = parser.add_argument_group("where the load goes")
    where.add_argument("--url", default="http://127.0.0.1:1234", help="the server, with or without /v1")
    where.add_argument("--model", default="", help="model id")
    where.add_argument("--embedding-model", default="", metavar="MODEL", help="for embeddings, if another one")
    where.add_argument(
        "--endpoint",
        nargs="+",
        choices=ENDPOINT_NAMES,
        default=["chat"],
        help="several are mixed at random; one that is named twice is drawn twice as often",
    )
    known_key = os.environ.get("PENSTOCK_API_KEY") or os.environ.get("OPENAI_API_KEY", "")
    where.add_argument("--api-key", default=known_key, help="default: $PENSTOCK_API_KEY, or else $OPENAI_API_KEY")
    where.add_argument("--timeout", type=float, default=600.0, help="seconds one request may take")
    where.add_argument(
        "--keep-alive",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="reuse connections; some servers drop them after a stream",
    )
    _add_load_options(parser.add_argument_group("how much, and how it arrives"))
    _add_request_options(parser.add_argument_group("what each request looks like"))
    results = parser.add_argument_group("results")
    results.add_argument("--label", default="", help="name of the run in tables and plots; default: the model")
    results.add_argument("--json", type=Path, metavar="FILE", help="write the numbers; the schema is in document.py")
    results.add_argument("--plot", type=Path, metavar="FILE.png", help="draw latencies and throughput")
    results.add_argument(
        "--compare", nargs=2, type=Path, metavar=("A.json", "B.json"), help="send nothing, show two runs side by side"
    )
    return parser


def _add_load_options(group: "argparse._ArgumentGroup") -> None:
    arrival = group.add_mutually_exclusive_group()
    arrival.add_argument("--concurrency", type=int, help=f"requests in flight (default {_DEFAULT_CONCURRENCY})")
    arrival.add_argument("--request-rate", type=float, metavar="R", help="arrivals per second, a Poisson process")
    group.add_argument(
        "--burstiness",
        type=float,
        default=1.0,
        help="gamma shape of the gaps between arrivals: 1 Poisson, < 1 burstier",
    )
    group.add_argument("--num-requests", type=int, help=f"default {_DEFAULT_NUM_REQUESTS}, without limit if --duration")
    group.add_argument("--duration", type=float, default=0.0, metavar="S", help="start requests for this many seconds")
    group.add_argument("--warmup", type=int, default=0, metavar="N", help="requests sent first and not measured")
    group.add_argument("--processes", type=int, default=1, metavar="P", help="client processes that share the load")


def _add_request_options(group: "argparse._ArgumentGroup") -> None:
    lengths = "tokens: 64, uniform:100:1024 or sharegpt"
    group.add_argument("--input-len", default="128", metavar="LEN", help=f"{lengths}; without the chat template")
    group.add_argument("--output-len", default="128", metavar="LEN", help=lengths)
    group.add_argument("--shared-prefix-len", type=int, default=0, metavar="L", help="tokens, on top of --input-len")
    group.add_argument("--num-prefixes", type=int, default=1, metavar="K", help="shared prefixes to draw from")
    group.add_argument("--batch-size", type=int, default=1, help="texts in an embeddings request")
    group.add_argument(
        "--seed", type=int, help="repeats a run's requests; default: a new one, which no prefix cache has seen"
    )
    group.add_argument("--temperature", type=float, default=0.0)
    group.add_argument(
        "--ignore-eos",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="ask for answers of the full length; off for servers that refuse ignore_eos and min_tokens",
    )
    group.add_argument("--stream", action=argparse.BooleanOptionalAction, default=True)


def make_settings(options: argparse.Namespace) -> BenchSettings:
    """The settings that the options mean.

    Raises:
        ValueError: an option is out of its range.
    """
    _check(options)
    rate, concurrency, num_requests = options.request_rate, options.concurrency, options.num_requests
    if concurrency is None:
        concurrency = max(_DEFAULT_CONCURRENCY, options.processes) if rate is None else 0
    if num_requests is None:
        num_requests = 0 if options.duration else _DEFAULT_NUM_REQUESTS
    return BenchSettings(
        url=options.url.rstrip("/").removesuffix("/v1"),
        model=options.model,
        embedding_model=options.embedding_model,
        endpoints=tuple(options.endpoint),
        concurrency=concurrency,
        request_rate=rate or 0.0,
        burstiness=options.burstiness,
        num_requests=num_requests,
        duration=options.duration,
        warmup=options.warmup,
        processes=options.processes,
        input_len=parse_lengths(options.input_len, SHAREGPT_INPUTS),
        output_len=parse_lengths(options.output_len, SHAREGPT_OUTPUTS),
        shared_prefix_len=options.shared_prefix_len,
        num_prefixes=options.num_prefixes,
        batch_size=options.batch_size,
        seed=secrets.randbelow(2**31) if options.seed is None else options.seed,
        ignore_eos=options.ignore_eos,
        temperature=options.temperature,
        stream=options.stream,
        keep_alive=options.keep_alive,
        timeout=options.timeout,
        api_key=options.api_key,
    )


def _check(options: argparse.Namespace) -> None:
    def check(ok: bool, message: str) -> None:
        if not ok:
            raise ValueError(message)

    url = urlsplit(options.url)
    check(url.scheme in ("http", "https") and bool(url.hostname), f"--url {options.url} is no http(s) URL")
    check(url.password is None, "--url has a password in it, which would be published: use --api-key")
    check(bool(options.model), "--model is missing: give an id that the server's /v1/models lists")
    for name in ("concurrency", "num_requests", "processes", "num_prefixes", "batch_size"):
        value = getattr(options, name)
        check(value is None or value >= 1, f"--{name.replace('_', '-')} is {value}, but must be at least 1")
    for name in ("duration", "warmup", "shared_prefix_len", "temperature"):
        value = getattr(options, name)
        check(value >= 0, f"--{name.replace('_', '-')} is {value}, but must not be negative")
    for name in ("request_rate", "burstiness", "timeout"):
        value = getattr(options, name)
        check(value is None or value > 0, f"--{name.replace('_', '-')} is {value}, but must be more than 0")
    check(
        options.concurrency is None or options.concurrency >= options.processes,
        f"--concurrency is {options.concurrency}, but each of {options.processes} processes needs a request to send: "
        "lower --processes",
    )
    for path in filter(None, (options.json, options.plot)):  # before the run, which may take long
        check(path.parent.is_dir(), f"{path}: there is no folder {path.parent}")
