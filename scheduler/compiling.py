"""Compiles the grammars of submitted jobs in other threads, while the worker's own goes on stepping the engine.

A job waits here until its grammar is ready. The same grammar is compiled once for all jobs that wait for it, and those
that the compiler remembers do not wait at all. Principals take turns, and each has one thread at most, so that nobody's
grammar waits for all those of another one.
"""

import threading
from collections import deque
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from queue import Empty, SimpleQueue

from .errors import QueueFullError, RequestError
from .grammar import Grammar, GrammarCompiler, check_size, invalid_grammar
from .grammar_trial import Trial, deep_stack
from .messages import Submit

_NUM_THREADS = 2  # one hostile grammar keeps one of them busy for some seconds
MAX_PENDING = 64
"""Different grammars that are being compiled or wait for it; most take some milliseconds."""
MAX_PENDING_OF_ONE = 16
"""Of one principal."""
_RETRY_AFTER = 5.0  # seconds

Outcome = Grammar | RequestError


@dataclass(slots=True, eq=False)
class _Compilation:
    """One grammar being compiled for a model, and the jobs that wait for it by request id."""

    compiler: GrammarCompiler
    source: str
    jobs: dict[str, Submit] = field(default_factory=dict)
    outcome: Outcome | None = None
    has_begun: bool = False


class GrammarQueue:
    """Jobs whose grammars are being compiled, each id once. All methods are for one thread."""

    def __init__(self, wake: Callable[[], None]) -> None:
        """`wake` is called in other threads when `take_finished` has something."""
        self._wake = wake
        self._threads = ThreadPoolExecutor(_NUM_THREADS, "grammars")
        self._lock = threading.Lock()
        self._turns: dict[str, deque[_Compilation]] = {}  # what waits, by principal; the next turn is the first one's
        self._compiling: set[str] = set()  # principals
        self._trials: SimpleQueue[Trial] = SimpleQueue()
        for _ in range(_NUM_THREADS):
            self._trials.put(Trial())
        self._pending: dict[tuple[GrammarCompiler, str], _Compilation] = {}
        self._compilation_of: dict[str, _Compilation] = {}  # by request id
        self._finished: SimpleQueue[_Compilation] = SimpleQueue()

    def add(self, job: Submit, compiler: GrammarCompiler) -> None:
        """Compile the job's grammar; it comes back from `take_finished`, unless it is cancelled.

        Raises:
            RequestError: the grammar is too large.
            QueueFullError: too many are being compiled, of this principal or of all.
        """
        source = job.sampling.grammar
        check_size(source)
        compilation = self._pending.get((compiler, source))
        if compilation is None:
            if not job.is_resumed:
                self._check_room(job.principal)
            compilation = self._pending[compiler, source] = _Compilation(compiler, source)
        compilation.jobs[job.request_id] = job
        self._compilation_of[job.request_id] = compilation
        with self._lock:
            if not compilation.has_begun:
                turn = self._turns.setdefault(job.principal, deque())
                if compilation not in turn:
                    turn.append(compilation)
                self._begin_next()

    def _check_room(self, principal: str) -> None:
        with self._lock:
            num_own = len(self._turns.get(principal, ()))
        if num_own >= MAX_PENDING_OF_ONE:
            count = f"{num_own} grammars of your requests wait to be compiled"
        elif len(self._pending) >= MAX_PENDING:
            count = f"{len(self._pending)} grammars of other requests are being compiled"
        else:
            return
        raise QueueFullError(
            f"{count}, as many as may be at once. Please try again in {_RETRY_AFTER:.1f}s.", retry_after=_RETRY_AFTER
        )

    def cancel(self, request_id: str) -> None:
        """Forget a job; unknown ids are ignored. Its grammar may still be compiled, and is then remembered."""
        if compilation := self._compilation_of.pop(request_id, None):
            del compilation.jobs[request_id]

    @property
    def job_ids(self) -> Iterable[str]:
        """The ids of all jobs that wait."""
        return self._compilation_of.keys()

    def has_jobs(self, model: str) -> bool:
        """Whether any job for the model waits."""
        return any(job.model == model for compilation in self._pending.values() for job in compilation.jobs.values())

    def take_finished(self) -> list[tuple[Submit, Outcome]]:
        """Jobs whose grammars are ready or refused, in the order in which they came for each grammar."""
        taken = []
        while (compilation := _next(self._finished)) is not None:
            assert compilation.outcome is not None
            del self._pending[compilation.compiler, compilation.source]
            for request_id, job in compilation.jobs.items():
                del self._compilation_of[request_id]
                taken.append((job, compilation.outcome))
        return taken

    def _begin_next(self) -> None:
        """Give idle threads what comes next; the caller holds the lock."""
        for principal in [name for name in self._turns if name not in self._compiling]:
            if len(self._compiling) == _NUM_THREADS:
                return
            turn = self._turns.pop(principal)
            while turn and turn[0].has_begun:  # in another principal's turn
                turn.popleft()
            if not turn:
                continue
            compilation = turn.popleft()
            compilation.has_begun = True
            if turn:
                self._turns[principal] = turn  # behind the others
            self._compiling.add(principal)
            with deep_stack():
                self._threads.submit(self._compile, compilation, principal)

    def _compile(self, compilation: _Compilation, principal: str) -> None:
        """In another thread."""
        try:
            compilation.outcome = self._try_out_and_compile(compilation.compiler, compilation.source)
        except RequestError as error:
            compilation.outcome = error
        except Exception as error:  # whatever the library does, the jobs that wait must hear of it
            compilation.outcome = invalid_grammar(f"{type(error).__name__}: {str(error)[:200]}")
        with self._lock:
            self._compiling.discard(principal)
            self._begin_next()
        self._finished.put(compilation)
        self._wake()

    def _try_out_and_compile(self, compiler: GrammarCompiler, source: str) -> Grammar:
        trial = self._trials.get()
        try:
            num_bytes = trial.measure(compiler.vocabulary, source)
        finally:
            self._trials.put(trial)
        return compiler.compile(source, num_bytes)


def _next(queue: "SimpleQueue[_Compilation]") -> _Compilation | None:
    try:
        return queue.get_nowait()
    except Empty:
        return None
