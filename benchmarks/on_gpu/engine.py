"""Our engine in this process: what its steps and whole workloads take."""

import time
from dataclasses import dataclass, replace

import torch

from penstock.scheduler.config import EngineConfig, KVCacheDtype, ModelSpec, Quantization
from penstock.scheduler.engine import Engine
from penstock.scheduler.messages import Submit
from penstock.scheduler.models.attention import ATTENTION_NAME, register
from penstock.scheduler.runner import GenerationRunner
from penstock.scheduler.sampling_params import SamplingParams

from .models import Shape
from .peer import Run
from .workloads import Workload

MODEL = "model"


def make_engine(
    shape: Shape,
    device: str,
    *,
    max_model_len: int,
    dtype: torch.dtype | None = None,
    quantization: Quantization = "none",
    kv_cache_dtype: KVCacheDtype = "auto",
) -> Engine:
    """An engine that serves the shape with random weights; no inter-token target holds prompts back."""
    spec = ModelSpec(
        MODEL,
        path="",
        kind="generate",
        quantization=quantization,
        kv_cache_dtype=kv_cache_dtype,
        max_model_len=max_model_len,
    )
    config = EngineConfig(device=device, itl_target_ms=0, enable_prefix_caching=False)
    register()
    model = shape.make(device, ATTENTION_NAME, dtype)
    engine = Engine(config)
    engine.install(GenerationRunner.prepare(spec, model, max_model_len, config, lambda stage, done: None))
    return engine


@dataclass(frozen=True)
class Steps:
    """Steps of one kind, in seconds."""

    median: float
    total: float
    count: int


GREEDY = SamplingParams(max_tokens=1, temperature=0.0, seed=0, ignore_eos=True)


def submit(engine: Engine, workload: Workload, sampling: SamplingParams = GREEDY) -> None:
    """Queue the whole workload; `sampling` is that of every request but for the length."""
    for index, (prompt, output_len) in enumerate(zip(workload.prompts, workload.output_lens, strict=True)):
        params = replace(sampling, max_tokens=output_len)
        engine.add(Submit(str(index), MODEL, prompt, params, arrival_time=time.time()))


def run(engine: Engine, workload: Workload) -> Run:
    """Generate the workload; seconds from the first request to the last token."""
    outputs: list[list[int]] = [[] for _ in workload.prompts]
    started = time.perf_counter()
    submit(engine, workload)
    while engine.has_work:
        for output in engine.step().outputs:
            outputs[int(output.request_id)] += output.token_ids
    return Run(time.perf_counter() - started, outputs)


def decode_steps(engine: Engine, workload: Workload, sampling: SamplingParams = GREEDY) -> Steps:
    """Steps in which every request of the workload gets one token; the first tenth of them does not count."""
    submit(engine, workload, sampling)
    num_requests = len(workload.prompts)
    times: list[float] = []
    last = time.perf_counter()
    while engine.has_work:
        num_tokens = sum(len(output.token_ids) for output in engine.step().outputs)
        now = time.perf_counter()
        if num_tokens == num_requests:
            times.append(now - last)
        last = now
    counted = sorted(times[len(times) // 10 :])
    return Steps(counted[len(counted) // 2], sum(counted), len(counted))


def prefill(engine: Engine, prompt: list[int]) -> float:
    """Seconds to the first token of one prompt, alone; the best of three."""
    times = []
    for _ in range(3):
        times.append(run(engine, Workload("prefill", [prompt], [1])).seconds)
    return min(times)


def free(engine: Engine) -> None:
    """Give the memory back before the next model comes."""
    engine.remove(MODEL)
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
