"""Every implementation of `change_logits` against the reference, and that against the definitions."""

from collections.abc import Iterator
from concurrent.futures import Executor
from dataclasses import replace

import pytest
import torch
from triton_interpreter import interpreter

from penstock.kernels.change_logits import IN_OUTPUT, IN_PROMPT, LogitChanges, change_logits, change_logits_torch
from penstock.kernels.change_logits_native import change_logits_native
from penstock.kernels.native import library

SIZES = [(1, torch.float32), (17, torch.bfloat16), (300, torch.float16), (5003, torch.bfloat16)]
NUM_ROWS = 9


def case(vocab_size: int, dtype: torch.dtype) -> tuple[torch.Tensor, LogitChanges]:
    """Rows with every combination of changes, and with none; logits of all kinds, in a padded vocabulary."""
    generator = torch.Generator().manual_seed(vocab_size)
    logits = (torch.randn(NUM_ROWS, vocab_size + 8, generator=generator) * 5).to(dtype)[:, :vocab_size]
    logits[:, ::7] = -torch.inf
    logits[:, ::11] = torch.nan
    logits[:, ::13] = torch.inf
    numbers = [min(vocab_size, number) for number in (0, 5, 0, 200, 0, 1, 5, 0, 0)]
    ids = [torch.randperm(vocab_size, generator=generator)[:number].sort().values for number in numbers]
    values = torch.randn(sum(numbers), generator=generator) * 10
    values[::5] = -torch.inf
    counts = torch.randint(-6, 7, (5, vocab_size), generator=generator).clamp(min=0)
    changes = LogitChanges(
        entry_starts=torch.tensor([0, *torch.tensor(numbers).cumsum(0).tolist()], dtype=torch.int32),
        entry_ids=torch.cat(ids).int(),
        entry_values=values,
        count_rows=torch.tensor([-1, -1, 3, 0, -1, 4, 1, -1, 2], dtype=torch.int32),
        penalties=torch.rand(NUM_ROWS, 3, generator=generator) + torch.tensor([0.5, -0.5, -0.5]),
        counts=counts.int(),
        mask_rows=torch.tensor([-1, 2, -1, 0, 3, -1, 1, -1, -1], dtype=torch.int32),
        bits=torch.randint(-(2**31), 2**31, (4, vocab_size // 32 + 2), generator=generator).int(),
    )
    changes.bits[2], changes.bits[3] = 0, -1
    return logits, changes


def assert_equal(actual: torch.Tensor, expected: torch.Tensor) -> None:
    assert actual.dtype == torch.float32
    torch.testing.assert_close(actual, expected, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize(("vocab_size", "dtype"), SIZES)
def test_native_equals_the_reference(vocab_size: int, dtype: torch.dtype) -> None:
    kernels = library()
    if kernels is None:
        pytest.skip("no native kernels on this machine")
    logits, changes = case(vocab_size, dtype)
    kept = logits.nan_to_num()
    together = change_logits_native(kernels, logits, changes)
    assert torch.equal(logits.nan_to_num(), kept)
    assert_equal(together, change_logits_torch(logits, changes))
    alone = replace(
        changes,
        entry_starts=changes.entry_starts[3:5].contiguous(),
        count_rows=changes.count_rows[3:4],
        penalties=changes.penalties[3:4],
        mask_rows=changes.mask_rows[3:4],
    )
    assert torch.equal(change_logits_native(kernels, logits[3:4], alone), together[3:4])


def triton_values(vocab_size: int, dtype: torch.dtype, options: dict[str, int]) -> torch.Tensor:
    from penstock.kernels.change_logits_triton import change_logits_triton

    return change_logits_triton(*case(vocab_size, dtype), **options)


@pytest.fixture(scope="module")
def process() -> Iterator[Executor]:
    pytest.importorskip("triton", reason="Triton is not installed")
    with interpreter() as executor:
        yield executor


@pytest.mark.parametrize(
    ("vocab_size", "dtype", "options"),
    [
        (1, torch.float32, {}),
        (300, torch.float16, {"tile": 64, "entries": 16}),  # several tiles, and blocks of entries
        (5003, torch.float32, {}),
    ],
)
def test_triton_equals_the_reference(
    process: Executor, vocab_size: int, dtype: torch.dtype, options: dict[str, int]
) -> None:
    expected = change_logits_torch(*case(vocab_size, dtype))
    assert_equal(process.submit(triton_values, vocab_size, dtype, options).result(), expected)


def test_the_reference_follows_the_definitions() -> None:
    logits = torch.tensor([[4.0, -4.0, 1.0, 1.0, torch.nan, torch.inf, 7.0, 7.0]])
    changes = LogitChanges(
        entry_starts=torch.tensor([0, 3], dtype=torch.int32),
        entry_ids=torch.tensor([0, 3, 6], dtype=torch.int32),
        entry_values=torch.tensor([2.0, -5.0, -torch.inf]),
        count_rows=torch.tensor([1], dtype=torch.int32),
        penalties=torch.tensor([[2.0, 0.5, 0.25]]),
        counts=torch.zeros(2, 8, dtype=torch.int32),
        mask_rows=torch.tensor([0], dtype=torch.int32),
        bits=torch.tensor([[0b01111111]], dtype=torch.int32),
    )
    changes.counts[1, :4] = torch.tensor([IN_PROMPT, IN_OUTPUT, IN_PROMPT + 3 * IN_OUTPUT, 0])
    changes.counts[1, 6] = IN_OUTPUT
    largest = torch.finfo(torch.float32).max
    expected = [(4 + 2) / 2, -4 * 2 - 0.5 - 0.25, 1 / 2 - 0.5 - 3 * 0.25, 1 - 5, -torch.inf, largest]
    assert change_logits_torch(logits, changes).tolist() == [[*expected, -torch.inf, -torch.inf]]
    assert logits[0, 0] == 4


def test_wrong_shapes_are_refused() -> None:
    logits, changes = case(300, torch.float32)
    with pytest.raises(ValueError, match="too few for 300 tokens"):
        change_logits(logits, replace(changes, bits=changes.bits[:, :9]))
    with pytest.raises(ValueError, match="count_rows has shape"):
        change_logits(logits, replace(changes, count_rows=changes.count_rows[1:]))
    with pytest.raises(ValueError, match="int32"):
        change_logits(logits, replace(changes, counts=changes.counts.long()))
