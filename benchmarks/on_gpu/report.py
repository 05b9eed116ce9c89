"""What a run of the benchmark leaves behind: one JSON, one plot, and tables that print last."""

import json
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

Section = dict[str, Any]


def print_tables(sections: dict[str, Section], console: Console) -> None:
    """One table a section; a section that failed says why."""
    for name, section in sections.items():
        if error := section.get("error"):
            console.print(f"\n[bold]{name}[/bold]: failed\n{error}")
            continue
        rows: list[dict[str, Any]] = section["rows"]
        table = Table(title=f"{name}  ({section['seconds']:.0f} s)", title_justify="left")
        columns = list(dict.fromkeys(column for row in rows for column in row))
        for column in columns:
            table.add_column(column, justify="left" if column == columns[0] else "right")
        for row in rows:
            table.add_row(*(_cell(row.get(column, "")) for column in columns))
        console.print(table)


def markdown(sections: dict[str, Section]) -> str:
    """The same tables for a document."""
    parts = []
    for name, section in sections.items():
        if "rows" not in section or not section["rows"]:
            continue
        rows = section["rows"]
        columns = list(dict.fromkeys(column for row in rows for column in row))
        lines = [f"### {name}", "", f"| {' | '.join(columns)} |", f"|{'---|' * len(columns)}"]
        lines += [f"| {' | '.join(_cell(row.get(column, '')) for column in columns)} |" for row in rows]
        parts.append("\n".join(lines))
    return "\n\n".join(parts) + "\n"


def write(folder: Path, document: dict[str, Any]) -> None:
    """`gpu.json`, `gpu.md` and, if there are decode steps, `gpu.png`."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "gpu.json").write_text(json.dumps(document, indent=2) + "\n")
    (folder / "gpu.md").write_text(markdown(document["sections"]))
    steps = {
        name: section["rows"]
        for name, section in document["sections"].items()
        if name.startswith("decode steps") and "rows" in section
    }
    if steps:
        plot_steps(folder / "gpu.png", steps)


def plot_steps(path: Path, steps: dict[str, list[dict[str, Any]]]) -> None:
    """Step time against batch size, beside the floor, both axes logarithmic."""
    try:
        import matplotlib
    except ImportError:  # a bare GPU machine need not have it
        return
    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(7, 5))
    for name, rows in steps.items():
        batch = [row["B"] for row in rows]
        (line,) = axes.loglog(batch, [row["ms"] for row in rows], "o-", label=name)
        axes.loglog(batch, [row["floor ms"] for row in rows], "--", color=line.get_color(), label="its floor")
    axes.set(xlabel="requests in the batch", ylabel="milliseconds a step")
    axes.grid(True, which="both", alpha=0.3)
    axes.legend()
    figure.savefig(path, dpi=150, bbox_inches="tight")


def _cell(value: object) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)
