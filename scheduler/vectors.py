"""Puts the vectors of embedding jobs together, whose texts are computed in one step or in several."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from .messages import EmbeddingOutput
from .plan import EmbeddingBatch
from .scheduler import Scheduler


@dataclass(slots=True)
class _Unfinished:
    vectors: npt.NDArray[np.float32]  # [num inputs, dim]
    num_missing: int


class VectorCollector:
    """The vectors of unfinished jobs. What comes for a job that was cancelled or has failed is dropped."""

    def __init__(self, scheduler: Scheduler) -> None:
        self._scheduler = scheduler
        self._unfinished: dict[str, _Unfinished] = {}

    def add(self, batch: EmbeddingBatch, vectors: npt.NDArray[np.float32]) -> list[EmbeddingOutput]:
        """Take the `vectors` [inputs, dim] of a batch; the outputs of the jobs that they complete."""
        lane = self._scheduler.embedding_lanes[batch.model]
        rows_of: dict[str, list[int]] = {}
        for row, item in enumerate(batch.inputs):
            rows_of.setdefault(item.request_id, []).append(row)
        outputs = []
        for request_id, rows in rows_of.items():
            job = lane.unfinished.get(request_id)
            if job is None:
                continue
            if request_id not in self._unfinished:
                room = np.empty((job.num_inputs, vectors.shape[1]), np.float32)
                self._unfinished[request_id] = _Unfinished(room, job.num_inputs)
            state = self._unfinished[request_id]
            state.vectors[[batch.inputs[row].index for row in rows]] = vectors[rows]
            state.num_missing -= len(rows)
            if not state.num_missing:
                self.forget(request_id)
                self._scheduler.finish_embedding(job)
                outputs.append(EmbeddingOutput(request_id, vectors.shape[1], state.vectors.tobytes()))
        return outputs

    def forget(self, request_id: str) -> None:
        """The job is over."""
        self._unfinished.pop(request_id, None)
