"""How fast a queue is emptied, as far as steps that left something waiting can say."""

import pytest

from penstock.scheduler.queue_meter import DrainMeter


class Clock:
    """Stands still unless told otherwise."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def run(meter: DrainMeter, clock: Clock, *, num_steps: int, tokens: int, has_backlog: bool = True) -> None:
    """Steps of a tenth of a second."""
    for _ in range(num_steps):
        clock.now += 0.1
        meter.take_up(tokens)
        meter.end_step(has_backlog=has_backlog)


@pytest.fixture
def clock() -> Clock:
    return Clock()


def test_nothing_is_known_at_first_nor_of_a_queue_that_every_step_empties(clock: Clock) -> None:
    meter = DrainMeter(clock)
    assert meter.rate is None
    run(meter, clock, num_steps=50, tokens=3, has_backlog=False)
    assert meter.rate is None


def test_the_pace_is_that_of_a_queue_with_a_backlog(clock: Clock) -> None:
    meter = DrainMeter(clock)
    run(meter, clock, num_steps=2000, tokens=50)
    assert meter.rate == pytest.approx(500, rel=0.05)


def test_it_follows_within_a_minute(clock: Clock) -> None:
    meter = DrainMeter(clock)
    run(meter, clock, num_steps=2000, tokens=50)
    run(meter, clock, num_steps=600, tokens=5)
    assert meter.rate is not None and meter.rate < 150


def test_a_queue_that_stands_still_has_a_pace_of_nearly_nothing(clock: Clock) -> None:
    meter = DrainMeter(clock)
    run(meter, clock, num_steps=100, tokens=50)
    run(meter, clock, num_steps=3000, tokens=0)
    assert meter.rate is not None and meter.rate < 1


def test_what_is_not_seen_again_is_forgotten(clock: Clock) -> None:
    meter = DrainMeter(clock)
    run(meter, clock, num_steps=2000, tokens=50)
    clock.now += 200
    assert meter.rate is None
