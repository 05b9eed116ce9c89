"""Runs coding agents as npm has them, from the folder that PENSTOCK_TEST_NPM names."""

import os
import subprocess
from pathlib import Path

import pytest

NPM = Path(os.environ.get("PENSTOCK_TEST_NPM", ""))

needs_npm = pytest.mark.skipif(
    not (NPM / "node_modules").is_dir(),
    reason="needs PENSTOCK_TEST_NPM: a folder whose node_modules hold @anthropic-ai/claude-code, opencode-ai and "
    "@continuedev/cli",
)


def run_agent(command: str, *arguments: str, home: Path, **variables: str) -> str:
    """What an agent prints; it finds its settings in `home` only, and works there."""
    kept = {name: value for name, value in os.environ.items() if name in ("PATH", "LANG", "TMPDIR")}
    folders = {
        name: str(home) for name in ("HOME", "XDG_CONFIG_HOME", "XDG_DATA_HOME", "XDG_CACHE_HOME", "XDG_STATE_HOME")
    }
    result = subprocess.run(
        [str(NPM / "node_modules" / ".bin" / command), *arguments],
        cwd=home,
        env=kept | folders | {"NO_COLOR": "1"} | variables,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=180,
        check=False,
    )
    assert result.returncode == 0, result.stdout + result.stderr
    return result.stdout


def run_claude(prompt: str, *arguments: str, home: Path, base_url: str, model: str) -> str:
    """What Claude Code prints; `base_url` is without /v1."""
    return run_agent(
        "claude",
        *("-p", prompt, "--model", model, "--output-format", "json", *arguments),
        home=home,
        ANTHROPIC_BASE_URL=base_url,
        ANTHROPIC_AUTH_TOKEN="none",
        CLAUDE_CODE_DISABLE_NONESSENTIAL_TRAFFIC="1",
    )
