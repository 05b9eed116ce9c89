"""Makes the document of a finished run and shows it as a table on the terminal."""

from datetime import UTC, datetime

from rich.console import Console
from rich.table import Table
from rich.text import Text

from .document import VERSION, Distribution, RunDocument, Summary
from .machine import this_machine
from .processes import RunResult
from .prompts import WordCost
from .settings import BenchSettings, EndpointName
from .summary import summarise, timeline

# Above this share of one core the client itself delays what it measures.
_BUSY_CLIENT = 0.8
# Answers this much shorter than asked for, on average, mean that the server ends them itself.
_SHORT_ANSWERS = 0.98

DISTRIBUTIONS = {
    "ttft_ms": "time to first token, ms",
    "itl_ms": "inter-token latency, ms",
    "tpot_ms": "time per output token, ms",
    "latency_ms": "latency, ms",
    "prompt_tokens": "prompt tokens",
    "output_tokens": "output tokens",
}
RATES = {
    "requests_per_s": "requests/s",
    "output_tokens_per_s": "output tokens/s",
    "total_tokens_per_s": "total tokens/s",
    "texts_per_s": "texts/s",
}


def make_document(
    settings: BenchSettings,
    costs: dict[EndpointName, WordCost],
    warnings: list[str],
    result: RunResult,
    *,
    label: str,
    command: str,
) -> RunDocument:
    """The document of a finished run.

    Args:
        settings: the run's.
        costs: what calibration found.
        warnings: what calibration had to say.
        result: the records, at least one.
        label: the user's name for the run; empty: the model's.
        command: the command line, to be published: without the key.
    """
    seconds = max(record.end for record in result.records) - result.start
    total = summarise(result.records, seconds)
    endpoints = {
        endpoint: summarise((record for record in result.records if record.endpoint == endpoint), seconds)
        for endpoint in dict.fromkeys(settings.endpoints)
    }
    return RunDocument(
        version=VERSION,
        label=label or settings.model,
        command=command,
        date=datetime.now(UTC).isoformat(timespec="seconds"),
        machine=this_machine(),
        settings=settings.public(),
        calibration={str(endpoint): cost for endpoint, cost in costs.items()},
        warnings=warnings + _warnings(settings, total, result.client_load),
        duration_s=seconds,
        client_load=result.client_load,
        total=total,
        endpoints={str(endpoint): summary for endpoint, summary in endpoints.items()},
        timeline=timeline(result.records, result.start, seconds),
    )


def _warnings(settings: BenchSettings, total: Summary, client_load: float) -> list[str]:
    warnings = []
    if client_load > _BUSY_CLIENT:
        warnings.append(
            f"a client process used {client_load:.0%} of a core, so the client is part of what was measured: "
            f"raise --processes above {settings.processes}"
        )
    if total.num_without_usage:
        warnings.append(f"{total.num_without_usage} answers had no usage object: pieces of output stand in for tokens")
    elif settings.ignore_eos and total.sum_output_tokens < _SHORT_ANSWERS * total.sum_wanted_tokens:
        warnings.append(
            f"{total.sum_output_tokens} output tokens came of {total.sum_wanted_tokens} asked for: the server does "
            "not honour ignore_eos, or the model's context is too short"
        )
    return warnings


def print_document(document: RunDocument, console: Console) -> None:
    """Show a run: one table, then errors and warnings."""
    total, settings = document.total, document.settings
    arrival = f"{settings['concurrency']} at a time" if settings["concurrency"] else f"{settings['request_rate']:g}/s"
    caption = (
        f"{total.num_requests - total.num_failed} of {total.num_requests} requests in {document.duration_s:.1f} s, "
        f"{arrival}, seed {settings['seed']}\n{document.machine}"
    )
    table = Table(title=f"{document.label} at {settings['url']}", caption=caption)
    table.add_column("")
    for heading in ("mean", "p50", "p90", "p99", "max"):
        table.add_column(heading, justify="right")
    mixed = len(document.endpoints) > 1
    for endpoint, summary in document.endpoints.items():
        for key, name in DISTRIBUTIONS.items():
            found: Distribution | None = getattr(summary, key)
            if found is not None:
                cells = (found.mean, found.p50, found.p90, found.p99, found.max)
                table.add_row(f"{endpoint}: {name}" if mixed else name, *map(number, cells))
        table.add_section()
    for key, name in RATES.items():
        if rate := getattr(total, key):
            table.add_row(name, number(rate))
    console.print(table)
    for kind, how_often in total.errors.items():
        console.print(Text(f"{how_often} × {kind}: {total.error_examples[kind]}", style="red"))
    for warning in document.warnings:
        console.print(Text(f"note: {warning}", style="yellow"))


def number(value: float) -> str:
    """Three or four significant digits, and no exponent."""
    decimals = 0 if abs(value) >= 1000 else 1 if abs(value) >= 100 else 2
    return f"{value:,.{decimals}f}"
