"""Jobs that wait for their grammars."""

import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from engine_harness import make_job
from tiny_models import EOS_ID, VOCAB_SIZE, make_tiny_tokenizer

from penstock.scheduler.compiling import MAX_PENDING, MAX_PENDING_OF_ONE, GrammarQueue, Outcome
from penstock.scheduler.errors import QueueFullError, RequestError
from penstock.scheduler.grammar import Grammar, GrammarCompiler
from penstock.scheduler.grammar_trial import Trial
from penstock.scheduler.messages import Submit

GOOD, BAD = 'start: "a"', "start: ("


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_tokenizer(tmp_path_factory.mktemp("tokenizer"))


@pytest.fixture
def compiler(folder: Path) -> GrammarCompiler:
    return GrammarCompiler(folder, VOCAB_SIZE, {EOS_ID})


class Waiting:
    """A queue, and what came out of it."""

    def __init__(self) -> None:
        self.woken = threading.Semaphore(0)
        self.queue = GrammarQueue(self.woken.release)

    def next(self) -> list[tuple[Submit, Outcome]]:
        assert self.woken.acquire(timeout=60)
        return self.queue.take_finished()


@pytest.fixture
def waiting(monkeypatch: pytest.MonkeyPatch) -> Iterator[Waiting]:
    """Without processes of their own, which test_grammar_trial tests."""
    monkeypatch.setattr(Trial, "measure", lambda trial, vocabulary, source: 7)
    yield Waiting()


def test_jobs_of_one_grammar_come_together_and_in_order(waiting: Waiting, compiler: GrammarCompiler) -> None:
    jobs = [make_job([5], grammar=GOOD) for _ in range(4)]
    for job in jobs:
        waiting.queue.add(job, compiler)
    waiting.queue.cancel(jobs[1].request_id)
    waiting.queue.cancel("unknown")
    assert waiting.queue.has_jobs("m")
    assert not waiting.queue.has_jobs("another")
    finished = waiting.next()
    assert [job for job, _ in finished] == [jobs[0], jobs[2], jobs[3]]
    assert all(isinstance(outcome, Grammar) and outcome is compiler.find(GOOD) for _, outcome in finished)
    assert waiting.queue.take_finished() == []
    assert not waiting.queue.has_jobs("m")


def test_a_bad_grammar_refuses_its_own_jobs(waiting: Waiting, compiler: GrammarCompiler) -> None:
    good, bad = make_job([5], grammar=GOOD), make_job([5], grammar=BAD)
    waiting.queue.add(bad, compiler)
    waiting.queue.add(good, compiler)
    outcomes = {job.request_id: outcome for job, outcome in waiting.next() + waiting.next()}
    assert isinstance(outcomes[good.request_id], Grammar)
    refused = outcomes[bad.request_id]
    assert isinstance(refused, RequestError)
    assert refused.code == "invalid_grammar"
    with pytest.raises(RequestError, match="the limit is"):
        waiting.queue.add(make_job([5], grammar="x" * (1 << 21)), compiler)


def test_a_cancelled_jobs_grammar_is_remembered_all_the_same(waiting: Waiting, compiler: GrammarCompiler) -> None:
    job = make_job([5], grammar=GOOD)
    waiting.queue.add(job, compiler)
    waiting.queue.cancel(job.request_id)
    assert waiting.next() == []
    assert compiler.find(GOOD)


def test_a_failure_of_the_library_reaches_the_job(
    waiting: Waiting, compiler: GrammarCompiler, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(compiler, "compile", lambda source, num_bytes: 1 // 0)
    waiting.queue.add(make_job([5], grammar=GOOD), compiler)
    ((_, outcome),) = waiting.next()
    assert isinstance(outcome, RequestError)
    assert "ZeroDivisionError" in outcome.message


def test_so_many_grammars_wait_and_no_more(
    waiting: Waiting, compiler: GrammarCompiler, monkeypatch: pytest.MonkeyPatch
) -> None:
    go_on = threading.Event()
    monkeypatch.setattr(Trial, "measure", lambda trial, vocabulary, source: go_on.wait(60) and 7)
    jobs = [
        replace(make_job([5], grammar=f'start: "{number}"'), principal=f"key {number % 8}")
        for number in range(MAX_PENDING)
    ]
    for job in jobs:
        waiting.queue.add(job, compiler)
    with pytest.raises(QueueFullError, match=f"{MAX_PENDING} grammars") as refusal:
        waiting.queue.add(make_job([5], grammar='start: "x"'), compiler)
    assert refusal.value.retry_after
    same = make_job([5], grammar=jobs[-1].sampling.grammar)
    waiting.queue.add(same, compiler)  # costs nothing more
    go_on.set()
    done: list[Submit] = []
    while len(done) < len(jobs) + 1:
        done += [job for job, _ in waiting.next()]
    assert same in done


def test_one_principals_grammars_do_not_keep_anothers_waiting(
    waiting: Waiting, compiler: GrammarCompiler, monkeypatch: pytest.MonkeyPatch
) -> None:
    bomb_goes_on, compiled = threading.Semaphore(0), []

    def measure(trial: Trial, vocabulary: object, source: str) -> int:
        if "bomb" in source:
            assert bomb_goes_on.acquire(timeout=60)
        compiled.append(source)
        return 7

    monkeypatch.setattr(Trial, "measure", measure)

    def job(grammar: str, principal: str) -> Submit:
        return replace(make_job([5], grammar=grammar), principal=principal)

    bombs = [f'start: "bomb {number}"' for number in range(MAX_PENDING_OF_ONE + 1)]
    for bomb in bombs:
        waiting.queue.add(job(bomb, "hostile"), compiler)
    with pytest.raises(QueueFullError, match=f"{MAX_PENDING_OF_ONE} grammars of your requests"):
        waiting.queue.add(job('start: "another bomb"', "hostile"), compiler)
    waiting.queue.add(job(GOOD, "other"), compiler)
    assert waiting.next()[0][0].principal == "other"
    assert compiled == [GOOD]

    # Two hostile ones have both threads: the third one's turn comes with the next end of a trial.
    waiting.queue.add(job('start: "their bomb"', "as hostile"), compiler)
    waiting.queue.add(job(bombs[-1], "third"), compiler)
    bomb_goes_on.release()
    assert waiting.next()[0][0].principal in ("hostile", "as hostile")
    for _ in bombs:
        bomb_goes_on.release()
    done = []
    while len(done) < len(bombs) + 1:
        done += [job for job, _ in waiting.next()]
    assert compiled.index(bombs[-1]) < len(bombs) - 1, "it was its turn before the others of the hostile principal"
    assert len(compiled) == len(set(compiled)) == len(bombs) + 2
