from collections.abc import Iterator
from concurrent.futures import Executor

import pytest
import torch
from attention_cases import Case, make_inputs, write
from triton_interpreter import interpreter

from penstock.kernels.attention_configs import DecodeConfig, decode_candidates, decode_config
from penstock.kernels.attention_reference import attend_reference

RAGGED = Case(((700, 1), (3, 1), (129, 1), (0, 1), (64, 1)), heads=(6, 2, 64, 64))


def difference(output: torch.Tensor, expected: torch.Tensor) -> float:
    largest = (output.float() - expected.float()).abs().max().item()
    return largest if largest == largest else float("inf")


def errors_of_replays(config: DecodeConfig | None) -> list[float]:
    """Errors of calls with one batch whose lengths change in place, as the replays of a captured graph see it."""
    from penstock.kernels.attention_decode import attend_decode

    inputs = make_inputs(RAGGED)
    write(inputs)
    errors = []
    for lengths in ((701, 4, 130, 1, 65), (1, 4, 0, 1, 64), (256, 3, 128, 1, 2), (701, 4, 130, 1, 65)):
        inputs.batch.seq_lens.copy_(torch.tensor(lengths))
        output = torch.full_like(inputs.query, torch.nan, memory_format=torch.contiguous_format)
        attend_decode(*inputs.attended, output, 0.125, None, None, None, config=config)
        errors.append(difference(output, attend_reference(*inputs.attended, 0.125)))
    return errors


def error_with_few_tokens(case: Case) -> float:
    """Error of rows of a few tokens, among them some whose tokens lie in several tiles."""
    from penstock.kernels.attention_decode import attend_decode

    inputs = make_inputs(case)
    write(inputs)
    options = (0.2, case.window, case.softcap, inputs.sinks)
    output = inputs.query.new_full((*inputs.query.shape[:2], case.heads[3]), torch.nan)
    attend_decode(*inputs.attended, output, *options, config=DecodeConfig(16, 1, 10, 4, 2))
    return difference(output, attend_reference(*inputs.attended, *options))


def error_of_float8_caches() -> float:
    """Error of attention over caches of float8, from that over the same numbers in float16."""
    from penstock.kernels.attention_decode import attend_decode

    inputs = make_inputs(Case(((40, 1), (300, 1)), heads=(6, 2, 64, 32), dtype=torch.float16))
    write(inputs)
    scales = torch.tensor([[0.5, 2.0], [0.25, 1.0]])  # of keys and values, by head
    caches = []
    for cache, scale in zip((inputs.key_cache, inputs.value_cache), scales, strict=True):
        small = (cache / scale.view(1, -1, 1, 1)).to(torch.float8_e4m3fn)
        cache.copy_(small.float() * scale.view(1, -1, 1, 1))
        caches.append(small)
    output = inputs.query.new_empty(2, 6, 32)
    key_scale, value_scale = scales
    options = {"key_scale": key_scale, "value_scale": value_scale}
    attend_decode(inputs.query, *caches, inputs.batch, output, 0.125, None, None, None, **options)
    return difference(output, attend_reference(*inputs.attended, 0.125))


@pytest.fixture(scope="module")
def process() -> Iterator[Executor]:
    pytest.importorskip("triton", reason="Triton is not installed")
    with interpreter() as executor:
        yield executor


# One program with everything, and nearly as many as there are tiles.
@pytest.mark.parametrize("config", [None, DecodeConfig(64, 99, 1, 4, 2), DecodeConfig(16, 1, 12, 4, 2)], ids=str)
def test_lengths_are_read_at_each_replay(process: Executor, config: DecodeConfig | None) -> None:
    assert max(process.submit(errors_of_replays, config).result()) <= 1e-5


@pytest.mark.parametrize("window", [None, 3, 40])
def test_rows_of_a_few_tokens_are_decode_rows(process: Executor, window: int | None) -> None:
    rows = ((0, 1), (200, 1), (30, 5), (0, 3), (129, 2), (62, 8), (0, 1))
    softcap, sinks = (5.0, True) if window else (None, False)
    case = Case(rows, heads=(6, 2, 32, 16), window=window, softcap=softcap, sinks=sinks)
    assert process.submit(error_with_few_tokens, case).result() <= 1e-5


def test_float8_caches_are_scaled(process: Executor) -> None:
    assert process.submit(error_of_float8_caches).result() <= 4e-3


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float8_e4m3fn])
@pytest.mark.parametrize("head_dim", [64, 80, 128, 256])
def test_the_chosen_config_is_among_the_candidates(head_dim: int, dtype: torch.dtype) -> None:
    assert decode_config(head_dim, dtype) in list(decode_candidates(head_dim, dtype))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_programs_that_share_a_row_wait_for_each_other() -> None:
    from penstock.kernels.attention_triton import attend

    # A part that is combined before it is written shows as a difference between equal calls.
    case = Case(tuple((length, 1) for length in (9000, 5, 4000, 77, 2048, 1)), (32, 8, 128, 128), torch.bfloat16)
    inputs = make_inputs(case, "cuda")
    write(inputs)
    first = attend(*inputs.attended, 0.09)
    for _ in range(200):
        assert torch.equal(attend(*inputs.attended, 0.09), first)
