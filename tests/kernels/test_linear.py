"""Linear layers with packed weights: against plain torch, and each row bitwise the same in any company."""

from collections.abc import Callable

import pytest
import torch

from penstock.kernels import linear_native, linear_onednn
from penstock.kernels.linear import Activation, PackedWeight, linear, linear_reference, pack_weight

PACKERS: dict[str, Callable[[torch.Tensor, torch.Tensor | None], PackedWeight]] = {
    "native": linear_native.NativeWeight,
    "onednn": linear_onednn.OneDnnWeight,
}
# One row, few, a whole tile of twelve, one more, tiles of different sizes, more than a block of rows.
NUM_ROWS = (1, 2, 3, 4, 7, 12, 13, 50, 400)
# Models' own; an odd depth and a part of a panel; deeper than what stays in the cache; fewer than a vector of outputs.
SIZES = ((96, 64), (70, 33), (40, 4500), (5, 16))


@pytest.fixture(params=sorted(PACKERS))
def pack(request: pytest.FixtureRequest) -> Callable[[torch.Tensor, torch.Tensor | None], PackedWeight]:
    if request.param == "native" and not linear_native.can_run_native(torch.float32):
        pytest.skip("no native kernels on this machine")
    return PACKERS[request.param]


def tensors(num_rows: int, size: tuple[int, int], dtype: torch.dtype) -> tuple[torch.Tensor, ...]:
    """x, weight, bias and residual."""
    generator = torch.Generator().manual_seed(0)
    num_outputs, num_inputs = size
    shapes = ((num_rows, num_inputs), size, (num_outputs,), (num_rows, num_outputs))
    x, weight, bias, residual = (torch.randn(shape, generator=generator).to(dtype) for shape in shapes)
    return x, weight / num_inputs**0.5, bias, residual


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("num_rows", NUM_ROWS)
def test_equals_plain_torch(
    pack: Callable[[torch.Tensor, torch.Tensor | None], PackedWeight],
    num_rows: int,
    size: tuple[int, int],
    dtype: torch.dtype,
) -> None:
    x, weight, bias, residual = tensors(num_rows, size, dtype)
    tolerance = 1e-5 if dtype == torch.float32 else 1e-2
    for with_bias in (None, bias):
        packed = pack(weight, with_bias)
        for with_residual in (None, residual):
            for activation in ("none", "gelu"):
                actual = linear(x, packed, with_residual, activation)
                expected = linear_reference(x, weight, with_bias, with_residual, activation)
                torch.testing.assert_close(actual, expected, rtol=tolerance, atol=2 * tolerance)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize("size", SIZES)
def test_a_row_is_the_same_alone_and_in_any_batch(size: tuple[int, int], dtype: torch.dtype) -> None:
    packed = native_weight(tensors(1, size, dtype)[1])
    x = tensors(400, size, dtype)[0]
    whole = linear(x, packed)
    num_threads = torch.get_num_threads()
    try:
        for threads in (1, 3):
            torch.set_num_threads(threads)
            for num_rows in NUM_ROWS:
                for start in (0, 400 - num_rows):
                    rows = slice(start, start + num_rows)
                    assert torch.equal(linear(x[rows], packed), whole[rows])
    finally:
        torch.set_num_threads(num_threads)


def native_weight(weight: torch.Tensor) -> PackedWeight:
    if not linear_native.can_run_native(torch.float32):
        pytest.skip("no native kernels on this machine")
    return linear_native.NativeWeight(weight, None)


@pytest.mark.parametrize("activation", ["none", "gelu"])
def test_an_odd_row_is_not_mixed_with_its_neighbour(activation: Activation) -> None:
    """A row of an odd number of bfloat16 ends within a word, whose other half belongs to the next row."""
    x, weight, _, _ = tensors(2, (32, 33), torch.bfloat16)
    x[1] = float("nan")
    output = linear(x, native_weight(weight), activation=activation)
    assert output[0].isfinite().all()
    assert output[1].isnan().all()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize("size", SIZES)
def test_unpacking_gives_the_weight_back(
    pack: Callable[[torch.Tensor, torch.Tensor | None], PackedWeight], size: tuple[int, int], dtype: torch.dtype
) -> None:
    _, weight, bias, _ = tensors(1, size, dtype)
    unpacked, unpacked_bias = pack(weight, bias).unpack()
    assert torch.equal(unpacked, weight)
    torch.testing.assert_close(unpacked_bias, bias, rtol=0, atol=0, check_dtype=False)


def test_infinities_and_nan_stay_what_they_are() -> None:
    x, weight, _, residual = tensors(3, (40, 64), torch.float32)
    x[0, 0], x[1, 5] = float("inf"), float("nan")
    actual = linear(x, native_weight(weight), residual)
    torch.testing.assert_close(actual, linear_reference(x, weight, None, residual), equal_nan=True)


def test_strided_arguments(pack: Callable[[torch.Tensor, torch.Tensor | None], PackedWeight]) -> None:
    x, weight, _, residual = tensors(20, (96, 64), torch.float32)
    packed = pack(torch.cat([weight, weight], dim=1)[:, 64:], None)
    expected = linear_reference(x, weight, None, residual)
    wide_x, wide_residual = torch.cat([x, x], dim=1)[:, 64:], torch.cat([residual, residual], dim=1)[:, 96:]
    torch.testing.assert_close(linear(wide_x, packed, wide_residual), expected)
    torch.testing.assert_close(linear(x.T.contiguous().T, packed, residual.T.contiguous().T), expected)


def test_no_rows() -> None:
    x, weight, _, _ = tensors(0, (96, 64), torch.float32)
    assert linear(x, pack_weight(weight)).shape == (0, 96)


def test_misfits_are_named() -> None:
    x, weight, _, residual = tensors(4, (96, 64), torch.float32)
    packed = pack_weight(weight)
    with pytest.raises(ValueError, match="x has shape"):
        linear(x[:, 1:], packed)
    with pytest.raises(ValueError, match="x is torch.bfloat16"):
        linear(x.bfloat16(), packed)
    with pytest.raises(ValueError, match="residual has shape"):
        linear(x, packed, residual[1:])
    with pytest.raises(ValueError, match="residual is torch.bfloat16"):
        linear(x, packed, residual.bfloat16())
