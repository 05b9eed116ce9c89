"""The JavaScript clients of the OpenAI protocol: npm's openai and Vercel's AI SDK, each doing a real run."""

import json
import os
import shutil
import subprocess
from pathlib import Path

import pytest
from server_process import ServerProcess

CHECKS = Path(__file__).parent / "js" / "clients.mjs"
NPM = os.environ.get("PENSTOCK_TEST_NPM", "")

pytestmark = pytest.mark.skipif(
    not NPM or shutil.which("node") is None,
    reason="needs node, and PENSTOCK_TEST_NPM: a folder whose node_modules hold openai, ai, @ai-sdk/openai, "
    "@ai-sdk/openai-compatible and zod",
)


def test_every_check_of_the_javascript_clients(server: ServerProcess) -> None:
    command = ["node", str(CHECKS), f"{server.base_url}/v1", "smollm2-135m-instruct", "all-minilm-l6-v2"]
    result = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    checks = [json.loads(line) for line in result.stdout.splitlines() if line.startswith("{")]
    assert len(checks) == 23, result.stdout + result.stderr
    failed = [f"{check['name']}: {check['error']}" for check in checks if check["error"]]
    assert not failed, "\n\n".join(failed)
