"""A folder with only a slow tokenizer's files gets the same tokenizer as `tokenizer.json`."""

import json
import shutil

import pytest
from starter_models import minilm_folder
from tokenizers import Tokenizer

from penstock.scheduler.errors import ModelLoadError
from penstock.scheduler.launch import convert_tokenizer as convert_in_process
from penstock.scheduler.models.convert_tokenizer import convert, main


def test_word_piece_vocabulary_gives_the_same_tokens(tmp_path):
    for name in ("vocab.txt", "tokenizer_config.json", "config.json", "special_tokens_map.json"):
        shutil.copy(minilm_folder() / name, tmp_path)
    convert_in_process(tmp_path)
    made = Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    original = Tokenizer.from_file(str(minilm_folder() / "tokenizer.json"))
    original.no_padding()
    original.no_truncation()
    for text in ("Hello, WORLD!", "Ünïcödé 123-456", "漢字 and kana かな", ""):
        assert made.encode(text).ids == original.encode(text).ids
    assert {path.name for path in tmp_path.iterdir()} >= {"tokenizer.json"}
    assert not list(tmp_path.glob("*.partial"))


def test_a_tokenizer_that_is_there_is_kept(tmp_path):
    (tmp_path / "tokenizer.json").write_text("{}")
    convert(tmp_path)
    assert (tmp_path / "tokenizer.json").read_text() == "{}"


def test_a_folder_without_a_tokenizer_is_refused(tmp_path, capsys):
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "llama"}))
    assert main([str(tmp_path)]) == 1
    assert "has no tokenizer that can be converted" in capsys.readouterr().err.splitlines()[-1]
    assert not (tmp_path / "tokenizer.json").exists()
    with pytest.raises(ModelLoadError, match="is not a folder"):
        convert(tmp_path / "nowhere")
