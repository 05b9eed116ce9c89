"""Converts a GGUF file into a model folder with a progress bar; two servers that start at once may both try."""

from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, Progress, SpinnerColumn, TaskProgressColumn, TextColumn

from penstock.scheduler.errors import ModelLoadError
from penstock.scheduler.launch import convert_gguf


def convert_with_bar(source: Path, folder: Path, name: str, console: Console) -> None:
    """Make `folder` from the GGUF file `source`; `name` stands beside the bar.

    Raises:
        ModelLoadError: the file cannot be converted.
    """
    columns = (SpinnerColumn(), TextColumn("{task.description}"), BarColumn(), TaskProgressColumn())
    with Progress(*columns, TextColumn("{task.fields[stage]}"), console=console, transient=True) as bar:
        task = bar.add_task(f"Converting {name} (only this once)", total=1.0, stage="starting")

        def show(stage: str, fraction: float) -> None:
            bar.update(task, completed=fraction, stage=stage)

        try:
            convert_gguf(source, folder, show)
        except ModelLoadError:
            if not folder.is_dir():  # else another start of the server was faster, with the same result
                raise
