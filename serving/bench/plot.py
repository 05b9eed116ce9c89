"""Draws one or more runs: distributions of their latencies and throughput over time, as one PNG."""

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from .document import Distribution, RunDocument

_DISTRIBUTIONS = {"ttft_ms": "time to first token", "itl_ms": "inter-token latency", "latency_ms": "latency"}


def write_plot(documents: Sequence[RunDocument], path: Path) -> None:
    """Write a PNG with four panels: cumulative distributions of three latencies, and throughput.

    Args:
        documents: runs to draw over each other.
        path: where the PNG goes.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg  # slow to import, and most runs draw nothing
    from matplotlib.figure import Figure
    from matplotlib.ticker import LogFormatter

    figure = Figure(figsize=(11, 8), layout="constrained")
    FigureCanvasAgg(figure)
    axes = list(figure.subplots(2, 2).flat)
    percents = np.linspace(0, 100, 201)
    for panel, (key, title) in zip(axes, _DISTRIBUTIONS.items(), strict=False):
        for name, found in _distributions(documents, key):
            # Pieces that arrive together are 0 ms apart, which a logarithmic axis cannot show.
            panel.plot(np.maximum(found.quantiles, 0.01), percents, label=name)
        panel.set(title=title, xlabel="ms", ylabel="% of samples at or below", xscale="log", ylim=(0, 100))
        panel.xaxis.set_major_formatter(LogFormatter())  # 20 rather than 2 x 10^1
        panel.xaxis.set_minor_formatter(LogFormatter())
    throughput = axes[3]
    for document in documents:
        seconds = document.timeline.interval_s * (np.arange(len(document.timeline.texts_per_s)) + 0.5)
        for unit, rates in (
            ("tokens/s", document.timeline.output_tokens_per_s),
            ("texts/s", document.timeline.texts_per_s),
        ):
            if any(rates):
                throughput.plot(seconds, rates, label=f"{document.label}, {unit}")
    throughput.set(title="throughput", xlabel="s since the start", ylabel="per second")
    throughput.set_ylim(bottom=0)
    for panel in axes:
        panel.grid(alpha=0.3)
        if panel.lines:
            panel.legend(fontsize="small")
    figure.savefig(path, format="png", dpi=120)


def _distributions(documents: Sequence[RunDocument], key: str) -> Iterator[tuple[str, Distribution]]:
    for document in documents:
        for endpoint, summary in document.endpoints.items():
            found: Distribution | None = getattr(summary, key)
            if found is not None:
                yield f"{document.label}, {endpoint}", found
