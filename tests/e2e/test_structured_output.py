"""Every finished output of a small model at temperature 1 is JSON that its schema allows, or the schema was refused.

The schemas are those of the public test suite of JSON Schema and random ones. Most of what could go wrong shows without
a model: no text that a schema forbids may pass its grammar.
"""

import json
import random
from functools import cache
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from engine_harness import make_engine, make_job
from llguidance import LLTokenizer
from openai import BadRequestError, OpenAI
from random_schemas import random_schema, with_definitions
from starter_models import smollm2_folder
from tokenizers import Tokenizer

from penstock.scheduler.errors import RequestError
from penstock.scheduler.grammar import Grammar, compile_template
from penstock.serving.text.output_format import OutputFormat, grammar_of

SUITE = Path(__file__).parents[1] / "support" / "json_schema_test_suite.json"
CHAT = "smollm2-135m-instruct"
NUM_RANDOM = 200
MAX_TOKENS = 24
# What the validator gets wrong itself: it divides floats, and Python's patterns know no properties of characters.
BEYOND_THE_VALIDATOR = ("multipleOf: by small number", "multipleOf: small multiple of large integer")


@cache
def suite() -> list[dict[str, Any]]:
    cases: list[dict[str, Any]] = json.loads(SUITE.read_text())["cases"]
    return cases


def random_case(seed: int) -> dict[str, Any]:
    rng = random.Random(seed)
    return with_definitions(random_schema(rng), rng)


@pytest.fixture(scope="module")
def bytes_only() -> LLTokenizer:
    """One token a byte: any text can be tried."""
    return LLTokenizer("byte")


def grammar(tokenizer: LLTokenizer, schema: object) -> Grammar | None:
    """None if the schema is refused."""
    try:
        source = grammar_of(OutputFormat("json_schema", json.dumps(schema), "response_format"))
        return Grammar(compile_template(tokenizer, source))
    except RequestError as error:
        assert error.code in ("invalid_json_schema", "invalid_grammar")
        return None


def takes(tokenizer: LLTokenizer, grammar: Grammar, value: object) -> bool:
    matcher = grammar.start()
    text = json.dumps(value, ensure_ascii=False)
    return all(map(matcher.accept, tokenizer.tokenize_str(text))) and matcher.matcher.is_accepting()


def test_nothing_that_the_suite_calls_invalid_passes(bytes_only: LLTokenizer) -> None:
    num_enforced = num_valid = num_taken = 0
    for case in suite():
        if (found := grammar(bytes_only, case["schema"])) is None:
            continue
        num_enforced += 1
        wrong = [value for value in case["invalid"] if takes(bytes_only, found, value)]
        assert not wrong, f"{case['about']}: {wrong} passes {case['schema']}"
        num_valid += len(case["valid"])
        num_taken += sum(takes(bytes_only, found, value) for value in case["valid"])
    assert num_enforced > 140
    assert num_taken > 0.9 * num_valid  # the others have their keys in another order, or exponents


def test_the_suites_unenforced_keywords_are_refused(bytes_only: LLTokenizer) -> None:
    unenforced = (
        "not",
        "contains",
        "uniqueItems: uniqueItems validation",
        "propertyNames",
        "if-then-else: if and else",
    )
    cases = [case for case in suite() if case["about"].startswith(unenforced) and case["invalid"]]
    assert len(cases) == 20
    assert [case["about"] for case in cases if grammar(bytes_only, case["schema"])] == []


def test_finished_outputs_of_a_model_validate() -> None:
    folder = smollm2_folder()
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    prompt = tokenizer.encode("A short example in JSON:\n").ids
    ends = [tokenizer.token_to_id(token) for token in ('"', "}", "]", '"}', '"]')]
    towards_the_end = {token_id: 4.0 for token_id in ends if token_id is not None}
    engine = make_engine(folder, num_threads=0, max_num_seqs=128, max_num_batched_tokens=1024, kv_cache_memory=1 << 30)
    cases = [case for case in suite() if case["about"] not in BEYOND_THE_VALIDATOR]
    schemas = [case["schema"] for case in cases if "\\p{" not in str(case["schema"]).replace("\\\\", "\\")]
    schemas += [random_case(seed) for seed in range(NUM_RANDOM)]
    schema_of: dict[str, Any] = {}
    num_refused = 0
    for seed, schema in enumerate(schemas):
        try:
            source = grammar_of(OutputFormat("json_schema", json.dumps(schema), "response_format"))
            sampling: dict[str, Any] = {"temperature": 1.0, "logit_bias": towards_the_end, "grammar": source}
            job = make_job(prompt, max_tokens=MAX_TOKENS, seed=seed, **sampling)
            engine.add(job)
            schema_of[job.request_id] = schema
        except RequestError:
            num_refused += 1
    assert len(schema_of) > 300
    tokens: dict[str, list[int]] = {request_id: [] for request_id in schema_of}
    finished = []
    while engine.has_work:
        for output in engine.step().outputs:
            assert output.error is None, (output.error, schema_of[output.request_id])
            tokens[output.request_id] += [token for token in output.token_ids if token != output.stop_token_id]
            if output.finish_reason == "stop":
                finished.append(output.request_id)
    for request_id in finished:
        text = tokenizer.decode(tokens[request_id])
        schema = schema_of[request_id]
        try:
            jsonschema.validate(json.loads(text), schema, cls=jsonschema.Draft202012Validator)
        except (ValueError, jsonschema.ValidationError) as error:
            pytest.fail(f"{text!r} does not match {json.dumps(schema)}: {error}")
    assert len(finished) > 0.6 * len(schema_of), len(finished)


def test_grammars_over_http(client: OpenAI) -> None:
    """A refusal names the field, for chats and completions; a hostile grammar ends nothing but its request."""
    deep = "\n".join(f"r{number}: r{number + 1}" for number in range(4000)) + '\nr4000: "deep"\nstart: r0'
    messages: list[Any] = [{"role": "user", "content": "Say a number."}]
    for field, value in (("regex", "(?=a)b"), ("grammar", "start: nowhere")):
        for answer in (
            lambda body: client.chat.completions.create(model=CHAT, messages=messages, max_tokens=8, extra_body=body),
            lambda body: client.completions.create(model=CHAT, prompt="A number:", max_tokens=8, extra_body=body),
        ):
            with pytest.raises(BadRequestError) as caught:
                answer({field: value})
            assert (caught.value.code, caught.value.param) == ("invalid_grammar", field)
    chat = client.chat.completions.create(model=CHAT, messages=messages, extra_body={"regex": "[1-9][0-9]"})
    assert chat.choices[0].finish_reason == "stop"
    assert 10 <= int(chat.choices[0].message.content or "") <= 99
    completion = client.completions.create(model=CHAT, prompt="A word:", max_tokens=8, extra_body={"grammar": deep})
    assert completion.choices[0].text == "deep"
