"""Which base models are replaced, and that the fused one answers like the original."""

import pytest
import torch
from test_fused_layer import logits, make_model

from penstock.kernels.native import library
from penstock.scheduler.config import ModelSpec
from penstock.scheduler.models.fused_decoder import FusedDecoder, fuse_decoder
from penstock.scheduler.models.fused_layer import fuse_layers
from penstock.scheduler.models.quantize import quantize


@pytest.mark.parametrize("family", ["llama", "mistral", "qwen2", "qwen3"])
def test_a_fused_decoder_answers_like_the_original(family: str) -> None:
    model = make_model(family)
    expected = logits(model)
    fuse_layers(model, lambda linear: True)
    fuse_decoder(model)
    assert isinstance(model.base_model, FusedDecoder)
    torch.testing.assert_close(logits(model), expected, rtol=1e-4, atol=1e-4)


def test_layers_that_are_not_fused_keep_their_decoder() -> None:
    model = make_model("llama")
    model.base_model.layers[1].mlp.up_proj.register_forward_hook(lambda module, args, output: output * 2)
    fuse_layers(model, lambda linear: True)
    fuse_decoder(model)
    assert not isinstance(model.base_model, FusedDecoder)


def test_a_decoder_with_another_formula_stays() -> None:
    model = make_model("llama")
    model.base_model.embed_tokens.register_forward_hook(lambda module, args, output: output * 2)
    fuse_layers(model, lambda linear: True)
    model.base_model.norm.register_forward_hook(lambda module, args, output: output * 2)
    expected = logits(model)
    fuse_decoder(model)
    assert not isinstance(model.base_model, FusedDecoder)
    assert torch.equal(logits(model), expected)


def test_arguments_that_would_change_the_answer_are_refused() -> None:
    model = make_model("llama")
    fuse_layers(model, lambda linear: True)
    fuse_decoder(model)
    tokens = torch.zeros(1, 2, dtype=torch.int64)
    with pytest.raises(ValueError, match="attention_mask"):
        model(input_ids=tokens, position_ids=tokens, attention_mask=torch.ones(1, 2))


@pytest.mark.skipif(library() is None, reason="no native kernels on this machine")
def test_exchanged_weights_are_taken() -> None:
    model = make_model("llama", torch.bfloat16, head_dim=32)
    fuse_layers(model, lambda linear: True)
    fuse_decoder(model)
    decoder = model.base_model
    assert isinstance(decoder, FusedDecoder)
    first = decoder.layers[0].describe()
    quantize(model, ModelSpec("m", "", "generate", quantization="int8"))
    assert decoder._native is not None
    assert [layer.qkv for layer in decoder._native._layers] == [layer.qkv_proj.packed for layer in decoder.layers]
    assert decoder._native._layers[0].qkv is not first.qkv
