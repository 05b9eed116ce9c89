from collections.abc import Callable, Iterator
from concurrent.futures import Executor
from dataclasses import dataclass

import pytest
import torch
from attention_cases import among_layers
from torch.nn import functional
from triton_interpreter import interpreter

from penstock.kernels.rope import rope_cache_write

NUM_TOKENS = 7


@dataclass(frozen=True)
class Case:
    num_heads: int
    num_kv_heads: int
    head_dim: int
    dtype: torch.dtype = torch.float32
    norm: bool = False
    skip: bool = False
    """Some tokens have no slot."""
    wide_angles: bool = False
    """Cosines and sines are float32, whatever the heads are."""


CASES = [
    Case(9, 3, 64),
    Case(4, 2, 128, norm=True, skip=True),
    Case(3, 1, 80, torch.float16, norm=True, wide_angles=True),
    Case(2, 2, 16, torch.float16, skip=True),
]
LIMIT = {torch.float32: 1e-5, torch.float16: 1e-2, torch.bfloat16: 1e-1}


@dataclass
class Inputs:
    qkv: torch.Tensor
    cos: torch.Tensor
    sin: torch.Tensor
    key_cache: torch.Tensor
    value_cache: torch.Tensor
    slot_mapping: torch.Tensor
    norms: tuple[torch.Tensor | None, torch.Tensor | None]


def make_inputs(case: Case) -> Inputs:
    generator = torch.Generator().manual_seed(0)
    num_all = case.num_heads + 2 * case.num_kv_heads
    qkv = torch.randn(NUM_TOKENS, num_all, case.head_dim, generator=generator).to(case.dtype)
    positions = torch.randint(0, 2000, (NUM_TOKENS, 1), generator=generator)
    angles = positions * 10000.0 ** -torch.linspace(0, 1, case.head_dim // 2)
    angles = torch.cat((angles, angles), dim=1)
    angle_dtype = torch.float32 if case.wide_angles else case.dtype
    slots = torch.randperm(5 * 16, generator=generator)[:NUM_TOKENS]
    if case.skip:
        slots[::3] = -1
    key_cache, value_cache = (
        among_layers(torch.zeros(5, case.num_kv_heads, 16, case.head_dim, dtype=case.dtype)) for _ in "kv"
    )
    q_norm, k_norm = ((torch.randn(case.head_dim, generator=generator) + 1.0).to(case.dtype) for _ in "qk")
    norms = (q_norm, k_norm) if case.norm else (None, None)
    return Inputs(qkv, angles.cos().to(angle_dtype), angles.sin().to(angle_dtype), key_cache, value_cache, slots, norms)


def expected_results(inputs: Inputs, case: Case) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """The queries and both caches as the definition says, in float32."""
    query, key, value = inputs.qkv.float().split((case.num_heads, case.num_kv_heads, case.num_kv_heads), dim=1)
    q_norm, k_norm = inputs.norms
    if q_norm is not None and k_norm is not None:
        query = functional.rms_norm(query, (case.head_dim,), q_norm.float(), 1e-6)
        key = functional.rms_norm(key, (case.head_dim,), k_norm.float(), 1e-6)

    def rotate(heads: torch.Tensor) -> torch.Tensor:
        first, second = heads.chunk(2, dim=-1)
        cos, sin = inputs.cos.float().unsqueeze(1), inputs.sin.float().unsqueeze(1)
        return heads * cos + torch.cat((-second, first), dim=-1) * sin

    caches = [torch.zeros(inputs.key_cache.shape) for _ in "kv"]
    for token, slot in enumerate(inputs.slot_mapping.tolist()):
        if slot >= 0:
            for cache, states in zip(caches, (rotate(key), value), strict=True):
                cache[slot // 16, :, slot % 16] = states[token]
    return rotate(query), caches[0], caches[1]


def error(operation: Callable[..., torch.Tensor], case: Case) -> float:
    """Largest difference from the definition; infinite if a value was changed or a dtype or layout is wrong."""
    inputs = make_inputs(case)
    caches = (inputs.key_cache, inputs.value_cache)
    heads = (case.num_heads, case.num_kv_heads)
    query = operation(inputs.qkv, inputs.cos, inputs.sin, *caches, inputs.slot_mapping, *heads, *inputs.norms, 1e-6)
    expected_query, expected_keys, expected_values = expected_results(inputs, case)
    if query.dtype != case.dtype or not query.is_contiguous() or not torch.equal(caches[1].float(), expected_values):
        return float("inf")
    differences = (query.float() - expected_query, caches[0].float() - expected_keys)
    return max(difference.abs().max().item() for difference in differences)


def triton_error(case: Case) -> float:
    from penstock.kernels.rope_triton import rope_cache_write_triton

    return error(rope_cache_write_triton, case)


def triton_float8_error() -> float:
    """Share of the numbers in float8 caches that are off by more than a step; all tokens are stored."""
    from penstock.kernels.rope_triton import rope_cache_write_triton

    case = Case(4, 2, 64, norm=True)
    inputs = make_inputs(case)
    scales = torch.tensor([[0.02, 0.5], [0.01, 0.25]])  # of keys and values, by head
    caches = [among_layers(torch.zeros(5, 2, 16, 64).to(torch.float8_e4m3fn)) for _ in "kv"]
    options = {"key_scale": scales[0], "value_scale": scales[1]}
    rope_cache_write_triton(
        inputs.qkv, inputs.cos, inputs.sin, *caches, inputs.slot_mapping, 4, 2, *inputs.norms, 1e-6, **options
    )
    errors = []
    for cache, scale, expected in zip(caches, scales, expected_results(inputs, case)[1:], strict=True):
        expected = expected / scale.view(1, 2, 1, 1)
        wrong = (cache.float() - expected).abs() > expected.abs() / 8 + 2**-6
        errors.append(wrong.sum().item() / expected.count_nonzero().item())
    return max(errors)


@pytest.fixture(scope="module")
def process() -> Iterator[Executor]:
    pytest.importorskip("triton", reason="Triton is not installed")
    with interpreter() as executor:
        yield executor


@pytest.mark.parametrize("case", CASES, ids=str)
def test_triton_is_the_definition(process: Executor, case: Case) -> None:
    assert process.submit(triton_error, case).result() <= LIMIT[case.dtype]


def test_float8_caches_are_scaled(process: Executor) -> None:
    # The interpreter's conversion loses the carry where a number rounds up to a power of two.
    assert process.submit(triton_float8_error).result() < 0.15


@pytest.mark.parametrize("case", [*CASES, Case(9, 3, 64, torch.bfloat16, norm=True)], ids=str)
def test_the_cpu_is_the_definition(case: Case) -> None:
    assert error(rope_cache_write, case) <= LIMIT[case.dtype]
