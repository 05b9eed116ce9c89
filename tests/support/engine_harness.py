"""Runs jobs through a real `Engine` in this process and compares them with what transformers generates."""

import itertools
import time
from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM

from penstock.scheduler.config import EngineConfig, ModelSpec
from penstock.scheduler.engine import Engine
from penstock.scheduler.loader import load_runner
from penstock.scheduler.messages import Submit
from penstock.scheduler.runner import GenerationRunner
from penstock.scheduler.sampling_params import SamplingParams

_ids = itertools.count()


def make_engine(
    folder: Path, num_blocks: int | None = None, clock: Callable[[], float] = time.monotonic, **config: object
) -> Engine:
    """An fp32 CPU engine with one generation model named "m", and exactly `num_blocks` KV blocks if given."""
    settings = {"num_threads": 1, "max_num_seqs": 16, "kv_cache_memory": 64 << 20, "itl_target_ms": 0, **config}
    engine_config = EngineConfig(device="cpu", **settings)  # type: ignore[arg-type]
    runner = load_runner(ModelSpec("m", str(folder), "generate", dtype="float32"), engine_config)
    assert isinstance(runner, GenerationRunner)
    if num_blocks is not None:
        engine_config = replace(engine_config, kv_cache_memory=num_blocks * runner.kv_bytes_per_block)
    engine = Engine(engine_config, clock)
    engine.install(runner)
    if num_blocks is not None:
        assert engine.describe("m").num_kv_blocks == num_blocks
    return engine


def make_job(prompt: list[int], *, max_tokens: int = 12, seed: int = 0, salt: str = "", **params: object) -> Submit:
    """A greedy job unless `params` say otherwise."""
    number = next(_ids)
    sampling = SamplingParams(max_tokens=max_tokens, seed=seed, **{"temperature": 0.0, **params})  # type: ignore[arg-type]
    return Submit(f"job-{number}", "m", prompt, sampling, float(number), cache_salt=salt)


def run(
    engine: Engine, jobs: Iterable[Submit], between_steps: Callable[[int], None] = lambda step: None
) -> list[list[int]]:
    """Add all jobs, step until nothing is left, return each job's output tokens in order; no block may be left over."""
    jobs = list(jobs)
    outputs: dict[str, list[int]] = {job.request_id: [] for job in jobs}
    for job in jobs:
        engine.add(job)
    step = 0
    while engine.has_work:
        between_steps(step)
        for output in engine.step().outputs:
            assert output.error is None, output.error
            if output.request_id in outputs:
                outputs[output.request_id] += output.token_ids
        step += 1
    for lane in engine.scheduler.generation_lanes.values():
        assert lane.kv.pool.num_used == 0
    return [outputs[job.request_id] for job in jobs]


class Oracle:
    """transformers' own `generate`, one prompt at a time."""

    def __init__(self, folder: Path) -> None:
        self.model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager")
        self._known: dict[tuple[tuple[int, ...], int], list[int]] = {}

    def greedy(self, prompt: list[int], max_tokens: int = 12) -> list[int]:
        """The tokens `generate` appends to `prompt`, the end token included."""
        key = (tuple(prompt), max_tokens)
        if key not in self._known:
            with torch.inference_mode():
                output = self.model.generate(torch.tensor([prompt]), max_new_tokens=max_tokens, do_sample=False)
            self._known[key] = output[0, len(prompt) :].tolist()
        return self._known[key]
