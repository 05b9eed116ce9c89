"""The command `penstock bench`: runs the load or compares two runs, shows the result and returns the exit status.

Exit status: 0 if any request succeeded, 1 if none did or the server cannot be reached, 2 for wrong arguments, 130
after Ctrl-C.
"""

import argparse
import asyncio
import shlex
import time

import uvloop
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

from . import load
from .arguments import make_parser, make_settings
from .calibration import CalibrationError, calibrate
from .compare import print_comparison
from .document import read_document, write_document
from .plot import write_plot
from .processes import ClientProcessError, RunResult, run_processes
from .prompts import WordCost
from .report import make_document, print_document
from .settings import BenchSettings, EndpointName


def run(arguments: list[str]) -> int:
    """`penstock bench` with these arguments; returns the exit status and prints everything else."""
    try:
        options = make_parser().parse_args(arguments)
    except SystemExit as end:  # argparse has printed the help, or what is wrong
        return 2 if end.code else 0
    try:
        if options.compare:
            return _compare(options)
        return _bench(make_settings(options), options, public_command(arguments))
    except (CalibrationError, ClientProcessError) as error:
        return _fail(error, 1)
    except (OSError, ValueError) as error:  # a wrong option, or a file that cannot be read or written
        return _fail(error, 2)
    except KeyboardInterrupt:
        return 130


def _fail(error: Exception, status: int) -> int:
    Console(stderr=True).print(f"penstock bench: {error}", style="red", markup=False, highlight=False)
    return status


def public_command(arguments: list[str]) -> str:
    """The command line with the key left out."""
    shown = list(arguments)
    for index, argument in enumerate(arguments):
        if argument == "--api-key" and index + 1 < len(shown):
            shown[index + 1] = "..."
        elif argument.startswith("--api-key="):
            shown[index] = "--api-key=..."
    return shlex.join(["penstock", "bench", *shown])


def _compare(options: argparse.Namespace) -> int:
    first, second = (read_document(path) for path in options.compare)
    print_comparison(first, second, Console())
    if options.plot:
        write_plot([first, second], options.plot)
    return 0


def _bench(settings: BenchSettings, options: argparse.Namespace, command: str) -> int:
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        costs, warnings = runner.run(calibrate(settings))
    result = _run_with_progress(settings, costs)
    document = make_document(settings, costs, warnings, result, label=options.label, command=command)
    print_document(document, Console())
    if options.json:
        write_document(document, options.json)
    if options.plot:
        write_plot([document], options.plot)
    return 0 if document.total.num_failed < document.total.num_requests else 1


def _run_with_progress(settings: BenchSettings, costs: dict[EndpointName, WordCost]) -> RunResult:
    console = Console(stderr=True)
    columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.fields[state]}"), TimeElapsedColumn())
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task("warming up", total=None, state="")
        start = 0.0

        def on_start() -> None:
            nonlocal start
            start = time.monotonic()
            bar.reset(task, total=settings.num_requests or settings.duration, description="running")

        def on_progress(progress: load.Progress) -> None:
            elapsed = time.monotonic() - start
            rate = progress.output_tokens / elapsed
            bar.update(
                task,
                completed=progress.num_done if settings.num_requests else elapsed,
                state=f"{progress.num_done} done, {progress.num_in_flight} in flight, {progress.num_failed} failed, "
                f"{rate:.0f} tokens/s",
            )

        return run_processes(settings, costs, on_start, on_progress)
