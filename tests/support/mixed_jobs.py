"""Jobs of every kind, stepped through an engine, and what their clients are told."""

import random
from collections.abc import Callable
from typing import Any

import pytest
from engine_harness import make_job
from tiny_models import EOS_ID

from penstock.scheduler.engine import Engine
from penstock.scheduler.messages import RequestOutput, Submit


def step_through(
    engine: Engine, jobs: list[Submit], before_step: Callable[[int], None] = lambda step: None
) -> dict[str, list[RequestOutput]]:
    """Add the jobs a few at a time and step until nothing is left; each job's outputs with tokens or an end."""
    outputs: dict[str, list[RequestOutput]] = {job.request_id: [] for job in jobs}
    waiting, step = list(jobs), 0
    while waiting or engine.has_work:
        for job in waiting[:2]:
            engine.add(job)
        del waiting[:2]
        before_step(step)
        for output in engine.step().outputs:
            if output.token_ids or output.finish_reason:
                outputs[output.request_id].append(output)
        step += 1
    assert engine.stats()["m"].kv_blocks_used == 0
    return outputs


def told(outputs: list[RequestOutput]) -> dict[str, Any]:
    """What a client learns."""
    entries = [entry for output in outputs for entry in output.logprobs or []]
    prompt_entries = [entry for output in outputs for entry in output.prompt_logprobs or []]
    return {
        "tokens": [token_id for output in outputs for token_id in output.token_ids],
        "finish_reason": outputs[-1].finish_reason if outputs else None,
        "stop_token_id": outputs[-1].stop_token_id if outputs else None,
        "error": outputs[-1].error if outputs else None,
        "top": [entry.top_token_ids for entry in entries],
        "prompt_top": [entry.top_token_ids for entry in prompt_entries],
        "logprobs": [entry.logprob for entry in entries + prompt_entries],
    }


def assert_same(actual: list[RequestOutput], expected: list[RequestOutput]) -> None:
    """Another batch may move a log probability in its last digits."""
    got, wanted = told(actual), told(expected)
    assert got.pop("logprobs") == pytest.approx(wanted.pop("logprobs"), abs=1e-4)
    assert got == wanted


def some_jobs(rng: random.Random, number: int) -> list[Submit]:
    """Jobs of every kind; many prompts begin alike, and many outputs end by themselves."""
    shared = [rng.randrange(3, 384) for _ in range(40)]
    kinds: list[dict[str, Any]] = [
        {},
        {"temperature": 1.0},
        {"temperature": 0.8, "top_k": 20, "top_p": 0.9},
        {"temperature": 1.2, "min_p": 0.01, "logprobs": 2},
        {"temperature": 1.0, "presence_penalty": 0.7, "frequency_penalty": 0.3},
        {"repetition_penalty": 1.3},
        {"temperature": 1.0, "logit_bias": {EOS_ID: 4.0}},
        {"temperature": 1.0, "logit_bias": {EOS_ID: 5.0}, "min_tokens": 4},
        {"temperature": 1.0, "stop_token_ids": tuple(range(3, 60))},
        {"temperature": 1.0, "grammar": "start: /[0-9]{3,7}/"},
        {"prompt_logprobs": 1, "logprobs": 0},
    ]
    jobs = []
    for index in range(number):
        beginning = shared[: rng.choice([0, 0, 16, 33])]
        prompt = beginning + [rng.randrange(3, 384) for _ in range(rng.randrange(1, 30))]
        jobs.append(make_job(prompt, max_tokens=rng.randrange(4, 16), seed=index, **rng.choice(kinds)))
    return jobs
