"""Graphs of decode steps, with a capture on the CPU that replays exactly the operations it has recorded."""

import random
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from engine_harness import make_engine, make_job, run
from mixed_jobs import assert_same, some_jobs, step_through
from test_speculation import eager
from tiny_models import make_tiny, make_tiny_tokenizer
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map

from penstock.kernels.attention import AttentionBatch
from penstock.scheduler.batch import LastTokens, PackedRows
from penstock.scheduler.block_tables import BlockTables
from penstock.scheduler.graphs import DecodeGraphs, graph_sizes

CPU = torch.device("cpu")
VOCAB = 97
BLOCK_SIZE, MAX_BLOCKS, SEATS = 4, 6, 12


def test_sizes() -> None:
    assert graph_sizes(1) == [1]
    assert graph_sizes(3) == [1, 2, 4]
    assert graph_sizes(20) == [1, 2, 4, 8, 16, 24]
    assert graph_sizes(1000) == [1, 2, 4, *range(8, 257, 8)]


class Recorder(TorchDispatchMode):
    """Notes every operation with its arguments and results."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[tuple[Any, tuple[Any, ...], Mapping[str, Any], Any]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        self.calls.append((func, args, kwargs or {}, result))
        return result


class RecordedCapture:
    """Like a CUDA graph it repeats operations on addresses; whatever Python decided or read stays as it was then."""

    def __init__(self) -> None:
        self.graphs: DecodeGraphs | None = None
        self.num_captured = 0

    def __call__(self, work: Callable[[], None]) -> Callable[[], None]:
        self.num_captured += 1
        assert self.graphs is not None
        before = self.graphs._last.clone()
        with Recorder() as recorder:
            work()
        self.graphs._last.copy_(before)  # to capture is not to run
        return lambda: replay(recorder.calls)


def replay(calls: list[tuple[Any, tuple[Any, ...], Mapping[str, Any], Any]]) -> None:
    made: dict[int, torch.Tensor] = {}  # what stands for a tensor of the recording

    def current(value: Any) -> Any:
        return made.get(id(value), value) if isinstance(value, torch.Tensor) else value

    for func, args, kwargs, result in calls:
        again = func(*tree_map(current, args), **tree_map(current, kwargs))
        if isinstance(result, torch.Tensor):
            made[id(result)] = again


def forward(input_ids: torch.Tensor, positions: torch.Tensor, batch: AttentionBatch) -> torch.Tensor:
    """Stands for a model: every input changes the logits, and padding rows see nothing."""
    reach = torch.arange(batch.block_table.shape[1] * BLOCK_SIZE)
    seen = reach < batch.seq_lens.unsqueeze(1)  # [G, keys]
    blocks = batch.block_table.repeat_interleave(BLOCK_SIZE, dim=1)
    mixed = (blocks * seen * (reach + 1)).sum(1) * 31 + input_ids[0] * 7 + positions[0] * 3 + batch.slot_mapping
    return ((mixed.unsqueeze(1) * (torch.arange(VOCAB) + 1)) % VOCAB).float()  # [G, V]


def sample_rows(logits: torch.Tensor, params: torch.Tensor) -> torch.Tensor:
    return (logits * (1.0 + params[:, 4:5]) + params[:, :1] * torch.arange(VOCAB)).argmax(dim=1)


def make_graphs() -> tuple[DecodeGraphs, RecordedCapture]:
    capture = RecordedCapture()
    tables = BlockTables(SEATS, MAX_BLOCKS, CPU)
    graphs = DecodeGraphs(
        capture,
        forward,
        sample_rows,
        tables,
        block_size=BLOCK_SIZE,
        vocab_size=VOCAB,
        dtype=torch.float32,
    )
    capture.graphs = graphs
    return graphs, capture


def random_step(rng: np.random.Generator, tables: BlockTables, num_rows: int, num_last: int) -> PackedRows:
    tables.host[:] = rng.integers(0, 50, tables.host.shape)
    seq_lens = rng.integers(1, BLOCK_SIZE * MAX_BLOCKS, num_rows)
    sources = rng.integers(-1, num_last, num_rows) if num_last else np.full(num_rows, -1)
    return PackedRows(
        tokens=np.where(sources < 0, rng.integers(0, VOCAB, num_rows), 0),
        sources=sources,
        positions=seq_lens - 1,
        slots=rng.integers(0, 200, num_rows),
        seats=rng.permutation(SEATS)[:num_rows],
        seq_lens=seq_lens.astype(np.int32),
        query_start_loc=np.arange(num_rows + 1, dtype=np.int32),
        num_decodes=num_rows,
    )


def expected_logits(packed: PackedRows, tables: BlockTables, last: torch.Tensor | None) -> torch.Tensor:
    tokens = [
        token if source < 0 or last is None else int(last[source])
        for token, source in zip(packed.tokens.tolist(), packed.sources.tolist(), strict=True)
    ]
    seq_lens = torch.from_numpy(packed.seq_lens)
    table = torch.from_numpy(tables.host[packed.seats])
    slots = torch.from_numpy(packed.slots)
    batch = AttentionBatch(table, seq_lens, seq_lens, slots, 0, 1, BLOCK_SIZE, None)  # type: ignore[arg-type]
    return forward(torch.tensor([tokens]), torch.from_numpy(packed.positions).unsqueeze(0), batch)


def test_a_replay_reads_this_steps_inputs_and_nothing_else() -> None:
    rng = np.random.default_rng(0)
    graphs, capture = make_graphs()
    last: torch.Tensor | None = None
    for step in range(60):
        num_rows = int(rng.integers(1, SEATS + 1))
        packed = random_step(rng, graphs._tables, num_rows, 0 if last is None else len(last))
        known = None if last is None else last.clone()
        logits = expected_logits(packed, graphs._tables, known)
        given = None if last is None else LastTokens(last, {})
        if step % 5 == 4:  # somebody wants to see the logits, and chooses without the graph
            assert torch.equal(graphs.logits(packed, given), logits)
            last = torch.from_numpy(rng.integers(0, VOCAB, 5 * num_rows))  # after guesses too: more than rows
        else:
            params = torch.from_numpy(rng.random((num_rows, 5)))
            last = graphs.sample(packed, params, given)
            assert last.tolist() == sample_rows(logits, params).tolist()
    assert capture.num_captured == graphs.num_graphs <= 2 * len(graph_sizes(SEATS))
    assert graphs.num_graphs >= 6


def test_other_kv_memory_needs_other_graphs() -> None:
    rng = np.random.default_rng(0)
    graphs, capture = make_graphs()
    packed, params = random_step(rng, graphs._tables, 3, 0), torch.zeros(3, 5, dtype=torch.float64)
    for _ in range(3):
        graphs.sample(packed, params, None)
    assert capture.num_captured == 1
    graphs.forget()
    graphs.sample(packed, params, None)
    assert (capture.num_captured, graphs.num_graphs) == (2, 1)


def test_a_model_that_cannot_be_captured_is_run_without(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(0)
    graphs, capture = make_graphs()

    def refuse(self: RecordedCapture, work: Callable[[], None]) -> Callable[[], None]:
        raise RuntimeError("operation not permitted when stream is capturing")

    monkeypatch.setattr(RecordedCapture, "__call__", refuse)
    packed, params = random_step(rng, graphs._tables, 3, 0), torch.zeros(3, 5, dtype=torch.float64)
    tokens = graphs.sample(packed, params, None)
    assert tokens.tolist() == sample_rows(expected_logits(packed, graphs._tables, None), params).tolist()
    assert not graphs.takes(3)
    assert capture.num_captured == 0


class Repeat:
    """A capture for whole models, whose kernels on a CPU are no operations of torch: does the work again."""

    num_captured = 0

    def __call__(self, work: Callable[[], None]) -> Callable[[], None]:
        self.num_captured += 1
        return work


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_tokenizer(make_tiny("llama", tmp_path_factory.mktemp("llama")))


@pytest.mark.parametrize("seed", range(2))
def test_any_mix_of_jobs_is_told_the_same(folder: Path, seed: int) -> None:
    jobs = some_jobs(random.Random(200 + seed), 20)
    limits: dict[str, Any] = {"num_blocks": 24, "block_size": 8, "max_num_batched_tokens": 24, "max_num_seqs": 6}
    expected = step_through(make_engine(folder, **limits), jobs)
    engine = make_engine(folder, overlap=["on", "off"][seed], **limits)
    capture = Repeat()
    engine._generation["m"].use_graphs(capture)
    actual = step_through(engine, jobs)
    for job in jobs:
        assert_same(actual[job.request_id], expected[job.request_id])
    assert capture.num_captured >= 3


@pytest.mark.parametrize("overlap", ["on", "off"])
def test_steps_with_guesses_and_graphs_take_turns(folder: Path, overlap: str) -> None:
    jobs = some_jobs(random.Random(300), 12)
    jobs += [make_job([5, 6] * 6, max_tokens=20, seed=seed, logit_bias={5: 4.0, 6: 4.0}) for seed in range(4)]
    expected = step_through(make_engine(folder), jobs)
    engine = eager(make_engine(folder, overlap=overlap, max_num_seqs=2))  # fewer requests than tokens of a step
    capture = Repeat()
    engine._generation["m"].use_graphs(capture)
    actual = step_through(engine, jobs)
    for job in jobs:
        assert_same(actual[job.request_id], expected[job.request_id])
    assert capture.num_captured >= 2
    assert engine.stats()["m"].draft_tokens > 0


@pytest.mark.parametrize("family", ["qwen3", "gemma2", "gpt_oss"])
def test_padding_rows_harm_no_model(family: str, tmp_path: Path) -> None:
    folder = make_tiny(family, tmp_path)
    prompts = [[7 + index] * (index + 1) for index in range(5)]
    expected = run(make_engine(folder), map(make_job, prompts))
    engine = make_engine(folder, overlap="on")
    engine._generation["m"].use_graphs(Repeat())
    assert run(engine, map(make_job, prompts)) == expected
