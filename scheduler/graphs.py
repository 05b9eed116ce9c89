"""Decode steps as graphs: a GPU replays what it was told once, in the time of one launch instead of hundreds.

A graph computes a fixed number of rows of one token from inputs at fixed addresses. So steps with nothing but such rows
are filled up with padding rows to the next size there is a graph for, and their inputs are written to where the graph
reads them. Sampling is part of it, for rows whose logits nobody changes or wants to see. What rows sample stays at a
fixed address too, where the next step finds it.

A size is captured when a step first wants it, right after that step has run the same code without a graph. Keys and
values are at addresses of their own: when they move, the graphs are forgotten.
"""

import logging
from collections.abc import Callable
from typing import Protocol

import numpy as np
import torch

from penstock.kernels.attention import AttentionBatch
from penstock.kernels.attention_batch import HostBatch

from .batch import LastTokens, PackedRows, take_tokens
from .block_tables import BlockTables
from .staging import Arrays, packed_bytes, upload_into, views

logger = logging.getLogger(__name__)

# G rows of a graph, V vocabulary

_SMALL_SIZES = (1, 2, 4)
_SIZE_STEP = 8
_MAX_SIZE = 256  # rows; beyond, launching takes no longer than computing
_NUM_PARAMS = 5

Forward = Callable[[torch.Tensor, torch.Tensor, AttentionBatch], torch.Tensor]
"""From input ids [1, G], positions [1, G] and the attention's batch to logits [G, V]."""
SampleRows = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
"""From logits [G, V] and parameters [G, 5] float64 to tokens [G] int64."""


class Capture(Protocol):
    """Makes a graph of work on a device."""

    def __call__(self, work: Callable[[], None]) -> Callable[[], None]:
        """What repeats the work, on whatever is then at the addresses it reads. The work itself is not done now.

        Raises:
            RuntimeError: it cannot be captured, for example because it waits for the device.
        """


class CudaCapture:
    """Captures CUDA graphs that share one pool of memory: no two of them run at the same time."""

    def __init__(self) -> None:
        self._pool = torch.cuda.graph_pool_handle()
        self._stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]
        """One for all: libraries take working memory for every stream they meet."""

    def __call__(self, work: Callable[[], None]) -> Callable[[], None]:
        """See `Capture`. Another thread may use the device meanwhile: it loads a model, say."""
        graph = torch.cuda.CUDAGraph()
        self._stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(self._stream):
            graph.capture_begin(pool=self._pool, capture_error_mode="thread_local")
            try:
                work()
            finally:
                graph.capture_end()
        torch.cuda.current_stream().wait_stream(self._stream)
        return graph.replay


def graph_sizes(max_rows: int) -> list[int]:
    """Numbers of rows that are captured: 1, 2, 4, 8 and every eighth more, up to the first that holds `max_rows`."""
    largest = min(max_rows, _MAX_SIZE)
    sizes = [*_SMALL_SIZES, *range(_SIZE_STEP, largest + _SIZE_STEP, _SIZE_STEP)]
    return sizes[: next(index for index, size in enumerate(sizes) if size >= largest) + 1]


class DecodeGraphs:
    """The graphs of one model."""

    def __init__(
        self,
        capture: Capture,
        forward: Forward,
        sample_rows: SampleRows,
        tables: BlockTables,
        *,
        block_size: int,
        vocab_size: int,
        dtype: torch.dtype,
    ) -> None:
        """Takes the memory of the inputs now, that of the graphs when they are captured.

        Args:
            capture: how a graph is made.
            forward: runs the model.
            sample_rows: chooses a token for each row.
            tables: where the rows' blocks are.
            block_size: tokens in a KV block.
            vocab_size: V.
            dtype: of the logits.
        """
        self._capture = capture
        self._forward = forward
        self._sample_rows = sample_rows
        self._tables = tables
        self._block_size = block_size
        self._vocab_size = vocab_size
        self._dtype = dtype
        self._sizes = graph_sizes(len(tables.host))
        device = tables.table.device
        largest = self._sizes[-1]
        self._inputs = torch.zeros(packed_bytes(_padding(largest)), dtype=torch.uint8, device=device)
        self._query_start_loc = torch.arange(largest + 1, dtype=torch.int32, device=device)
        self._last = torch.zeros(largest, dtype=torch.int64, device=device)
        self._logits: torch.Tensor | None = None  # [largest, V], taken when somebody first wants to see logits
        self._replays: dict[tuple[int, bool], Callable[[], None]] = {}
        self._works = True

    @property
    def num_graphs(self) -> int:
        """How many are captured."""
        return len(self._replays)

    def forget(self) -> None:
        """The keys and values move: capture again what is wanted."""
        self._replays.clear()

    def takes(self, num_rows: int) -> bool:
        """Whether a step of that many rows, all of one token, can be run."""
        return self._works and num_rows <= self._sizes[-1]

    def sample(self, packed: PackedRows, params: torch.Tensor, last: LastTokens | None) -> torch.Tensor:
        """Run a step of R rows of one token.

        Args:
            packed: the rows.
            params: [R, 5] float64 on the host, as `sample_rows` takes them.
            last: what the rows' sources point into.

        Returns:
            [R] int64 tokens; the next step overwrites them.
        """
        self._run(packed, params, last, want_logits=False)
        return self._last[: len(packed.tokens)]

    def logits(self, packed: PackedRows, last: LastTokens | None) -> torch.Tensor:
        """Run a step of R rows of one token up to its logits.

        Args:
            packed: the rows.
            last: what the rows' sources point into.

        Returns:
            [R, V]; the next step overwrites them.
        """
        if self._logits is None:
            shape = (self._sizes[-1], self._vocab_size)
            self._logits = torch.empty(shape, dtype=self._dtype, device=self._last.device)
        self._run(packed, None, last, want_logits=True)
        return self._logits[: len(packed.tokens)]

    def _run(
        self, packed: PackedRows, params: torch.Tensor | None, last: LastTokens | None, *, want_logits: bool
    ) -> None:
        num_rows = len(packed.tokens)
        size = next(size for size in self._sizes if size >= num_rows)
        arrays = _padding(size)
        for array, values in zip(arrays, (packed.tokens, packed.sources, packed.positions, packed.slots), strict=False):
            array[:num_rows] = values
        arrays[4][:num_rows] = packed.seats
        arrays[5][:num_rows] = packed.seq_lens
        if params is not None:
            arrays[6][:num_rows] = params
        upload_into(self._inputs, arrays)
        if last is not None and last.token_ids.data_ptr() != self._last.data_ptr() and packed.sources.max() >= 0:
            # A step without a graph has sampled, any number of tokens: they are put in before the graph.
            tokens, sources = views(self._inputs, arrays)[:2]
            tokens.copy_(take_tokens(tokens, sources, last.token_ids))
            sources.fill_(-1)
        if replay := self._replays.get((size, want_logits)):
            replay()
            return

        def work() -> None:
            self._compute(size, want_logits=want_logits)

        work()
        try:
            self._replays[size, want_logits] = self._capture(work)
        except RuntimeError:
            self._works = False
            logger.warning(
                "this model's steps cannot be captured as graphs; they are launched one by one", exc_info=True
            )

    def _compute(self, size: int, *, want_logits: bool) -> None:
        """What a graph of `size` rows does. It may read nothing but what is at fixed addresses."""
        tokens, sources, positions, slots, seats, seq_lens, params = views(self._inputs, _padding(size))
        table = self._tables.table.index_select(0, seats)  # [G, max_blocks]
        query_start_loc = self._query_start_loc[: size + 1]
        batch = AttentionBatch(
            block_table=table,
            seq_lens=seq_lens,
            query_start_loc=query_start_loc,
            slot_mapping=slots,
            num_decodes=size,
            max_query_len=1,
            block_size=self._block_size,
            host=_host(table, seq_lens, query_start_loc, slots),
        )
        input_ids = take_tokens(tokens, sources, self._last)
        logits = self._forward(input_ids.unsqueeze(0), positions.unsqueeze(0), batch)  # [G, V]
        if want_logits:
            assert self._logits is not None
            self._logits[:size].copy_(logits)
        else:
            self._last[:size].copy_(self._sample_rows(logits, params))


def _padding(size: int) -> Arrays:
    """The inputs of `size` rows that compute nothing: tokens, sources, positions, slots, seats, lengths, parameters."""
    params = np.zeros((size, _NUM_PARAMS), np.float64)
    params[:, 1:3] = 1.0  # top_k and top_p
    return [
        np.zeros(size, np.int64),
        np.full(size, -1, np.int64),
        np.zeros(size, np.int64),
        np.full(size, -1, np.int64),
        np.zeros(size, np.int64),
        np.zeros(size, np.int32),
        params,
    ]


def _host(table: torch.Tensor, seq_lens: torch.Tensor, query_start_loc: torch.Tensor, slots: torch.Tensor) -> HostBatch:
    """The batch for attention that plans on the host: on a CPU the same memory, on a GPU nothing."""
    if table.device.type == "cpu":
        return HostBatch(table.numpy(), seq_lens.numpy(), query_start_loc.numpy(), slots.numpy())
    nothing = np.zeros(0, np.int32)
    return HostBatch(nothing.reshape(0, 0), nothing, nothing, nothing.astype(np.int64))
