"""A text turn of Codex against a real server, with a model of random weights: small, and long enough for its prompt."""

import json
from pathlib import Path

import httpx2
from codex import codex_binary, run_codex, write_config
from server_process import ServerProcess
from tiny_models import VOCAB_SIZE, make_tiny, make_tiny_tokenizer

MAX_LENGTH = 32_768
END_IDS = list(range(300, VOCAB_SIZE))  # so many that a random answer soon ends


def test_a_text_turn(tmp_path: Path) -> None:
    codex_binary()
    model = tmp_path / "tiny"
    make_tiny_tokenizer(make_tiny("llama", model, max_position_embeddings=MAX_LENGTH))
    generation = {"eos_token_id": END_IDS}
    (model / "generation_config.json").write_text(json.dumps(generation), encoding="utf-8")
    home = tmp_path / "codex"
    home.mkdir()
    instructions = home / "instructions.md"
    instructions.write_text("Answer in a few words.", encoding="utf-8")
    with ServerProcess([str(model)], home=tmp_path) as server:
        settings = {"model_instructions_file": str(instructions), "web_search": "disabled"}
        write_config(home, f"{server.base_url}/v1", "tiny", **settings)
        for turn in range(2):
            run = run_codex("Say hello.", home, "--disable", "multi_agent", "--disable", "goals")
            assert run.status == 0, run
            assert run.usage["input_tokens"] > 1000 and 0 < run.usage["output_tokens"] < 1000
            assert (run.usage["cached_input_tokens"] > 0) == (turn > 0)


def test_the_servers_list_of_models_is_a_catalogue(tmp_path: Path) -> None:
    codex_binary()
    model = make_tiny_tokenizer(make_tiny("llama", tmp_path / "tiny", max_position_embeddings=MAX_LENGTH))
    # A catalogue brings a tool with a grammar, for which end tokens must be tokens of the tokenizer.
    (model / "generation_config.json").write_text(json.dumps({"eos_token_id": END_IDS[:16]}), encoding="utf-8")
    home = tmp_path / "codex"
    home.mkdir()
    catalogue = home / "models.json"
    with ServerProcess([str(model)], home=tmp_path) as server:
        catalogue.write_bytes(httpx2.get(f"{server.base_url}/v1/models").content)
        settings = {"model_catalog_json": str(catalogue), "web_search": "disabled"}
        write_config(home, f"{server.base_url}/v1", "tiny", **settings)
        run = run_codex("Say hello.", home, "--disable", "multi_agent", "--disable", "goals")
        # Without the catalogue Codex sends instructions of its own, of more than 20,000 tokens.
        assert run.status == 0 and run.usage["input_tokens"] < 12_000, run
        assert "metadata" not in run.errors
