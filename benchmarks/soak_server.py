"""The server that `soak.py` loads: started with keys and models of its own, watched, and killed in part on purpose."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path

import psutil
from server_process import ServerProcess
from tiny_models import make_tiny, make_tiny_tokenizer

EMBEDDING_MODEL = "all-minilm-l6-v2"
JIT_MODEL = "soak-guest"
KEYS: dict[str, list[str]] = {
    "alice": ["--weight", "2"],
    "bob": [],
    "ingest": ["--scope", "embeddings"],
    "flooder": ["--requests-per-minute", "30", "--max-in-flight", "4"],
    "watcher": ["--scope", "admin"],
}
"""By name: arguments of `penstock keys add`."""


@dataclass(slots=True)
class Sample:
    """What the server's processes take at one moment."""

    seconds: float
    front_bytes: int
    """Resident memory of all API processes."""
    worker_bytes: int
    worker_pid: int
    num_files: int
    """Of the API processes: files, sockets and pipes."""
    num_threads: int


@dataclass(slots=True)
class Watched:
    """A running server and what was seen of it."""

    process: ServerProcess
    keys: dict[str, str]
    started: float = field(default_factory=time.monotonic)
    samples: list[Sample] = field(default_factory=list)
    kills: list[tuple[float, str]] = field(default_factory=list)
    """When, in seconds from the start, and what."""

    @property
    def now(self) -> float:
        """Seconds since the load began."""
        return time.monotonic() - self.started

    @property
    def num_workers(self) -> int:
        """Different workers that were seen."""
        return len({sample.worker_pid for sample in self.samples if sample.worker_pid})

    def sample(self) -> None:
        """Look at every process; one that goes meanwhile is left out."""
        front = worker = files = threads = worker_pid = 0
        for process, kind in self._processes():
            try:
                with process.oneshot():
                    if kind == "worker":
                        worker, worker_pid = process.memory_info().rss, process.pid
                    elif kind == "api":
                        front += process.memory_info().rss
                        files += process.num_fds()
                        threads += process.num_threads()
            except psutil.Error:
                continue
        self.samples.append(Sample(self.now, front, worker, worker_pid, files, threads))

    def send(self, kind: str, signum: int) -> None:
        """Send a signal to the worker ("worker"), or to an API process that is not the first ("sibling")."""
        for process, is_kind in reversed(self._processes()):
            if (kind == "worker" and is_kind == "worker") or (
                kind == "sibling" and is_kind == "api" and process.pid != self.process.pid
            ):
                self.kills.append((self.now, f"{signal.Signals(signum).name} to the {kind}"))
                process.send_signal(signum)
                return

    def _processes(self) -> list[tuple[psutil.Process, str]]:
        first = psutil.Process(self.process.pid)
        found = [(first, "api")]
        for child in first.children(recursive=True):
            try:
                words = child.cmdline()
            except psutil.Error:
                continue
            if "penstock.scheduler.worker" in words:
                found.append((child, "worker"))
            elif "penstock.serving.api_process" in words:
                found.append((child, "api"))
        return found


def chat_model(tiny: bool) -> str:
    """The name of the model that chats."""
    return "soak-chat" if tiny else "smollm2-135m-instruct"


def start(home: Path, *, tiny: bool, arguments: list[str]) -> Watched:
    """Start a server with a home of its own, into which the starter models are linked, and wait until it is ready."""
    from starter_models import minilm_folder, smollm2_folder

    models = home / "models"
    models.mkdir(parents=True)
    (models / EMBEDDING_MODEL).symlink_to(minilm_folder())
    if tiny:
        make_tiny_tokenizer(make_tiny("llama", models / chat_model(tiny), max_position_embeddings=4096))
    else:
        (models / chat_model(tiny)).symlink_to(smollm2_folder())
    make_tiny_tokenizer(make_tiny("qwen3", models / JIT_MODEL))
    keys = {name: _add_key(home, name, options) for name, options in KEYS.items()}
    process = ServerProcess(
        [chat_model(tiny), EMBEDDING_MODEL],
        home=home,
        arguments=["--dtype", "float32", "--idle-ttl", "15", *arguments],
        timeout=300,
    )
    return Watched(process.spawn().wait_until_ready(), keys)


def _add_key(home: Path, name: str, options: list[str]) -> str:
    done = subprocess.run(
        [sys.executable, "-m", "penstock.serving.cli", "keys", "add", name, *options, "--json"],
        env=os.environ | {"PENSTOCK_HOME": str(home)},
        capture_output=True,
        text=True,
        check=True,
    )
    key: str = json.loads(done.stdout)["key"]
    return key


def keep_log(watched: Watched, path: Path) -> None:
    """Copy what the server has printed."""
    shutil.copy(watched.process._log_file, path)
