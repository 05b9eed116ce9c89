"""Encoders of the usual families get fused layers and answer as before; all others keep what they have."""

import pytest
import torch
from tiny_encoders import SIZES
from transformers import (
    AutoModel,
    BertConfig,
    DistilBertConfig,
    ElectraConfig,
    ModernBertConfig,
    MPNetConfig,
    RobertaConfig,
    XLMRobertaConfig,
)

from penstock.kernels.native import library
from penstock.scheduler.models.fused_encoder import FusedEncoder, fuse_encoder

POSITIONS = {"max_position_embeddings": 66, "pad_token_id": 1, "vocab_size": 16}
CONFIGS = {
    "bert": BertConfig(**POSITIONS, **SIZES),
    "bert-tanh": BertConfig(**POSITIONS, **SIZES, hidden_act="gelu_new"),
    "roberta": RobertaConfig(**POSITIONS, **SIZES),
    "xlm-roberta": XLMRobertaConfig(**POSITIONS, **SIZES, hidden_act="relu"),
    "electra": ElectraConfig(**POSITIONS, **SIZES, embedding_size=16),
    "mpnet": MPNetConfig(**POSITIONS, **SIZES),
    "distilbert": DistilBertConfig(
        vocab_size=16, pad_token_id=1, max_position_embeddings=66, dim=32, hidden_dim=48, n_layers=2, n_heads=4
    ),
}
needs_native = pytest.mark.skipif(library() is None, reason="no native kernels on this machine")


def make_model(config) -> torch.nn.Module:
    torch.manual_seed(1)
    model = AutoModel.from_config(config).eval()
    for parameter in model.parameters():  # larger than the library draws them: attention must matter
        if parameter.dim() == 2:
            torch.nn.init.normal_(parameter, std=0.25)
    return model


def texts() -> tuple[torch.Tensor, torch.Tensor]:
    lengths = torch.tensor([40, 3, 17])
    mask = torch.arange(40) < lengths[:, None]
    return torch.randint(4, 16, (3, 40), generator=torch.Generator().manual_seed(2)) * mask + ~mask, mask


def answer(model, ids, mask) -> torch.Tensor:
    with torch.inference_mode():
        return model(input_ids=ids, attention_mask=mask.long()).last_hidden_state


def is_fused(model) -> bool:
    return any(isinstance(module, FusedEncoder) for module in model.modules())


@needs_native
@pytest.mark.parametrize("name", CONFIGS)
def test_fused_models_answer_as_before(name):
    model = make_model(CONFIGS[name])
    ids, mask = texts()
    expected = answer(model, ids, mask)
    expected_full = answer(model, ids[:1], mask[:1])
    assert fuse_encoder(model) and is_fused(model)
    torch.testing.assert_close(answer(model, ids, mask)[mask], expected[mask], rtol=2e-4, atol=2e-4)
    torch.testing.assert_close(answer(model, ids[:1], mask[:1]), expected_full, rtol=2e-4, atol=2e-4)


@needs_native
def test_a_layer_that_does_something_else_keeps_its_model_as_it_is(monkeypatch):
    model = make_model(CONFIGS["bert"])
    last = model.encoder.layer[-1]
    usual = last.feed_forward_chunk
    monkeypatch.setattr(last, "feed_forward_chunk", lambda states: usual(states) * 1.01)
    expected = answer(model, *texts())
    assert not fuse_encoder(model) and not is_fused(model)
    assert torch.equal(answer(model, *texts()), expected)


@pytest.mark.parametrize(
    "config",
    [
        ModernBertConfig(**POSITIONS, **SIZES, cls_token_id=0, sep_token_id=2, bos_token_id=0, eos_token_id=2),
        BertConfig(**POSITIONS, **SIZES, output_hidden_states=True),
        BertConfig(**POSITIONS, **SIZES, hidden_act="silu"),
        BertConfig(**POSITIONS, **SIZES, is_decoder=True),
    ],
)
def test_other_models_stay(config):
    model = make_model(config)
    assert not fuse_encoder(model) and not is_fused(model)
    answer(model, *texts())
