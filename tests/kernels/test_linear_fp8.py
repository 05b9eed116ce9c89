import pytest
import torch
from torch.nn import functional

from penstock.kernels.linear_fp8 import can_quantize_weight, linear_fp8, quantize_weight_fp8
from penstock.kernels.quantize_fp8 import quantize_fp8

GENERATOR = torch.Generator().manual_seed(0)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_the_product_is_that_of_the_quantised_numbers(dtype: torch.dtype) -> None:
    x, weight = torch.randn(5, 64, generator=GENERATOR), torch.randn(48, 64, generator=GENERATOR)
    bias = torch.randn(48, generator=GENERATOR).to(torch.bfloat16) if dtype == torch.bfloat16 else None
    packed = quantize_weight_fp8(weight)
    rows, scale = quantize_fp8(x)
    output = linear_fp8(rows, scale, packed, bias, dtype)
    expected = (rows.float() * scale) @ (packed.weight.float() * packed.scale).T
    expected = expected if bias is None else expected + bias.float()
    assert output.dtype == dtype
    assert torch.allclose(output.float(), expected, rtol=1e-2 if dtype == torch.bfloat16 else 1e-5, atol=1e-1)


def test_quantising_costs_a_few_percent() -> None:
    x, weight = torch.randn(64, 512, generator=GENERATOR), torch.randn(256, 512, generator=GENERATOR)
    x[3] *= 100.0
    weight[7] *= 0.01  # a scale for each token and output: neither drowns the others
    output = linear_fp8(*quantize_fp8(x), quantize_weight_fp8(weight), dtype=torch.float32)
    expected = functional.linear(x, weight)
    for dim, states in ((1, slice(None)), (0, slice(4, None))):  # of each token, and of each output without token 3
        error = (output - expected)[states].norm(dim=dim) / expected[states].norm(dim=dim)
        assert error.max() < 0.08


def test_sizes_that_do_not_fit_are_refused() -> None:
    assert not can_quantize_weight(torch.zeros(48, 60))
    with pytest.raises(ValueError, match="multiples of 16"):
        quantize_weight_fp8(torch.zeros(48, 60))
    rows, scale = quantize_fp8(torch.zeros(2, 64))
    weight = quantize_weight_fp8(torch.zeros(48, 64))
    with pytest.raises(ValueError, match="scale has shape"):
        linear_fp8(rows, scale[:1], weight)
    with pytest.raises(ValueError, match="x is"):
        linear_fp8(rows.float(), scale, weight)
