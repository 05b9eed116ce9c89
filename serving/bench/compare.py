"""Shows two runs side by side, with the ratio of the second to the first."""

from collections.abc import Iterator

from rich.console import Console
from rich.table import Table
from rich.text import Text

from .document import RunDocument, Summary
from .report import DISTRIBUTIONS, RATES, number

_EXPECTED_TO_DIFFER = {"url", "model", "embedding_model"}


def print_comparison(first: RunDocument, second: RunDocument, console: Console) -> None:
    """One table of everything that both runs measured; settings that differ are named below it."""
    table = Table(title=f"A: {first.label} ({first.date})\nB: {second.label} ({second.date})")
    table.add_column("")
    for heading in ("A", "B", "B/A"):
        table.add_column(heading, justify="right")
    groups = [("", first.total, second.total, list(RATES))]
    groups += [
        (f"{endpoint}: ", summary, second.endpoints[endpoint], list(DISTRIBUTIONS))
        for endpoint, summary in first.endpoints.items()
        if endpoint in second.endpoints
    ]
    for prefix, a, b, keys in groups:
        for name, value_a, value_b, more_is_better in _rows(a, b, keys):
            table.add_row(prefix + name, number(value_a), number(value_b), _ratio(value_a, value_b, more_is_better))
        table.add_section()
    table.add_row("failed requests", str(first.total.num_failed), str(second.total.num_failed), "")
    console.print(table)
    for line in _differences(first, second):
        console.print(Text(f"note: {line}", style="yellow"))


def _rows(a: Summary, b: Summary, keys: list[str]) -> Iterator[tuple[str, float, float, bool | None]]:
    """Name, A's value, B's value, and whether more is better (None: it is neither)."""
    for key in keys:
        value_a, value_b = getattr(a, key), getattr(b, key)
        if key in RATES:
            if value_a or value_b:
                yield RATES[key], value_a, value_b, True
        elif value_a is not None and value_b is not None:
            name = DISTRIBUTIONS[key]
            if not key.endswith("_ms"):
                yield f"{name}, mean", value_a.mean, value_b.mean, None
                continue
            for statistic in ("mean", "p50", "p90", "p99"):
                yield f"{name}, {statistic}", getattr(value_a, statistic), getattr(value_b, statistic), False


def _ratio(a: float, b: float, more_is_better: bool | None) -> Text:
    if not a:
        return Text("-")
    ratio = b / a
    if more_is_better is None or 0.98 < ratio < 1.02:
        return Text(f"{ratio:.2f}")
    return Text(f"{ratio:.2f}", style="green" if (ratio > 1) == more_is_better else "red")


def _differences(first: RunDocument, second: RunDocument) -> Iterator[str]:
    for key in first.settings.keys() | second.settings.keys():
        a, b = first.settings.get(key), second.settings.get(key)
        if a != b and key not in _EXPECTED_TO_DIFFER:
            yield f"{key} differs: {a} against {b}"
    if first.machine != second.machine:
        yield f"the machines differ: {first.machine} against {second.machine}"
