from collections.abc import Iterator
from concurrent.futures import Executor

import pytest
import torch
from attention_cases import Case, make_inputs, write
from triton_interpreter import interpreter

from penstock.kernels.attention_configs import PrefillConfig, prefill_candidates, prefill_config
from penstock.kernels.attention_reference import attend_reference

# Tiles of 8 tokens and 16 keys: of every prompt some tiles are full, some at the diagonal, some at the window's edge.
SMALL_TILES = PrefillConfig(32, 16, 4, 2)
CASES = [
    Case(((0, 70), (33, 19), (5, 2)), heads=(8, 2, 32, 16), window=window, softcap=softcap, sinks=window is not None)
    for window, softcap in ((None, None), (40, None), (3, None), (17, 5.0))
]


def difference(output: torch.Tensor, expected: torch.Tensor) -> float:
    largest = (output.float() - expected.float()).abs().max().item()
    return largest if largest == largest else float("inf")


def error_with_small_tiles(case: Case) -> float:
    from penstock.kernels.attention_prefill import attend_prefill

    inputs = make_inputs(case)
    write(inputs)
    options = (0.2, case.window, case.softcap, inputs.sinks)
    output = inputs.query.new_full((*inputs.query.shape[:2], case.heads[3]), torch.nan)
    attend_prefill(*inputs.attended, output, *options, config=SMALL_TILES)
    return difference(output, attend_reference(*inputs.attended, *options))


def error_of_float8_caches() -> float:
    """Error of attention over caches of float8, from that over the same numbers in float16."""
    from penstock.kernels.attention_triton import attend

    inputs = make_inputs(Case(((70, 1), (0, 40), (16, 20)), heads=(6, 2, 64, 32), dtype=torch.float16))
    write(inputs)
    scales = torch.tensor([[0.5, 2.0], [0.25, 1.0]])  # of keys and values, by head
    caches = []
    for cache, scale in zip((inputs.key_cache, inputs.value_cache), scales, strict=True):
        small = (cache / scale.view(1, -1, 1, 1)).to(torch.float8_e4m3fn)
        cache.copy_(small.float() * scale.view(1, -1, 1, 1))
        caches.append(small)
    output = attend(inputs.query, *caches, inputs.batch, 0.125, key_scale=scales[0], value_scale=scales[1])
    return difference(output, attend_reference(*inputs.attended, 0.125))


@pytest.fixture(scope="module")
def process() -> Iterator[Executor]:
    pytest.importorskip("triton", reason="Triton is not installed")
    with interpreter() as executor:
        yield executor


@pytest.mark.parametrize("case", CASES, ids=str)
def test_tiles_are_masked_where_they_have_to_be(process: Executor, case: Case) -> None:
    assert process.submit(error_with_small_tiles, case).result() <= 1e-5


def test_float8_caches_are_scaled(process: Executor) -> None:
    assert process.submit(error_of_float8_caches).result() <= 4e-3


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float8_e4m3fn])
@pytest.mark.parametrize("head_dim", [64, 80, 128, 256])
def test_the_chosen_config_is_among_the_candidates(head_dim: int, dtype: torch.dtype) -> None:
    assert prefill_config(head_dim, 4, dtype) in list(prefill_candidates(head_dim, 4, dtype))
