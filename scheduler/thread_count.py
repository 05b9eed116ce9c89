"""How many threads a CPU computes with: the number whose decode steps were seen to be clearly the fastest."""

import time
from collections.abc import Callable
from pathlib import Path

_SECONDS = 0.3  # that all of it may take
_MIN_TIMINGS = 3  # of each number of threads; the first one also starts the threads
_CLEARLY_FASTER = 0.9  # of the time that the usual number takes
_UNDISTURBED = 0.05  # of its time that a step's threads may wait for a processor, all together
_TASKS = Path("/proc/self/task")


def timed(step: Callable[[], None]) -> float | None:
    """Seconds that a step takes; None if it waited for processors that others had, or if the system does not tell."""
    waited, start = _waited_seconds(), time.perf_counter()
    step()
    seconds, now_waited = time.perf_counter() - start, _waited_seconds()
    if waited is None or now_waited is None or now_waited - waited > _UNDISTURBED * seconds:
        return None
    return seconds


def _waited_seconds() -> float | None:
    """How long this process's threads were ready to run and had no processor, so far."""
    try:
        waits = [int((task / "schedstat").read_text().split()[1]) for task in _TASKS.iterdir()]
    except (OSError, IndexError):  # no such file, or a thread that has just ended
        return None
    return sum(waits) / 1e9


def candidates(usual: int) -> list[int]:
    """The usual number first, then its half and its quarter."""
    return [number for number in (usual, usual // 2, usual // 4) if number > 0]


def choose_num_threads(usual: int, time_step: Callable[[int], float | None]) -> int:
    """Time steps with some numbers of threads in turn, for a fraction of a second.

    The usual number stays unless another is clearly faster. It also stays on a machine that is busy with something
    else, since whatever is found there would be kept when the machine no longer is.

    Args:
        usual: one thread for each core.
        time_step: runs a step with so many threads; its seconds, or None if other programs took processors from it.

    Returns:
        The number to use.
    """
    best: dict[int, float] = {}
    num_timings = dict.fromkeys(candidates(usual), 0)
    if len(num_timings) < 2:
        return usual
    start = time.perf_counter()
    while True:
        round_start = time.perf_counter()
        for number in num_timings:
            seconds = time_step(number)
            if seconds is not None:
                best[number] = min(best.get(number, seconds), seconds)
                num_timings[number] += 1
        now = time.perf_counter()
        if now - start + (now - round_start) > _SECONDS:
            break
    trusted = {number: best[number] for number, count in num_timings.items() if count >= _MIN_TIMINGS}
    if usual not in trusted:
        return usual
    fastest = min(trusted, key=trusted.__getitem__)
    return fastest if trusted[fastest] < _CLEARLY_FASTER * trusted[usual] else usual
