"""The number of threads is chosen by the times that steps take, here made up."""

from collections.abc import Callable
from itertools import count
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from engine_harness import make_job, run
from tiny_models import make_tiny

from penstock.kernels.native import library
from penstock.scheduler import engine as engine_module
from penstock.scheduler import thread_count
from penstock.scheduler.config import EngineConfig, ModelSpec
from penstock.scheduler.engine import Engine
from penstock.scheduler.loader import load_runner
from penstock.scheduler.thread_count import choose_num_threads, timed


@pytest.fixture
def choose(monkeypatch: pytest.MonkeyPatch) -> Callable[..., int]:
    """`choose_num_threads` on a clock that made-up steps move."""

    def choose(usual: int, seconds_of: Callable[[int, int], float], disturbed: frozenset[int] = frozenset()) -> int:
        now, rounds = 0.0, count()

        def time_step(number: int) -> float | None:
            nonlocal now
            seconds = seconds_of(number, next(rounds))
            now += seconds
            return None if number in disturbed else seconds

        monkeypatch.setattr(thread_count, "time", SimpleNamespace(perf_counter=lambda: now))
        chosen = choose_num_threads(usual, time_step)
        assert now <= 0.3 or next(rounds) == 2  # one round is always made
        return chosen

    return choose


@pytest.mark.parametrize(
    ("usual", "milliseconds", "chosen"),
    [
        (8, {8: 10, 4: 8, 2: 12}, 4),
        (8, {8: 10, 4: 8, 2: 6}, 2),
        (8, {8: 10, 4: 9.5, 2: 12}, 8),  # not clearly faster
        (2, {2: 10, 1: 6}, 1),
        (2, {2: 200, 1: 20}, 2),  # too slow to time often enough
        (1, {}, 1),  # nothing to choose from
    ],
)
def test_another_number_must_be_clearly_faster(
    choose: Callable[..., int], usual: int, milliseconds: dict[int, float], chosen: int
) -> None:
    assert choose(usual, lambda number, _: milliseconds[number] / 1000) == chosen


def test_the_best_of_the_timings_counts(choose: Callable[..., int]) -> None:
    assert choose(2, lambda number, index: (0.03 if index < 4 else 0.005) if number == 2 else 0.01) == 2


def test_on_a_busy_machine_the_usual_number_stays(choose: Callable[..., int]) -> None:
    assert choose(2, lambda number, _: 0.01 * number, frozenset({2})) == 2
    assert choose(2, lambda number, _: 0.01 * number, frozenset({1})) == 2
    assert choose(2, lambda number, _: 0.01 * number) == 1


@pytest.mark.skipif(library() is None, reason="no native kernels on this machine")
def test_the_engine_computes_with_the_number_that_was_chosen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = make_tiny("llama", tmp_path, dtype=torch.bfloat16, head_dim=32)
    engine = Engine(EngineConfig(device="cpu", num_threads=1, kv_cache_memory=8 << 20))
    engine.install(load_runner(ModelSpec("m", str(folder), "generate", dtype="bfloat16"), engine.config))
    before = run(engine, [make_job([50, 60, 70])])
    counts: list[int] = []

    def choose(usual: int, time_step: Callable[[int], float | None]) -> int:
        counts.append(usual)
        time_step(2)
        return 2

    monkeypatch.setattr(engine_module, "choose_num_threads", choose)
    try:
        for _ in range(2):
            engine.choose_num_threads("m")
            assert torch.get_num_threads() == engine.config.num_threads == 2
    finally:
        torch.set_num_threads(1)
    assert counts == [1, 1]  # the usual number, not the one before
    assert run(engine, [make_job([50, 60, 70])]) == before


@pytest.mark.parametrize(("waited_ms", "counts"), [(0, True), (0.4, True), (2, False)])
def test_a_step_that_waited_for_processors_does_not_count(
    waited_ms: float, counts: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(thread_count, "_TASKS", tmp_path)
    now = 0.0
    monkeypatch.setattr(thread_count, "time", SimpleNamespace(perf_counter=lambda: now))

    def write(waited: int) -> None:
        for task in ("1", "2"):
            (tmp_path / task).mkdir(exist_ok=True)
            (tmp_path / task / "schedstat").write_text(f"900000 {waited} 7\n")

    def step() -> None:
        nonlocal now
        now += 0.01
        write(5_000_000 + int(waited_ms * 1e6) // 2)

    write(5_000_000)
    assert timed(step) == (pytest.approx(0.01) if counts else None)


def test_where_waiting_is_not_told_no_step_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(thread_count, "_TASKS", tmp_path / "none")
    assert timed(lambda: None) is None
