"""Every Triton kernel compiles for sm_90, which the interpreter does not show."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

MAX_SHARED = 227 * 1024  # bytes that one block may use on sm_90
ROOT = Path(__file__).parents[2]


def compile_kernels() -> None:
    """Compile each kernel in its typical variants; run in a process without TRITON_INTERPRET."""
    from penstock.kernels.attention_decode import decode_kernel, reduce_splits_kernel
    from penstock.kernels.attention_prefill import prefill_kernel, tile_sizes
    from penstock.kernels.bitmask_triton import bitmask_kernel
    from penstock.kernels.cache_write_triton import cache_write_kernel
    from penstock.kernels.rmsnorm_triton import rms_norm_kernel
    from penstock.kernels.rope_triton import rope_cache_write_kernel
    from penstock.kernels.silu_mul_triton import silu_mul_kernel

    plain = {"WINDOW": 0, "SOFTCAP": False, "SINKS": False}
    full = {"WINDOW": 4096, "SOFTCAP": True, "SINKS": True}
    for dtype, head_dim, value_head_dim, group, splits, options in (
        (torch.bfloat16, 64, 64, 3, 8, plain),
        (torch.bfloat16, 128, 128, 4, 1, full),
        (torch.bfloat16, 192, 128, 1, 8, plain),
        (torch.float16, 64, 64, 3, 1, full),
        (torch.float32, 64, 64, 4, 1, plain),
    ):
        block_m, block_n, num_warps = tile_sizes(group, next_power_of_2(head_dim), dtype)
        constants = options | {
            "HEAD_DIM": head_dim,
            "VALUE_HEAD_DIM": value_head_dim,
            "BLOCK_D": next_power_of_2(head_dim),
            "BLOCK_DV": next_power_of_2(value_head_dim),
            "BLOCK_SIZE": 16,
            "GROUP": group,
            "BLOCK_G": 16,
            "BLOCK_M": block_m,
            "BLOCK_N": block_n,
            "TILE": 64,
            "SPLITS": splits,
            "MIN_LEN": 256,
            "LOG2_E": 1.4426950408889634,
            "NUM_KV_HEADS": 3,
            "KEY_WIDTH": next_power_of_2(3 * head_dim),
            "VALUE_WIDTH": next_power_of_2(3 * value_head_dim),
            "NUM_HEADS": 3 * group,
            "NORM": options is full,
            "BLOCK_H": 8,
            "BLOCK_HALF": next_power_of_2(head_dim // 2),
        }
        _compile(cache_write_kernel, dtype, constants)
        _compile(decode_kernel, dtype, constants)
        _compile(reduce_splits_kernel, dtype, constants)
        _compile(prefill_kernel, dtype, constants, num_warps)
        _compile(rope_cache_write_kernel, dtype, constants)
    for size, add in ((576, False), (4096, True), (17000, True)):
        tile = min(next_power_of_2(size), 16384)
        _compile(rms_norm_kernel, torch.bfloat16, {"SIZE": size, "TILE": tile, "ADD": add}, num_warps=8)
    _compile(silu_mul_kernel, torch.bfloat16, {"TILE": 1024})
    _compile(bitmask_kernel, torch.float32, {"TILE": 4096})


def next_power_of_2(number: int) -> int:
    return 1 << (number - 1).bit_length()


def _compile(kernel: Any, dtype: torch.dtype, constants: dict[str, Any], num_warps: int = 4) -> None:
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    states = {torch.bfloat16: "*bf16", torch.float16: "*fp16", torch.float32: "*fp32"}[dtype]
    types = dict.fromkeys(("query", "key", "value", "key_cache", "value_cache", "output"), states)
    types |= dict.fromkeys(("qkv", "cos", "sin", "q_norm_weight", "k_norm_weight"), states)
    types |= dict.fromkeys(("x", "residual", "weight", "total", "gate_up"), states)
    types |= dict.fromkeys(("partial_output", "partial_lse", "sinks"), "*fp32")
    types |= dict.fromkeys(("block_table", "seq_lens", "query_start_loc"), "*i32")
    types |= {"scale": "fp32", "softcap": "fp32", "eps": "fp32", "slot_mapping": "*i64"}
    types |= {"logits": "*fp32", "rows": "*i64", "bits": "*i32"}
    constexprs = {name: constants[name] for name in kernel.arg_names if name in constants}
    signature = {
        name: "constexpr" if name in constexprs else types.get(name, "i32")  # the others are strides and indices
        for name in kernel.arg_names
    }
    options = {"num_warps": num_warps, "num_stages": 2}
    source = ASTSource(kernel, signature, constexprs)
    compiled = triton.compile(source, target=GPUTarget("cuda", 90, 32), options=options)
    assert len(compiled.asm["cubin"]) > 0
    shared = compiled.metadata.shared
    assert shared <= MAX_SHARED, f"{kernel.__name__} wants {shared} bytes of shared memory, sm_90 has {MAX_SHARED}"
    print(kernel.__name__, dtype, constexprs, shared)


def test_kernels_compile_for_sm_90(tmp_path: Path) -> None:
    pytest.importorskip("triton", reason="Triton is not installed")
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    environment |= {"PYTHONPATH": f"{ROOT / '.dev'}:{Path(__file__).parent}", "TRITON_CACHE_DIR": str(tmp_path)}
    command = [sys.executable, "-c", "import test_aot; test_aot.compile_kernels()"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    kernels = {line.split()[0] for line in done.stdout.splitlines()}
    assert kernels == {
        "bitmask_kernel",
        "cache_write_kernel",
        "decode_kernel",
        "reduce_splits_kernel",
        "prefill_kernel",
        "rms_norm_kernel",
        "rope_cache_write_kernel",
        "silu_mul_kernel",
    }
