"""Times the kernels on this machine's device against their plain references.

Each measurement walks through the caches of several layers, as a model does: a single layer's cache would stay in the
processor's own and look faster than it is. The best of many calls is reported, because other work only ever adds time.
"""

import argparse
import json
import platform
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch.nn import functional

from penstock.kernels.attention import AttentionBatch, paged_attention
from penstock.kernels.attention_reference import attend_reference, cache_write_reference
from penstock.kernels.change_logits import LogitChanges, change_logits, change_logits_torch
from penstock.kernels.encoder import EncoderLayer, EncoderShape, encode_reference
from penstock.kernels.encoder_native import NativeEncoder
from penstock.kernels.linear import can_round_to_int8, linear, pack_weight, round_to_int8
from penstock.kernels.native import library
from penstock.kernels.rmsnorm import add_rms_norm, add_rms_norm_reference, rms_norm, rms_norm_reference
from penstock.kernels.rope import rope_cache_write, rope_cache_write_reference
from penstock.kernels.sampling import sample_rows
from penstock.kernels.sampling_torch import sample_rows_torch
from penstock.kernels.silu_mul import silu_mul, silu_mul_reference

NUM_LAYERS = 4
LINEAR_ROWS = (1, 8, 32, 128, 256)

ENCODER_TEXTS = ((1, 30), (32, 30), (8, 200))


@dataclass(frozen=True)
class Workload:
    """One step: `rows` requests of `context` cached tokens and `new_tokens` to compute."""

    name: str
    rows: int
    context: int
    new_tokens: int


@dataclass(frozen=True)
class Measurement:
    """Microseconds of one call, and the keys and values, logits or weights that it goes through a second."""

    operation: str
    workload: str
    microseconds: float
    reference_microseconds: float
    gigabytes_per_second: float


WORKLOADS = [
    Workload(f"decode {rows} x {length}", rows, length - 1, 1) for length in (128, 320, 2048) for rows in (1, 8, 32)
]
WORKLOADS += [
    Workload("prefill 8 x 64", 8, 0, 64),
    Workload("prefill 1 x 512", 1, 0, 512),
    Workload("prefill 1 x 512 after 1536", 1, 1536, 512),
]

SAMPLING_KINDS = {"greedy": (0.0, 0, 1.0, 0.0), "temperature 1": (1.0, 0, 1.0, 0.0), "filtered": (1.0, 40, 0.9, 0.0)}
"""temperature, top_k (0 for all), top_p and min_p."""


LAYER_OPERATIONS = ("rms_norm", "add_rms_norm", "silu_mul", "rope_cache_write")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--heads", type=int, default=9, help="query heads")
    parser.add_argument("--kv-heads", type=int, default=3)
    parser.add_argument("--head-dim", type=int, default=64)
    parser.add_argument("--block-size", type=int, default=16)
    parser.add_argument("--vocab-size", type=int, default=49152)
    parser.add_argument("--dtype", default="bfloat16", choices=["bfloat16", "float16", "float32"])
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--seconds", type=float, default=0.3, help="time for each measurement")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the results here too")
    arguments = parser.parse_args()
    print(f"{describe(arguments.device)}; {' '.join(sys.argv)}\n")
    print(f"{'operation':<16} {'workload':<28} {'us':>10} {'reference us':>13} {'GB/s':>8}")
    results = []
    with torch.inference_mode():
        measurements = [partial(measure, workload, arguments) for workload in WORKLOADS]
        measurements += [partial(measure_changes, rows, arguments) for rows in (1, 8, 32)]
        measurements += [
            partial(measure_sampling, kind, rows, arguments) for kind in SAMPLING_KINDS for rows in (1, 8, 32)
        ]
        measurements += [
            partial(measure_layer_operation, name, rows, arguments)
            for name in LAYER_OPERATIONS
            for rows in (1, 32, 512)
        ]
        if arguments.device == "cpu":
            kinds = ("bf16", "fp32", "int8") if can_round_to_int8() else ("bf16", "fp32")
            measurements += [partial(measure_linear, kind, rows, arguments) for kind in kinds for rows in LINEAR_ROWS]
        if arguments.device == "cpu" and library() is not None and arguments.dtype != "float16":
            measurements += [partial(measure_encoder, texts, length, arguments) for texts, length in ENCODER_TEXTS]
        for measurement in measurements:
            result = measurement()
            results.append(result)
            print(
                f"{result.operation:<16} {result.workload:<28} {result.microseconds:>10.1f} "
                f"{result.reference_microseconds:>13.1f} {result.gigabytes_per_second:>8.1f}"
            )
    if arguments.json:
        report = {
            "command": sys.argv,
            "machine": describe(arguments.device),
            "results": [asdict(result) for result in results],
        }
        arguments.json.write_text(json.dumps(report, indent=2) + "\n")


def describe(device: str) -> str:
    if device == "cuda":
        return f"{torch.cuda.get_device_name()}, torch {torch.__version__}"
    return f"{platform.processor() or platform.machine()}, {torch.get_num_threads()} threads, torch {torch.__version__}"


def measure(workload: Workload, arguments: argparse.Namespace) -> Measurement:
    dtype, device, block_size = getattr(torch, arguments.dtype), arguments.device, arguments.block_size
    num_kv_heads, head_dim = arguments.kv_heads, arguments.head_dim
    seq_len = workload.context + workload.new_tokens
    blocks_per_row = -(-seq_len // block_size)
    num_blocks = workload.rows * blocks_per_row
    tables = np.random.default_rng(0).permutation(num_blocks).reshape(workload.rows, blocks_per_row)
    position = np.arange(workload.context, seq_len)
    slots = tables[:, position // block_size] * block_size + position % block_size
    batch = AttentionBatch.build(
        tables.tolist(),
        [seq_len] * workload.rows,
        [workload.new_tokens] * workload.rows,
        slots.ravel().astype(np.int64),
        block_size,
        device,
    )
    # The caches of all layers side by side in each block, as in the server.
    shape = (num_blocks, NUM_LAYERS, 2, num_kv_heads, block_size, head_dim)
    storage = torch.empty(shape, dtype=dtype, device=device).normal_()
    caches = [(storage[:, layer, 0], storage[:, layer, 1]) for layer in range(NUM_LAYERS)]
    num_tokens = slots.size
    query = torch.randn(num_tokens, arguments.heads, head_dim, dtype=dtype, device=device)
    key, value = (torch.randn(num_tokens, num_kv_heads, head_dim, dtype=dtype, device=device) for _ in "kv")
    scale = head_dim**-0.5

    def fast(layer: int) -> None:
        paged_attention(query, key, value, *caches[layer], batch, scale=scale)

    def plain(layer: int) -> None:
        cache_write_reference(key, value, *caches[layer], batch)
        attend_reference(query, *caches[layer], batch, scale)

    token_bytes = 2 * num_kv_heads * head_dim * dtype.itemsize
    seconds = best(fast, device, arguments.seconds)
    reference_seconds = best(plain, device, 0.0)
    bandwidth = workload.rows * seq_len * token_bytes / seconds / 1e9
    return Measurement("paged_attention", workload.name, seconds * 1e6, reference_seconds * 1e6, bandwidth)


def measure_changes(rows: int, arguments: argparse.Namespace) -> Measurement:
    """Every row has a bias of ten tokens, penalties for some 500 and a mask that allows half of all."""
    vocab_size, device = arguments.vocab_size, arguments.device
    logits = torch.randn(NUM_LAYERS, rows, vocab_size, device=device).to(getattr(torch, arguments.dtype))
    row = torch.arange(rows, dtype=torch.int32, device=device)
    changes = LogitChanges(
        entry_starts=torch.arange(rows + 1, dtype=torch.int32, device=device) * 10,
        entry_ids=torch.randperm(vocab_size, device=device)[:10].sort().values.int().repeat(rows),
        entry_values=torch.randn(10 * rows, device=device),
        count_rows=row,
        penalties=torch.tensor([[1.2, 0.1, 0.1]], device=device).repeat(rows, 1),
        counts=(torch.rand(rows, vocab_size, device=device) < 500 / vocab_size).int() * 2,
        mask_rows=row,
        bits=torch.randint(-(2**31), 2**31, (rows, -(-vocab_size // 32)), device=device).to(torch.int32),
    )
    seconds = best(lambda layer: change_logits(logits[layer], changes), device, arguments.seconds)
    reference_seconds = best(lambda layer: change_logits_torch(logits[layer], changes), device, 0.0)
    num_bytes = logits[0].nbytes + 2 * changes.counts.nbytes + changes.bits.nbytes  # as many written as counted
    name = f"{rows} x {vocab_size}"
    return Measurement("change_logits", name, seconds * 1e6, reference_seconds * 1e6, num_bytes / seconds / 1e9)


def measure_linear(name: str, rows: int, arguments: argparse.Namespace) -> Measurement:
    """All linear layers of SmolLM2-135M: 30 layers with fused projections, and the head."""
    dtype = torch.float32 if name == "fp32" else torch.bfloat16
    shapes = [*[(960, 576), (576, 576), (3072, 576), (576, 1536)] * 30, (49152, 576)]
    weights = [torch.randn(shape, dtype=dtype) / 24 for shape in shapes]
    packed = [round_to_int8(pack_weight(weight)) if name == "int8" else pack_weight(weight) for weight in weights]
    inputs = {size: torch.randn(rows, size, dtype=dtype) for size in (576, 1536)}

    def fast(layer: int) -> None:
        for weight in packed:
            linear(inputs[weight.in_features], weight)

    def plain(layer: int) -> None:
        for weight in weights:
            functional.linear(inputs[weight.shape[1]], weight)

    seconds = best(fast, "cpu", arguments.seconds)
    num_bytes = sum(weight.nbytes for weight in weights) / (2 if name == "int8" else 1)
    reference_seconds = best(plain, "cpu", 0.0)
    return Measurement(f"linear {name}", f"{rows}", seconds * 1e6, reference_seconds * 1e6, num_bytes / seconds / 1e9)


def measure_sampling(kind: str, rows: int, arguments: argparse.Namespace) -> Measurement:
    """Rows like a language model's: a few dozen tokens far above the others; the reference sorts every row."""
    vocab_size, device = arguments.vocab_size, arguments.device
    logits = torch.randn(NUM_LAYERS, rows, vocab_size, device=device) * 2
    logits[..., torch.randint(0, vocab_size, (60,), device=device)] += torch.randn(60, device=device) * 3 + 8
    logits = logits.to(getattr(torch, arguments.dtype))
    temperature, top_k, top_p, min_p = SAMPLING_KINDS[kind]
    fixed = torch.tensor([[temperature, top_k or vocab_size, top_p, min_p]], dtype=torch.float64, device=device)
    uniforms = torch.rand(rows, 1, dtype=torch.float64, device=device)
    params = torch.cat((fixed.expand(rows, -1), uniforms), dim=1)
    seconds = best(lambda layer: sample_rows(logits[layer], params), device, arguments.seconds)
    reference_seconds = best(lambda layer: sample_rows_torch(logits[layer], params, ()), device, 0.0)
    bandwidth = logits[0].nbytes / seconds / 1e9
    name = f"{kind}, {rows} x {vocab_size}"
    return Measurement("sample_rows", name, seconds * 1e6, reference_seconds * 1e6, bandwidth)


def measure_encoder(texts: int, length: int, arguments: argparse.Namespace) -> Measurement:
    """All layers of an encoder of MiniLM's size, as many as `NUM_LAYERS`; the gigabytes are those of its weights."""
    dtype, hidden, heads = getattr(torch, arguments.dtype), 384, 12

    def random(*shape: int) -> torch.Tensor:
        return (torch.randn(shape) * shape[-1] ** -0.5).to(dtype)

    def affine(outputs: int, inputs: int) -> tuple[torch.Tensor, torch.Tensor]:
        return random(outputs, inputs), random(outputs)

    norm = random(hidden), random(hidden)
    layers = [
        EncoderLayer(
            qkv=affine(3 * hidden, hidden),
            output=affine(hidden, hidden),
            attention_norm=norm,
            up=affine(4 * hidden, hidden),
            down=affine(hidden, 4 * hidden),
            output_norm=norm,
        )
        for _ in range(NUM_LAYERS)
    ]
    shape = EncoderShape(heads, hidden // heads, (hidden // heads) ** -0.5, 1e-12, "gelu")
    encode, states, lengths = NativeEncoder(layers, shape), random(texts * length, hidden), [length] * texts
    seconds = best(lambda layer: encode(states, lengths), "cpu", arguments.seconds)
    reference_seconds = best(lambda layer: encode_reference(states, lengths, layers, shape), "cpu", 0.0)
    weight_bytes = NUM_LAYERS * 12 * hidden * hidden * dtype.itemsize
    name = f"{texts} x {length}"
    return Measurement("encode", name, seconds * 1e6, reference_seconds * 1e6, weight_bytes / seconds / 1e9)


def measure_layer_operation(name: str, rows: int, arguments: argparse.Namespace) -> Measurement:
    """What is around the matrix products of a layer whose hidden size is that of all heads, the gate's thrice that."""
    dtype, device = getattr(torch, arguments.dtype), arguments.device
    heads, kv_heads, head_dim = arguments.heads, arguments.kv_heads, arguments.head_dim

    def random(*shape: int) -> torch.Tensor:
        return torch.randn(NUM_LAYERS, *shape, device=device).to(dtype)

    size = heads * head_dim
    x, weight, residual = random(rows, size), random(size), random(rows, size)
    gate_up, qkv = random(rows, 6 * size), random(rows, heads + 2 * kv_heads, head_dim)
    cos, sin = random(rows, head_dim), random(rows, head_dim)
    slots = torch.randperm(rows, device=device)
    caches = random(2, -(-rows // arguments.block_size), kv_heads, arguments.block_size, head_dim)

    def rope(operation: Callable[..., torch.Tensor], layer: int) -> None:
        positions = (cos[layer], sin[layer])
        operation(
            qkv[layer],
            *positions,
            *caches[layer],
            slots,
            heads,
            kv_heads,
            weight[0, :head_dim],
            weight[1, :head_dim],
            1e-6,
        )

    # Fast and plain call with a layer, and the elements that are read and written.
    cases: dict[str, tuple[Callable[[int], object], Callable[[int], object], int]] = {
        "rms_norm": (
            lambda layer: rms_norm(x[layer], weight[layer], 1e-6),
            lambda layer: rms_norm_reference(x[layer], weight[layer], 1e-6),
            2 * x[0].numel(),
        ),
        "add_rms_norm": (
            lambda layer: add_rms_norm(x[layer], residual[layer], weight[layer], 1e-6),
            lambda layer: add_rms_norm_reference(x[layer], residual[layer], weight[layer], 1e-6),
            4 * x[0].numel(),
        ),
        "silu_mul": (
            lambda layer: silu_mul(gate_up[layer]),
            lambda layer: silu_mul_reference(gate_up[layer]),
            3 * gate_up[0].numel() // 2,
        ),
        "rope_cache_write": (
            lambda layer: rope(rope_cache_write, layer),
            lambda layer: rope(rope_cache_write_reference, layer),
            2 * qkv[0].numel(),
        ),
    }
    fast, plain, num_elements = cases[name]
    seconds, reference_seconds = best(fast, device, arguments.seconds), best(plain, device, 0.0)
    bandwidth = num_elements * dtype.itemsize / seconds / 1e9
    return Measurement(name, f"{rows} x {size}", seconds * 1e6, reference_seconds * 1e6, bandwidth)


def best(function: Callable[[int], object], device: str, seconds: float) -> float:
    """Seconds of one call: the best of those that fit into `seconds`, at least one.

    On a GPU several calls are timed at once, so that launching them is not what is measured.
    """
    calls = 20 if device == "cuda" and seconds else 1
    function(0)
    fastest, end, layer = float("inf"), time.perf_counter() + seconds, 0
    while True:
        synchronize(device)
        start = time.perf_counter()
        for _ in range(calls):
            layer = (layer + 1) % NUM_LAYERS
            function(layer)
        synchronize(device)
        now = time.perf_counter()
        fastest = min(fastest, (now - start) / calls)
        if now >= end:
            return fastest


def synchronize(device: str) -> None:
    if device == "cuda":
        torch.cuda.synchronize()


if __name__ == "__main__":
    main()
