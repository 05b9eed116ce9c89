"""Every Triton kernel compiles for sm_90 and fits into it, which the interpreter does not show."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from ahead_of_time import MAX_SHARED, compile_kernel

ROOT = Path(__file__).parents[2]
BF16, FP16, FP32, FP8 = torch.bfloat16, torch.float16, torch.float32, torch.float8_e4m3fn
FP64, INT32, INT64 = torch.float64, torch.int32, torch.int64
PLAIN = {"WINDOW": 0, "SOFTCAP": False, "SINKS": False, "LOG2_E": 1.4426950408889634}
FULL = PLAIN | {"WINDOW": 4096, "SOFTCAP": True, "SINKS": True}


def next_power_of_2(number: int) -> int:
    return 1 << (number - 1).bit_length()


def compile_decode() -> None:
    from penstock.kernels.attention_configs import decode_config, padded
    from penstock.kernels.attention_decode import parts_at_once
    from penstock.kernels.attention_decode_kernel import decode_kernel

    for dtype, cache_dtype, head_dim, value_head_dim, group, tokens, options in (
        (BF16, BF16, 64, 64, 3, 1, PLAIN),
        (BF16, BF16, 128, 128, 4, 1, PLAIN),
        (BF16, BF16, 128, 128, 4, 8, PLAIN),
        (BF16, BF16, 128, 128, 16, 1, FULL),
        (BF16, BF16, 192, 128, 1, 1, PLAIN),
        (BF16, FP8, 128, 128, 4, 1, PLAIN),
        (FP32, FP32, 80, 80, 4, 1, PLAIN),
    ):
        config = decode_config(max(head_dim, value_head_dim), cache_dtype)
        rows = next_power_of_2(tokens * group)
        constants = options | {
            "TOKENS": tokens,
            "GROUP": group,
            "NUM_KV_HEADS": 8,
            "HEAD_DIM": head_dim,
            "VALUE_HEAD_DIM": value_head_dim,
            "BLOCK_R": 256,
            "BLOCK_G": max(16, rows),
            "BLOCK_D": padded(head_dim),
            "BLOCK_DV": padded(value_head_dim),
            "BLOCK_SIZE": 16,
            "TILE": config.tile,
            "MIN_TILES": config.min_tiles,
            "ROWS": rows,
            "PARTS": parts_at_once(rows, padded(value_head_dim)),
            "SCALED": cache_dtype == FP8,
        }
        dtypes = dict.fromkeys(("query", "output", "sinks"), dtype)
        dtypes |= dict.fromkeys(("key_cache", "value_cache"), cache_dtype)
        dtypes |= dict.fromkeys(("part_outputs", "part_lse", "key_scale", "value_scale"), FP32)
        dtypes |= dict.fromkeys(("block_table", "seq_lens", "query_start_loc", "counters"), INT32)
        done = compile_kernel(decode_kernel, dtypes, constants, config.num_warps, config.num_stages)
        assert done.shared * config.programs_per_processor <= MAX_SHARED
        assert done.registers * config.num_warps * 32 * config.programs_per_processor <= 65536
        if dtype == BF16:  # float32 is for tests
            assert done.spilled <= (0 if head_dim <= 128 else 16)
        assert "cp.async" in done.ptx  # loads of later tiles are under way while one is computed
        # What is counted as done is in memory before, and is not read from a stale cache afterwards.
        assert done.ptx.index("bar.sync") < done.ptx.index("atom.global.gpu.acq_rel") < done.ptx.index("ld.global.cg")


def compile_prefill() -> None:
    from penstock.kernels.attention_configs import padded, prefill_config
    from penstock.kernels.attention_prefill import prefill_kernel

    for dtype, cache_dtype, head_dim, value_head_dim, group, options in (
        (BF16, BF16, 64, 64, 3, PLAIN),
        (BF16, BF16, 128, 128, 4, PLAIN),
        (BF16, BF16, 128, 128, 16, FULL),
        (BF16, BF16, 192, 128, 1, PLAIN),
        (BF16, FP8, 128, 128, 4, PLAIN),
        (FP32, FP32, 64, 64, 4, PLAIN),
    ):
        config = prefill_config(max(head_dim, value_head_dim), group, cache_dtype)
        constants = options | {
            "GROUP": group,
            "HEAD_DIM": head_dim,
            "VALUE_HEAD_DIM": value_head_dim,
            "BLOCK_M": config.block_m,
            "BLOCK_N": config.block_n,
            "BLOCK_D": padded(head_dim),
            "BLOCK_DV": padded(value_head_dim),
            "BLOCK_SIZE": 16,
            "SCALED": cache_dtype == FP8,
        }
        dtypes = dict.fromkeys(("query", "output", "sinks"), dtype)
        dtypes |= {"key_cache": cache_dtype, "value_cache": cache_dtype, "key_scale": FP32, "value_scale": FP32}
        dtypes |= dict.fromkeys(("block_table", "seq_lens", "query_start_loc"), INT32)
        done = compile_kernel(prefill_kernel, dtypes, constants, config.num_warps, config.num_stages)
        assert done.shared <= MAX_SHARED
        assert done.registers * config.num_warps * 32 <= 65536
        assert done.spilled == 0
        assert done.uses_wgmma == (dtype == BF16)
        assert "cp.async" in done.ptx


def compile_layer_operations() -> None:
    from penstock.kernels.cache_write_triton import cache_write_kernel
    from penstock.kernels.quantize_fp8_triton import quantize_fp8_kernel
    from penstock.kernels.rmsnorm_triton import rms_norm_kernel, tile_size
    from penstock.kernels.rope_triton import rope_cache_write_kernel, tile_sizes
    from penstock.kernels.silu_mul_triton import TILE, silu_mul_kernel

    for size, add, quantize in ((576, False, False), (4096, True, True), (17000, True, False)):
        tile, num_warps = tile_size(size)
        dtypes = dict.fromkeys(("x", "residual", "weight", "total", "output"), BF16) | {"scales": FP32}
        dtypes |= {"output": FP8} if quantize else {}
        constants = {"SIZE": size, "TILE": tile, "ADD": add, "QUANTIZE": quantize, "LARGEST": 448.0, "MIN": 1e-12}
        assert compile_kernel(rms_norm_kernel, dtypes, constants, num_warps).spilled == 0
    dtypes = {"x": BF16, "output": FP8, "scales": FP32}
    constants = {"GATED": True, "TILE": 2048, "LARGEST": 448.0, "MIN": 1e-12}
    assert compile_kernel(quantize_fp8_kernel, dtypes, constants).spilled == 0
    assert compile_kernel(silu_mul_kernel, dict.fromkeys(("gate_up", "output"), BF16), {"TILE": TILE}).spilled == 0
    heads = dict.fromkeys(("qkv", "cos", "sin", "query", "key_cache", "value_cache"), BF16)
    heads |= {"q_norm_weight": BF16, "k_norm_weight": BF16, "slot_mapping": INT64}
    heads |= {"key_scale": FP32, "value_scale": FP32}
    for head_dim, norm, cache_dtype in ((128, True, BF16), (128, True, FP8), (80, False, BF16)):
        block_half, block_h = tile_sizes(head_dim)
        constants = {
            "NUM_HEADS": 32,
            "NUM_KV_HEADS": 8,
            "HEAD_DIM": head_dim,
            "BLOCK_SIZE": 16,
            "BLOCK_H": block_h,
            "BLOCK_HALF": block_half,
            "NORM": norm,
            "SCALED": cache_dtype == FP8,
            "LARGEST": 448.0,
        }
        dtypes = heads | {"key_cache": cache_dtype, "value_cache": cache_dtype}
        assert compile_kernel(rope_cache_write_kernel, dtypes, constants).spilled == 0
    constants = {
        "BLOCK_SIZE": 16,
        "NUM_KV_HEADS": 3,
        "HEAD_DIM": 64,
        "VALUE_HEAD_DIM": 64,
        "KEY_WIDTH": 256,
        "VALUE_WIDTH": 256,
    }
    dtypes = dict.fromkeys(("key", "value", "key_cache", "value_cache"), BF16) | {"slot_mapping": INT64}
    assert compile_kernel(cache_write_kernel, dtypes, constants).spilled == 0


def compile_sampling() -> None:
    from penstock.kernels import sampling_triton as sampling

    constants = {"CHUNK": sampling.CHUNK, "GROUP": sampling.GROUP, "TILE": sampling.TILE, "PADDED_CHUNKS": 128}
    constants["MAX_CANDIDATES"] = sampling.MAX_CANDIDATES
    dtypes = {"params": FP64, "chunk_maxima": FP32, "chunk_argmaxes": INT32, "chunk_masses": FP64}
    dtypes |= {"group_maxima": FP32, "candidate_values": FP32, "candidate_ids": INT32, "token_ids": INT64}
    for dtype in (BF16, FP32):
        done = compile_kernel(sampling.sampling_chunks_kernel, dtypes | {"logits": dtype}, constants)
        assert done.spilled == 0
        done = compile_kernel(sampling.sampling_choice_kernel, dtypes | {"logits": dtype}, constants, num_warps=8)
        assert done.spilled == 0


def compile_others() -> None:
    from penstock.kernels.change_logits_triton import ENTRIES, TILE, change_logits_kernel

    floats, integers = ("entry_values", "penalties", "values"), ("entry_starts", "entry_ids", "count_rows", "mask_rows")
    dtypes = dict.fromkeys(floats, FP32) | dict.fromkeys((*integers, "counts", "bits"), INT32)
    for dtype in (BF16, FP32):
        done = compile_kernel(change_logits_kernel, dtypes | {"logits": dtype}, {"TILE": TILE, "ENTRIES": ENTRIES})
        assert done.spilled == 0


@pytest.mark.parametrize(
    "function",
    ["compile_decode", "compile_prefill", "compile_layer_operations", "compile_sampling", "compile_others"],
)
def test_kernels_compile_for_sm_90(function: str, tmp_path: Path) -> None:
    pytest.importorskip("triton", reason="Triton is not installed")
    # In a process of its own: an interpreted kernel cannot be compiled, nor one of a process that interprets others.
    environment = {key: value for key, value in os.environ.items() if key != "TRITON_INTERPRET"}
    environment |= {"PYTHONPATH": f"{ROOT / '.dev'}:{Path(__file__).parent}", "TRITON_CACHE_DIR": str(tmp_path)}
    command = [sys.executable, "-c", f"import test_aot; test_aot.{function}()"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
