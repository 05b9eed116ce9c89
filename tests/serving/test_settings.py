"""Flags, environment, file and defaults: who wins, and what is refused in which words."""

import json
from pathlib import Path

import pytest

from penstock.scheduler.config import EngineConfig
from penstock.serving.settings import Settings, SettingsError, load_settings
from penstock.serving.shelf.card import read_card


@pytest.fixture(autouse=True)
def clean_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in Settings.model_fields:
        monkeypatch.delenv(f"PENSTOCK_{name.upper()}", raising=False)


def write(path: Path, content: str) -> Path:
    path.write_text(content)
    return path


def test_flag_beats_environment_beats_file_beats_default(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = write(tmp_path / "p.toml", 'port = 1\nmax_num_seqs = 2\nblock_size = 32\nmodels = ["a b", "c"]\n')
    monkeypatch.setenv("PENSTOCK_PORT", "3")
    monkeypatch.setenv("PENSTOCK_MAX_NUM_SEQS", "4")
    settings = load_settings({"config": str(file), "port": "5"})
    assert (settings.port, settings.max_num_seqs, settings.block_size) == (5, 4, 32)
    assert settings.models == ["a b", "c"]
    assert settings.host == "127.0.0.1"


def test_the_environment_may_name_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PENSTOCK_CONFIG", str(write(tmp_path / "p.toml", 'kv_cache_memory = "512MiB"')))
    assert load_settings({}).engine_config().kv_cache_memory == 512 << 20


def test_the_environment_lists_models_as_a_shell_does(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PENSTOCK_MODELS", "one '/path with/space,comma'")
    assert load_settings({}).models == ["one", "/path with/space,comma"]


def test_an_empty_variable_counts_as_unset(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PENSTOCK_PORT", "")
    assert load_settings({}).port == 1234


def test_every_engine_setting_reaches_the_engine() -> None:
    flags = {
        "device": "cpu",
        "kv_cache_memory": "2GiB",
        "block_size": "32",
        "max_num_seqs": "7",
        "max_num_batched_tokens": "99",
        "itl_target": "0",
        "max_waiting_requests": "11",
        "max_waiting_tokens": "12",
        "queue_timeout": "1.5",
        "request_timeout": "0.5",
        "enable_prefix_caching": False,
        "speculation": "ngram",
        "num_draft_tokens": "5",
        "min_ngram": "1",
        "max_ngram": "3",
        "num_threads": "3",
    }
    assert load_settings(flags).engine_config() == EngineConfig(
        device="cpu",
        kv_cache_memory=2 << 30,
        block_size=32,
        max_num_seqs=7,
        max_num_batched_tokens=99,
        itl_target_ms=0,
        max_waiting_requests=11,
        max_waiting_tokens=12,
        queue_timeout=1.5,
        request_timeout=0.5,
        enable_prefix_caching=False,
        speculation="ngram",
        num_draft_tokens=5,
        min_ngram=1,
        max_ngram=3,
        num_threads=3,
    )


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ({"port": "65536"}, "port is '65536': input should be less than or equal to 65535"),
        ({"min_ngram": "5"}, "min_ngram is 5, more than max_ngram, 4"),
        ({"port": "-1"}, "port is '-1': input should be greater than or equal to 0"),
        ({"device": "tpu"}, "device is 'tpu': input should be 'auto', 'cuda' or 'cpu'"),
        ({"block_size": "24"}, "block_size is '24': must be a power of two, such as 16"),
        ({"kv_cache_memory": "2Gx"}, "kv_cache_memory is '2Gx': could not interpret byte unit: Gx"),
        ({"max_num_seqs": "0"}, "max_num_seqs is '0': input should be greater than or equal to 1"),
        (
            {"models": ["a", "b"], "served_model_name": "x"},
            "served_model_name needs exactly one model, but 2 are named",
        ),
        ({"config": "/nowhere.toml"}, "config: cannot read /nowhere.toml: No such file or directory"),
    ],
)
def test_a_bad_value_is_named_with_its_limit(flags: dict[str, object], message: str) -> None:
    with pytest.raises(SettingsError) as caught:
        load_settings(flags)
    assert str(caught.value) == message


def test_every_bad_value_gets_its_line() -> None:
    with pytest.raises(SettingsError) as caught:
        load_settings({"port": "x", "num_threads": "-2"})
    assert [line.split()[0] for line in str(caught.value).splitlines()] == ["port", "num_threads"]


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("prot = 1", "has unknown keys: prot; known are: alias, api_processes, auth, block_size"),
        ('config = "other.toml"', "has unknown keys: config"),
        ("port = ", "is not TOML"),
    ],
)
def test_a_bad_file_is_refused(tmp_path: Path, content: str, words: str) -> None:
    file = write(tmp_path / "p.toml", content)
    with pytest.raises(SettingsError, match=words) as caught:
        load_settings({"config": file})
    assert str(file) in str(caught.value)


def test_a_kubernetes_service_link_is_explained(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PENSTOCK_PORT", "tcp://10.0.0.7:1234")
    with pytest.raises(SettingsError, match="enableServiceLinks: false"):
        load_settings({})


def test_home_is_absolute_and_expanded(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    assert load_settings({"home": "~/models"}).home == tmp_path / "models"
    assert load_settings({}).home.is_absolute()


def test_aliases_come_from_flags_environment_and_a_table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = write(tmp_path / "p.toml", '[alias]\n"gpt-4o" = "tiny"\n')
    assert load_settings({"config": str(file)}).alias == {"gpt-4o": "tiny"}
    assert load_settings({"alias": ["a=b", "c=d/e"]}).alias == {"a": "b", "c": "d/e"}
    monkeypatch.setenv("PENSTOCK_ALIAS", "a=b 'x y=z'")
    assert load_settings({}).alias == {"a": "b", "x y": "z"}
    with pytest.raises(SettingsError, match="form NAME=MODEL, which 'gpt-4o' has not"):
        load_settings({"alias": ["gpt-4o"]})


def test_embedding_models_have_a_dtype_of_their_own() -> None:
    settings = load_settings({"dtype": "bfloat16"})
    assert [settings.dtype_of(kind) for kind in ("generate", "embed", "score")] == ["bfloat16"] * 3
    settings = load_settings({"embedding_dtype": "bfloat16"})
    assert [settings.dtype_of(kind) for kind in ("generate", "embed", "score")] == ["auto", "bfloat16", "bfloat16"]


def test_8_bits_are_for_models_that_generate(tmp_path: Path) -> None:
    settings = load_settings({"quantization": "fp8", "kv_cache_dtype": "fp8"})
    for name, architecture, expected in (
        ("chat", "LlamaForCausalLM", ("fp8", "fp8")),
        ("embed", "BertModel", ("none", "auto")),
    ):
        folder = tmp_path / name
        folder.mkdir()
        (folder / "config.json").write_text(json.dumps({"architectures": [architecture]}))
        for file in ("model.safetensors", "tokenizer.json"):
            (folder / file).touch()
        spec = settings.model_spec(read_card(name, folder))
        assert (spec.quantization, spec.kv_cache_dtype) == expected
