"""Fetches models while the server runs: one job for a model, each a process of its own that runs `penstock pull`.

A process of its own keeps the Hub's client and pip out of the server, and ends with it. How far a job is can be seen on
the disk, so nothing is reported but its end.
"""

import asyncio
import json
import re
import sys
import time
import uuid
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from ..errors import ApiError
from .starter import STARTER_MODELS

_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
HUB_ADDRESS = "https://huggingface.co/"
MAX_RUNNING_JOBS = 4
MAX_REMEMBERED_JOBS = 100


@dataclass(slots=True)
class DownloadJob:
    """One model on its way to this machine."""

    job_id: str
    model: str
    folders: list[Path]
    """Where its files arrive."""
    started_at: float
    """Unix seconds."""
    status: Literal["downloading", "completed", "failed"] = "downloading"
    completed_at: float | None = None
    total_size_bytes: int | None = None
    error: str = ""

    def downloaded_bytes(self) -> int:
        """What has arrived; call it off the event loop."""
        if self.status == "completed" and self.total_size_bytes is not None:
            return self.total_size_bytes
        return sum(_size(folder) for folder in self.folders)


class Downloads:
    """The download jobs of one server.

    Args:
        home: where models are kept.
    """

    def __init__(self, home: Path) -> None:
        self._home = home
        self._jobs: dict[str, DownloadJob] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._processes: set[asyncio.subprocess.Process] = set()

    def start(self, model: str) -> DownloadJob:
        """Begin to fetch a model; a model that is on its way already keeps its job.

        Args:
            model: a starter's name, a Hub id, or the Hub's address of one.

        Raises:
            ApiError: 400 it is neither; 429 too many jobs run.
        """
        model = model.removeprefix(HUB_ADDRESS).strip("/")
        # Callers may not name files of the server, nor options of `penstock pull`.
        if model not in STARTER_MODELS and not _HUB_ID.fullmatch(model):
            raise ApiError(
                f"Invalid 'model': '{model:.200}' is neither a Hugging Face id (owner/name) nor a starter model "
                f"({', '.join(STARTER_MODELS)}).",
                code="invalid_value",
                param="model",
            )
        running = [job for job in self._jobs.values() if job.status == "downloading"]
        for job in running:
            if job.model == model:
                return job
        if len(running) >= MAX_RUNNING_JOBS:
            raise ApiError(
                f"{len(running)} downloads are running, the most at once. Try again when one is done.",
                status=429,
                code="rate_limit_exceeded",
                headers={"retry-after": "30"},
            )
        job = DownloadJob(f"job_{uuid.uuid4().hex}", model, _arrivals(self._home, model), time.time())
        self._remember(job)
        task = asyncio.create_task(self._run(job), name=f"download {model}")
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return job

    def get(self, job_id: str) -> DownloadJob:
        """A job, running or done.

        Raises:
            ApiError: 404 there is none of that id.
        """
        try:
            return self._jobs[job_id]
        except KeyError:
            raise ApiError(
                f"There is no download job '{job_id:.100}'. Jobs are forgotten when the server ends.",
                status=404,
                code="job_not_found",
                param="job_id",
            ) from None

    async def close(self) -> None:
        """End the jobs that still run."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def kill(self) -> None:
        """End them at once; nothing of this object is used after that."""
        for process in self._processes:
            with suppress(ProcessLookupError):
                process.kill()

    def _remember(self, job: DownloadJob) -> None:
        done = [old for old in self._jobs.values() if old.status != "downloading"]
        if len(self._jobs) >= MAX_REMEMBERED_JOBS and done:
            del self._jobs[done[0].job_id]
        self._jobs[job.job_id] = job

    async def _run(self, job: DownloadJob) -> None:
        command = [sys.executable, "-m", "penstock.serving.cli", "pull", job.model, "--home", str(self._home), "--json"]
        pipe, process = asyncio.subprocess.PIPE, None
        try:
            process = await asyncio.create_subprocess_exec(
                *command, stdin=asyncio.subprocess.DEVNULL, stdout=pipe, stderr=pipe, start_new_session=True
            )
            self._processes.add(process)
            await _listen(process, job)
        except asyncio.CancelledError:
            job.status, job.error = "failed", "the server ended"
            if process is not None and process.returncode is None:
                process.kill()
                await process.wait()
            raise
        finally:
            job.completed_at = time.time()
            if process is not None:
                self._processes.discard(process)


async def _listen(process: asyncio.subprocess.Process, job: DownloadJob) -> None:
    """Note in `job` what `penstock pull` says, until it ends."""
    assert process.stdout is not None and process.stderr is not None
    errors = asyncio.create_task(process.stderr.read())
    async for line in process.stdout:
        job.total_size_bytes = json.loads(line).get("total_size_bytes", job.total_size_bytes)
    said = (await errors).decode(errors="replace").strip().splitlines()
    if await process.wait() == 0:
        job.status = "completed"
    else:
        job.status = "failed"
        job.error = said[-1].removeprefix("penstock pull: error: ") if said else "no reason was given"


def _arrivals(home: Path, model: str) -> list[Path]:
    """Where the files of a model arrive."""
    if model in STARTER_MODELS:
        return [home / "downloads", home / "models" / model]
    return [home / "hub" / f"models--{model.replace('/', '--')}" / "blobs"]


def _size(folder: Path) -> int:
    return sum(map(_file_size, folder.rglob("*"))) if folder.is_dir() else 0


def _file_size(file: Path) -> int:
    try:
        return file.lstat().st_size if file.is_file() else 0
    except OSError:  # it has just been put in its place
        return 0
