"""Loads models in a thread of their own, one at a time, while the engine's thread goes on stepping.

Everything that takes long happens here: reading, checking and packing weights, and the first steps. The engine's thread
asks for models, and when it was woken takes the news: progress, a runner to install, or why there is none.
"""

import os
import sys
import threading
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from logging import getLogger

import torch

from . import device
from .config import EngineConfig, ModelKind, ModelSpec
from .embedding import EmbeddingRunner
from .encoder import EncoderRunner
from .engine import Runner
from .errors import ModelLoadError, ModelMemoryError
from .messages import ModelFailed, ModelLoading
from .models.weights import loaded_bytes
from .runner import GenerationRunner
from .scoring import ScoringRunner

logger = getLogger(__name__)

News = ModelLoading | ModelFailed | Runner

_RUNNERS: dict[ModelKind, type[GenerationRunner] | type[EncoderRunner]] = {
    "generate": GenerationRunner,
    "embed": EmbeddingRunner,
    "score": ScoringRunner,
}

# Reading weights is Python code, which keeps the interpreter for 5 ms each time the engine's thread wants it back, that
# is before each of the hundreds of operations of a step.
_SWITCH_INTERVAL = 1e-4
_NICENESS = 10  # the engine's threads go first where processors are few
_WORKSPACE = 1.1  # the largest weight is there twice while it is packed
_REPORT_STEP = 0.01


@dataclass(slots=True, eq=False)
class _Job:
    spec: ModelSpec
    num_threads: int
    num_bytes: int = 0
    cancelled: bool = False


class _Cancelled(BaseException):
    """Ends the loading of a model that nobody wants any more; no error, so nothing may catch it as one."""


class ModelLoader:
    """The models that wait to be loaded and the one that is."""

    def __init__(self, config: EngineConfig, wake: Callable[[], None]) -> None:
        """`config` is resolved; `wake` is called in the loader's thread when there is news."""
        self._config = config
        self._wake = wake
        self._jobs: list[_Job] = []
        """Asked for and not yet reported as done; the first is being loaded."""
        self._queue: deque[_Job] = deque()
        self._news: deque[tuple[_Job, News]] = deque()
        self._lock = threading.Lock()
        self._is_running = False

    # ------------------------------------------------------------------------------------------- the engine's thread

    def load(self, spec: ModelSpec, *, num_threads: int) -> bool:
        """Queue a model; False if it is on its way already."""
        if self.is_loading(spec.name):
            return False
        job = _Job(spec, num_threads)
        self._jobs.append(job)
        with self._lock:
            self._queue.append(job)
            must_start, self._is_running = not self._is_running, True
        if must_start:
            threading.Thread(target=self._run, name="model-loader", daemon=True).start()
        return True

    def is_loading(self, name: str) -> bool:
        """Whether the model was asked for and neither its runner nor its failure was taken."""
        return any(job.spec.name == name and not job.cancelled for job in self._jobs)

    def cancel(self, name: str) -> None:
        """Forget a model that is on its way: no news of it follows."""
        for job in self._jobs:
            if job.spec.name == name:
                job.cancelled = True

    def missing_bytes(self, spec: ModelSpec) -> int:
        """Memory that must become free before a model can be loaded."""
        needed = int(_estimate(spec, self._config) * _WORKSPACE)
        return max(0, needed - device.memory_for_weights(self._config.device)) if needed else 0

    @property
    def wanted_bytes(self) -> int:
        """Memory that the models on their way need to be loaded."""
        jobs = [job for job in self._jobs if not job.cancelled]
        return int(sum(job.num_bytes or _estimate(job.spec, self._config) for job in jobs) * _WORKSPACE)

    def take_news(self) -> list[News]:
        """What has happened since the last call: of each model's progress only the newest."""
        news: list[News] = []
        while self._news:
            job, item = self._news.popleft()
            if not isinstance(item, ModelLoading):
                self._jobs.remove(job)
            if job.cancelled:
                continue
            if news and isinstance(news[-1], ModelLoading) and news[-1].name == job.spec.name:
                news.pop()
            news.append(item)
        return news

    # ------------------------------------------------------------------------------------------- the loader's thread

    def _run(self) -> None:
        """Load until nobody waits.

        Then the thread ends, and with it OpenMP's threads that are its own. As long as there are more of those than
        processors, OpenMP sends waiting ones to sleep at once, and every step of the engine takes half as long again.
        """
        if sys.platform == "linux":  # where a thread has a niceness of its own
            os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), _NICENESS)
        while True:
            with self._lock:
                if not self._queue:
                    self._is_running = False
                    return
                job = self._queue.popleft()
            usual_interval = sys.getswitchinterval()
            sys.setswitchinterval(_SWITCH_INTERVAL)
            item = self._load(job)
            sys.setswitchinterval(usual_interval)
            self._tell(job, item)
            del item  # the engine's thread decides how long a runner lives

    def _load(self, job: _Job) -> News:
        """The runner of a job, or why there is none."""
        name = job.spec.name
        last = ("", -1.0)

        def progress(stage: str, fraction: float) -> None:
            nonlocal last
            if job.cancelled:
                raise _Cancelled
            if stage != last[0] or fraction - last[1] >= _REPORT_STEP:
                last = (stage, fraction)
                self._tell(job, ModelLoading(name, stage, fraction))

        try:
            torch.set_num_threads(job.num_threads)  # of this thread; the engine's keeps its own
            progress("reading weights", 0.0)
            job.num_bytes = _estimate(job.spec, self._config)
            check_memory(name, job.num_bytes, self._config.device)
            return load_runner(job.spec, self._config, progress)
        except _Cancelled:
            return ModelFailed(name, "cancelled")
        except (ModelMemoryError, torch.OutOfMemoryError, MemoryError) as error:
            return ModelFailed(name, str(error) or "out of memory", code="out_of_memory")
        except ModelLoadError as error:
            code = "out_of_memory" if isinstance(error.__cause__, torch.OutOfMemoryError) else "load_failed"
            return ModelFailed(name, str(error), code)
        except (Exception, SystemExit) as error:  # a model's own code must not end the thread, nor a broken file
            logger.exception("loading %s failed", name)
            return ModelFailed(name, f"{type(error).__name__}: {error}")

    def _tell(self, job: _Job, item: News) -> None:
        self._news.append((job, item))
        self._wake()


def load_runner(
    spec: ModelSpec, config: EngineConfig, progress: Callable[[str, float], None] = lambda stage, fraction: None
) -> Runner:
    """Load, check and warm up one model; may run in any thread.

    Raises:
        ModelLoadError: with the reason.
    """
    return _RUNNERS[spec.kind].load(spec, config, progress)


def check_memory(name: str, num_bytes: int, device_name: str) -> None:
    """Refuse a model whose `num_bytes` of weights would push others out of memory.

    Raises:
        ModelMemoryError: it would fit if other models were unloaded.
        ModelLoadError: it never fits on this device.
    """
    needed = int(num_bytes * _WORKSPACE)
    total, free = device.total_memory(device_name), device.memory_for_weights(device_name)
    if needed > total:
        raise ModelLoadError(
            f"{name} needs {needed / 2**30:.1f} GiB, but the device has {total / 2**30:.1f} GiB; take a smaller model"
        )
    if needed > free:
        raise ModelMemoryError(
            f"{name} needs {needed / 2**30:.1f} GiB, but only {max(0, free) / 2**30:.1f} GiB of the device are free; "
            "unload another model"
        )


def _estimate(spec: ModelSpec, config: EngineConfig) -> int:
    try:
        return loaded_bytes(spec, config.device)
    except (OSError, ValueError):  # loading will say what is wrong with the folder
        return 0
