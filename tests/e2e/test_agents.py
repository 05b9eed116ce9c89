"""Coding agents as their makers ship them, each completing a turn against a real server.

Their prompts have up to twenty thousand tokens, more than the starter model takes, so a model with a long context
and few weights answers them. What it says is fixed, so the agents must show exactly that.
"""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from npm_agents import needs_npm, run_agent, run_claude
from server_process import ServerProcess
from starter_models import smollm2_folder
from tiny_models import make_parrot

SAID = "Hello there."
MODEL = "parrot"

pytestmark = needs_npm


@pytest.fixture(scope="module")
def parrot(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    """A server whose model always says SAID."""
    folder = make_parrot(tmp_path_factory.mktemp("models") / MODEL, smollm2_folder(), SAID, max_length=65_536)
    home = tmp_path_factory.mktemp("home")
    with ServerProcess([str(folder)], home=home, arguments=["--kv-cache-memory", "256MiB"]) as process:
        yield process


def test_claude_code(parrot: ServerProcess, tmp_path: Path) -> None:
    printed = run_claude("hi", home=tmp_path, base_url=parrot.base_url, model=MODEL)
    result = json.loads(printed)
    assert result["result"] == SAID and not result["is_error"]
    assert result["usage"]["output_tokens"] > 0


def test_opencode(parrot: ServerProcess, tmp_path: Path) -> None:
    provider = {
        "npm": "@ai-sdk/openai-compatible",
        "options": {"baseURL": f"{parrot.base_url}/v1", "apiKey": "none"},
        "models": {MODEL: {"name": MODEL, "limit": {"context": 65_536, "output": 8_192}}},
    }
    settings = {
        "provider": {"penstock": provider},
        "model": f"penstock/{MODEL}",
        "autoupdate": False,
        "share": "disabled",
    }
    (tmp_path / "opencode.json").write_text(json.dumps(settings))
    assert SAID in run_agent("opencode", "run", "hi", home=tmp_path)


def test_continue(parrot: ServerProcess, tmp_path: Path) -> None:
    config = tmp_path / "config.yaml"
    config.write_text(
        "name: test\nversion: 1.0.0\nschema: v1\nmodels:\n"
        f"  - {{name: {MODEL}, provider: openai, model: {MODEL}, apiBase: '{parrot.base_url}/v1', apiKey: none}}\n"
    )
    printed = run_agent("cn", "-p", "hi", "--config", str(config), home=tmp_path, CONTINUE_GLOBAL_DIR=str(tmp_path))
    assert SAID in printed
