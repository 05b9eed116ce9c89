"""The ledger: limits that hold across processes and restarts, days that end, and places of processes that died."""

import sqlite3
import stat
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from penstock.serving.limits.ledger import Ledger, microseconds, usage_today
from penstock.serving.limits.standing import DAY, Refusal, Usage
from penstock.serving.principal import Limits, Principal

SECOND = 1_000_000
NOON = 20_000 * DAY + DAY // 2


class Clock:
    def __init__(self) -> None:
        self.now = NOON

    def __call__(self) -> int:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def ledger(tmp_path: Path, clock: Clock) -> Iterator[Ledger]:
    with closing(Ledger(tmp_path / "limits", clock)) as ledger:
        yield ledger


def key(**limits: int) -> Principal:
    return Principal("ada-id", "ada", limits=Limits(**limits))


def enter(ledger: Ledger, principal: Principal) -> Refusal | None:
    return ledger.enter(principal)[1]


def admit(ledger: Ledger, principal: Principal, num_tokens: int) -> Refusal | None:
    return ledger.admit(principal, num_tokens)[1]


def test_requests_per_minute_are_a_burst_and_then_a_rate(ledger: Ledger, clock: Clock) -> None:
    ada = key(requests_per_minute=3)
    assert [enter(ledger, ada) for _ in range(3)] == [None] * 3
    assert enter(ledger, ada) == Refusal("requests per min (RPM)", 3, 3, 1, 20 * SECOND)
    clock.now += 19 * SECOND
    assert (refusal := enter(ledger, ada)) is not None and refusal.wait == SECOND
    clock.now += SECOND
    assert enter(ledger, ada) is None and enter(ledger, ada) is not None
    assert enter(ledger, Principal("bob-id", "bob", limits=ada.limits)) is None


def test_a_prompt_takes_its_tokens_at_once_and_an_answer_may_go_over(ledger: Ledger, clock: Clock) -> None:
    ada = key(tokens_per_minute=600)
    assert admit(ledger, ada, 500) is None
    assert admit(ledger, ada, 200) == Refusal("tokens per min (TPM)", 600, 500, 200, 10 * SECOND)
    ledger.charge({ada: Usage(num_output_tokens=400)})  # 300 over
    assert enter(ledger, ada) == Refusal("tokens per min (TPM)", 600, 900, 1, 30 * SECOND + 100_000)
    clock.now += 40 * SECOND
    assert enter(ledger, ada) is None
    assert admit(ledger, ada, 100) is None and admit(ledger, ada, 1) is not None


def test_a_prompt_above_the_limit_is_hopeless(ledger: Ledger) -> None:
    refusal = admit(ledger, key(tokens_per_minute=100, tokens_per_day=1000), 101)
    assert refusal is not None and refusal.is_hopeless and refusal.wait is None
    refusal = admit(ledger, key(tokens_per_day=100), 101)
    assert refusal is not None and refusal.is_hopeless and refusal.what == "tokens per day (TPD)"


def test_a_day_ends_at_midnight_and_outlives_a_restart(ledger: Ledger, clock: Clock, tmp_path: Path) -> None:
    ada = key(tokens_per_day=1000)
    assert admit(ledger, ada, 600) is None
    ledger.charge({ada: Usage(num_output_tokens=300)})
    ledger.close()
    with closing(Ledger(tmp_path / "limits", clock)) as again:
        assert admit(again, ada, 101) == Refusal("tokens per day (TPD)", 1000, 900, 101, DAY // 2)
        assert again.usage_today() == {"ada-id": Usage(0, 600, 300)}
    assert usage_today(tmp_path / "limits", clock) == {"ada-id": Usage(0, 600, 300)}
    clock.now += DAY // 2
    assert usage_today(tmp_path / "limits", clock) == {}
    assert admit(ledger, ada, 1000) is None


def test_the_reason_that_lasts_longest_is_told(ledger: Ledger) -> None:
    ada = key(requests_per_minute=1, tokens_per_day=10)
    assert enter(ledger, ada) is None and admit(ledger, ada, 10) is None
    assert (refusal := enter(ledger, ada)) is not None and refusal.what == "tokens per day (TPD)"


def test_a_refused_request_costs_nothing(ledger: Ledger, clock: Clock) -> None:
    ada = key(requests_per_minute=1, tokens_per_minute=60)
    assert enter(ledger, ada) is None
    assert all(enter(ledger, ada) for _ in range(5)) and all(admit(ledger, ada, 61) for _ in range(5))
    assert ledger.usage_today() == {"ada-id": Usage(1, 0, 0)}
    clock.now += 60 * SECOND
    assert enter(ledger, ada) is None and admit(ledger, ada, 60) is None


def test_what_a_key_may_can_change_at_any_time(ledger: Ledger) -> None:
    ledger.charge({key(): Usage(num_output_tokens=10**9)})  # nobody counted minutes then
    assert admit(ledger, key(tokens_per_minute=10), 10) is None
    assert admit(ledger, key(tokens_per_minute=20), 10) is None
    assert admit(ledger, key(tokens_per_minute=20), 1) is not None


def test_a_charge_can_be_given_back_but_not_yesterdays(ledger: Ledger, clock: Clock) -> None:
    ada = key(tokens_per_minute=100, tokens_per_day=100)
    assert admit(ledger, ada, 100) is None
    ledger.charge({ada: Usage(num_prompt_tokens=-100)})
    assert admit(ledger, ada, 100) is None
    clock.now += DAY
    ledger.charge({ada: Usage(num_prompt_tokens=-100)})
    assert ledger.usage_today() == {"ada-id": Usage(0, 0, 0)}


def test_places_are_counted_over_all_processes_and_given_back(ledger: Ledger, tmp_path: Path, clock: Clock) -> None:
    ada = key(max_in_flight=2)
    with closing(Ledger(tmp_path / "limits", clock)) as other:
        assert enter(ledger, ada) is None and enter(other, ada) is None
        assert enter(ledger, ada) == enter(other, ada) == Refusal("requests in flight", 2, 2, 1, None)
        other.leave("ada-id")
        assert enter(ledger, ada) is None and enter(other, ada) is not None
        ledger.leave("ada-id")
        assert enter(other, ada) is None
    assert enter(ledger, ada) is None, "a process that ends gives back its places"


def test_a_place_whose_end_could_not_be_written_is_not_lost(ledger: Ledger, tmp_path: Path, clock: Clock) -> None:
    ada = key(max_in_flight=1)
    with closing(Ledger(tmp_path / "limits", clock)) as other:
        assert enter(ledger, ada) is None and enter(other, ada) is not None
        assert ledger._connection is not None
        ledger._connection.execute("PRAGMA query_only = ON")
        with pytest.raises(sqlite3.OperationalError):
            ledger.leave("ada-id")
        ledger._connection.execute("PRAGMA query_only = OFF")
        assert enter(ledger, ada) is None and enter(ledger, ada) is not None
        ledger.leave("ada-id")
        assert enter(other, ada) is None


_TAKES_PLACES_AND_WAITS = """
import sys, pathlib
from penstock.serving.limits.ledger import Ledger
from penstock.serving.principal import Limits, Principal
ledger = Ledger(pathlib.Path(sys.argv[1]))
ada = Principal("ada-id", "ada", limits=Limits(max_in_flight=2))
print(ledger.enter(ada)[1], ledger.enter(ada)[1], flush=True)
sys.stdin.read()
"""


def test_places_of_a_killed_process_are_free_at_once(tmp_path: Path) -> None:
    ada = key(max_in_flight=2)
    folder = tmp_path / "limits"
    command = [sys.executable, "-c", _TAKES_PLACES_AND_WAITS, str(folder)]
    with closing(Ledger(folder)) as ledger:
        with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
            assert process.stdout is not None and process.stdout.readline() == "None None\n"
            assert enter(ledger, ada) is not None
            process.kill()
        assert len(list(folder.glob("*.process"))) == 2
        assert enter(ledger, ada) is None and enter(ledger, ada) is None and enter(ledger, ada) is not None
        assert len(list(folder.glob("*.process"))) == 1


_HAMMERS = """
import sys, pathlib
from penstock.serving.limits.ledger import Ledger
from penstock.serving.principal import Limits, Principal
ledger = Ledger(pathlib.Path(sys.argv[1]))
ada = Principal("ada-id", "ada", limits=Limits(tokens_per_day=1000))
print(sum(ledger.admit(ada, 1)[1] is None for _ in range(600)))
ledger.close()
"""


def test_processes_that_start_and_count_at_once_lose_nothing(tmp_path: Path) -> None:
    command = [sys.executable, "-c", _HAMMERS, str(tmp_path / "limits")]
    before = microseconds() // DAY
    processes = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(3)]
    admitted = [int(process.communicate()[0]) for process in processes]
    if before == microseconds() // DAY:
        assert sum(admitted) == 1000
    assert not list((tmp_path / "limits").glob("*.process"))


def test_nobody_else_can_read_it(ledger: Ledger, tmp_path: Path) -> None:
    enter(ledger, key())
    assert stat.S_IMODE((tmp_path / "limits").stat().st_mode) == 0o700
    assert all(stat.S_IMODE(path.stat().st_mode) == 0o600 for path in (tmp_path / "limits").iterdir())


def test_an_unusable_file_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "ledger.sqlite3").write_text("this is no database, and long enough to be seen as none" * 20)
    with closing(Ledger(tmp_path)) as ledger, pytest.raises(sqlite3.DatabaseError):
        enter(ledger, key())
    assert usage_today(tmp_path / "nowhere") == {}
