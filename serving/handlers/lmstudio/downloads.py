"""Fetching models by LM Studio's routes: a job is begun, and asked for until it is done."""

import time
from dataclasses import dataclass
from datetime import UTC, datetime

from ...protocol.lmstudio.models import DownloadBody
from ...shelf.downloads import DownloadJob
from ..models import ModelsHandler
from ..services import Services


@dataclass(frozen=True, slots=True)
class NativeDownloadsHandler:
    """POST /api/v1/models/download and GET /api/v1/models/download/status/{job}."""

    services: Services

    async def start(self, body: DownloadBody) -> dict[str, object]:
        """Begin to fetch a model, unless it is here or on its way.

        Raises:
            ApiError: 400 it is neither a starter model nor one of the Hub; 429 too many downloads run.
        """
        job = await ModelsHandler(self.services).download(body.model)
        return {"status": "already_downloaded"} if job is None else _job(job)

    async def status(self, job_id: str) -> dict[str, object]:
        """How far a job is.

        Raises:
            ApiError: 404 there is none of that id.
        """
        job, num_bytes = await ModelsHandler(self.services).download_status(job_id)
        answer = _job(job) | {"downloaded_bytes": num_bytes}
        if job.status == "downloading":
            seconds = max(time.time() - job.started_at, 1e-3)
            speed = num_bytes / seconds
            answer["bytes_per_second"] = round(speed)
            if job.total_size_bytes is not None and speed > 0:
                left = max(0, job.total_size_bytes - num_bytes) / speed
                answer["estimated_completion"] = _moment(time.time() + left)
        return answer


def _job(job: DownloadJob) -> dict[str, object]:
    answer: dict[str, object] = {"job_id": job.job_id, "status": job.status, "started_at": _moment(job.started_at)}
    if job.total_size_bytes is not None:
        answer["total_size_bytes"] = job.total_size_bytes
    if job.completed_at is not None:
        answer["completed_at"] = _moment(job.completed_at)
    if job.error:
        answer["error"] = job.error
    return answer


def _moment(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
