"""Grammars that end the process which tries them out, and nothing else."""

import json
from collections.abc import Iterator

import pytest
from tiny_models import EOS_ID, VOCAB_SIZE, make_tiny_tokenizer

from penstock.scheduler.errors import RequestError
from penstock.scheduler.grammar import Vocabulary
from penstock.scheduler.grammar_trial import Trial

GOOD = 'start: "a" | "b"'
DEEP = "\n".join(f"r{number}: r{number + 1}" for number in range(60_000)) + '\nr60000: "a"\nstart: r0'
LARGE = "start: %json " + json.dumps({"enum": [{"a": number, "b": [number]} for number in range(2000)]})


@pytest.fixture(scope="module")
def vocabulary(tmp_path_factory: pytest.TempPathFactory) -> Vocabulary:
    folder = make_tiny_tokenizer(tmp_path_factory.mktemp("tokenizer"))
    return Vocabulary(str(folder), VOCAB_SIZE, (EOS_ID,))


@pytest.fixture
def trial() -> Iterator[Trial]:
    trial = Trial()
    yield trial
    trial.close()


def refusal(trial: Trial, vocabulary: Vocabulary, source: str) -> str:
    with pytest.raises(RequestError) as caught:
        trial.measure(vocabulary, source)
    assert caught.value.code == "invalid_grammar"
    return caught.value.message


def test_good_and_bad_grammars_in_one_process(trial: Trial, vocabulary: Vocabulary) -> None:
    small = trial.measure(vocabulary, GOOD)
    process = trial._process
    assert "Expected token" in refusal(trial, vocabulary, "start: (")
    assert trial.measure(vocabulary, LARGE) > small
    assert trial._process is process
    with pytest.raises(RequestError, match=r"tokenizer\.json"):
        trial.measure(Vocabulary("/nowhere", VOCAB_SIZE, (EOS_ID,)), GOOD)


def test_it_starts_again_after_a_death(trial: Trial, vocabulary: Vocabulary) -> None:
    assert "nested too deeply" in refusal(trial, vocabulary, DEEP)
    assert trial.measure(vocabulary, GOOD) >= 0
    assert trial._process is not None
    trial._process.kill()
    trial._process.wait()
    assert "compiling it takes" in refusal(trial, vocabulary, GOOD)
    assert trial.measure(vocabulary, GOOD) >= 0


def test_time_is_limited(vocabulary: Vocabulary) -> None:
    trial = Trial(max_seconds=1)
    slow = 'start: %json {"type": "integer", "multipleOf": 999983}'
    try:
        assert "takes more than 1 s" in refusal(trial, vocabulary, slow)
    finally:
        trial.close()
