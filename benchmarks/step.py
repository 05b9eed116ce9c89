"""Where the milliseconds of an engine step go, in this process and without HTTP.

    python benchmarks/step.py MODEL_FOLDER

A step is measured twice: as it is, and with clocks around its parts, each of which counts its own time and not that of
the parts inside it. Where all layers are one native call, the clocks see them as one part; `--apart` runs their
operations one by one. The best step of each kind counts, because other work on the machine only ever adds time.
"""

import argparse
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any
from unittest import mock

import numpy as np
import torch

from penstock.kernels import decoder_layers_native
from penstock.kernels.attention import AttentionBatch
from penstock.scheduler import batch, context, engine, runner
from penstock.scheduler.config import EngineConfig, ModelSpec
from penstock.scheduler.loader import load_runner
from penstock.scheduler.messages import StepOutputs, Submit, encode
from penstock.scheduler.models import fused_layer, linear, rms_norm
from penstock.scheduler.sampling import Sampler
from penstock.scheduler.sampling_params import SamplingParams
from penstock.scheduler.scheduler import Scheduler

# Where each part's functions are found: an owner and a name. What does not exist is left out.
PARTS: dict[str, list[tuple[Any, str]]] = {
    "schedule": [(Scheduler, "schedule")],
    "inputs": [(runner, "build_inputs"), (AttentionBatch, "build"), (batch, "build_inputs")],
    "forward, around the layers": [(runner.GenerationRunner, "_run")],
    "layers, as one native call": [(decoder_layers_native.NativeDecoder, "run")],
    "layers, around their parts": [(fused_layer.FusedDecoderLayer, "forward")],
    "linears": [(linear.PackedLinear, "forward"), (linear.PackedLinear, "forward_add")],
    "attention": [(context, "paged_attention"), (context, "cached_attention")],
    "norms": [(rms_norm.RMSNorm, "forward")],
    "rotation, cache write": [(fused_layer, "rope_cache_write")],
    "silu·mul": [(fused_layer, "silu_mul")],
    "sampling": [(Sampler, "sample")],
    "engine": [(engine.Engine, "step")],
}


class Clocks:
    """Seconds of each part, less those of the parts that it called."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = defaultdict(float)
        self._inside: list[float] = []  # seconds of the parts that each running part has called

    def around(self, function: Callable[..., Any], part: str) -> Callable[..., Any]:
        """`function` with a clock."""

        def timed(*arguments: Any, **keywords: Any) -> Any:
            self._inside.append(0.0)
            start = time.perf_counter()
            result = function(*arguments, **keywords)
            seconds = time.perf_counter() - start
            self.seconds[part] += seconds - self._inside.pop()
            if self._inside:
                self._inside[-1] += seconds
            return result

        return timed

    @contextmanager
    def installed(self) -> Iterator[None]:
        """Put clocks around all parts."""
        patches = []
        for part, places in PARTS.items():
            for owner, name in places:
                if (function := getattr(owner, name, None)) is not None:
                    patches.append(mock.patch.object(owner, name, self.around(function, part)))
        for patch in patches:
            patch.start()
        yield
        for patch in patches:
            patch.stop()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder")
    parser.add_argument("--dtype", default="auto")
    parser.add_argument("--streams", type=int, nargs="+", default=[1, 8, 32])
    parser.add_argument("--prompt", type=int, default=64, help="tokens of each prompt")
    parser.add_argument("--output", type=int, default=64, help="tokens of each answer")
    parser.add_argument("--prefill", type=int, default=512, help="prompt tokens of a step that computes nothing else")
    parser.add_argument("--threads", type=int, default=0)
    parser.add_argument("--temperature", type=float, default=0.0)
    parser.add_argument("--apart", action="store_true", help="the layers' operations one by one")
    arguments = parser.parse_args()
    config = EngineConfig(
        device="auto", kv_cache_memory=256 << 20, num_threads=arguments.threads, max_num_batched_tokens=2048
    )
    model = load_runner(ModelSpec("m", arguments.folder, "generate", dtype=arguments.dtype), config)
    if arguments.apart:
        model._model.base_model._native = None
    made = engine.Engine(config)
    made.install(model)
    columns = {}
    for count in arguments.streams:
        columns[f"{count} rows"] = measure(made, [arguments.prompt] * count, arguments, decode=True)
    prompts = [arguments.prompt] * (arguments.prefill // arguments.prompt)
    columns[f"{sum(prompts)} prompt tokens"] = measure(made, prompts, arguments, decode=False)
    print(f"{'ms':<28}" + "".join(f"{name:>20}" for name in columns))
    for part in [*PARTS, "messages", "whole step, with clocks", "whole step"]:
        print(f"{part:<28}" + "".join(f"{1e3 * column[part]:>20.2f}" for column in columns.values()))


def measure(
    made: engine.Engine, prompts: list[int], arguments: argparse.Namespace, *, decode: bool
) -> dict[str, float]:
    """Seconds of each part of the best step, by part."""
    whole, best = float("inf"), {"whole step, with clocks": float("inf")}
    for _ in range(1 if decode else 8):
        whole = min([whole, *(seconds for seconds, counts in steps(made, prompts, arguments, decode) if counts)])
        clocks = Clocks()
        with clocks.installed():
            for seconds, counts in steps(made, prompts, arguments, decode):
                if counts and seconds < best["whole step, with clocks"]:
                    best = {**dict.fromkeys(PARTS, 0.0), **clocks.seconds, "whole step, with clocks": seconds}
                clocks.seconds.clear()
    return {**best, "messages": messages(len(prompts)), "whole step": whole}


def steps(
    made: engine.Engine, prompts: list[int], arguments: argparse.Namespace, decode: bool
) -> Iterator[tuple[float, bool]]:
    """Run requests with prompts of these lengths; the seconds of each step, and whether it is of the kind to measure:
    one that decodes, or one of the others.
    """
    for index, length in enumerate(prompts):
        tokens = np.random.default_rng().integers(1000, 30000, length).tolist()  # new to the prefix cache
        sampling = SamplingParams(
            max_tokens=arguments.output if decode else 1,
            seed=index,
            temperature=arguments.temperature,
            ignore_eos=True,
        )
        made.add(Submit(f"{index}", "m", tokens, sampling, time.time()))
    while made.has_work:
        start = time.perf_counter()
        result = made.step()
        seconds = time.perf_counter() - start
        yield seconds, (result.num_batched_tokens == len(prompts)) == decode


def messages(num_rows: int) -> float:
    """Seconds to encode what a step of so many rows tells an API process."""
    outputs = [engine.RequestOutput(f"request-{row}", [row]) for row in range(num_rows)]
    fastest = float("inf")
    for _ in range(100):
        start = time.perf_counter()
        encode(StepOutputs(outputs, [], {}, 0.0, num_rows))
        fastest = min(fastest, time.perf_counter() - start)
    return fastest


if __name__ == "__main__":
    with torch.inference_mode():
        main()
