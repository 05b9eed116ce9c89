"""Which deaths of workers make a job a suspect, and when it is the one at fault."""

import pytest

from penstock.scheduler.messages import RequestOutput, Submit
from penstock.scheduler.sampling_params import SamplingParams
from penstock.serving.open_job import MAX_DEATHS, PROVEN_TOKENS, OpenJob
from penstock.serving.worker_news import WorkerLost, WorkerStarted, line_of, news_of

ALONE = WorkerLost("ended with status 1", frozenset({"r"}))
TOGETHER = WorkerLost("ended with status 1", frozenset({"r", "s"}))


@pytest.fixture
def entry() -> OpenJob[RequestOutput]:
    return OpenJob(Submit("r", "m", [1, 2], SamplingParams(max_tokens=100, seed=1), 1.0))


def test_deaths_that_a_job_had_no_part_in_do_not_count(entry: OpenJob[RequestOutput]) -> None:
    for _ in range(2 * MAX_DEATHS):
        assert entry.note_death(WorkerLost("ended", frozenset({"s"}))) is None
    assert not entry.is_suspect


def test_a_job_that_was_alone_at_its_second_death_is_at_fault(entry: OpenJob[RequestOutput]) -> None:
    assert entry.note_death(ALONE) is None
    fault = entry.note_death(ALONE)
    assert fault is not None and fault.code == "worker_crashed"
    assert entry.note_death(WorkerLost("ended")) is fault, (
        "who has not heard of it yet hears of it after a later death too"
    )


def test_a_job_beside_others_is_only_suspected(entry: OpenJob[RequestOutput]) -> None:
    assert entry.note_death(TOGETHER) is None and not entry.is_suspect
    assert entry.note_death(TOGETHER) is None and entry.is_suspect
    assert entry.note_death(ALONE) is not None


def test_a_model_that_was_loaded_meanwhile_may_be_at_fault_too(entry: OpenJob[RequestOutput]) -> None:
    loading = WorkerLost("ended", frozenset({"r"}), was_loading=True)
    assert [entry.note_death(loading) for _ in range(MAX_DEATHS - 1)] == [None] * (MAX_DEATHS - 1)
    assert entry.note_death(loading) is not None


def test_new_tokens_clear_a_job(entry: OpenJob[RequestOutput]) -> None:
    for _ in range(MAX_DEATHS):
        assert entry.note_death(TOGETHER) is None
        entry.received(RequestOutput("r", [5] * PROVEN_TOKENS))
    assert entry.note_death(TOGETHER) is None and not entry.is_suspect


@pytest.mark.parametrize(
    "news",
    [
        WorkerStarted(3, "ipc:///x", "/flight"),
        WorkerLost("ended", frozenset({"a", "b"}), True, {"m": "no"}, True),
        WorkerLost("ended"),
    ],
)
def test_news_travel_as_a_line(news: WorkerStarted | WorkerLost) -> None:
    line = line_of(news)
    assert line.count(b"\n") == 1 and line.endswith(b"\n")
    assert news_of(line) == news
