"""Start, watch and stop the engine's processes; imports neither torch nor ZeroMQ, so that the front may use it."""

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO, Any

from .config import EngineConfig, ModelSpec, WorkerConfig
from .errors import ModelLoadError

DEVICE_FAILED_STATUS = 70
"""Exit status of a worker whose device computes nothing any more; another one may find it working."""

Progress = Callable[[str, float], None]


def dump_config(config: WorkerConfig) -> str:
    """The configuration as the worker's one command-line argument."""
    return json.dumps(asdict(config))


def load_config(text: str) -> WorkerConfig:
    """Inverse of `dump_config`."""
    raw: dict[str, Any] = json.loads(text)
    return WorkerConfig(
        address=raw["address"],
        engine=EngineConfig(**raw["engine"]),
        models=tuple(ModelSpec(**model) for model in raw["models"]),
        log_level=raw["log_level"],
        flight_record=raw["flight_record"],
    )


@dataclass(slots=True)
class WorkerProcess:
    """A running device worker. It ends by itself when this process, which holds its standard input, ends."""

    process: "subprocess.Popen[bytes]"
    config: WorkerConfig

    @property
    def pid(self) -> int:
        """Process id."""
        return self.process.pid

    def stop(self, timeout: float = 10.0) -> int:
        """Ask it to end, wait, and kill it after `timeout` seconds. Returns its exit status."""
        if self.process.poll() is None:
            self.process.terminate()
            try:
                self.process.wait(timeout)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()
        if self.process.stdin is not None:
            self.process.stdin.close()
        return self.process.returncode


def start_worker(config: WorkerConfig, *, stderr: IO[bytes] | None = None) -> WorkerProcess:
    """Start the device worker of `config` and return at once; it reports its models over `config.address`."""
    environment = dict(os.environ)
    environment.setdefault("USE_HUB_KERNELS", "NO")  # they would replace layers behind our back
    # OpenMP threads spin for microseconds between two operations of a step, then sleep: sleeping at once doubles the
    # time of a step, and libgomp's own default spins for so long that it takes the front's processor time.
    environment.setdefault("GOMP_SPINCOUNT", "10000")
    # Weights and KV memory in pages of 2 MB, where the system leaves that to programs: on a virtual machine, whose page
    # walks are long, one thread then reads 36 GB/s of a large tensor instead of 21.
    environment.setdefault("THP_MEM_ALLOC_ENABLE", "1")
    process = subprocess.Popen(
        [sys.executable, "-m", "penstock.scheduler.worker", dump_config(config)],
        stdin=subprocess.PIPE,
        stderr=stderr,
        env=environment,
        start_new_session=True,  # Ctrl-C reaches the front alone, which then stops the worker in order
    )
    return WorkerProcess(process, config)


def convert_gguf(source: Path, destination: Path, progress: Progress | None = None) -> None:
    """Dequantise a GGUF file into a folder of safetensors and tokenizer.json, in a process of its own.

    Args:
        source: the file.
        destination: the folder, which must not exist.
        progress: gets the stage in words and the share of all stages that is done, 0 to 1.

    Raises:
        ModelLoadError: with the converter's last words.
    """
    _run_tool("penstock.scheduler.models.convert_gguf", source, destination, progress=progress)


def convert_tokenizer(source: Path) -> None:
    """Write `tokenizer.json` into a model folder that only has a slow tokenizer, in a process of its own.

    Raises:
        ModelLoadError: with the converter's last words.
    """
    _run_tool("penstock.scheduler.models.convert_tokenizer", source)


def _run_tool(module: str, *arguments: Path, progress: Progress | None = None) -> None:
    """Run a module as a program; of its output, lines `PROGRESS fraction stage` are for `progress`."""
    command = [sys.executable, "-m", module, *map(str, arguments)]
    last_words = ""
    with (
        tempfile.TemporaryFile("w+", errors="replace") as errors,  # a second pipe could fill up while nobody reads it
        subprocess.Popen(command, stdout=subprocess.PIPE, stderr=errors, text=True, errors="replace") as tool,
    ):
        assert tool.stdout is not None
        try:
            for line in tool.stdout:
                match line.split(maxsplit=2):
                    case ["PROGRESS", fraction, stage]:
                        if progress is not None:
                            progress(stage.rstrip(), float(fraction))
                    case [*words]:
                        last_words = " ".join(words) or last_words
        except BaseException:
            tool.kill()
            raise
        tool.wait()
        errors.seek(0)
        said = errors.read().strip().splitlines()
    if tool.returncode != 0:
        raise ModelLoadError(said[-1] if said else last_words or f"{module} ended with status {tool.returncode}")
