"""Model folders as the API side reads them."""

import json
from pathlib import Path

import pytest
from fake_engine import TEMPLATE, tiny_embedding_tokenizer, tiny_tokenizer

from penstock.scheduler.errors import ModelLoadError
from penstock.serving.text.served_model import EmbeddingInputRules, GenerationDefaults, load_served_model


def write(folder: Path, **files: object) -> None:
    for name, content in files.items():
        (folder / f"{name}.json").write_text(json.dumps(content))


def test_generation_folder(tmp_path: Path) -> None:
    tiny_tokenizer().save(str(tmp_path / "tokenizer.json"))
    write(
        tmp_path,
        tokenizer_config={
            "chat_template": TEMPLATE + "{{ bos_token }}{{ eos_token }}",
            "bos_token": {"content": "<b>"},
        },
        special_tokens_map={"eos_token": "<e>", "bos_token": "old"},
        generation_config={"temperature": 0.7, "top_p": 0, "top_k": 40, "repetition_penalty": "x", "min_p": 0.1},
    )
    model = load_served_model("m", "generate", tmp_path)
    assert (model.name, model.kind, model.owned_by, model.created > 0) == ("m", "generate", "penstock", True)
    assert model.defaults == GenerationDefaults(temperature=0.7, top_p=1.0, top_k=40, min_p=0.1)
    assert model.chat_template is not None
    assert model.chat_template.render([], add_generation_prompt=False) == "<b><e>"


@pytest.mark.parametrize("top_k", [float("inf"), float("nan"), 2**63, 10**30, -1, True])
def test_a_default_out_of_range_is_ignored(tmp_path: Path, top_k: float) -> None:
    tiny_tokenizer().save(str(tmp_path / "tokenizer.json"))
    write(tmp_path, generation_config={"top_k": top_k, "temperature": float("inf"), "min_p": float("nan")})
    assert load_served_model("m", "generate", tmp_path).defaults == GenerationDefaults()


def test_embedding_folder(tmp_path: Path) -> None:
    tiny_embedding_tokenizer().save(str(tmp_path / "tokenizer.json"))
    write(tmp_path, tokenizer_config={"model_max_length": 512})
    assert load_served_model("m", "embed", tmp_path).input_rules == EmbeddingInputRules(max_tokens=512)
    write(
        tmp_path,
        sentence_bert_config={"max_seq_length": 256, "do_lower_case": True},
        config_sentence_transformers={"prompts": {"query": "q: "}, "default_prompt_name": "query"},
    )
    model = load_served_model("m", "embed", tmp_path)
    assert model.input_rules == EmbeddingInputRules(256, True, "q: ", {"query": "q: "})
    assert model.chat_template is None
    write(tmp_path, config={"matryoshka_dimensions": [64, 32]})
    assert load_served_model("m", "embed", tmp_path).input_rules.dimensions == (64, 32)
    (tmp_path / "1_Pooling").mkdir()
    write(tmp_path / "1_Pooling", config={"include_prompt": False})
    with pytest.raises(ModelLoadError, match="include_prompt"):
        load_served_model("m", "embed", tmp_path)


def test_tokenizers_own_truncation_and_padding_are_off(tmp_path: Path) -> None:
    tiny_embedding_tokenizer().save(str(tmp_path / "tokenizer.json"))
    tokenizer = load_served_model("m", "embed", tmp_path).tokenizer
    short, long = tokenizer.encode_batch(["a", "the fox says hello world"], 100)
    assert len(short) == 3 and len(long) > 5
    assert tokenizer.encode_batch_cut(["the fox says hello world"], 4) == [[*long[:3], long[-1]]]


def test_unusable_folders_say_why(tmp_path: Path) -> None:
    with pytest.raises(ModelLoadError, match=r"tokenizer\.json is missing"):
        load_served_model("m", "generate", tmp_path)
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(ModelLoadError, match="cannot be used"):
        load_served_model("m", "generate", tmp_path)
    tiny_tokenizer().save(str(tmp_path / "tokenizer.json"))
    (tmp_path / "tokenizer_config.json").write_text("{")
    with pytest.raises(ModelLoadError, match="not valid JSON"):
        load_served_model("m", "generate", tmp_path)
    (tmp_path / "tokenizer_config.json").write_text('{"chat_template": "{% if %}"}')
    with pytest.raises(ModelLoadError, match="cannot be used"):
        load_served_model("m", "generate", tmp_path)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("tokenizer.json", "[" * 200_000),
        ("tokenizer.json", '{"version": "1.0", "model": {"type": "BPE", "vocab": {"a": -1}, "merges": [["a", "b"]]}}'),
        ("tokenizer.json", '{"version": "1.0", "model": {"type": "Unknown"}}'),
        ("tokenizer_config.json", '{"a":' * 100_000),
        ("chat_template.json", "[]"),
        ("tokenizer_config.json", '{"chat_template": [{"name": "default"}]}'),
        ("tokenizer_config.json", '{"chat_template": 7}'),
    ],
)
def test_hostile_files_are_refused(tmp_path: Path, name: str, content: str) -> None:
    tiny_tokenizer().save(str(tmp_path / "tokenizer.json"))
    (tmp_path / name).write_text(content)
    with pytest.raises(ModelLoadError, match=name.partition(".")[0] + "|cannot be used"):
        load_served_model("m", "generate", tmp_path)
