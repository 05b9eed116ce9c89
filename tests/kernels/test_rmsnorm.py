from collections.abc import Iterator
from concurrent.futures import Executor

import pytest
import torch
from torch.nn import functional
from triton_interpreter import interpreter

from penstock.kernels.rmsnorm import add_rms_norm, rms_norm

# Rows, elements, dtype of the rows and of the weight; the last size is too wide for a program's registers.
CASES = [
    (5, 576, torch.float32, torch.float32),
    (3, 100, torch.float16, torch.float32),
    (2, 1024, torch.float16, torch.float16),
    (2, 17000, torch.float32, torch.float32),
]
LIMIT = {torch.float32: 1e-5, torch.float16: 4e-3, torch.bfloat16: 3e-2}


def inputs(rows: int, size: int, dtype: torch.dtype, weight_dtype: torch.dtype) -> tuple[torch.Tensor, ...]:
    """Rows inside of wider ones, one of them so small that eps decides."""
    generator = torch.Generator().manual_seed(size)
    x, residual = (torch.randn(rows, size + 8, generator=generator).to(dtype)[:, :size] for _ in "xr")
    x[0] *= 1e-3
    residual[0] *= 1e-3
    return x, residual, (torch.randn(size, generator=generator) + 1.0).to(weight_dtype)


def expected_norm(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    return functional.rms_norm(x.float(), (x.shape[-1],), weight.float(), 1e-6)


def error(actual: torch.Tensor, x: torch.Tensor, weight: torch.Tensor) -> float:
    if actual.dtype != x.dtype or not actual.is_contiguous():
        return float("inf")
    return (actual.float() - expected_norm(x, weight)).abs().max().item() / weight.abs().max().item()


def triton_errors(case: tuple[int, int, torch.dtype, torch.dtype]) -> tuple[float, float, bool]:
    """Errors of the norm alone and of that behind the addition, and whether the sum is exact."""
    from penstock.kernels.rmsnorm_triton import add_rms_norm_triton, rms_norm_triton

    x, residual, weight = inputs(*case)
    alone = error(rms_norm_triton(x, weight, 1e-6), x, weight)
    normed, total = add_rms_norm_triton(x, residual, weight, 1e-6)
    return alone, error(normed, total, weight), torch.equal(total, x + residual)


@pytest.fixture(scope="module")
def process() -> Iterator[Executor]:
    pytest.importorskip("triton", reason="Triton is not installed")
    with interpreter() as executor:
        yield executor


@pytest.mark.parametrize("case", CASES, ids=str)
def test_triton_is_the_formula(process: Executor, case: tuple[int, int, torch.dtype, torch.dtype]) -> None:
    alone, added, exact = process.submit(triton_errors, case).result()
    assert max(alone, added) <= LIMIT[case[2]]
    assert exact


@pytest.mark.parametrize("case", [*CASES, (4, 576, torch.bfloat16, torch.bfloat16)], ids=str)
def test_the_cpu_is_the_formula(case: tuple[int, int, torch.dtype, torch.dtype]) -> None:
    x, residual, weight = inputs(*case)
    assert error(rms_norm(x, weight, 1e-6), x, weight) <= LIMIT[case[2]]
    normed, total = add_rms_norm(x, residual, weight, 1e-6)
    assert torch.equal(total, x + residual)
    assert error(normed, total, weight) <= LIMIT[case[2]]
