"""A bucket never lets more through than its limit and what has run back, and never makes anybody wait too long."""

from hypothesis import given
from hypothesis import strategies as st

from penstock.serving.limits.bucket import MINUTE, Bucket

START = 1_800_000_000_000_000


@st.composite
def arrivals(draw: st.DrawFn) -> tuple[int, list[tuple[int, int]]]:
    """A limit, and times with what is wanted then."""
    limit = draw(st.integers(1, 10**9))
    gaps = draw(st.lists(st.tuples(st.integers(0, 3 * MINUTE), st.integers(1, limit)), min_size=1, max_size=40))
    times, now = [], START
    for gap, count in gaps:
        now += gap
        times.append((now, count))
    return limit, times


@given(arrivals())
def test_no_window_lets_more_through_than_the_limit_and_what_runs_back(case: tuple[int, list[tuple[int, int]]]) -> None:
    limit, times = case
    bucket, taken = Bucket(0, START), []
    for now, count in times:
        bucket = bucket.after(now, limit)
        if not bucket.wait(count, limit):
            bucket = bucket.take(count)
            taken.append((now, count))
    for first in range(len(taken)):
        for last in range(first, len(taken)):
            span = taken[last][0] - taken[first][0]
            assert sum(count for _, count in taken[first : last + 1]) * MINUTE <= limit * (MINUTE + span)


@given(st.integers(1, 10**9), st.integers(0, 10**10), st.data())
def test_a_wait_is_exactly_long_enough(limit: int, taken: int, data: st.DataObject) -> None:
    count = data.draw(st.integers(1, limit))
    bucket = Bucket(0, START).take(taken)
    wait = bucket.wait(count, limit)
    assert not bucket.after(START + wait, limit).wait(count, limit)
    if wait:
        assert bucket.after(START + wait - 1, limit).wait(count, limit) == 1


@given(st.integers(1, 10**9), st.integers(0, 10**10))
def test_all_runs_back(limit: int, taken: int) -> None:
    bucket = Bucket(0, START).take(taken)
    reset = bucket.until_empty(limit)
    assert bucket.after(START + reset, limit).remaining(limit) == limit
    assert bucket.remaining(limit) == max(0, limit - taken) and bucket.used() == taken


def test_a_clock_that_was_set_back_lets_nothing_run_back_but_stops_nothing_either() -> None:
    bucket = Bucket(0, START).take(60)
    earlier = bucket.after(START - 3600 * 1_000_000, 60)
    assert earlier.used() == 60
    assert earlier.after(earlier.at + MINUTE, 60).used() == 0


def test_without_a_limit_nothing_is_kept() -> None:
    assert Bucket(0, START).take(10**6).after(START, 0) == Bucket(0, START)


def test_what_was_taken_can_be_given_back() -> None:
    assert Bucket(0, START).take(5).take(-3).used() == 2
    assert Bucket(0, START).take(5).take(-30) == Bucket(0, START)
