"""What people see while the models load and when they are ready: progress bars, one table, a line to try."""

import json
from collections.abc import Container, Iterable, Mapping
from contextlib import AbstractContextManager
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, Progress, SpinnerColumn, TaskID, TaskProgressColumn, TextColumn
from rich.table import Table

from penstock.scheduler.messages import ModelLoading, ModelReady


class LoadingBars(AbstractContextManager["LoadingBars"]):
    """One progress bar for each model, for as long as the context lasts."""

    def __init__(self, names: Iterable[str], console: Console) -> None:
        columns = (SpinnerColumn(), TextColumn("{task.description}"), BarColumn(), TaskProgressColumn())
        self._progress = Progress(*columns, TextColumn("{task.fields[stage]}"), console=console, transient=True)
        self._tasks: dict[str, TaskID] = {
            name: self._progress.add_task(name, total=1.0, stage="starting the worker") for name in names
        }

    def __enter__(self) -> "LoadingBars":
        self._progress.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._progress.stop()

    def update(self, loading: Mapping[str, ModelLoading], finished: Container[str]) -> None:
        """Show how far each model is."""
        for name, task in self._tasks.items():
            if name in finished:
                self._progress.update(task, completed=1.0, stage="done")
            elif (state := loading.get(name)) is not None:
                self._progress.update(task, completed=state.fraction, stage=state.stage)


def print_ready(
    models: Mapping[str, ModelReady],
    failures: Mapping[str, str],
    url: str,
    console: Console,
    *,
    reach: str,
    needs_key: bool,
) -> None:
    """Show what is served, what is not and why, and how to reach it.

    Args:
        models: those that can be used.
        failures: why others cannot.
        url: of the server, without /v1.
        console: where to show it.
        reach: from where it can be reached.
        needs_key: requests need an API key.
    """
    table = Table(title="Penstock", title_justify="left")
    for heading in ("Model", "Kind", "Device", "Dtype"):
        table.add_column(heading)
    for heading in ("Parameters", "Context", "KV blocks", "Max concurrency"):
        table.add_column(heading, justify="right")
    for model in models.values():
        table.add_row(model.name, _KINDS[model.kind], model.device, model.dtype, *_sizes(model))
    console.print(table, markup=False)
    for name, reason in failures.items():
        console.print(f"{name} is not served: {reason}", style="red", markup=False, highlight=False, soft_wrap=True)
    keys = "with an API key" if needs_key else "without API keys"
    lines = [f"Ready at {url}/v1 (for {reach}, {keys}; Ctrl-C stops it). Try:"]
    lines.append(example(models.values(), url, needs_key=needs_key))
    console.print("\n".join(lines), markup=False, highlight=False, soft_wrap=True)


_KINDS = {"generate": "chat", "embed": "embeddings", "score": "reranking"}


def _sizes(model: ModelReady) -> tuple[str, str, str, str]:
    """Parameters, context, KV blocks and concurrency, as text."""
    parameters = f"{model.num_parameters / 1e6:,.0f} M" if model.num_parameters < 1e9 else _billions(model)
    if not model.num_kv_blocks:
        return parameters, f"{model.max_model_len:,}", "–", "–"
    concurrency = min(model.max_num_seqs, model.num_kv_blocks * model.block_size / model.max_model_len)
    return (
        parameters,
        f"{model.max_model_len:,}",
        f"{model.num_kv_blocks:,} × {model.block_size} tokens",
        f"{concurrency:,.1f} at full context",
    )


def _billions(model: ModelReady) -> str:
    return f"{model.num_parameters / 1e9:,.1f} B"


def example(models: Iterable[ModelReady], url: str, *, needs_key: bool) -> str:
    """A command that asks the first chat model, or else the first other one, for something."""
    first = min(models, key=lambda model: model.kind != "generate")
    body: dict[str, object]
    match first.kind:
        case "generate":
            path, body = "chat/completions", {"messages": [{"role": "user", "content": "Name three rivers."}]}
        case "embed":
            path, body = "embeddings", {"input": ["rivers and turbines"]}
        case "score":
            path, body = "rerank", {"query": "What drives a turbine?", "documents": ["Water does.", "Rivers are long."]}
    payload = json.dumps({"model": first.name, **body})
    key = ' -H "Authorization: Bearer $PENSTOCK_API_KEY"' if needs_key else ""
    return f"curl {url}/v1/{path}{key} -H 'Content-Type: application/json' -d '{payload}'"
