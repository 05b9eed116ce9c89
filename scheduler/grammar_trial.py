"""Tries grammars out in a process of its own, which may die of them.

    python -m penstock.scheduler.grammar_trial

The compiler cannot be interrupted, some grammars would keep it busy for ever, and others overflow its stack, which
ends the process. In a process of its own that costs one client its grammar, and nobody else anything. It limits its own
processor time and memory, so that it ends even if the worker is gone.

`Trial` is the worker's side, `main` the process's. Between them goes one line of JSON in, `[folder, vocabulary size,
end tokens, grammar, seconds]`, and one out: the bytes of memory that the grammar takes, or the refusal as `[message,
code, rule]`.
"""

import json
import math
import os
import resource
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from .errors import RequestError
from .grammar import INVALID_GRAMMAR, GrammarError, Vocabulary, compile_template, invalid_grammar

if TYPE_CHECKING:
    from llguidance import LLTokenizer

_MAX_WAIT = 60.0  # seconds until a process that does not answer is ended, for example because it was stopped
_MAX_MEMORY = 512 << 20  # bytes on top of what the process has before it compiles
# The compiler's depth grows with the grammar: 5000 rules in a chain overflow 8 MB.
_STACK_BYTES = 256 << 20
_TRIAL_STACK_BYTES = _STACK_BYTES // 2  # what survives here has room to spare in the worker


class Trial:
    """A process that tries grammars out, started when it is needed and again after a grammar that it died of."""

    def __init__(self, max_seconds: int = 5) -> None:
        """`max_seconds` of processor time may be spent on one grammar."""
        self._max_seconds = max_seconds
        self._process: subprocess.Popen[bytes] | None = None

    def measure(self, vocabulary: Vocabulary, source: str) -> int:
        """Bytes of memory that the grammar takes once it is compiled, or 0 where the system does not tell.

        Raises:
            RequestError: invalid_grammar, with the reason.
        """
        if self._process is None:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "penstock.scheduler.grammar_trial"],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
            )
        process = self._process
        assert process.stdin is not None and process.stdout is not None
        question = [vocabulary.folder, vocabulary.size, vocabulary.eos_token_ids, source, self._max_seconds]
        watchdog = threading.Timer(_MAX_WAIT, process.kill)
        watchdog.start()
        try:
            with suppress(BrokenPipeError):  # it died before: there is no answer either
                process.stdin.write(json.dumps(question).encode() + b"\n")
                process.stdin.flush()
            answer = process.stdout.readline()
        finally:
            watchdog.cancel()
        if not answer:
            self.close()
            if process.returncode == -signal.SIGXCPU:
                raise invalid_grammar(f"compiling it takes more than {self._max_seconds} s; send a simpler one")
            raise invalid_grammar("compiling it takes too much memory or is nested too deeply; send a simpler one")
        found: int | list[str] = json.loads(answer)
        if isinstance(found, list):
            message, code, rule = found
            raise GrammarError(message, rule) if code == INVALID_GRAMMAR else RequestError(message, code=code)
        return found

    def close(self) -> None:
        """End the process."""
        if self._process is not None:
            self._process.kill()
            self._process.communicate()
            self._process = None


@contextmanager
def deep_stack(num_bytes: int = _STACK_BYTES) -> Iterator[None]:
    """Threads that are started within it have room for the compiler's depth. The memory is taken when it is used."""
    before = threading.stack_size(num_bytes)
    try:
        yield
    finally:
        threading.stack_size(before)


# ------------------------------------------------------------------------------------------------ the process's side


@cache
def _tokenizer(vocabulary: Vocabulary) -> "LLTokenizer":
    return vocabulary.load()


def _answer(line: bytes) -> int | tuple[str, str, str]:
    folder, size, eos_token_ids, source, max_seconds = json.loads(line)
    try:
        _limit_processor_time(_MAX_WAIT)
        tokenizer = _tokenizer(Vocabulary(folder, size, tuple(eos_token_ids)))
        before = _memory()
        _limit_processor_time(max_seconds)
        if before.address_space:
            _limit(resource.RLIMIT_AS, before.address_space + _MAX_MEMORY)
        matcher = compile_template(tokenizer, source)
        matcher.compute_bitmask()
        return max(0, _memory().resident - before.resident)
    except RequestError as error:
        return error.message, error.code, error.rule if isinstance(error, GrammarError) else ""


class _Memory(NamedTuple):
    """Bytes of this process; zeros where the system does not tell."""

    address_space: int
    resident: int


def _memory() -> _Memory:
    statm = Path("/proc/self/statm")
    if not statm.exists():
        return _Memory(0, 0)
    address_space, resident = (int(pages) * resource.getpagesize() for pages in statm.read_text().split()[:2])
    return _Memory(address_space, resident)


def _limit_processor_time(seconds: float) -> None:
    """The process ends when it has used that much more."""
    usage = resource.getrusage(resource.RUSAGE_SELF)
    _limit(resource.RLIMIT_CPU, math.ceil(usage.ru_utime + usage.ru_stime + seconds))


def _limit(kind: int, soft: int) -> None:
    hard = resource.getrlimit(kind)[1]
    resource.setrlimit(kind, (soft if hard == resource.RLIM_INFINITY else min(soft, hard), hard))


def _serve() -> None:
    with suppress(BrokenPipeError):  # the worker is gone
        for line in sys.stdin.buffer:
            os.write(sys.stdout.fileno(), json.dumps(_answer(line)).encode() + b"\n")


def main() -> None:
    """Answer until the standard input ends."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    _limit(resource.RLIMIT_CORE, 0)
    with deep_stack(_TRIAL_STACK_BYTES):
        server = threading.Thread(target=_serve)
        server.start()
    server.join()


if __name__ == "__main__":
    main()
