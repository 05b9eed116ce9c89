"""What `GenerationRunner.load` refuses and reports."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from tiny_models import make_tiny, tiny_config

from penstock.scheduler.config import DtypeName, EngineConfig, ModelSpec
from penstock.scheduler.errors import ModelLoadError, UnsupportedModelError
from penstock.scheduler.models.load import choose_dtype
from penstock.scheduler.runner import GenerationRunner

CONFIG = EngineConfig(device="cpu", block_size=16, num_threads=1)


def load(folder: Path, *, max_model_len: int = 0, progress: list[tuple[str, float]] | None = None) -> GenerationRunner:
    spec = ModelSpec("tiny", str(folder), "generate", dtype="float32", max_model_len=max_model_len)
    return GenerationRunner.load(
        spec, CONFIG, lambda stage, fraction: None if progress is None else progress.append((stage, fraction))
    )


def test_progress_rises_to_one(tmp_path: Path) -> None:
    progress: list[tuple[str, float]] = []
    load(make_tiny("llama", tmp_path), progress=progress)
    fractions = [fraction for _, fraction in progress]
    assert fractions == sorted(fractions)
    assert fractions[-1] == 1.0
    assert list(dict.fromkeys(stage for stage, _ in progress)) == ["reading weights", "packing weights"]


def test_too_long_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelLoadError, match="max_model_len 600 of tiny exceeds the 512 positions"):
        load(make_tiny("llama", tmp_path), max_model_len=600)


def test_no_folder(tmp_path: Path) -> None:
    with pytest.raises(ModelLoadError, match="tiny has no usable config.json"):
        load(tmp_path / "nowhere")


def test_pickled_weights_are_not_read(tmp_path: Path) -> None:
    make_tiny("llama", tmp_path)
    weights = load_file(tmp_path / "model.safetensors")
    (tmp_path / "model.safetensors").unlink()
    torch.save(weights, tmp_path / "pytorch_model.bin")
    with pytest.raises(ModelLoadError, match="tiny cannot be loaded .*safetensors"):
        load(tmp_path)


def test_refused_architecture_reads_no_weights(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "llama4_text"}))
    with pytest.raises(UnsupportedModelError, match="llama4_text.* cannot be served"):
        load(tmp_path)


def test_several_end_tokens(tmp_path: Path) -> None:
    make_tiny("llama", tmp_path)
    path = tmp_path / "generation_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "eos_token_id": [2, 7]}))
    assert load(tmp_path).eos_token_ids == {2, 7}


def test_end_token_of_the_config_without_a_generation_config(tmp_path: Path) -> None:
    make_tiny("llama", tmp_path, eos_token_id=5)
    (tmp_path / "generation_config.json").unlink()
    assert load(tmp_path).eos_token_ids == {5}


def test_unproven_architecture_is_tried_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("penstock.scheduler.runner.PROVEN", frozenset())
    calls: list[str] = []
    monkeypatch.setattr("penstock.scheduler.models.self_check.check_packed", lambda *arguments: calls.append("packed"))
    load(make_tiny("llama", tmp_path))
    assert calls == ["packed"]


def test_error_of_the_models_own_code_is_a_load_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from transformers.models.llama.modeling_llama import LlamaMLP

    def broken(self: torch.nn.Module, x: torch.Tensor) -> torch.Tensor:
        raise TypeError("unexpected keyword")

    monkeypatch.setattr(LlamaMLP, "forward", broken)
    with pytest.raises(ModelLoadError, match="tiny fails in its first forward pass: TypeError: unexpected keyword"):
        load(make_tiny("llama", tmp_path))


@pytest.mark.parametrize(
    ("wanted", "device", "native", "expected"),
    [
        ("float16", "cpu", True, torch.float16),
        ("auto", "cpu", True, torch.bfloat16),
        ("auto", "cpu", False, torch.float32),
        ("auto", "cuda", False, torch.float16),
    ],
)
def test_dtype(
    wanted: DtypeName, device: str, native: bool, expected: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("penstock.scheduler.models.load.cpu_has_fast_bfloat16", lambda: native)
    config = tiny_config("llama", dtype=torch.float16)
    spec = ModelSpec("tiny", "", "generate", dtype=wanted)
    assert choose_dtype(spec, config, torch.device(device)) == expected


@pytest.fixture
def folder_with_code(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A llama under another name whose classes come with the folder."""
    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(tmp_path / "cache"))
    folder = make_tiny("llama", tmp_path / "model")
    (folder / "configuration_own.py").write_text(
        "from transformers import LlamaConfig\n\n\nclass OwnConfig(LlamaConfig):\n    model_type = 'own'\n"
    )
    (folder / "modeling_own.py").write_text(
        "from transformers import LlamaForCausalLM\nfrom .configuration_own import OwnConfig\n\n\n"
        "class OwnForCausalLM(LlamaForCausalLM):\n    config_class = OwnConfig\n"
    )
    path = folder / "config.json"
    auto_map = {"AutoConfig": "configuration_own.OwnConfig", "AutoModelForCausalLM": "modeling_own.OwnForCausalLM"}
    config = json.loads(path.read_text())
    path.write_text(json.dumps({**config, "model_type": "own", "auto_map": auto_map}))
    return folder


def test_code_of_the_folder_needs_trust(folder_with_code: Path) -> None:
    with pytest.raises(ModelLoadError, match="trust_remote_code"):
        load(folder_with_code)


def test_trusted_code_is_tried_out(folder_with_code: Path) -> None:
    spec = ModelSpec("tiny", str(folder_with_code), "generate", dtype="float32", trust_remote_code=True)
    runner = GenerationRunner.load(spec, CONFIG, lambda stage, fraction: None)
    assert runner.architecture == "OwnForCausalLM"


def test_warm_up_misses_a_layer(tmp_path: Path) -> None:
    runner = load(make_tiny("llama", tmp_path))
    runner._shapes[3] = runner._shapes[0]  # as if a fourth layer had gone around the paged attention
    runner.use_kv_memory(torch.zeros(2 * runner.kv_bytes_per_block, dtype=torch.uint8))
    with pytest.raises(ModelLoadError, match=r"attended in layers \[0, 1, 2\], but the model has \[0, 1, 2, 3\]"):
        runner.warm_up()


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ('{"a":' * 100_000, "no usable config.json"),
        ("[]", "no JSON object"),
        ("null", "no JSON object"),
        ('{"model_type": "llama", "num_hidden_layers": 1000000000}', "num_hidden_layers: 1000000000"),
        ('{"model_type": "x", "text_config": {"n_layer": -1}}', "n_layer: -1"),
        (" " * (2**24 + 1), "the limit is"),
    ],
)
def test_a_hostile_config_is_refused(tmp_path: Path, content: str, words: str) -> None:
    (tmp_path / "config.json").write_text(content)
    with pytest.raises(ModelLoadError, match=words):
        load(tmp_path)
