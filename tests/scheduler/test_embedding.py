"""Embedding models give what `SentenceTransformer.encode` gives, however their texts are put together."""

import json
import random

import numpy as np
import pytest
import torch
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.modules import Dense, Normalize, Pooling, StaticEmbedding, Transformer
from starter_models import minilm_folder
from tiny_encoders import SIZES, random_texts, write_tokenizer
from tokenizers import Tokenizer
from transformers import (
    BertConfig,
    BertModel,
    Qwen3Config,
    Qwen3Model,
    RobertaConfig,
    RobertaModel,
)

from penstock.scheduler.config import EngineConfig, ModelSpec
from penstock.scheduler.embedding import EmbeddingRunner
from penstock.scheduler.encoder import length_groups
from penstock.scheduler.errors import ModelLoadError, UnsupportedModelError

ENGINE = EngineConfig(device="cpu", num_threads=1)


def load(folder, **spec) -> EmbeddingRunner:
    return EmbeddingRunner.load(ModelSpec("e", str(folder), "embed", **spec), ENGINE, lambda stage, fraction: None)


def make_model(kind: str, folder) -> None:
    """A tiny random model: a bare encoder, a RoBERTa with projection, or a decoder that pools its last token."""
    torch.manual_seed(1)
    plain = folder if kind == "bare" else folder.with_name(folder.name + "-transformer")
    write_tokenizer(plain, padding_side="left" if kind == "decoder" else "right", end=kind == "decoder")
    if kind == "decoder":
        model = Qwen3Model(Qwen3Config(vocab_size=16, num_key_value_heads=2, head_dim=8, **SIZES))
    elif kind == "roberta":
        model = RobertaModel(RobertaConfig(vocab_size=16, max_position_embeddings=66, pad_token_id=1, **SIZES))
    else:
        model = BertModel(BertConfig(vocab_size=16, max_position_embeddings=64, **SIZES))
    model.save_pretrained(plain)
    if kind == "bare":
        return
    modules = [Transformer(str(plain))]
    if kind == "decoder":
        modules += [Pooling(32, pooling_mode="lasttoken"), Normalize()]
    else:
        modules += [Pooling(32, pooling_mode="cls"), Dense(32, 20)]
    SentenceTransformer(modules=modules, device="cpu").save(str(folder), create_model_card=False)


def encode_ids(folder, texts) -> list[list[int]]:
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokenizer.no_padding()
    tokenizer.no_truncation()
    return [encoding.ids for encoding in tokenizer.encode_batch(texts)]


@pytest.mark.parametrize(
    ("kind", "architecture", "dim"),
    [("bare", "BertModel", 32), ("roberta", "RobertaModel", 20), ("decoder", "Qwen3Model", 32)],
)
def test_vectors_equal_the_librarys(kind, architecture, dim, tmp_path):
    folder = tmp_path / kind
    make_model(kind, folder)
    runner = load(folder)
    assert (runner.architecture, runner.output_dim, runner.vocab_size) == (architecture, dim, 16)
    assert (runner.dtype, runner.max_model_len) == (torch.float32, 64)
    texts = random_texts(50)
    expected = SentenceTransformer(str(folder), device="cpu").encode(texts)
    vectors = runner.execute(encode_ids(folder, texts))
    assert vectors.dtype == np.float32
    assert np.abs(vectors - expected).max() < 1e-5
    reversed_vectors = runner.execute(encode_ids(folder, texts[::-1]))
    assert np.abs(reversed_vectors[::-1] - vectors).max() < 1e-5


def test_minilm_equals_the_librarys():
    runner = load(minilm_folder())
    assert (runner.max_model_len, runner.output_dim, runner.vocab_size) == (256, 384, 30522)
    assert runner.num_parameters == 22_713_216
    model = SentenceTransformer(str(minilm_folder()), device="cpu")
    texts = [*random_texts(20), "A penstock is the pipe that brings water to a turbine.", "ü"]
    vectors = runner.execute(encode_ids(minilm_folder(), texts))
    assert np.abs(vectors - model.encode(texts)).max() < 1e-5
    assert np.allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-5)


def test_bfloat16_vectors_point_where_float32_ones_do():
    texts = [*random_texts(20), "A penstock is the pipe that brings water to a turbine.", "ü"]
    inputs = encode_ids(minilm_folder(), texts)
    runner = load(minilm_folder(), dtype="bfloat16")
    assert runner.dtype == torch.bfloat16
    narrow, wide = runner.execute(inputs), load(minilm_folder()).execute(inputs)
    cosines = (narrow * wide).sum(1) / np.linalg.norm(narrow, axis=1) / np.linalg.norm(wide, axis=1)
    assert cosines.min() > 0.999


def test_truncated_vectors_follow_the_folder(tmp_path):
    make_model("decoder", tmp_path / "decoder")
    settings = tmp_path / "decoder" / "config_sentence_transformers.json"
    settings.write_text(json.dumps(json.loads(settings.read_text()) | {"truncate_dim": 12}))
    expected = SentenceTransformer(str(tmp_path / "decoder"), device="cpu").encode(["water pipe"])
    runner = load(tmp_path / "decoder")
    vectors = runner.execute(encode_ids(tmp_path / "decoder", ["water pipe"]))
    assert runner.output_dim == 12 and vectors.shape == expected.shape == (1, 12)
    assert np.abs(vectors - expected).max() < 1e-5


def test_limits_and_refusals(tmp_path):
    make_model("roberta", tmp_path / "roberta")
    assert load(tmp_path / "roberta", max_model_len=10).max_model_len == 10
    with pytest.raises(ModelLoadError, match="at most 64 tokens, but max_model_len is 65"):
        load(tmp_path / "roberta", max_model_len=65)
    with pytest.raises(ModelLoadError, match="cannot be loaded"):
        load(tmp_path / "nothing-here")
    static = tmp_path / "static"
    tokenizer = Tokenizer.from_file(str(tmp_path / "roberta" / "tokenizer.json"))
    modules = [StaticEmbedding(tokenizer, embedding_dim=8)]
    SentenceTransformer(modules=modules, device="cpu").save(str(static), create_model_card=False)
    with pytest.raises(UnsupportedModelError, match="starts with a StaticEmbedding"):
        load(static)


def test_groups_hold_every_text_once_and_bound_their_padding():
    chooser = random.Random(0)
    for _ in range(50):
        lengths = [chooser.choice((1, 5, 30, 200, 2000)) + chooser.randint(0, 9) for _ in range(chooser.randint(1, 90))]
        groups = length_groups(lengths, 1024, 16)
        assert sorted(index for group in groups for index in group) == list(range(len(lengths)))
        for group in groups:
            sizes = [lengths[index] for index in group]
            assert sizes[0] == max(sizes)
            assert len(group) == 1 or sizes[0] * len(group) <= 1024
            assert sizes[0] * len(group) - sum(sizes) <= max(16, sum(sizes) / 8)


def test_similar_texts_share_a_pass():
    assert length_groups([30] * 32, 1024, 16) == [list(range(32))]
    assert length_groups([5, 200, 6, 190], 1024, 16) == [[1, 3], [2, 0]]
