from collections.abc import Iterator
from concurrent.futures import Executor

import pytest
import torch
from triton_interpreter import interpreter

from penstock.kernels.bitmask import apply_bitmask, apply_bitmask_reference


def case(vocab_size: int, num_words: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Seven rows of logits, some of them impossible already, and four masks for them, not in order."""
    generator = torch.Generator().manual_seed(vocab_size)
    logits = torch.randn(7, vocab_size, generator=generator)
    logits[:, ::5] = -torch.inf
    bits = torch.randint(-(2**31), 2**31, (4, num_words), generator=generator).to(torch.int32)
    bits[2] = 0
    bits[3] = -1
    return logits, torch.tensor([5, 0, 3, 6]), bits


CASES = [(5000, 157), (64, 2), (49, 4), (31, 1)]


def triton_is_equal() -> list[bool]:
    from penstock.kernels.bitmask_triton import apply_bitmask_triton

    equal = []
    for sizes in CASES:
        logits, rows, bits = case(*sizes)
        expected = logits.clone()
        apply_bitmask_reference(expected, rows, bits)
        apply_bitmask_triton(logits, rows, bits)
        equal.append(torch.equal(logits, expected))
    return equal


@pytest.fixture(scope="module")
def process() -> Iterator[Executor]:
    pytest.importorskip("triton", reason="Triton is not installed")
    with interpreter() as executor:
        yield executor


def test_triton_equals_the_reference(process: Executor) -> None:
    assert process.submit(triton_is_equal).result() == [True] * len(CASES)


@pytest.mark.parametrize("sizes", CASES)
def test_the_cpu_equals_the_reference(sizes: tuple[int, int]) -> None:
    logits, rows, bits = case(*sizes)
    expected = logits.clone()
    apply_bitmask_reference(expected, rows, bits)
    apply_bitmask(logits, rows, bits)
    assert torch.equal(logits, expected)


def test_the_reference_reads_the_lowest_bit_first() -> None:
    logits = torch.zeros(2, 40)
    apply_bitmask_reference(logits, torch.tensor([1]), torch.tensor([[0b1001, 0b10]], dtype=torch.int32))
    assert torch.isfinite(logits[1]).nonzero().flatten().tolist() == [0, 3, 33]
    assert not logits[0].any()


def test_wrong_shapes_are_refused() -> None:
    logits, rows, bits = case(64, 2)
    with pytest.raises(ValueError, match="too few for 64 tokens"):
        apply_bitmask(logits, rows, bits[:, :1])
    with pytest.raises(ValueError, match="bits has shape"):
        apply_bitmask(logits, rows[:2], bits)
    with pytest.raises(ValueError, match="int32"):
        apply_bitmask(logits, rows, bits.long())
