"""How the cost of a decode step grows with requests, context and vocabulary, without HTTP.

    python benchmarks/growth.py MODEL_FOLDER

Plots are logarithmic on both axes: a straight line of slope one is a cost in proportion. The vocabulary is varied in
models with random weights and a single small layer, so that head and sampler are nearly all of the step. Results land
in benchmarks/results as `growth.json` and `growth.png`.
"""

import argparse
import json
import sys
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch
from on_gpu import device, workloads
from on_gpu.engine import MODEL, decode_steps, make_engine
from on_gpu.models import Shape
from transformers import LlamaConfig

from penstock.scheduler.config import EngineConfig, ModelSpec
from penstock.scheduler.engine import Engine
from penstock.scheduler.runner import GenerationRunner
from penstock.scheduler.sampling_params import SamplingParams

RESULTS = Path(__file__).parent / "results"
REQUESTS = (1, 2, 4, 8, 16, 32, 64)
CONTEXTS = (64, 128, 256, 512, 1024, 2048)
VOCABULARIES = (8192, 16384, 32768, 65536, 131072, 262144)
NUM_STEPS = 30
GREEDY = SamplingParams(max_tokens=NUM_STEPS, seed=0, temperature=0.0, ignore_eos=True)
SAMPLINGS = {
    "greedy": GREEDY,
    "temperature 1": replace(GREEDY, temperature=1.0),
    "top_p 0.9, top_k 40": replace(GREEDY, temperature=1.0, top_p=0.9, top_k=40),
}
Points = list[tuple[int, float]]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", help="a model folder")
    arguments = parser.parse_args()
    on = "cuda" if torch.cuda.is_available() else "cpu"
    growth = {"requests": of_requests(arguments.model), "context": of_context(arguments.model)}
    growth["vocabulary"] = of_vocabulary(on)
    document: dict[str, Any] = {
        "command": " ".join(["python", *sys.argv]),
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "machine": device.describe(on) | {"threads": str(torch.get_num_threads())},
        "milliseconds": growth,
    }
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / "growth.json").write_text(json.dumps(document, indent=1) + "\n")
    plot(growth)
    for title, lines in growth.items():
        for name, points in lines.items():
            print(f"{title:<12} {name:<24}", "  ".join(f"{size}: {value:.1f}" for size, value in points))


def of_requests(folder: str) -> dict[str, Points]:
    """Milliseconds of a step of so many requests with 128 tokens each."""
    engine = load(folder)
    return {"128 tokens each": [(batch, step(engine, batch, 128)) for batch in REQUESTS]}


def of_context(folder: str) -> dict[str, Points]:
    """Milliseconds of a step of 1 and 8 requests with so many tokens each."""
    engine = load(folder)
    return {f"{batch} requests": [(size, step(engine, batch, size)) for size in CONTEXTS] for batch in (1, 8)}


def of_vocabulary(on: str) -> dict[str, Points]:
    """Milliseconds of a step of 8 requests, drawn in each way, in a model of one layer with so many tokens."""
    lines: dict[str, Points] = {name: [] for name in SAMPLINGS}
    for vocab_size in VOCABULARIES:
        config = LlamaConfig(
            vocab_size=vocab_size,
            hidden_size=512,
            intermediate_size=1024,
            num_hidden_layers=1,
            num_attention_heads=8,
            num_key_value_heads=4,
            head_dim=64,
            tie_word_embeddings=True,
        )
        engine = make_engine(Shape("vocabulary", config), on, max_model_len=256, dtype=torch.bfloat16)
        for name, sampling in SAMPLINGS.items():
            lines[name].append((vocab_size, step(engine, 8, 16, sampling)))
        engine.remove(MODEL)
    return lines


def load(folder: str) -> Engine:
    """An engine with the model of the folder."""
    config = EngineConfig(itl_target_ms=0, enable_prefix_caching=False)
    engine = Engine(config)
    spec = ModelSpec(MODEL, folder, "generate")
    engine.install(GenerationRunner.load(spec, engine.config, lambda stage, done: None))
    return engine


def step(engine: Engine, num_requests: int, context: int, sampling: SamplingParams = GREEDY) -> float:
    """Milliseconds of a decode step of `num_requests` with `context` tokens each, the median of many."""
    num_prompt_steps = num_requests * context // 256  # the first request generates while the last one's prompt waits
    workload = workloads.equal(num_requests, context, NUM_STEPS + num_prompt_steps, 8000)
    return 1e3 * decode_steps(engine, workload, sampling).median


def plot(growth: dict[str, dict[str, Points]]) -> None:
    """One panel for each kind of growth."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, panels = pyplot.subplots(1, len(growth), figsize=(5 * len(growth), 4), sharey=True)
    for axes, (title, lines) in zip(panels, growth.items(), strict=True):
        for name, points in lines.items():
            axes.loglog(*zip(*points, strict=True), "o-", label=name)
        axes.set(xlabel={"requests": "requests", "context": "tokens of context"}.get(title, "tokens in the vocabulary"))
        axes.grid(True, which="both", alpha=0.3)
        axes.legend()
    panels[0].set(ylabel="milliseconds a step")
    figure.savefig(RESULTS / "growth.png", dpi=130, bbox_inches="tight")


if __name__ == "__main__":
    main()
