"""Downloads while the server runs: one job for a model, its end told, hostile names refused, ended with the server."""

import asyncio
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from fake_engine import until

from penstock.serving.errors import ApiError
from penstock.serving.shelf import downloads
from penstock.serving.shelf.downloads import MAX_REMEMBERED_JOBS, MAX_RUNNING_JOBS, Downloads

GOOD = """print('{"status": "downloading", "total_size_bytes": 70}', flush=True)"""
BAD = "import sys; print('a warning\\npenstock pull: error: no such model', file=sys.stderr); sys.exit(1)"
LONG = "import time; time.sleep(60)"


@pytest.fixture
async def jobs(tmp_path: Path) -> AsyncIterator[Downloads]:
    downloads = Downloads(tmp_path)
    yield downloads
    await downloads.close()


@pytest.fixture
def commands(monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """The commands of the jobs, which run the program that their model is called after instead."""
    seen: list[list[str]] = []
    really_start = asyncio.create_subprocess_exec

    async def start(*command: str, **options: Any) -> asyncio.subprocess.Process:
        seen.append(list(command))
        program = {"good": GOOD, "bad": BAD, "long": LONG}[command[4].partition("/")[2].partition("-")[0]]
        return await really_start(sys.executable, "-c", program, **options)

    monkeypatch.setattr(downloads.asyncio, "create_subprocess_exec", start)
    return seen


async def test_a_job_runs_pull_and_tells_its_end(jobs: Downloads, commands: list[list[str]], tmp_path: Path) -> None:
    job = jobs.start("https://huggingface.co/org/good-1B")
    assert (job.status, job.model) == ("downloading", "org/good-1B") and jobs.get(job.job_id) is job
    blobs = tmp_path / "hub" / "models--org--good-1B" / "blobs"
    blobs.mkdir(parents=True)
    (blobs / "abc.incomplete").write_bytes(b"x" * 30)
    assert job.downloaded_bytes() == 30
    await until(lambda: job.status != "downloading")
    assert (job.status, job.total_size_bytes, job.downloaded_bytes()) == ("completed", 70, 70)
    assert job.completed_at is not None and job.completed_at >= job.started_at
    assert commands[0][1:] == ["-m", "penstock.serving.cli", "pull", "org/good-1B", "--home", str(tmp_path), "--json"]


async def test_a_failed_job_says_why_and_may_be_started_again(jobs: Downloads, commands: list[list[str]]) -> None:
    job = jobs.start("org/bad")
    await until(lambda: job.status == "failed")
    assert job.error == "no such model"
    assert jobs.start("org/bad") is not job


async def test_a_model_on_its_way_keeps_its_job_and_few_run_at_once(jobs: Downloads, commands: list[list[str]]) -> None:
    running = [jobs.start(f"org/long-{number}") for number in range(MAX_RUNNING_JOBS)]
    assert jobs.start("org/long-0") is running[0]
    with pytest.raises(ApiError, match="downloads are running") as caught:
        jobs.start("org/long-99")
    assert caught.value.status == 429 and caught.value.headers["retry-after"]
    await until(lambda: len(commands) == MAX_RUNNING_JOBS)
    await jobs.close()
    assert {job.status for job in running} == {"failed"}


@pytest.mark.parametrize("model", ["", "/etc", "--home", "a/b/c", "../models", "x.gguf", "https://example.org/a/b"])
async def test_only_hub_ids_and_starters_are_fetched(jobs: Downloads, model: str) -> None:
    with pytest.raises(ApiError, match="neither a Hugging Face id") as caught:
        jobs.start(model)
    assert (caught.value.status, caught.value.param) == (400, "model")


async def test_old_jobs_are_forgotten(jobs: Downloads, commands: list[list[str]], monkeypatch: Any) -> None:
    monkeypatch.setattr(downloads, "MAX_REMEMBERED_JOBS", 2)
    first = jobs.start("org/bad-1")
    await until(lambda: first.status == "failed")
    jobs.start("org/long-1")
    jobs.start("org/long-2")
    with pytest.raises(ApiError, match="no download job") as caught:
        jobs.get(first.job_id)
    assert caught.value.status == 404 and MAX_REMEMBERED_JOBS > 2
