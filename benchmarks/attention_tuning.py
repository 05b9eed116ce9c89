"""Times the configurations of the Triton attention kernels on this machine's GPU, the fastest first.

What it finds belongs into `kernels/attention_configs.py`, with the device that it was found on.
"""

import argparse
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
from triton.runtime.errors import OutOfResources

from penstock.kernels.attention import AttentionBatch
from penstock.kernels.attention_configs import DecodeConfig, PrefillConfig, decode_candidates, prefill_candidates
from penstock.kernels.attention_decode import attend_decode
from penstock.kernels.attention_prefill import attend_prefill

BLOCK_SIZE = 16
MIN_CACHE_BYTES = 512 * 2**20  # walked through layer by layer: what one layer reads must not be in the 60 MB of L2


@dataclass(frozen=True)
class Shape:
    """The attention of one layer."""

    num_heads: int
    num_kv_heads: int
    head_dim: int
    dtype: torch.dtype = torch.bfloat16
    cache_dtype: torch.dtype = torch.bfloat16

    @property
    def token_bytes(self) -> int:
        """Bytes of one token's key and value."""
        return 2 * self.num_kv_heads * self.head_dim * self.cache_dtype.itemsize


@dataclass(frozen=True)
class Timing:
    """What one configuration took for one layer."""

    config: DecodeConfig | PrefillConfig
    seconds: float
    bytes_read: int
    """Of the cache, each key and value once."""
    flops: int

    @property
    def bytes_per_second(self) -> float:
        """To compare with the device's measured bandwidth."""
        return self.bytes_read / self.seconds

    @property
    def flops_per_second(self) -> float:
        """To compare with the device's measured matrix products."""
        return self.flops / self.seconds


def time_decode(
    shape: Shape, lengths: list[int], configs: Iterable[DecodeConfig] | None = None, device: str = "cuda"
) -> list[Timing]:
    """Time rows of one token.

    Args:
        shape: of the attention.
        lengths: keys of each row.
        configs: what to time; None: every candidate of the table.
        device: where.
    """
    layers, query, batch, output = _inputs(shape, lengths, [1] * len(lengths), device)
    keys = sum(lengths)
    flops = 4 * keys * shape.num_heads * shape.head_dim
    scales = _scales(shape, device)

    def run(config: DecodeConfig, layer: int) -> None:
        attend_decode(
            query, *layers[layer], batch, output, shape.head_dim**-0.5, None, None, None, **scales, config=config
        )

    candidates = configs or decode_candidates(shape.head_dim, shape.cache_dtype)
    return sorted(
        (
            Timing(config, seconds, keys * shape.token_bytes, flops)
            for config, seconds in _timed(candidates, run, len(layers), device)
        ),
        key=lambda timing: timing.seconds,
    )


def time_prefill(
    shape: Shape,
    context: int,
    num_tokens: int,
    rows: int = 1,
    configs: Iterable[PrefillConfig] | None = None,
    device: str = "cuda",
) -> list[Timing]:
    """Time `rows` rows of `num_tokens` tokens behind `context` cached ones; other arguments as in `time_decode`."""
    length = context + num_tokens
    layers, query, batch, output = _inputs(shape, [length] * rows, [num_tokens] * rows, device)
    pairs = rows * (num_tokens * context + num_tokens * (num_tokens + 1) // 2)
    flops = 4 * pairs * shape.num_heads * shape.head_dim
    scales = _scales(shape, device)

    def run(config: PrefillConfig, layer: int) -> None:
        attend_prefill(
            query, *layers[layer], batch, output, shape.head_dim**-0.5, None, None, None, **scales, config=config
        )

    group = shape.num_heads // shape.num_kv_heads
    candidates = configs or prefill_candidates(shape.head_dim, group, shape.cache_dtype)
    return sorted(
        (
            Timing(config, seconds, rows * length * shape.token_bytes, flops)
            for config, seconds in _timed(candidates, run, len(layers), device)
        ),
        key=lambda timing: timing.seconds,
    )


def _inputs(
    shape: Shape, lengths: list[int], query_lens: list[int], device: str
) -> tuple[list[tuple[torch.Tensor, torch.Tensor]], torch.Tensor, AttentionBatch, torch.Tensor]:
    """Caches of several layers with shuffled blocks, queries, the batch, and where the output goes."""
    counts = [-(-length // BLOCK_SIZE) for length in lengths]
    ids = np.random.default_rng(0).permutation(sum(counts)).tolist()
    tables = [[ids.pop() for _ in range(count)] for count in counts]
    slots = np.full(sum(query_lens), -1, dtype=np.int64)  # nothing is stored here
    batch = AttentionBatch.build(tables, lengths, query_lens, slots, BLOCK_SIZE, device)
    num_layers = max(2, -(-MIN_CACHE_BYTES // (sum(lengths) * shape.token_bytes))) if device == "cuda" else 1
    sizes = (sum(counts), num_layers, 2, shape.num_kv_heads, BLOCK_SIZE, shape.head_dim)
    storage = torch.empty(sizes, dtype=shape.dtype, device=device).normal_().to(shape.cache_dtype)
    layers = [(storage[:, layer, 0], storage[:, layer, 1]) for layer in range(num_layers)]
    query = torch.randn(sum(query_lens), shape.num_heads, shape.head_dim, dtype=shape.dtype, device=device)
    return layers, query, batch, torch.empty_like(query)


def _scales(shape: Shape, device: str) -> dict[str, torch.Tensor]:
    if shape.cache_dtype == shape.dtype:
        return {}
    ones = torch.ones(shape.num_kv_heads, device=device)
    return {"key_scale": ones, "value_scale": ones}


def _timed(
    configs: Iterable[DecodeConfig] | Iterable[PrefillConfig],
    run: Callable[..., None],
    num_layers: int,
    device: str,
) -> Iterator[tuple[DecodeConfig | PrefillConfig, float]]:
    """Each configuration that the device can run, with the seconds of one call: the best of several rounds."""
    for config in configs:
        try:
            run(config, 0)
        except OutOfResources:
            continue
        best = float("inf")
        for _ in range(5 if device == "cuda" else 1):
            _synchronize(device)
            start = time.perf_counter()
            for layer in range(num_layers):
                run(config, layer)
            _synchronize(device)
            best = min(best, (time.perf_counter() - start) / num_layers)
        yield config, best


def _synchronize(device: str) -> None:
    if device == "cuda":
        torch.cuda.synchronize()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--heads", type=int, default=32, help="query heads")
    parser.add_argument("--kv-heads", type=int, default=8)
    parser.add_argument("--head-dim", type=int, default=128)
    parser.add_argument("--float8", action="store_true", help="keys and values in 8 bits")
    parser.add_argument("--rows", type=int, default=32, help="requests of a decode step")
    parser.add_argument("--context", type=int, default=2048, help="their keys")
    parser.add_argument("--prompt", type=int, default=8192, help="tokens of the prompt")
    parser.add_argument("--top", type=int, default=5, help="lines of each table")
    arguments = parser.parse_args()
    cache_dtype = torch.float8_e4m3fn if arguments.float8 else torch.bfloat16
    shape = Shape(arguments.heads, arguments.kv_heads, arguments.head_dim, cache_dtype=cache_dtype)
    print(torch.cuda.get_device_name())
    ragged = [1 + 2 * row * arguments.context // arguments.rows for row in range(arguments.rows)]
    tables = {
        "decode": time_decode(shape, [arguments.context] * arguments.rows),
        "decode, ragged": time_decode(shape, ragged),
        "prefill": time_prefill(shape, 0, arguments.prompt),
    }
    for name, timings in tables.items():
        print(f"\n{name}: {'us':>8} {'GB/s':>8} {'TFLOP/s':>8}")
        for timing in timings[: arguments.top]:
            numbers = timing.seconds * 1e6, timing.bytes_per_second / 1e9, timing.flops_per_second / 1e12
            print(f"{'':<{len(name)}}  {numbers[0]:>8.1f} {numbers[1]:>8.0f} {numbers[2]:>8.1f}  {timing.config}")


if __name__ == "__main__":
    main()
