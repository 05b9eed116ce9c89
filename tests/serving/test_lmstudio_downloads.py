"""LM Studio's routes for fetching models, over jobs whose process never runs."""

from datetime import datetime
from typing import Any

import pytest
from fake_engine import CHAT, open_front

from penstock.serving.shelf.downloads import DownloadJob, Downloads

MODEL = "owner/model"


@pytest.fixture
def job(monkeypatch: pytest.MonkeyPatch) -> DownloadJob:
    """The job that every download is."""
    job = DownloadJob("job_1", MODEL, [], started_at=1_700_000_000.0)
    monkeypatch.setattr(Downloads, "start", lambda self, model: job)
    monkeypatch.setattr(Downloads, "get", lambda self, job_id: job)
    return job


async def get_status(front: Any) -> dict[str, Any]:
    status: dict[str, Any] = (await front.http.get("/api/v1/models/download/status/job_1")).json()
    return status


async def test_a_job_from_its_start_to_its_end(job: DownloadJob, monkeypatch: pytest.MonkeyPatch) -> None:
    async with open_front() as front:
        started = (await front.post("/api/v1/models/download", {"model": MODEL})).json()
        assert started == {"job_id": "job_1", "status": "downloading", "started_at": "2023-11-14T22:13:20.000Z"}
        assert await get_status(front) == started | {"downloaded_bytes": 0, "bytes_per_second": 0}
        job.total_size_bytes = 1000
        monkeypatch.setattr(DownloadJob, "downloaded_bytes", lambda self: 900_000_000_000)
        status = await get_status(front)
        assert status["total_size_bytes"] == 1000 and status["bytes_per_second"] > 1000
        assert datetime.fromisoformat(status["estimated_completion"]).tzinfo is not None
        job.status, job.completed_at = "completed", job.started_at + 60
        status = await get_status(front)
        assert status["completed_at"] == "2023-11-14T22:14:20.000Z" and "bytes_per_second" not in status
        job.status, job.error = "failed", "the disk is full"
        assert (await get_status(front))["error"] == "the disk is full"


async def test_what_is_here_is_not_fetched() -> None:
    async with open_front() as front:
        answer = await front.post("/api/v1/models/download", {"model": CHAT})
        assert answer.json() == {"status": "already_downloaded"}


@pytest.mark.parametrize(
    ("body", "param"),
    [({}, "model"), ({"model": "../etc"}, "model"), ({"model": MODEL, "quantization": "Q4"}, "quantization")],
)
async def test_bad_requests(body: dict[str, Any], param: str) -> None:
    async with open_front() as front:
        response = await front.post("/api/v1/models/download", body)
        assert response.status_code == 400 and response.json()["error"]["param"] == param


async def test_an_unknown_job() -> None:
    async with open_front() as front:
        response = await front.http.get("/api/v1/models/download/status/none")
        assert response.status_code == 404 and response.json()["error"]["type"] == "job_not_found"
