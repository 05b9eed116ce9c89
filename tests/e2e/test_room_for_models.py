"""Who goes when memory is short: a front's lifecycle and a real worker, which refuses what does not fit."""

import subprocess
import sys
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from tiny_models import make_tiny

from penstock.scheduler.config import EngineConfig, ModelSpec, WorkerConfig
from penstock.scheduler.launch import WorkerProcess, dump_config
from penstock.scheduler.messages import StepOutputs, Submit
from penstock.scheduler.sampling_params import SamplingParams
from penstock.serving.engine_client import EngineClient
from penstock.serving.errors import ApiError
from penstock.serving.shelf.card import ModelCard, read_card
from penstock.serving.shelf.lifecycle import Lifecycle
from penstock.serving.shelf.registry import Registry
from penstock.serving.shelf.residency import LoadingPolicy
from penstock.serving.worker_news import WorkerStarted

SCRIPT = Path(__file__).parents[1] / "support" / "bounded_worker.py"
KV_BYTES = 1 << 20


@pytest.fixture(scope="module")
def cards(tmp_path_factory: pytest.TempPathFactory) -> dict[str, ModelCard]:
    """Three models of one size."""
    home = tmp_path_factory.mktemp("models")
    return {name: read_card(name, make_tiny("llama", home / name, seed=ord(name))) for name in "abc"}


@asynccontextmanager
async def open_lifecycle(
    cards: dict[str, ModelCard], folder: Path, num_bytes: int, kv_cache_memory: int
) -> AsyncIterator[tuple[EngineClient, Lifecycle]]:
    """A front and a worker whose machine has `num_bytes`."""
    engine_config = EngineConfig(device="cpu", num_threads=1, kv_cache_memory=kv_cache_memory)
    config = WorkerConfig(f"ipc://{folder / 'w.sock'}", engine_config, ())
    command = [sys.executable, str(SCRIPT), dump_config(config), str(num_bytes)]
    worker = WorkerProcess(subprocess.Popen(command, stdin=subprocess.PIPE), config)
    engine = EngineClient(WorkerStarted(0, config.address))
    lifecycle = Lifecycle(
        engine,
        Registry(cards.values()),
        lambda card: ModelSpec(card.name, str(card.folder), "generate", "float32"),
        LoadingPolicy(),
    )
    try:
        await engine.start()
        yield engine, lifecycle
    finally:
        await engine.close()
        await lifecycle.close()
        worker.stop()


def job(model: str, max_tokens: int) -> Submit:
    params = SamplingParams(max_tokens=max_tokens, seed=0, ignore_eos=True)
    return Submit(f"job-{model}", model, [5, 6, 7], params, time.time())


async def use(engine: EngineClient, model: str) -> None:
    async for _ in engine.generate(job(model, 2)):
        pass


async def test_what_is_idle_makes_room_and_what_is_busy_does_not(cards: dict[str, ModelCard], tmp_path: Path) -> None:
    weights = 4 * cards["a"].num_parameters
    room = int(2.2 * weights) + KV_BYTES  # for two of the models
    async with open_lifecycle(cards, tmp_path, room, KV_BYTES) as (engine, lifecycle):
        for name in ("a", "b"):
            await lifecycle.ensure(cards[name])
            await use(engine, name)
        assert engine.models.keys() == {"a", "b"}
        running = engine.generate(job("a", 400))
        await anext(running)
        await lifecycle.ensure(cards["c"])  # `a` was used longer ago, but has a job
        assert engine.models.keys() == {"a", "c"}
        await use(engine, "c")
        await lifecycle.load(cards["c"])
        with pytest.raises(ApiError) as refused:  # c is to stay now
            await lifecycle.ensure(cards["b"])
        assert refused.value.status == 503 and refused.value.code == "out_of_memory"
        assert "a (has 1 requests in flight), c (is to stay resident)" in refused.value.message
        await running.aclose()
        await lifecycle.ensure(cards["b"])
        assert engine.models.keys() == {"b", "c"}


async def test_the_kv_memory_makes_room_before_models_go(cards: dict[str, ModelCard], tmp_path: Path) -> None:
    weights = 4 * cards["a"].num_parameters
    totals: list[int] = []

    def note(step: StepOutputs) -> None:
        totals.append(step.stats["a"].kv_blocks_total)

    # The KV memory takes nearly all that `a` leaves: nothing else fits beside it.
    async with open_lifecycle(cards, tmp_path, 6 * weights, 0) as (engine, lifecycle):
        engine.on_step = note
        await lifecycle.ensure(cards["a"])
        answer = [output async for output in engine.generate(job("a", 100))]
        running = engine.generate(job("a", 100))
        tokens = (await anext(running)).token_ids
        for name in ("b", "c"):
            await lifecycle.ensure(cards[name])
        async for output in running:
            tokens += output.token_ids
        assert tokens == [token for output in answer for token in output.token_ids]
        assert engine.models.keys() == {"a", "b", "c"}
        assert totals[-1] < totals[0]
