"""The layers of a decoder in one native call: bit for bit what the native operations give one after the other."""

from dataclasses import dataclass, replace

import numpy as np
import pytest
import torch

from penstock.kernels.attention import AttentionBatch
from penstock.kernels.decoder_layers import DecoderLayer, decoder_layers_reference
from penstock.kernels.decoder_layers_native import NativeDecoder, can_run
from penstock.kernels.linear import pack_weight, round_to_int8
from penstock.kernels.native import library

pytestmark = pytest.mark.skipif(library() is None, reason="no native kernels on this machine")
BF16 = torch.bfloat16
HIDDEN, HEADS, KV_HEADS, HEAD_DIM, FEED_FORWARD, BLOCK_SIZE = 96, 4, 2, 32, 160, 16


def make_layers(
    *, quantized: bool = False, bias: bool = False, norms: bool = False, windows: tuple[int | None, ...] = (None, None)
) -> list:
    generator = torch.Generator().manual_seed(0)

    def randn(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator)

    def weight(num_outputs: int, num_inputs: int) -> object:
        packed_bias = randn(num_outputs).to(BF16) if bias else None
        packed = pack_weight((randn(num_outputs, num_inputs) / num_inputs**0.5).to(BF16), packed_bias)
        return round_to_int8(packed) if quantized else packed

    return [
        DecoderLayer(
            input_norm=(1 + randn(HIDDEN) / 4).to(BF16),
            input_eps=1e-5,
            qkv=weight((HEADS + 2 * KV_HEADS) * HEAD_DIM, HIDDEN),
            num_heads=HEADS,
            num_kv_heads=KV_HEADS,
            q_norm=(1 + randn(HEAD_DIM) / 4).to(BF16) if norms else None,
            k_norm=(1 + randn(HEAD_DIM) / 4).to(BF16) if norms else None,
            head_eps=1e-6,
            scale=HEAD_DIM**-0.5,
            sliding_window=window,
            softcap=None,
            output=weight(HIDDEN, HEADS * HEAD_DIM),
            post_attention_norm=(1 + randn(HIDDEN) / 4).to(BF16),
            post_attention_eps=1e-5,
            gate_up=weight(2 * FEED_FORWARD, HIDDEN),
            down=weight(HIDDEN, FEED_FORWARD),
        )
        for window in windows
    ]


@dataclass
class Step:
    states: torch.Tensor
    cos: torch.Tensor
    sin: torch.Tensor
    batch: AttentionBatch


def make_step(context_lens: list[int], query_lens: list[int]) -> Step:
    """Rows of `query_lens` new tokens behind `context_lens` cached ones, in blocks out of order."""
    generator = torch.Generator().manual_seed(1)
    seq_lens = [old + new for old, new in zip(context_lens, query_lens, strict=True)]
    tables, blocks = [], iter(range(19, -1, -1))
    for seq_len in seq_lens:
        tables.append([next(blocks) for _ in range(-(-seq_len // BLOCK_SIZE))])
    slots = [
        table[position // BLOCK_SIZE] * BLOCK_SIZE + position % BLOCK_SIZE
        for table, start, end in zip(tables, context_lens, seq_lens, strict=True)
        for position in range(start, end)
    ]
    batch = AttentionBatch.build(tables, seq_lens, query_lens, np.array(slots), BLOCK_SIZE, "cpu")
    num_tokens = sum(query_lens)
    angles = torch.rand(num_tokens, HEAD_DIM, generator=generator) * 6
    states = torch.randn(num_tokens, HIDDEN, generator=generator).to(BF16)
    return Step(states, angles.cos().to(BF16), angles.sin().to(BF16), batch)


def make_caches(num_layers: int) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Keys and values of all layers side by side in each of 20 blocks."""
    generator = torch.Generator().manual_seed(2)
    arena = torch.randn(20, num_layers, 2, KV_HEADS, BLOCK_SIZE, HEAD_DIM, generator=generator).to(BF16)
    return [(arena[:, layer, 0], arena[:, layer, 1]) for layer in range(num_layers)]


@pytest.mark.parametrize(
    "options", [{}, {"bias": True, "norms": True}, {"windows": (8, None, 8)}, {"quantized": True}], ids=str
)
@pytest.mark.parametrize("rows", [([30], [1]), ([5, 40, 0], [1, 1, 21]), ([17] * 9, [1] * 9)], ids=str)
def test_one_call_is_the_operations_one_by_one(options: dict, rows: tuple[list[int], list[int]]) -> None:
    layers = make_layers(**options)
    assert can_run(layers)
    step, caches = make_step(*rows), make_caches(len(layers))
    expected = decoder_layers_reference(step.states, layers, caches, step.cos, step.sin, step.batch)
    native, native_caches = NativeDecoder(layers), make_caches(len(layers))
    assert native.use_caches(native_caches)
    actual = native.run(step.states.clone(), step.cos, step.sin, step.batch)
    assert torch.equal(actual, expected)
    for pair, expected_pair in zip(native_caches, caches, strict=True):
        assert all(map(torch.equal, pair, expected_pair))


def test_caches_may_move_between_steps() -> None:
    layers, step = make_layers(), make_step([30], [1])
    native, first, second = NativeDecoder(layers), make_caches(2), make_caches(2)
    outputs = []
    for caches in (first, second):
        assert native.use_caches(caches)
        outputs.append(native.run(step.states.clone(), step.cos, step.sin, step.batch))
    assert torch.equal(*outputs)
    assert torch.equal(first[1][0], second[1][0])


def test_what_the_c_code_does_not_compute_is_left_to_the_operations() -> None:
    layers = make_layers()
    assert not can_run([*layers, *make_layers(norms=True)[:0], replace(layers[0], num_heads=2)])
    assert not can_run([replace(layers[0], input_norm=layers[0].input_norm.float())])
    caches = [(keys.float(), values.float()) for keys, values in make_caches(2)]
    assert not NativeDecoder(layers).use_caches(caches)
