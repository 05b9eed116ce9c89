"""The worker's record of what it is doing, as others find it after its death."""

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from penstock.scheduler.flight_record import FlightRecord


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "flight"


@pytest.fixture
def record(path: Path) -> Iterator[FlightRecord]:
    record = FlightRecord(path)
    yield record
    record.close()


def test_a_new_record_says_that_nothing_has_begun(record: FlightRecord) -> None:
    flight = record.read()
    assert (flight.num_beats, flight.num_steps, flight.loading) == (0, 0, "")
    assert not flight.job_ids and not flight.admitted_ids


def test_its_room_on_the_disk_is_taken_at_once(record: FlightRecord, path: Path) -> None:
    os.sync()
    taken = path.stat()
    assert taken.st_blocks * 512 >= taken.st_size


def test_jobs_are_in_flight_from_the_launch_of_their_step_until_it_is_collected(
    record: FlightRecord, path: Path
) -> None:
    reader = FlightRecord(path)
    record.begin_step(["a", "b"])
    assert reader.read().job_ids == {"a", "b"}
    record.end_step(1)
    record.begin_step(["b", "c"], num_in_flight=1)
    assert reader.read().job_ids == {"a", "b", "c"}  # both steps are on the device
    record.end_step(1)
    assert reader.read().job_ids == {"b", "c"}
    record.end_step(0)
    assert reader.read().job_ids == frozenset()
    assert reader.read().num_steps == 2
    reader.close()


def test_a_step_that_waits_for_those_before_it_is_alone_in_flight(record: FlightRecord) -> None:
    record.begin_step(["a", "b"])
    record.end_step(1)
    record.begin_step(["suspect"], num_in_flight=0)
    assert record.read().job_ids == {"suspect"}


def test_a_step_is_progress_only_when_that_is_said(record: FlightRecord) -> None:
    record.begin_step(["a"])
    record.end_step(0)
    before = record.read()
    record.beat()
    after = record.read()
    assert (before.num_beats, after.num_beats) == (0, 1)
    assert after.last_beat > before.last_beat


def test_what_is_loaded_and_taken_in_is_known(record: FlightRecord) -> None:
    record.note_loading("some/model")
    record.note_admitted(["a", "b"])
    assert (record.read().loading, record.read().admitted_ids) == ("some/model", {"a", "b"})
    record.note_loading("")
    record.note_admitted([])
    assert (record.read().loading, record.read().admitted_ids) == ("", frozenset())


def test_a_step_that_was_only_half_written_does_not_count(
    record: FlightRecord, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    record.begin_step(["a"])
    with monkeypatch.context() as patch, pytest.raises(ZeroDivisionError):
        patch.setattr(FlightRecord, "_write_header", lambda self: 1 // 0)
        record.begin_step(["x"])
    assert FlightRecord(path).read().job_ids == {"a"}


def test_more_ids_than_there_is_room_for_are_cut_between_two(record: FlightRecord) -> None:
    ids = [f"job-{number:06}" for number in range(20_000)]
    record.begin_step(ids)
    found = record.read().job_ids
    assert found < set(ids)
    assert len(found) > 10_000


def test_it_outlives_the_process_that_wrote_it(path: Path) -> None:
    program = f"""
import os, pathlib
from penstock.scheduler.flight_record import FlightRecord
record = FlightRecord(pathlib.Path({str(path)!r}))
record.begin_step(["a"]); record.end_step(1); record.begin_step(["b"], 1)
os.kill(os.getpid(), 9)
"""
    assert subprocess.run([sys.executable, "-c", program]).returncode == -9
    assert FlightRecord(path).read().job_ids == {"a", "b"}
