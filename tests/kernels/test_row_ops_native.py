"""The native operations on rows: that a row's result does not depend on its company, and widths of odd sizes."""

from collections.abc import Callable

import pytest
import torch

from penstock.kernels.native import library
from penstock.kernels.rmsnorm import add_rms_norm, add_rms_norm_reference, rms_norm, rms_norm_reference
from penstock.kernels.rope import rope_cache_write, rope_cache_write_reference
from penstock.kernels.silu_mul import silu_mul, silu_mul_reference

pytestmark = pytest.mark.skipif(library() is None, reason="no native kernels on this machine")
BF16 = torch.bfloat16


def rows(*shape: int, seed: int = 0) -> torch.Tensor:
    return (2 * torch.randn(*shape, generator=torch.Generator().manual_seed(seed))).to(BF16)


@pytest.mark.parametrize("size", [8, 16, 40, 576, 1000])
@pytest.mark.parametrize("weight_dtype", [BF16, torch.float32])
def test_norms_of_any_width_round_once(size: int, weight_dtype: torch.dtype) -> None:
    x, residual, weight = rows(11, size), rows(11, size, seed=1), rows(size, seed=2).to(weight_dtype)
    exact = rms_norm_reference(x.double().float(), weight.float(), 1e-5)
    torch.testing.assert_close(rms_norm(x, weight, 1e-5).float(), exact, rtol=2**-8, atol=1e-6)
    normed, total = add_rms_norm(x, residual, weight, 1e-5)
    assert torch.equal(total, add_rms_norm_reference(x, residual, weight, 1e-5)[1])
    assert torch.equal(normed, rms_norm(total, weight, 1e-5))


def test_gates_of_any_width_round_once_and_keep_infinities() -> None:
    states = rows(9, 2 * 100)
    states[0, :3] = torch.tensor([float("inf"), float("-inf"), float("nan")])
    exact = silu_mul_reference(states.float())
    exact[0, 1] = torch.nan  # -inf * sigmoid(-inf) is -inf * 0, whose limit is 0: torch and we say NaN
    torch.testing.assert_close(silu_mul(states).float(), exact, rtol=2**-8, atol=1e-6, equal_nan=True)


def rope(num_tokens: int, *, norms: bool, operation: Callable[..., torch.Tensor]) -> list[torch.Tensor]:
    angles = torch.rand(32, 64, generator=torch.Generator().manual_seed(3)) * 6
    weights = (rows(64, seed=4), rows(64, seed=5)) if norms else (None, None)
    caches = [torch.zeros(8, 3, 16, 64, dtype=BF16) for _ in "kv"]
    slots = torch.arange(32) * 3
    slots[5] = -1
    angle_rows = (angles.cos().to(BF16)[:num_tokens], angles.sin().to(BF16)[:num_tokens])
    query = operation(rows(32, 15, 64)[:num_tokens], *angle_rows, *caches, slots[:num_tokens], 9, 3, *weights, 1e-6)
    return [query, *caches]


@pytest.mark.parametrize("norms", [False, True])
def test_the_rotation_is_that_of_torch(norms: bool) -> None:
    for actual, expected in zip(
        rope(32, norms=norms, operation=rope_cache_write),
        rope(32, norms=norms, operation=rope_cache_write_reference),
        strict=True,
    ):
        torch.testing.assert_close(actual, expected, rtol=0.03, atol=0.1)  # the reference rounds three times


def test_the_norms_of_heads_may_have_wider_weights() -> None:
    qkv, angles, weight = rows(3, 3, 32), rows(3, 32), torch.rand(32)
    outputs = [
        operation(qkv, angles, angles, *[torch.zeros(1, 1, 16, 32, dtype=BF16) for _ in "kv"], torch.arange(3), 1, 1,
                  weight, weight, 1e-6)
        for operation in (rope_cache_write, rope_cache_write_reference)
    ]  # fmt: skip
    torch.testing.assert_close(*outputs, rtol=0.03, atol=0.1)


def test_a_row_is_the_same_alone_and_in_company() -> None:
    x, weight, states = rows(33, 576), rows(576, seed=2), rows(33, 1024, seed=1)
    for row in (0, 7, 32):
        one = slice(row, row + 1)
        assert torch.equal(rms_norm(x[one], weight, 1e-5), rms_norm(x, weight, 1e-5)[one])
        assert torch.equal(silu_mul(states[one]), silu_mul(states)[one])
    few, many = (rope(count, norms=True, operation=rope_cache_write) for count in (3, 32))
    assert torch.equal(few[0], many[0][:3])
