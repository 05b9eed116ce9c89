"""Every implementation of `sample_rows` against the reference."""

from collections.abc import Iterator
from concurrent.futures import Executor

import pytest
import torch
from sampling_cases import cases, reference
from triton_interpreter import interpreter

from penstock.kernels.native import library
from penstock.kernels.sampling import sample_rows
from penstock.kernels.sampling_native import sample_rows_native
from penstock.kernels.sampling_torch import sample_rows_torch

SIZES = [(1, torch.float32), (17, torch.bfloat16), (256, torch.float16), (5003, torch.bfloat16), (5003, torch.float32)]


@pytest.fixture
def native():
    kernels = library()
    if kernels is None:
        pytest.skip("no native kernels on this machine")
    return kernels


@pytest.mark.parametrize(("vocab_size", "dtype"), SIZES)
def test_native_equals_the_reference(native, vocab_size, dtype):
    logits, params = cases(vocab_size, dtype)
    kept = logits.clone()
    assert sample_rows_native(native, logits, params).tolist() == reference(logits, params).tolist()
    assert torch.equal(logits.nan_to_num(), kept.nan_to_num())


def triton_choices(vocab_size: int, dtype: torch.dtype, step: int, options: dict[str, int]) -> list[int]:
    from penstock.kernels.sampling_triton import sample_rows_triton

    logits, params = cases(vocab_size, dtype, num_draws=1)
    return sample_rows_triton(logits[::step], params[::step], **options).tolist()


@pytest.fixture(scope="module")
def process() -> Iterator[Executor]:
    pytest.importorskip("triton", reason="Triton is not installed")
    with interpreter() as executor:
        yield executor


@pytest.mark.parametrize(
    ("vocab_size", "dtype", "step", "options"),
    [
        # Several chunks and tiles, and rows with more candidates than are kept aside.
        (300, torch.float32, 4, {"chunk": 64, "tile": 128, "max_candidates": 64}),
        (300, torch.float16, 7, {"chunk": 64, "tile": 128, "max_candidates": 128}),
        (5003, torch.float32, 8, {}),
        (1, torch.float32, 11, {}),
    ],
)
def test_triton_equals_the_reference(process, vocab_size, dtype, step, options):
    logits, params = cases(vocab_size, dtype, num_draws=1)
    expected = reference(logits[::step], params[::step]).tolist()
    assert process.submit(triton_choices, vocab_size, dtype, step, options).result() == expected


@pytest.mark.parametrize(("vocab_size", "dtype"), SIZES)
def test_candidates_find_what_a_full_sort_finds(vocab_size, dtype):
    logits, params = cases(vocab_size, dtype)
    assert sample_rows_torch(logits, params, (8, 64)).tolist() == reference(logits, params).tolist()


def test_a_row_is_drawn_alone_as_in_a_batch():
    logits, params = cases(1000, torch.bfloat16, num_draws=1)
    together = sample_rows(logits, params)
    for row in range(len(logits)):
        assert sample_rows(logits[row : row + 1], params[row : row + 1]).tolist() == [together[row].item()]


def test_the_end_of_a_large_vocabulary_is_not_lost(native):
    # A float32 running sum stops at 1 here: adding 2e-9 to it changes nothing.
    logits = torch.full((1, 150_000), -20.0)
    logits[0, 0] = 0.0
    weights = torch.exp(logits[0].double())
    for token_id in (1000, 75_000, 149_000):
        middle = ((weights[:token_id].sum() + weights[token_id] / 2) / weights.sum()).item()
        for top_p in (1.0, 1 - 1e-12):
            params = torch.tensor([[1.0, 150_000, top_p, 0.0, middle]], dtype=torch.float64)
            (drawn,) = sample_rows_native(native, logits, params).tolist()
            assert abs(drawn - token_id) < 100  # 1e-7 of the total are 50 such tokens


def test_no_rows_no_tokens():
    assert sample_rows(torch.empty(0, 5), torch.empty(0, 5, dtype=torch.float64)).tolist() == []


def test_parameters_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match="params has shape"):
        sample_rows(torch.zeros(2, 5), torch.zeros(1, 5, dtype=torch.float64))
    with pytest.raises(ValueError, match="float64"):
        sample_rows(torch.zeros(2, 5), torch.zeros(2, 5))
