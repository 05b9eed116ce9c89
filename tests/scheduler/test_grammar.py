"""Grammars through the engine: every output keeps to its own, alone or in any company, and a bad one stays alone."""

import json
import random
import re
import threading
from dataclasses import replace
from pathlib import Path

import pytest
from engine_harness import make_engine, make_job, run
from tiny_models import EOS_ID, VOCAB_SIZE, make_tiny, make_tiny_tokenizer
from tokenizers import Tokenizer

from penstock.scheduler import grammar as grammar_module
from penstock.scheduler.engine import Engine
from penstock.scheduler.errors import RequestError
from penstock.scheduler.grammar import GrammarCompiler
from penstock.scheduler.messages import RequestOutput, Submit

PROMPT = [50, 60, 70, 80, 90]
WORDS = 'start: WORD (" " WORD){2,4} "."\nWORD: /[a-f]{1,3}/'
OBJECT = "start: %json " + json.dumps(
    {
        "type": "object",
        "properties": {"a": {"type": "integer"}, "b": {"enum": ["x", "y"]}},
        "required": ["a", "b"],
        "additionalProperties": False,
        "x-guidance": {"whitespace_flexible": False},
    }
)
DIGITS = "start: /[0-9]+/"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_tokenizer(make_tiny("llama", tmp_path_factory.mktemp("llama")))


@pytest.fixture(scope="module")
def engine(folder: Path) -> Engine:
    return make_engine(folder)


@pytest.fixture(scope="module")
def tokenizer(folder: Path) -> Tokenizer:
    return Tokenizer.from_file(str(folder / "tokenizer.json"))


def outputs_of(engine: Engine, job: Submit) -> list[RequestOutput]:
    engine.add(job)
    outputs = []
    while engine.has_work:
        outputs += engine.step().outputs
    return [output for output in outputs if output.token_ids or output.finish_reason]


def tokens_of(outputs: list[RequestOutput]) -> list[int]:
    return [token_id for output in outputs for token_id in output.token_ids]


@pytest.mark.parametrize("temperature", [0.0, 1.0])
@pytest.mark.parametrize(
    ("grammar", "pattern"),
    [(WORDS, r"[a-f]{1,3}( [a-f]{1,3}){2,4}\."), (OBJECT, r'\{"a":-?(0|[1-9]\d*),"b":"[xy]"\}')],
)
def test_outputs_match_and_end_when_nothing_can_follow(
    engine: Engine, tokenizer: Tokenizer, grammar: str, pattern: str, temperature: float
) -> None:
    jobs = [
        make_job(PROMPT, max_tokens=60, seed=seed, grammar=grammar, temperature=temperature, top_p=0.9, top_k=200)
        for seed in range(8)
    ]
    texts = [tokenizer.decode(tokens) for tokens in run(engine, jobs)]
    finished = [text for text in texts if re.fullmatch(pattern, text)]
    assert len(finished) >= (1 if temperature == 0 else 4)
    assert len(set(texts)) == (1 if temperature == 0 else 8)
    unfinished = [text for text in texts if text not in finished]
    assert all(re.match(r'[a-f. ]*$|\{"a":-?\d*', text) for text in unfinished)


def test_it_stops_without_an_end_token_when_only_that_could_follow(engine: Engine, tokenizer: Tokenizer) -> None:
    for ignore_eos in (False, True):
        last = outputs_of(engine, make_job(PROMPT, max_tokens=60, grammar='start: "abc"', ignore_eos=ignore_eos))[-1]
        assert (last.finish_reason, last.stop_token_id) == ("stop", None)
        assert tokenizer.decode(last.token_ids) == "c"
        assert last.timings is not None


def test_max_tokens_ends_it_unfinished(engine: Engine, tokenizer: Tokenizer) -> None:
    outputs = outputs_of(engine, make_job(PROMPT, max_tokens=3, grammar=DIGITS, logit_bias={EOS_ID: -100.0}))
    assert outputs[-1].finish_reason == "length"
    assert tokenizer.decode(tokens_of(outputs)).isdecimal()


def test_an_end_token_is_allowed_where_the_grammar_may_end(engine: Engine, tokenizer: Tokenizer) -> None:
    outputs = outputs_of(engine, make_job(PROMPT, max_tokens=9, grammar=DIGITS, logit_bias={EOS_ID: 100.0}))
    assert (outputs[-1].finish_reason, outputs[-1].stop_token_id, len(outputs)) == ("stop", EOS_ID, 2)
    assert tokenizer.decode(outputs[0].token_ids).isdecimal()


@pytest.mark.parametrize("params", [{"ignore_eos": True}, {"min_tokens": 6}])
def test_ends_are_held_back_while_something_else_is_allowed(engine: Engine, params: dict[str, object]) -> None:
    bias = {EOS_ID: 100.0}
    outputs = outputs_of(engine, make_job(PROMPT, max_tokens=8, grammar=DIGITS, logit_bias=bias, **params))
    assert len(outputs) >= 7
    outputs = outputs_of(engine, make_job(PROMPT, max_tokens=8, grammar='start: "ab"?', logit_bias=bias, **params))
    assert (outputs[-1].finish_reason, len(outputs)) == ("stop", 2)


def test_min_tokens_gives_way_where_only_an_end_is_allowed(engine: Engine) -> None:
    resumed = make_job(PROMPT, max_tokens=8, grammar='start: "ab"', min_tokens=8)
    tokens = tokens_of(outputs_of(engine, resumed))
    again = Submit("again", "m", PROMPT, resumed.sampling, 0.0, output_token_ids=tokens)
    (last,) = outputs_of(engine, again)
    assert (last.token_ids, last.finish_reason) == ([EOS_ID], "stop")


def test_special_tokens_are_tokens(engine: Engine) -> None:
    job = make_job(PROMPT, max_tokens=9, grammar='start: <|im_start|> "a" <|im_end|>')
    outputs = outputs_of(engine, job)
    assert tokens_of(outputs)[::2] == [1, EOS_ID]
    assert (outputs[-1].finish_reason, outputs[-1].stop_token_id) == ("stop", EOS_ID)


def test_log_probabilities_are_of_the_model_not_of_the_grammar(engine: Engine) -> None:
    (free, bound) = (make_job(PROMPT, max_tokens=1, logprobs=3, grammar=grammar) for grammar in ("", DIGITS))
    (free_output,) = outputs_of(engine, free)
    (bound_output,) = outputs_of(engine, bound)
    assert free_output.logprobs and bound_output.logprobs
    assert free_output.logprobs[0].top_token_ids == bound_output.logprobs[0].top_token_ids
    assert bound_output.logprobs[0].logprob < free_output.logprobs[0].logprob


def mixed_jobs() -> list[Submit]:
    """Grammars of three kinds and none, prompts of many lengths, every kind of draw."""
    rng = random.Random(5)
    jobs = []
    for number in range(12):
        prompt = [rng.randrange(3, 256) for _ in range(rng.choice([1, 5, 16, 40]))]
        params: dict[str, object] = {"temperature": rng.choice([0.0, 1.0]), "top_p": rng.choice([0.9, 1.0])}
        params["grammar"] = [WORDS, OBJECT, "", DIGITS][number % 4]
        jobs.append(make_job(prompt, max_tokens=12, seed=number, **params))
    return jobs


def copies(jobs: list[Submit]) -> list[Submit]:
    return [replace(job, request_id=f"{job.request_id}-copy") for job in jobs]


@pytest.fixture(scope="module")
def alone(folder: Path) -> tuple[list[Submit], list[list[int]]]:
    engine = make_engine(folder, enable_prefix_caching=False)
    jobs = mixed_jobs()
    return jobs, [run(engine, [job])[0] for job in jobs]


@pytest.mark.parametrize(
    "config",
    [
        {},
        {"max_num_seqs": 8, "max_num_batched_tokens": 8},
        {"num_blocks": 7, "block_size": 8, "max_num_batched_tokens": 32},
    ],
)
def test_the_same_tokens_in_any_company(
    folder: Path, alone: tuple[list[Submit], list[list[int]]], config: dict[str, int]
) -> None:
    jobs, expected = alone
    engine = make_engine(folder, **config)
    assert run(engine, copies(jobs)) == expected
    if "num_blocks" in config:
        assert engine.stats()["m"].num_preemptions > 0


def test_a_job_goes_on_from_the_tokens_it_has(engine: Engine, alone: tuple[list[Submit], list[list[int]]]) -> None:
    jobs, expected = alone
    for job, tokens in zip(jobs, expected, strict=True):
        if len(tokens) > 4:
            resumed = Submit(f"{job.request_id}-r", "m", job.prompt_token_ids, job.sampling, 0.0, tokens[:4])
            assert run(engine, [resumed]) == [tokens[4:]]


@pytest.mark.parametrize(
    ("grammar", "words"),
    [
        ("start: (", "Expected token"),
        ('start: %json {"type": "nonsense"}', "Invalid type"),
        ("start: <|nothing|>", "unknown special token"),
        ("start: /(?=a)/", "look-around"),
        ("x" * (1 << 21), "the limit is"),
    ],
)
def test_a_bad_grammar_is_refused_and_nothing_is_queued(engine: Engine, grammar: str, words: str) -> None:
    with pytest.raises(RequestError, match=words) as caught:
        engine.add(make_job(PROMPT, grammar=grammar))
    assert caught.value.code == "invalid_grammar"
    assert len(caught.value.message) < 450
    assert " | " not in caught.value.message  # quotes of the grammar
    assert not engine.has_work


def test_end_tokens_that_the_tokenizer_lacks_are_left_out(tmp_path: Path) -> None:
    folder = make_tiny_tokenizer(tmp_path)
    for ends in ({EOS_ID, VOCAB_SIZE, VOCAB_SIZE + 5}, {VOCAB_SIZE}):
        assert GrammarCompiler(folder, VOCAB_SIZE + 10, ends).compile('start: "a"')


def test_a_grammar_that_grows_too_costly_ends_its_own_job(engine: Engine) -> None:
    rules = "\n".join(f"r{level}: r{level + 1} r{level + 1}" for level in range(30))
    costly = make_job(PROMPT, max_tokens=40, grammar=f'start: r0\n{rules}\nr30: "a"', grammar_param="regex")
    other = make_job(PROMPT, max_tokens=5, grammar=WORDS)
    expected = run(engine, [make_job(PROMPT, max_tokens=5, grammar=WORDS)])
    engine.add(costly)
    engine.add(other)
    outputs: list[RequestOutput] = []
    while engine.has_work:
        outputs += engine.step().outputs
    (failed,) = (output for output in outputs if output.error)
    assert failed.request_id == costly.request_id
    assert failed.error is not None
    assert (failed.error.code, failed.error.status, failed.error.param) == ("invalid_grammar", 400, "regex")
    assert [tokens_of([output for output in outputs if output.request_id == other.request_id])] == expected


def test_output_that_the_grammar_does_not_allow_is_refused(engine: Engine) -> None:
    job = make_job(PROMPT, grammar=DIGITS)
    with pytest.raises(RequestError, match="output so far"):
        engine.add(Submit("wrong", "m", PROMPT, job.sampling, 0.0, output_token_ids=[1]))


def test_a_model_without_a_tokenizer_serves_all_but_grammars(tmp_path: Path) -> None:
    engine = make_engine(make_tiny("llama", tmp_path))
    with pytest.raises(RequestError, match=r"tokenizer\.json"):
        engine.add(make_job(PROMPT, grammar=DIGITS))
    assert run(engine, [make_job(PROMPT)])


class TestCompiler:
    """What it remembers."""

    @pytest.fixture
    def compiler(self, folder: Path) -> GrammarCompiler:
        return GrammarCompiler(folder, VOCAB_SIZE, {EOS_ID})

    def test_a_grammar_is_compiled_once(self, compiler: GrammarCompiler, monkeypatch: pytest.MonkeyPatch) -> None:
        first = compiler.compile(DIGITS)
        monkeypatch.setattr(grammar_module, "compile_template", lambda *arguments: pytest.fail("compiled again"))
        assert compiler.compile(DIGITS) is first
        assert compiler.find(WORDS) is None

    def test_it_forgets_what_was_asked_longest_ago(
        self, compiler: GrammarCompiler, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(grammar_module, "_MAX_CACHED_GRAMMARS", 2)
        for grammar in (DIGITS, WORDS, DIGITS, OBJECT):
            compiler.compile(grammar)
        assert compiler.find(DIGITS) and compiler.find(OBJECT)
        assert compiler.find(WORDS) is None
        monkeypatch.setattr(grammar_module, "_MAX_CACHED_BYTES", 1_000_000)
        compiler.compile(WORDS, 999_999)
        assert compiler.find(WORDS)
        assert compiler.find(DIGITS) is compiler.find(OBJECT) is None
        compiler.compile(DIGITS)
        assert compiler.find(WORDS) is None

    def test_outputs_do_not_share_their_place(self, compiler: GrammarCompiler, tokenizer: Tokenizer) -> None:
        one, two = (compiler.compile('start: "abc"').start() for _ in range(2))
        for token_id in tokenizer.encode("ab").ids:
            assert one.accept(token_id)
        assert not one.is_complete
        assert not two.accept(tokenizer.encode("b").ids[0])
        assert two.error and not one.error
        assert one.accept(tokenizer.encode("c").ids[0])
        assert one.is_complete

    def test_many_threads_at_once(self, compiler: GrammarCompiler) -> None:
        found = []
        threads = [
            threading.Thread(target=lambda n=number % 3: found.append(compiler.compile(f'start: "{n}"')))
            for number in range(12)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len(found) == 12
