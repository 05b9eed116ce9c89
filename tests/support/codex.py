"""Runs Codex, OpenAI's coding agent, against a server of a test.

It is npm's `@openai/codex`, looked for on PATH and in the folder with `node_modules` that PENSTOCK_TEST_NPM names.
"""

import json
import os
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

NPM_VARIABLE = "PENSTOCK_TEST_NPM"
TIMEOUT = 240.0


@dataclass(frozen=True)
class CodexRun:
    """What one `codex exec` printed."""

    status: int
    events: list[dict[str, Any]]
    """Of `--json`."""
    errors: str

    def items(self, kind: str) -> list[dict[str, Any]]:
        """The completed items of a type, such as agent_message."""
        completed = (event["item"] for event in self.events if event["type"] == "item.completed")
        return [item for item in completed if item["type"] == kind]

    @property
    def usage(self) -> dict[str, int]:
        """Tokens of the turn, which must have completed."""
        (turn,) = [event for event in self.events if event["type"] == "turn.completed"]
        usage: dict[str, int] = turn["usage"]
        return usage


def codex_binary() -> str:
    """Where Codex is; without it the test is skipped."""
    npm = os.environ.get(NPM_VARIABLE)
    found = shutil.which("codex") or (shutil.which("codex", path=f"{npm}/node_modules/.bin") if npm else None)
    if found is None:
        pytest.skip(f"needs npm's @openai/codex on PATH, or in the folder that {NPM_VARIABLE} names")
    return found


def write_config(home: Path, base_url: str, model: str, *, retries: int = 0, **settings: Any) -> None:
    """A CODEX_HOME with a provider that points at the server.

    Args:
        home: the folder.
        base_url: with /v1.
        model: its name.
        retries: of a stream that fails, and of a request.
        settings: more top-level settings.
    """
    lines = [f"{name} = {json.dumps(value)}" for name, value in {"model": model, **settings}.items()]
    lines += ['model_provider = "penstock"', "[model_providers.penstock]", 'name = "penstock"']
    lines += [f"base_url = {json.dumps(base_url)}", 'wire_api = "responses"', f"request_max_retries = {retries}"]
    lines += [f"stream_max_retries = {retries}"]
    (home / "config.toml").write_text("\n".join(lines) + "\n", encoding="utf-8")


def run_codex(prompt: str, home: Path, *arguments: str) -> CodexRun:
    """One turn of `codex exec` in an empty folder, with CODEX_HOME as it is."""
    workplace = home / "workplace"
    workplace.mkdir(exist_ok=True)
    command = [codex_binary(), "exec", "--json", "--skip-git-repo-check", "--ephemeral", *arguments, prompt]
    environment = {name: os.environ[name] for name in ("PATH", "LANG", "TMPDIR") if name in os.environ}
    done = subprocess.run(
        command,
        cwd=workplace,
        env=environment | {"CODEX_HOME": str(home), "HOME": str(home)},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=TIMEOUT,
    )
    events = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
    return CodexRun(done.returncode, events, done.stderr)
