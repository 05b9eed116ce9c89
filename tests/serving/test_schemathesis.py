"""The server keeps to its own description, whatever is sent: schemathesis makes requests of /openapi.json."""

import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import uvicorn
from fake_engine import CHAT, EMBED, Front

CHECKS = (
    "not_a_server_error",
    "status_code_conformance",
    "content_type_conformance",
    "response_schema_conformance",
    "negative_data_rejection",
)
CONFIGURATION = """
[checks.negative_data_rejection]
expected-statuses = ["4xx"]
"""
LEFT_OUT = "^(/api/v0/|/v2/|/(rerank|score|tokenize|detokenize)$|/api/v1/models/download)"
"""The same routes under other paths, and the one that asks other servers."""
SECONDS = 20


@pytest.fixture
def base_url() -> Iterator[str]:
    """The application over a scripted engine, where any name of a model will do."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        front = Front()
        front.registry._defaults = {"generate": CHAT, "embed": EMBED}
        server = uvicorn.Server(uvicorn.Config(front.app, log_level="critical", http="httptools", lifespan="off"))
        thread = threading.Thread(target=server.run, args=([listener],))
        thread.start()
        while not server.started:
            time.sleep(0.01)
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
        server.should_exit = True
        thread.join()


def test_answers_are_as_described_whatever_is_sent(base_url: str, tmp_path: Path) -> None:
    (tmp_path / "schemathesis.toml").write_text(CONFIGURATION)
    command = [sys.executable, "-m", "schemathesis.cli", "run", f"{base_url}/openapi.json"]
    command += ["--checks", ",".join(CHECKS), "--phases", "fuzzing", "--exclude-path-regex", LEFT_OUT]
    command += ["--max-examples", "8", "--max-time", str(SECONDS), "--seed", "1", "--generation-database", "none"]
    command += ["--continue-on-failure", "--suppress-health-check", "all", "--no-color", "--warnings", "off"]
    done = subprocess.run(
        command, cwd=tmp_path, env=os.environ | {"COLUMNS": "120"}, capture_output=True, text=True, check=False
    )
    report = "\n".join(line[:500] for line in done.stdout.splitlines())
    assert done.returncode == 0, report + done.stderr[-2000:]
    assert "/v1/" not in done.stderr and " generated" in report
