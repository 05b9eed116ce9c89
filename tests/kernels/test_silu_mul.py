from collections.abc import Iterator
from concurrent.futures import Executor

import pytest
import torch
from torch.nn import functional
from triton_interpreter import interpreter

from penstock.kernels.silu_mul import silu_mul

CASES = [(3, 1536, torch.float32), (2, 1100, torch.float16), (5, 48, torch.float16)]
LIMIT = {torch.float32: 1e-6, torch.float16: 1e-3, torch.bfloat16: 1e-2}


def gate_up(rows: int, size: int, dtype: torch.dtype) -> torch.Tensor:
    return (3 * torch.randn(rows, 2 * size, generator=torch.Generator().manual_seed(size))).to(dtype)


def error(actual: torch.Tensor, states: torch.Tensor) -> float:
    """Largest error, relative where the numbers are large."""
    gate, up = states.float().chunk(2, dim=-1)
    expected = functional.silu(gate) * up
    if actual.dtype != states.dtype or actual.shape != expected.shape or not actual.is_contiguous():
        return float("inf")
    return ((actual.float() - expected).abs() / expected.abs().clamp(min=1.0)).max().item()


def triton_error(case: tuple[int, int, torch.dtype]) -> float:
    from penstock.kernels.silu_mul_triton import silu_mul_triton

    states = gate_up(*case)
    return error(silu_mul_triton(states), states)


@pytest.fixture(scope="module")
def process() -> Iterator[Executor]:
    pytest.importorskip("triton", reason="Triton is not installed")
    with interpreter() as executor:
        yield executor


@pytest.mark.parametrize("case", CASES, ids=str)
def test_triton_is_the_formula(process: Executor, case: tuple[int, int, torch.dtype]) -> None:
    assert process.submit(triton_error, case).result() <= LIMIT[case[2]]


@pytest.mark.parametrize("case", [*CASES, (4, 96, torch.bfloat16)], ids=str)
def test_the_cpu_is_the_formula(case: tuple[int, int, torch.dtype]) -> None:
    states = gate_up(*case)
    assert error(silu_mul(states), states) <= LIMIT[case[2]]
