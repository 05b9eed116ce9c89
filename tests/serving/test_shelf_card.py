"""What a model's folder says at a glance."""

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file

from penstock.scheduler.errors import ModelLoadError
from penstock.serving.shelf.card import read_card


def make_folder(folder: Path, architecture: str = "LlamaForCausalLM", *files: str, **config: Any) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps({"architectures": [architecture], **config}))
    for name in ("model.safetensors", "tokenizer.json", *files):
        (folder / name).touch()
    return folder


@pytest.mark.parametrize(
    ("architecture", "files", "kind"),
    [
        ("LlamaForCausalLM", (), "generate"),
        ("GPT2LMHeadModel", (), "generate"),
        ("Gemma3ForConditionalGeneration", (), "generate"),
        ("BertModel", (), "embed"),
        ("XLMRobertaForMaskedLM", (), "embed"),
        ("Qwen3ForCausalLM", ("modules.json",), "embed"),
        ("Qwen3ForCausalLM", ("config_sentence_transformers.json",), "embed"),
        ("BertForSequenceClassification", (), "score"),
        ("BertForSequenceClassification", ("modules.json",), "score"),
    ],
)
def test_the_kind_follows_from_files_and_architecture(
    tmp_path: Path, architecture: str, files: tuple[str, ...], kind: str
) -> None:
    assert read_card("m", make_folder(tmp_path / "m", architecture, *files)).kind == kind


def test_other_architectures_are_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(ModelLoadError, match="BertForTokenClassification"):
        read_card("m", make_folder(tmp_path / "m", "BertForTokenClassification"))


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (None, "cannot read config.json"),
        ("{", "is not JSON"),
        ("[" * 100_000, "is not JSON"),
        ("[]", r"architectures \[\]"),
        ('{"architectures": "LlamaForCausalLM"}', r"architectures \[\]"),
        ('{"architectures": [1, null]}', r"architectures \[\]"),
    ],
)
def test_a_broken_config_is_refused(tmp_path: Path, content: str | None, words: str) -> None:
    if content is not None:
        (tmp_path / "config.json").write_text(content)
    with pytest.raises(ModelLoadError, match=words):
        read_card("m", tmp_path)


def test_sizes_and_formats_come_from_the_headers_of_the_weights(tmp_path: Path) -> None:
    folder = make_folder(tmp_path / "m", model_type="llama", max_position_embeddings=2048)
    save_file({"a": np.zeros((10, 20), np.float16), "b": np.zeros(4, np.float32)}, folder / "model.safetensors")
    save_file({"c": np.zeros((2, 3, 5), np.float16)}, folder / "model-2.safetensors")
    os.utime(folder / "config.json", (1000, 1000))
    card = read_card("owner/m", folder)
    assert (card.num_parameters, card.quantization) == (234, "F16")
    assert card.size_bytes == sum(file.stat().st_size for file in folder.glob("*.safetensors"))
    assert card.bits_per_weight == round(8 * card.size_bytes / 234, 2)
    assert (card.architecture, card.max_context_length, card.publisher) == ("llama", 2048, "owner")
    assert (card.created, card.format, card.vision) == (1000, "safetensors", False)


@pytest.mark.parametrize("content", [b"", b"\xff" * 20, b"\x02\0\0\0\0\0\0\0[]", b'\x0a\0\0\0\0\0\0\0{"a": {}}  '])
def test_unreadable_weights_have_no_number_of_parameters(tmp_path: Path, content: bytes) -> None:
    folder = make_folder(tmp_path / "m")
    (folder / "model.safetensors").write_bytes(content)
    card = read_card("m", folder)
    assert (card.num_parameters, card.quantization, card.bits_per_weight) == (0, "", 0.0)


def test_a_quantised_checkpoint_names_its_method(tmp_path: Path) -> None:
    quantised = {"quant_method": "gptq", "bits": 4}
    assert read_card("m", make_folder(tmp_path / "m", quantization_config=quantised)).quantization == "GPTQ-4BIT"


@pytest.mark.parametrize(
    ("file", "template", "tools", "thinks"),
    [
        ("chat_template.jinja", "{{ messages }}", False, False),
        ("chat_template.jinja", "{% if tools %}{% endif %}", True, False),
        ("tokenizer_config.json", "{% if enable_thinking %}<think>{% endif %}", False, True),
        ("tokenizer_config.json", [{"name": "tool_use", "template": "{{ tools }}"}], True, False),
    ],
)
def test_abilities_follow_from_the_chat_template(
    tmp_path: Path, file: str, template: object, tools: bool, thinks: bool
) -> None:
    folder = make_folder(tmp_path / "m")
    text = template if isinstance(template, str) and file.endswith("jinja") else json.dumps({"chat_template": template})
    (folder / file).write_text(text)
    card = read_card("m", folder)
    assert (card.trained_for_tool_use, card.reasoning) == (tools, thinks)


def test_a_vision_models_context_is_its_text_models(tmp_path: Path) -> None:
    folder = make_folder(tmp_path / "m", text_config={"max_position_embeddings": 777})
    assert read_card("m", folder).max_context_length == 777
