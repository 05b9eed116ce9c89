"""Text turns of Codex against a real server, with a model of random weights: small, and long enough for its prompt."""

import json
from collections.abc import Iterator
from pathlib import Path

import httpx2
import pytest
from codex import codex_binary, run_codex, write_config
from server_process import ServerProcess
from tiny_models import make_tiny, make_tiny_tokenizer

MAX_LENGTH = 32_768
END_IDS = list(range(270, 310))  # so many that a random answer soon ends
SHORTER = ("--disable", "multi_agent", "--disable", "goals")


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    """One tiny model with a long context."""
    codex_binary()
    home = tmp_path_factory.mktemp("home")
    model = make_tiny_tokenizer(make_tiny("llama", home / "tiny", max_position_embeddings=MAX_LENGTH))
    (model / "generation_config.json").write_text(json.dumps({"eos_token_id": END_IDS}), encoding="utf-8")
    with ServerProcess([str(model)], home=home) as process:
        yield process


def test_a_text_turn(server: ServerProcess, tmp_path: Path) -> None:
    instructions = tmp_path / "instructions.md"
    instructions.write_text("Answer in a few words.", encoding="utf-8")
    settings = {"model_instructions_file": str(instructions), "web_search": "disabled"}
    write_config(tmp_path, f"{server.base_url}/v1", "tiny", **settings)
    for turn in range(2):
        run = run_codex("Say hello.", tmp_path, *SHORTER)
        assert run.status == 0, run
        assert run.usage["input_tokens"] > 1000 and 0 < run.usage["output_tokens"] < 1000
        assert (run.usage["cached_input_tokens"] > 0) == (turn > 0)


def test_the_servers_list_of_models_is_a_catalogue(server: ServerProcess, tmp_path: Path) -> None:
    catalogue = tmp_path / "models.json"
    catalogue.write_bytes(httpx2.get(f"{server.base_url}/v1/models").content)
    settings = {"model_catalog_json": str(catalogue), "web_search": "disabled"}
    write_config(tmp_path, f"{server.base_url}/v1", "tiny", **settings)
    run = run_codex("Say hello.", tmp_path, *SHORTER)
    # Without the catalogue Codex sends instructions of its own, of more than 20,000 tokens.
    assert run.status == 0 and run.usage["input_tokens"] < 12_000, run
    assert "metadata" not in run.errors
