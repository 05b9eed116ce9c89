from collections.abc import Iterator
from concurrent.futures import Executor
from dataclasses import replace

import pytest
import torch
from attention_cases import CASES, CHUNKS, MIXED, PREFILL, Case, error, error_in_used_memory, limit, make_inputs, write
from triton_interpreter import interpreter

PADDED = Case(((40, 1), (16, 1), (600, 1)), window=500)
SPLIT = (
    Case(((900, 1), (299, 1), (0, 1))),
    Case(((900, 1), (299, 1)), window=300, sinks=True),
    Case(((600, 1),), dtype=torch.bfloat16, softcap=5.0),
)
SMALL = ((0, 1), (16, 1), (32, 1), (249, 1), (0, 17), (0, 33), (16, 17), (100, 40))


def interpreted(case: Case) -> Case:
    """The case as the interpreter can run it: slowly, and in float16, as it does not multiply bfloat16."""
    rows = SMALL if case.rows == MIXED else case.rows
    return replace(case, rows=rows, dtype=torch.float16 if case.dtype == torch.bfloat16 else case.dtype)


INTERPRETED = [interpreted(case) for case in (*CASES, *SPLIT) if case.rows not in (PREFILL, CHUNKS)]


def triton_error(case: Case) -> float:
    """Error of the Triton kernels, in the interpreter's process."""
    from penstock.kernels.attention_triton import attend

    return error(attend, case)


def triton_error_in_used_memory(left: float, window: int | None) -> float:
    """`error_in_used_memory` of the Triton kernels, in the interpreter's process."""
    from penstock.kernels.attention_triton import attend

    return error_in_used_memory(attend, left, window)


def padding_row(case: Case) -> tuple[float, float]:
    """Largest outputs of a decode row without keys: without and with a sink."""
    from penstock.kernels.attention_triton import attend

    inputs = make_inputs(case)
    inputs.batch.seq_lens[1] = 0
    inputs.batch.slot_mapping[1] = -1
    write(inputs)
    plain = attend(*inputs.attended, 0.125, case.window)
    with_sink = attend(*inputs.attended, 0.125, case.window, None, torch.zeros(case.heads[0]))
    assert not torch.isnan(plain).any()
    return plain[1].abs().max().item(), with_sink[1].abs().max().item()


@pytest.fixture(scope="module")
def process() -> Iterator[Executor]:
    pytest.importorskip("triton", reason="Triton is not installed")
    with interpreter() as executor:
        yield executor


@pytest.mark.parametrize("case", INTERPRETED, ids=str)
def test_equals_the_reference(process: Executor, case: Case) -> None:
    assert process.submit(triton_error, case).result() <= limit(case)


@pytest.mark.parametrize(("left", "window"), [(torch.nan, None), (torch.inf, 12)])
def test_what_earlier_owners_left_in_blocks_changes_nothing(process: Executor, left: float, window: int | None) -> None:
    assert process.submit(triton_error_in_used_memory, left, window).result() <= 1e-5


def test_a_padding_row_gives_zeros(process: Executor) -> None:
    assert process.submit(padding_row, PADDED).result() == (0.0, 0.0)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("case", [*CASES, *SPLIT], ids=str)
def test_equals_the_reference_on_the_gpu(case: Case) -> None:
    from penstock.kernels.attention_triton import attend

    assert error(attend, case, "cuda") <= limit(case)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_what_earlier_owners_left_in_blocks_changes_nothing_on_the_gpu() -> None:
    from penstock.kernels.attention_triton import attend

    assert error_in_used_memory(attend, torch.nan, 12, "cuda") <= 1e-5
