"""`penstock bench` against the real server: every endpoint answered, results and plot written, two runs compared."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from server_process import ServerProcess

BENCH = [sys.executable, "-m", "penstock.serving.cli", "bench"]
LOAD = ["--concurrency", "4", "--num-requests", "8", "--input-len", "12", "--output-len", "5", "--batch-size", "3"]


@pytest.mark.parametrize(
    ("endpoint", "model"),
    [("chat", "smollm2-135m-instruct"), ("completions", "smollm2-135m-instruct"), ("embeddings", "all-minilm-l6-v2")],
)
def test_every_request_is_answered_and_the_result_written(
    server: ServerProcess, tmp_path: Path, endpoint: str, model: str
) -> None:
    result, plot = tmp_path / "result.json", tmp_path / "plot.png"
    command = [*BENCH, "--url", server.base_url, "--model", model, "--endpoint", endpoint, *LOAD]
    subprocess.run([*command, "--json", result, "--plot", plot], check=True, capture_output=True)
    total = json.loads(result.read_text())["total"]
    assert (total["num_requests"], total["num_failed"], total["num_without_usage"]) == (8, 0, 0)
    if endpoint == "embeddings":
        assert total["sum_texts"] == 8 * 3
    else:
        assert total["sum_output_tokens"] == 8 * 5
    assert plot.read_bytes().startswith(b"\x89PNG")
    compared = subprocess.run([*BENCH, "--compare", result, result], check=True, capture_output=True, text=True)
    assert "1.00" in compared.stdout
