from collections.abc import Iterator
from concurrent.futures import Executor

import pytest
import torch
from torch.nn import functional
from triton_interpreter import interpreter

from penstock.kernels import quantize_fp8 as operations

SIZE = 2500  # more than one tile of the kernels
NAMES = ("quantize_fp8", "rms_norm_fp8", "add_rms_norm_fp8", "silu_mul_fp8")


def run(name: str, functions: dict[str, object], dtype: torch.dtype, quantile: float) -> tuple[float, float, bool]:
    """Error of the rows, in steps of float8, and of their scales, and whether what else is returned is exact."""
    generator = torch.Generator().manual_seed(0)
    x, residual = (torch.randn(3, SIZE, generator=generator) for _ in "xr")
    x[1] = residual[1] = 0.0
    x[2] *= 1000.0
    x, residual = x.to(dtype), residual.to(dtype)
    weight = torch.randn(SIZE, generator=generator).to(dtype)
    total = x + residual

    def normed(rows: torch.Tensor) -> torch.Tensor:
        return functional.rms_norm(rows.float(), (SIZE,), weight.float(), 1e-6)

    arguments, expected = {
        "quantize_fp8": ((x,), x.float()),
        "rms_norm_fp8": ((x, weight, 1e-6), normed(x)),
        "add_rms_norm_fp8": ((x, residual, weight, 1e-6), normed(total)),
        "silu_mul_fp8": (
            (torch.cat((x, residual), dim=1),),
            functional.silu(x.float()) * residual.float(),
        ),
    }[name]
    rows, scale, *others = functions[name](*arguments)  # type: ignore[operator]
    assert rows.dtype == torch.float8_e4m3fn and rows.is_contiguous() and scale.dtype == torch.float32
    expected_scale = expected.abs().amax(1, keepdim=True).clamp(min=1e-12) / 448.0
    # float8 e4m3 has a step of 1/8 of the power of two below a number, and of 2^-9 near zero.
    step = torch.exp2((expected / expected_scale).abs().clamp(min=2**-6).log2().floor()) / 8
    error = ((rows.float() - expected / expected_scale).abs() / step).flatten().quantile(quantile).item()
    return error, (scale / expected_scale - 1).abs().max().item(), all(torch.equal(other, total) for other in others)


def run_triton(name: str, dtype: torch.dtype) -> tuple[float, float, bool]:
    from penstock.kernels import quantize_fp8_triton, rmsnorm_triton

    functions = vars(quantize_fp8_triton) | vars(rmsnorm_triton)
    return run(name, {name: functions[f"{name}_triton"]}, dtype, 0.85)


@pytest.fixture(scope="module")
def process() -> Iterator[Executor]:
    pytest.importorskip("triton", reason="Triton is not installed")
    with interpreter() as executor:
        yield executor


# The interpreter's conversion loses the carry where a number rounds up to a power of two, and what is below 2^-6: most
# numbers have to be right, and all scales.
@pytest.mark.parametrize("name", NAMES)
def test_triton_quantises_to_the_nearest_numbers(process: Executor, name: str) -> None:
    error, scale_error, exact = process.submit(run_triton, name, torch.float16).result()
    assert error <= 1.01
    assert scale_error <= 1e-5
    assert exact


@pytest.mark.parametrize("name", NAMES)
def test_the_cpu_quantises_to_the_nearest_numbers(name: str) -> None:
    error, scale_error, exact = run(name, vars(operations), torch.bfloat16, 1.0)
    assert error <= 0.51
    assert scale_error <= 1e-5
    assert exact
