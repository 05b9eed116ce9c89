"""Native encoder layers compute what plain torch does, and the same for a text in any company."""

import itertools

import pytest
import torch

from penstock.kernels.encoder import Affine, EncoderLayer, EncoderShape, encode_reference
from penstock.kernels.encoder_native import NativeEncoder, group_texts
from penstock.kernels.native import library

LENGTHS = [30, 1, 64, 7, 65, 33, 2]


def make_layers(hidden: int, inner: int, width: int, dtype: torch.dtype = torch.float32) -> list[EncoderLayer]:
    generator = torch.Generator().manual_seed(3)

    def affine(outputs: int, inputs: int) -> Affine:
        weight = torch.randn(outputs, inputs, generator=generator) * 2 * inputs**-0.5
        return weight.to(dtype), torch.randn(outputs, generator=generator).to(dtype)

    def norm() -> Affine:
        weight, bias = torch.randn(2, hidden, generator=generator)
        return (1 + weight / 4).to(dtype), bias.to(dtype)

    return [
        EncoderLayer(
            qkv=affine(3 * width, hidden),
            output=affine(hidden, width),
            attention_norm=norm(),
            up=affine(inner, hidden),
            down=affine(hidden, inner),
            output_norm=norm(),
        )
        for _ in range(2)
    ]


def make_states(num_tokens: int, hidden: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.randn(num_tokens, hidden, generator=torch.Generator().manual_seed(4)).to(dtype)


def native(layers: list[EncoderLayer], shape: EncoderShape) -> NativeEncoder:
    if library() is None:
        pytest.skip("no native kernels on this machine")
    assert NativeEncoder.can_run(layers)
    return NativeEncoder(layers, shape)


@pytest.mark.parametrize(
    ("hidden", "inner", "heads", "head_dim", "activation", "with_bias"),
    [
        (64, 128, 2, 32, "gelu", False),
        (128, 200, 2, 64, "gelu_tanh", True),
        (40, 72, 3, 10, "relu", True),
        (96, 64, 1, 80, "gelu", False),
    ],
)
def test_layers_equal_the_reference(hidden, inner, heads, head_dim, activation, with_bias):
    layers = make_layers(hidden, inner, heads * head_dim)
    shape = EncoderShape(heads, head_dim, head_dim**-0.5, 1e-6, activation)
    bias = torch.randn(heads, 70, 70, generator=torch.Generator().manual_seed(5)) if with_bias else None
    states = make_states(sum(LENGTHS), hidden)
    expected = encode_reference(states, LENGTHS, layers, shape, bias)
    actual = native(layers, shape)(states, LENGTHS, bias)
    torch.testing.assert_close(actual, expected, rtol=2e-5, atol=2e-5)


def test_bfloat16_is_the_reference_but_for_rounding():
    layers = make_layers(128, 256, 128, torch.bfloat16)
    shape = EncoderShape(4, 32, 32**-0.5, 1e-6, "gelu")
    states = make_states(sum(LENGTHS), 128, torch.bfloat16)
    wide = [EncoderLayer(**{name: widen(getattr(layer, name)) for name in EncoderLayer.__slots__}) for layer in layers]
    expected = encode_reference(states.float(), LENGTHS, wide, shape)
    actual = native(layers, shape)(states, LENGTHS)
    assert actual.dtype == torch.bfloat16
    assert (actual.float() - expected).norm() < 0.01 * expected.norm()


def widen(affine: Affine) -> Affine:
    weight, bias = affine
    return weight.float(), bias.float()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_text_is_bitwise_the_same_in_any_company(dtype):
    layers = make_layers(96, 160, 96, dtype)
    encode = native(layers, EncoderShape(3, 32, 32**-0.5, 1e-6, "gelu"))
    states = make_states(sum(LENGTHS), 96, dtype)
    usual = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        alone = torch.cat([encode(text, [length]) for text, length in zip(states.split(LENGTHS), LENGTHS, strict=True)])
        for num_threads in (1, 2, 3):
            torch.set_num_threads(num_threads)
            assert torch.equal(encode(states, LENGTHS), alone)
            shared = encode(states[:31], LENGTHS[:2])  # so unequal that threads share them
            assert torch.equal(shared, alone[:31])
    finally:
        torch.set_num_threads(usual)


def test_groups_divide_all_texts_and_become_small():
    for lengths, num_threads in itertools.product(([30] * 100, [200, 90, 50, 20, 9] * 8, [3, 1] * 40), (1, 2, 16)):
        groups = group_texts(lengths, num_threads).tolist()
        assert groups[0] == 0 and groups[-1] == len(lengths) and groups == sorted(set(groups))
        rows = [sum(lengths[first:last]) for first, last in itertools.pairwise(groups)]
        assert len(rows) == 1 or max(rows) <= max(128, *lengths)
        assert len(rows) == 1 or rows[-1] <= max(32, *lengths)
    assert group_texts([500, 20, 20], 2).tolist() == [0, 3], "the threads share what one would be long at"
    assert group_texts([30], 1).tolist() == [0, 1]
