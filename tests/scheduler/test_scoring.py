"""Cross-encoders give the scores of `CrossEncoder.predict`, however their pairs are put together."""

import numpy as np
import pytest
import torch
from sentence_transformers import CrossEncoder
from tiny_encoders import SIZES, random_texts, write_tokenizer
from tokenizers import Tokenizer
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    Qwen3Config,
    Qwen3ForSequenceClassification,
    RobertaConfig,
    RobertaForSequenceClassification,
)

from penstock.scheduler.config import EngineConfig, ModelSpec
from penstock.scheduler.engine import Engine
from penstock.scheduler.errors import RequestError, UnsupportedModelError
from penstock.scheduler.loader import load_runner
from penstock.scheduler.messages import Embed
from penstock.scheduler.scoring import ScoringRunner

ENGINE = EngineConfig(device="cpu", num_threads=1)


def make_model(kind: str, folder, *, num_labels=1) -> None:
    torch.manual_seed(1)
    write_tokenizer(folder, token_types=kind == "bert")
    labels = {"num_labels": num_labels}
    if kind == "bert":
        model = BertForSequenceClassification(BertConfig(vocab_size=16, max_position_embeddings=64, **SIZES, **labels))
    elif kind == "roberta":
        config = RobertaConfig(vocab_size=16, max_position_embeddings=66, pad_token_id=1, **SIZES, **labels)
        model = RobertaForSequenceClassification(config)
    else:
        config = Qwen3Config(vocab_size=16, num_key_value_heads=2, head_dim=8, pad_token_id=1, **SIZES, **labels)
        model = Qwen3ForSequenceClassification(config)
    for parameter in model.parameters():  # larger than the library draws them: pairs must differ in their scores
        if parameter.dim() == 2:
            torch.nn.init.normal_(parameter, std=0.25)
    model.save_pretrained(folder)


def load(folder) -> ScoringRunner:
    return ScoringRunner.load(ModelSpec("s", str(folder), "score"), ENGINE, lambda stage, fraction: None)


def encode_pairs(folder, pairs) -> tuple[list[list[int]], list[int]]:
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokenizer.no_padding()
    encodings = tokenizer.encode_batch(pairs)
    return [e.ids for e in encodings], [e.type_ids.index(1) if 1 in e.type_ids else len(e.ids) for e in encodings]


def random_pairs(number: int) -> list[tuple[str, str]]:
    texts = [" ".join(text.split()[:25]) for text in random_texts(2 * number)]
    return list(zip(texts[::2], texts[1::2], strict=True))


@pytest.mark.parametrize(
    ("kind", "architecture"),
    [
        ("bert", "BertForSequenceClassification"),
        ("roberta", "RobertaForSequenceClassification"),
        ("decoder", "Qwen3ForSequenceClassification"),
    ],
)
def test_scores_equal_the_librarys(kind, architecture, tmp_path):
    make_model(kind, tmp_path)
    pairs = random_pairs(30)
    expected = CrossEncoder(str(tmp_path), device="cpu").predict(pairs)
    assert np.ptp(expected) > 0.01 and expected.min() > 0 and expected.max() < 1, "sigmoid of scores that differ"
    runner = load(tmp_path)
    assert (runner.architecture, runner.output_dim) == (architecture, 1)
    inputs, starts = encode_pairs(tmp_path, pairs)
    scores = runner.execute(inputs, starts)
    assert scores.shape == (30, 1)
    assert np.abs(scores[:, 0] - expected).max() < 1e-5
    assert np.abs(runner.execute(inputs[::-1], starts[::-1])[::-1] - scores).max() < 1e-5
    if kind == "bert":
        assert np.abs(runner.execute(inputs) - scores).max() > 1e-4, "token types count"


def test_folders_of_the_library_and_their_activation(tmp_path):
    make_model("bert", tmp_path / "plain")
    model = CrossEncoder(str(tmp_path / "plain"), device="cpu", activation_fn=torch.nn.Identity())
    model.save_pretrained(str(tmp_path / "saved"))
    pairs = random_pairs(5)
    scores = load(tmp_path / "saved").execute(*encode_pairs(tmp_path / "plain", pairs))
    assert np.abs(scores[:, 0] - model.predict(pairs)).max() < 1e-5
    sigmoid = load(tmp_path / "plain").execute(*encode_pairs(tmp_path / "plain", pairs))
    assert np.abs(1 / (1 + np.exp(-scores)) - sigmoid).max() < 1e-5


def test_models_with_several_labels_are_refused(tmp_path):
    make_model("bert", tmp_path, num_labels=3)
    with pytest.raises(UnsupportedModelError, match="3 labels"):
        load(tmp_path)


def test_engine_scores_pairs_over_several_steps(tmp_path):
    make_model("bert", tmp_path)
    engine = Engine(EngineConfig(device="cpu", num_threads=1, max_num_seqs=8, max_num_batched_tokens=64))
    engine.install(load_runner(ModelSpec("s", str(tmp_path), "score"), engine.config))
    ready = engine.describe("s")
    assert (ready.kind, ready.embedding_dim, ready.num_kv_blocks) == ("score", 1, 0)
    inputs, starts = encode_pairs(tmp_path, random_pairs(12))
    for wrong in ([1], [100] * 12):
        with pytest.raises(RequestError):
            engine.add(Embed("wrong", "s", inputs, 0.0, second_starts=wrong))
    engine.add(Embed("job", "s", inputs, 0.0, second_starts=starts))
    num_steps = 0
    outputs = []
    while engine.has_work:
        outputs += engine.step().embeddings
        num_steps += 1
    (output,) = outputs
    assert num_steps > 1
    assert 0 < engine.scheduler.pace.seconds_per_token("s") < 1, (
        "beside streams the scheduler must know what texts cost"
    )
    expected = CrossEncoder(str(tmp_path), device="cpu").predict(random_pairs(12))
    assert np.abs(np.frombuffer(output.data, np.float32) - expected).max() < 1e-5
