"""The public operations over float8 caches on the CPU: what they store, and that they attend to just that."""

import pytest
import torch
from attention_cases import Case, make_inputs

from penstock.kernels.attention import paged_attention
from penstock.kernels.attention_reference import attend_reference
from penstock.kernels.cache_write import cache_write
from penstock.kernels.quantize_fp8 import FP8
from penstock.kernels.rope import rope_cache_write

KEY_SCALE = torch.tensor([0.02, 0.5, 2.0])
VALUE_SCALE = torch.tensor([0.01, 0.25, 1.0])
SCALES = {"key_scale": KEY_SCALE, "value_scale": VALUE_SCALE}
CASES = [
    Case(((40, 1), (0, 1), (20, 30), (0, 17))),
    Case(((300, 1), (15, 1), (16, 70)), dtype=torch.bfloat16, window=33),
    Case(((40, 1), (70, 9)), heads=(6, 3, 32, 48), sinks=True, softcap=20.0),
    Case(((33, 1), (20, 30)), shared_blocks=1, skip_every=5),
]


def to_float8(cache: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
    """In a cache as the arena has it: among other layers' pages."""
    num_blocks, num_heads, block_size, dim = cache.shape
    arena = torch.full((num_blocks, num_heads + 2, block_size, dim), 0x7F, dtype=torch.uint8).view(FP8)  # NaN
    small = (cache.float() / scale.view(1, -1, 1, 1)).clamp(-448, 448).to(FP8)
    view = arena[:, 1:-1]
    view.view(torch.uint8).copy_(small.view(torch.uint8))
    return view


def widen(cache: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
    return cache.float() * scale.view(1, -1, 1, 1)


@pytest.mark.parametrize("case", CASES, ids=str)
def test_attention_is_that_of_the_stored_numbers(case: Case) -> None:
    inputs = make_inputs(case)
    caches = (to_float8(inputs.key_cache, KEY_SCALE), to_float8(inputs.value_cache, VALUE_SCALE))
    scale = case.heads[2] ** -0.5
    options = {"sliding_window": case.window, "softcap": case.softcap, "sinks": inputs.sinks}
    output = paged_attention(
        inputs.query, inputs.key, inputs.value, *caches, inputs.batch, scale=scale, **options, **SCALES
    )
    stored = (widen(caches[0], KEY_SCALE), widen(caches[1], VALUE_SCALE))
    expected = attend_reference(inputs.query.float(), *stored, inputs.batch, scale, *options.values())
    assert output.dtype == case.dtype
    rounding = 1e-5 if case.dtype == torch.float32 else 0.02
    torch.testing.assert_close(output.float(), expected, rtol=rounding, atol=rounding)


def test_slots_that_nobody_wrote_are_not_seen() -> None:
    inputs = make_inputs(CASES[0])
    clean = (to_float8(inputs.key_cache, KEY_SCALE), to_float8(inputs.value_cache, VALUE_SCALE))
    dirty = tuple(cache.clone() for cache in clean)
    table, lengths = inputs.batch.host.block_table, inputs.batch.host.seq_lens
    for row, length in enumerate(lengths.tolist()):
        for cache in dirty:
            cache.view(torch.uint8)[int(table[row, (length - 1) // 16]), :, (length - 1) % 16 + 1 :] = 0x7F
    arguments = (inputs.query, inputs.key, inputs.value)
    expected, output = (
        paged_attention(*arguments, *caches, inputs.batch, scale=0.125, **SCALES) for caches in (clean, dirty)
    )
    assert torch.equal(output, expected)


def test_rows_without_keys_get_zeros() -> None:
    inputs = make_inputs(Case(((0, 1),)))
    inputs.batch.host.seq_lens[:] = 0
    inputs.batch.slot_mapping.fill_(-1)
    inputs.batch.seq_lens.zero_()
    caches = (to_float8(inputs.key_cache, KEY_SCALE), to_float8(inputs.value_cache, VALUE_SCALE))
    output = paged_attention(inputs.query, inputs.key, inputs.value, *caches, inputs.batch, scale=0.125, **SCALES)
    assert not output.any()


def test_rotated_keys_are_stored_divided_by_the_scale_of_their_head() -> None:
    generator = torch.Generator().manual_seed(0)
    qkv = torch.randn(5, 6 + 2 * 3, 32, generator=generator)
    angles = torch.randn(5, 16, generator=generator).repeat(1, 2)
    slots = torch.tensor([3, 17, -1, 20, 40])
    plain = [torch.zeros(3, 3, 16, 32) for _ in "kv"]
    small = [to_float8(cache, KEY_SCALE) for cache in plain]
    arguments = (qkv, angles.cos(), angles.sin())
    expected = rope_cache_write(*arguments, *plain, slots, 6, 3)
    query = rope_cache_write(*arguments, *small, slots, 6, 3, **SCALES)
    assert torch.equal(query, expected)
    for cache, scale, wanted in zip(small, (KEY_SCALE, VALUE_SCALE), plain, strict=True):
        assert torch.equal(cache.float(), to_float8(wanted, scale).float())


def test_scales_need_caches_of_float8() -> None:
    inputs = make_inputs(CASES[0])
    with pytest.raises(ValueError, match="key_cache is torch.float32; it must be torch.float8_e4m3fn"):
        cache_write(inputs.key, inputs.value, inputs.key_cache, inputs.value_cache, inputs.batch, **SCALES)
