"""Linear layers of 8 bits: exact sums of rounded numbers, each row bitwise the same in any company."""

import pytest
import torch

from penstock.kernels.linear import can_round_to_int8, linear, pack_weight, round_to_int8

pytestmark = pytest.mark.skipif(not can_round_to_int8(), reason="no native kernels on this machine")

# Models' own; a part of a panel and of a word; deeper than what stays in the cache; fewer than a vector of outputs.
SIZES = ((96, 64), (70, 33), (40, 9000), (5, 16))


def rounded(rows: torch.Tensor) -> torch.Tensor:
    """What remains of `rows` in 8 bits."""
    scale = rows.double().abs().amax(1, keepdim=True) / 127
    return (rows.double() / scale).round() * scale


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("num_rows", [1, 2, 5, 12, 13, 50])
def test_equals_the_product_of_rounded_numbers(size: tuple[int, int], num_rows: int) -> None:
    torch.manual_seed(0)
    weight, bias = torch.randn(size).bfloat16(), torch.randn(size[0]).bfloat16()
    x, residual = torch.randn(num_rows, size[1]).bfloat16(), torch.randn(num_rows, size[0]).bfloat16()
    packed = round_to_int8(pack_weight(weight, bias))
    expected = rounded(x) @ rounded(weight).T + bias.double() + residual.double()
    # Beyond bfloat16's own rounding there is the number that lies between two bytes and falls to the other one.
    torch.testing.assert_close(linear(x, packed, residual).double(), expected, rtol=1e-2, atol=2e-2 * size[1] ** 0.5)


@pytest.mark.parametrize("size", SIZES)
def test_a_row_is_the_same_alone_and_in_any_batch(size: tuple[int, int]) -> None:
    torch.manual_seed(0)
    packed = round_to_int8(pack_weight(torch.randn(size).bfloat16()))
    x = torch.randn(400, size[1]).bfloat16()
    whole = linear(x, packed)
    for num_rows in (1, 2, 3, 7, 12, 13, 50):
        assert torch.equal(linear(x[-num_rows:], packed), whole[-num_rows:])


def test_unpacking_gives_the_rounded_weight() -> None:
    torch.manual_seed(0)
    weight = torch.randn(70, 33).bfloat16()
    unpacked, bias = round_to_int8(pack_weight(weight)).unpack()
    torch.testing.assert_close(unpacked.double(), rounded(weight), rtol=1e-2, atol=3e-2)
    assert bias is None


def test_rows_of_zeros_and_nan() -> None:
    packed = round_to_int8(pack_weight(torch.randn(32, 64).bfloat16()))
    x = torch.zeros(3, 64, dtype=torch.bfloat16)
    x[1, 3] = float("nan")
    output = linear(x, packed)
    assert (output[0] == 0).all() and (output[2] == 0).all()
    assert output[1].isnan().all()
