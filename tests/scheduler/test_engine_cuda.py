"""On a GPU: the tokens are those of a CPU, from graphs, and no launch waits for the device."""

from pathlib import Path

import pytest
import torch
from engine_harness import make_engine, make_job, run
from tiny_models import make_tiny

from penstock.scheduler.config import EngineConfig, ModelSpec
from penstock.scheduler.engine import Engine
from penstock.scheduler.loader import load_runner
from penstock.scheduler.messages import Submit
from penstock.scheduler.plan import GenerationBatch
from penstock.scheduler.results import LaunchedBatch
from penstock.scheduler.runner import GenerationRunner

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")


def jobs() -> list[Submit]:
    return [
        make_job([50 + number] * (3 * number + 1), max_tokens=12, seed=number, **params)
        for number, params in enumerate(
            [
                {},
                {"temperature": 1.0},
                {"temperature": 0.9, "top_k": 20, "top_p": 0.9},
                {"logit_bias": {5: 2.0}, "logprobs": 2},
                {"presence_penalty": 0.5, "temperature": 1.0},
                {"prompt_logprobs": 1},
            ]
        )
    ]


@pytest.mark.parametrize("family", ["llama", "qwen3"])
def test_overlapped_graphs_give_the_tokens_of_a_cpu(
    family: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = make_tiny(family, tmp_path)
    expected = run(make_engine(folder), jobs())
    engine = Engine(EngineConfig(device="cuda", max_num_seqs=16, kv_cache_memory=64 << 20))
    runner = load_runner(ModelSpec("m", str(folder), "generate", dtype="float32"), engine.config)
    assert isinstance(runner, GenerationRunner)
    engine.install(runner)
    assert engine.config.overlap == "on"
    assert run(engine, jobs()) == expected
    graphs = runner._graphs
    assert graphs is not None
    assert graphs.takes(1)
    assert graphs.num_graphs >= 2

    launch = GenerationRunner.launch

    def launch_without_waiting(self: GenerationRunner, batch: GenerationBatch) -> LaunchedBatch:
        torch.cuda.set_sync_debug_mode("error")
        try:
            return launch(self, batch)
        finally:
            torch.cuda.set_sync_debug_mode("default")

    monkeypatch.setattr(GenerationRunner, "launch", launch_without_waiting)
    assert run(engine, jobs()) == expected
