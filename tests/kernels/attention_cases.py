"""Batches for the attention tests: random requests over a shuffled cache, and how far an implementation is off."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch

from penstock.kernels.attention import AttentionBatch
from penstock.kernels.attention_reference import attend_reference, cache_write_reference

BLOCK_SIZE = 16
SPARE_BLOCKS = 3


@dataclass(frozen=True)
class Case:
    """One call of paged attention; `rows` are (context, new tokens), rows of one token first."""

    rows: tuple[tuple[int, int], ...]
    heads: tuple[int, int, int, int] = (9, 3, 64, 64)  # H, K, D, Dv
    dtype: torch.dtype = torch.float32
    window: int | None = None
    softcap: float | None = None
    sinks: bool = False
    shared_blocks: int = 0
    """All rows start with the blocks of the first, which its own tokens of this step may fill."""
    skip_every: int = 0
    """Every so manieth slot is -1, its key already in the cache."""

    def __str__(self) -> str:
        parts = [",".join(f"{c}+{q}" for c, q in self.rows[:6]), "/".join(map(str, self.heads)), str(self.dtype)[6:]]
        options = {"window": self.window, "softcap": self.softcap, "sinks": self.sinks, "shared": self.shared_blocks}
        return " ".join(parts + [f"{name}={value}" for name, value in options.items() if value])


@dataclass
class Inputs:
    query: torch.Tensor
    key: torch.Tensor
    value: torch.Tensor
    key_cache: torch.Tensor
    value_cache: torch.Tensor
    batch: AttentionBatch
    sinks: torch.Tensor | None

    @property
    def attended(self) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, AttentionBatch]:
        """The first arguments of an implementation of `cached_attention`."""
        return self.query, self.key_cache, self.value_cache, self.batch


def write(inputs: Inputs) -> None:
    """Store the keys and values in the caches."""
    cache_write_reference(inputs.key, inputs.value, inputs.key_cache, inputs.value_cache, inputs.batch)


def make_inputs(case: Case, device: str = "cpu") -> Inputs:
    """Fresh tensors of `case`, the same at every call."""
    num_heads, num_kv_heads, head_dim, value_head_dim = case.heads
    random = np.random.default_rng(0)
    generator = torch.Generator().manual_seed(0)

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator)

    num_blocks = [-(-(context + new) // BLOCK_SIZE) for context, new in case.rows]
    ids = random.permutation(sum(num_blocks) + SPARE_BLOCKS).tolist()
    tables: list[list[int]] = []
    for count in num_blocks:
        tables.append([ids.pop() for _ in range(count)])
        tables[-1][: case.shared_blocks] = tables[0][: case.shared_blocks]
    slots = []
    for (context, new), table in zip(case.rows, tables, strict=True):
        position = np.arange(context, context + new)
        slots.append(np.array(table)[position // BLOCK_SIZE] * BLOCK_SIZE + position % BLOCK_SIZE)
    slot_mapping = np.concatenate(slots).astype(np.int64)
    stored = slot_mapping.copy()
    if case.skip_every:
        stored[:: case.skip_every] = -1
    lengths = [context + new for context, new in case.rows]
    batch = AttentionBatch.build(tables, lengths, [new for _, new in case.rows], stored, BLOCK_SIZE, device)

    total = len(slot_mapping)
    caches = []
    for dim in (head_dim, value_head_dim):
        cache = normal(sum(num_blocks) + SPARE_BLOCKS, num_kv_heads, BLOCK_SIZE, dim)
        caches.append(among_layers(cache.to(device, case.dtype)))
    # Heads first and transposed, as models hand them over.
    query = normal(num_heads, total, head_dim).to(device, case.dtype).transpose(0, 1)
    key = normal(num_kv_heads, total, head_dim).to(device, case.dtype).transpose(0, 1)
    value = normal(num_kv_heads, total, value_head_dim).to(device, case.dtype).transpose(0, 1)
    sinks = normal(num_heads).to(device) if case.sinks else None
    return Inputs(query, key, value, caches[0], caches[1], batch, sinks)


def among_layers(cache: torch.Tensor) -> torch.Tensor:
    """The same cache [B, K, S, D] as a view, with pages of other layers between its blocks; their numbers are NaN."""
    block, page = cache[0], cache[0, :1]
    around = torch.full_like(torch.cat((page, block, page, page)), torch.nan).repeat(cache.shape[0], 1, 1, 1)
    view = around[:, 1 : 1 + block.shape[0]]
    return view.copy_(cache)


def run(attend: Callable[..., torch.Tensor], case: Case, device: str = "cpu") -> tuple[torch.Tensor, Inputs]:
    """Output [T, H, Dv] of an implementation, and the inputs with their caches as it left them."""
    inputs = make_inputs(case, device)
    write(inputs)
    output = attend(
        *inputs.attended,
        case.heads[2] ** -0.5,
        case.window,
        case.softcap,
        inputs.sinks,
    )
    return output, inputs


def error(attend: Callable[..., torch.Tensor], case: Case, device: str = "cpu") -> float:
    """Largest difference from the reference; infinite if the caches, the shape or the layout are wrong.

    Only the slots behind a row's last token may differ: what lies there is the implementation's business.
    """
    expected, expected_inputs = run(attend_reference, case, device)
    output, inputs = run(attend, case, device)
    held = ~_tails(inputs).unsqueeze(1).expand(inputs.key_cache.shape[:3])  # [B, K, S]
    if output.shape != expected.shape or output.dtype != case.dtype or not output.is_contiguous():
        return float("inf")
    for cache, expected_cache in (
        (inputs.key_cache, expected_inputs.key_cache),
        (inputs.value_cache, expected_inputs.value_cache),
    ):
        if not torch.equal(cache[held], expected_cache[held]):
            return float("inf")
    return _difference(output, expected)


def _tails(inputs: Inputs) -> torch.Tensor:
    """[B, S] bool: slots behind a row's last token in its last block."""
    tails = torch.zeros(inputs.key_cache.shape[0], BLOCK_SIZE, dtype=torch.bool, device=inputs.key_cache.device)
    for blocks, seq_len in zip(inputs.batch.block_table, inputs.batch.seq_lens.tolist(), strict=True):
        if seq_len % BLOCK_SIZE:
            tails[blocks[seq_len // BLOCK_SIZE], seq_len % BLOCK_SIZE :] = True
    return tails


def _difference(output: torch.Tensor, expected: torch.Tensor) -> float:
    difference = (output.float() - expected.float()).abs().max().item()
    return difference if difference == difference else float("inf")


def error_in_used_memory(
    attend: Callable[..., torch.Tensor], left: float, window: int | None = None, device: str = "cpu"
) -> float:
    """Largest difference from the reference over the steps of four requests whose blocks hold nothing but `left`.

    Prompts come in chunks that end and begin inside blocks and at their edges, and requests decode over such an edge.
    """
    num_heads, num_kv_heads, head_dim, value_head_dim = 6, 3, 32, 16
    generator = torch.Generator().manual_seed(0)
    tables = torch.randperm(20, generator=generator).view(4, 5).tolist()
    caches = [
        [torch.full((20, num_kv_heads, BLOCK_SIZE, dim), left, device=device) for dim in (head_dim, value_head_dim)]
        for _ in range(2)
    ]
    lengths, largest = [0, 0, 0, 0], 0.0
    for chunks in ((1, 5, 27, 33), (1, 11, 17, 7), (1, 1, 3, 9), *[(1, 1, 1, 1)] * 3):
        slots = []
        for row, count in enumerate(chunks):
            position = np.arange(lengths[row], lengths[row] + count)
            slots.append(np.array(tables[row])[position // BLOCK_SIZE] * BLOCK_SIZE + position % BLOCK_SIZE)
            lengths[row] += count
        batch = AttentionBatch.build(tables, lengths, list(chunks), np.concatenate(slots), BLOCK_SIZE, device)
        query, key, value = (
            torch.randn(sum(chunks), heads, dim, generator=generator).to(device)
            for heads, dim in ((num_heads, head_dim), (num_kv_heads, head_dim), (num_kv_heads, value_head_dim))
        )
        for pair in caches:
            cache_write_reference(key, value, *pair, batch)
        output = attend(query, *caches[0], batch, head_dim**-0.5, window)
        expected = attend_reference(query, *caches[1], batch, head_dim**-0.5, window)
        largest = max(largest, _difference(output, expected))
    return largest


def limit(case: Case) -> float:
    """Largest error allowed: rounding of the dtype."""
    return {torch.float32: 1e-5, torch.float16: 4e-3, torch.bfloat16: 2e-2}[case.dtype]


LENGTHS = (1, 15, 16, 17, 33, 250)
DECODE = tuple((length - 1, 1) for length in LENGTHS)
PREFILL = tuple((0, length) for length in LENGTHS if length > 1)
CHUNKS = ((16, 17), (5, 3), (100, 65), (240, 10))
MIXED = (*DECODE, *PREFILL, *CHUNKS)

CASES = (
    Case(DECODE),
    Case(PREFILL),
    Case(CHUNKS),
    Case(MIXED),
    Case(MIXED, heads=(4, 1, 32, 32)),
    Case(MIXED, heads=(8, 8, 16, 16)),
    Case(MIXED, heads=(4, 2, 48, 32)),
    Case(MIXED, window=16),
    Case(MIXED, window=1),
    Case(MIXED, window=100, softcap=2.0, sinks=True),
    Case(MIXED, softcap=20.0),
    Case(MIXED, sinks=True),
    Case(MIXED, sinks=True, heads=(4, 4, 32, 16)),
    Case(MIXED, skip_every=3),
    Case(((0, 40), (32, 5), (32, 20)), shared_blocks=2),
    Case(((40, 1), (0, 1))),
    Case(MIXED, dtype=torch.bfloat16),
    Case(DECODE, dtype=torch.bfloat16, heads=(4, 2, 80, 80)),
    Case(MIXED, dtype=torch.bfloat16, window=33, softcap=5.0, sinks=True, heads=(4, 2, 48, 32)),
)
