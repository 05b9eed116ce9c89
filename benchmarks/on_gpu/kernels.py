"""The kernels alone, as a share of what the device can do.

Every measurement walks through several layers' caches: one layer's would stay in the device's own cache and look faster
than it is.
"""

from collections.abc import Callable
from dataclasses import dataclass
from itertools import cycle
from typing import Any

import torch

from penstock.kernels.attention import AttentionBatch, cached_attention
from penstock.kernels.rmsnorm import add_rms_norm
from penstock.kernels.rope import rope_cache_write
from penstock.kernels.silu_mul import silu_mul

from .device import seconds

NUM_LAYERS = 4
BLOCK_SIZE = 16


@dataclass(frozen=True)
class Heads:
    """Head counts and size of a model."""

    name: str
    num_heads: int
    num_kv_heads: int
    head_dim: int


HEADS = (Heads("qwen3-0.6b", 16, 8, 128), Heads("llama-3.1-8b", 32, 8, 128))
DECODES = ((1, 32768), (8, 4096), (32, 1024), (64, 1024), (128, 1024), (256, 1024), (32, 4096))
"""Requests and the context of each."""
PREFILLS = ((1, 8192), (4, 2048), (8, 1024))
"""Prompts and the length of each."""


def run(device: str, ceilings: dict[str, float], *, smoke: bool) -> list[dict[str, Any]]:
    """A row for each operation and load."""
    dtype = torch.bfloat16 if device == "cuda" else torch.float32
    bandwidth = ceilings.get("read_bytes_per_second", float("nan"))
    flops = ceilings.get("bf16_flops", float("nan"))
    rows: list[dict[str, Any]] = []
    heads_list = (Heads("tiny", 4, 2, 32),) if smoke else HEADS
    for heads in heads_list:
        for num_rows, context in ((2, 64),) if smoke else DECODES:
            layers = Layers.make(heads, num_rows, context, 1, dtype, device)
            taken = seconds(layers.attend, device)
            moved = 2 * num_rows * context * heads.num_kv_heads * heads.head_dim * dtype.itemsize
            rows.append(_row(f"decode attention {heads.name}", f"{num_rows} x {context}", taken, moved, bandwidth))
        for num_rows, length in ((1, 64),) if smoke else PREFILLS:
            layers = Layers.make(heads, num_rows, length, length, dtype, device)
            taken = seconds(layers.attend, device, repeats=5)
            work = 2 * 2 * num_rows * heads.num_heads * heads.head_dim * length**2 / 2
            row = _row(f"prefill attention {heads.name}", f"{num_rows} x {length}", taken)
            rows.append({**row, "TFLOP/s": work / taken / 1e12, "share of matmul %": 100 * work / taken / flops})
    with torch.inference_mode():
        for num_tokens in (4,) if smoke else (1, 64, 256, 8192):
            rows += _layer_operations(num_tokens, heads_list[-1], dtype, device, bandwidth)
    return rows


def _layer_operations(
    num_tokens: int, heads: Heads, dtype: torch.dtype, device: str, bandwidth: float
) -> list[dict[str, Any]]:
    """The operations around the matrix products of one layer, at the sizes of the heads' model."""
    size = heads.num_heads * heads.head_dim
    feed_forward = 7 * size // 2  # Llama's proportion
    num_all_heads = heads.num_heads + 2 * heads.num_kv_heads
    layers = Layers.make(heads, num_tokens, 1, 1, dtype, device)

    def random(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, dtype=dtype, device=device)

    states, residual, weight = random(num_tokens, size), random(num_tokens, size), random(size)
    gate_up, qkv = random(num_tokens, 2 * feed_forward), random(num_tokens, num_all_heads, heads.head_dim)
    cos, sin = random(num_tokens, heads.head_dim), random(num_tokens, heads.head_dim)
    key_cache, value_cache = layers.caches[0]
    slots = layers.batch.slot_mapping
    calls: list[tuple[str, Callable[[], object], int]] = [
        ("add + RMS norm", lambda: add_rms_norm(states, residual, weight, 1e-6), 4 * states.nbytes),
        ("silu * mul", lambda: silu_mul(gate_up), 3 * gate_up.nbytes // 2),
        (
            "rotate + write",
            lambda: rope_cache_write(qkv, cos, sin, key_cache, value_cache, slots, heads.num_heads, heads.num_kv_heads),
            2 * qkv.nbytes,
        ),
    ]
    return [_row(name, f"{num_tokens} tokens", seconds(call, device), moved, bandwidth) for name, call, moved in calls]


@dataclass(frozen=True)
class Layers:
    """The queries of one step and the caches of several layers, taken in turn."""

    batch: AttentionBatch
    caches: list[tuple[torch.Tensor, torch.Tensor]]
    query: torch.Tensor
    turn: "cycle[tuple[torch.Tensor, torch.Tensor]]"

    @classmethod
    def make(
        cls, heads: Heads, num_rows: int, seq_len: int, query_len: int, dtype: torch.dtype, device: str
    ) -> "Layers":
        """Rows of equal length whose blocks lie in no order."""
        generator = torch.Generator().manual_seed(0)
        blocks_per_row = -(-seq_len // BLOCK_SIZE)
        num_blocks = num_rows * blocks_per_row
        tables = torch.randperm(num_blocks, generator=generator).view(num_rows, blocks_per_row)
        position = torch.arange(seq_len - query_len, seq_len)
        slots = tables[:, position // BLOCK_SIZE] * BLOCK_SIZE + position % BLOCK_SIZE
        batch = AttentionBatch.build(
            tables.tolist(), [seq_len] * num_rows, [query_len] * num_rows, slots.flatten().numpy(), BLOCK_SIZE, device
        )
        # Side by side in each block, as in the server.
        shape = (num_blocks, NUM_LAYERS, 2, heads.num_kv_heads, BLOCK_SIZE, heads.head_dim)
        storage = torch.randn(shape, dtype=dtype, device=device)
        caches = [(storage[:, layer, 0], storage[:, layer, 1]) for layer in range(NUM_LAYERS)]
        query = torch.randn(num_rows * query_len, heads.num_heads, heads.head_dim, dtype=dtype, device=device)
        return cls(batch, caches, query, cycle(caches))

    def attend(self) -> torch.Tensor:
        """The attention of the next layer."""
        key_cache, value_cache = next(self.turn)
        return cached_attention(self.query, key_cache, value_cache, self.batch, scale=self.query.shape[-1] ** -0.5)


def _row(
    operation: str, load: str, taken: float, moved: int | None = None, bandwidth: float | None = None
) -> dict[str, Any]:
    row: dict[str, Any] = {"operation": operation, "load": load, "us": 1e6 * taken}
    if moved is not None and bandwidth is not None:
        row |= {"GB/s": moved / taken / 1e9, "share of read bandwidth %": 100 * moved / taken / bandwidth}
    return row
