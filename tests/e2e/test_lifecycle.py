"""Starting without a network, losing the worker, ending on a signal."""

import os
import signal
import threading
import time
from pathlib import Path

import httpx2
import psutil
import pytest
from server_process import ServerProcess
from tiny_models import make_tiny, make_tiny_tokenizer

BODY = {"model": "tiny", "prompt": "water", "max_tokens": 400, "ignore_eos": True}


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models") / "tiny"
    make_tiny("llama", folder)
    return make_tiny_tokenizer(folder)


@pytest.fixture
def tiny_server(tiny: Path, tmp_path: Path):  # type: ignore[no-untyped-def]
    with ServerProcess([str(tiny)], home=tmp_path) as process:
        yield process


def test_the_starter_models_start_again_without_a_network(starter_home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "http_proxy", "https_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    with ServerProcess(["all-minilm-l6-v2"], home=starter_home) as process:
        answer = httpx2.post(
            f"{process.base_url}/v1/embeddings", json={"model": "all-minilm-l6-v2", "input": "x"}, trust_env=False
        )
        assert answer.status_code == 200


def test_a_dead_worker_is_a_clear_503_at_once(tiny_server: ServerProcess) -> None:
    answers: list[httpx2.Response] = []
    thread = threading.Thread(
        target=lambda: answers.append(httpx2.post(f"{tiny_server.base_url}/v1/completions", json=BODY, timeout=30))
    )
    thread.start()
    time.sleep(0.3)
    os.kill(tiny_server.worker_pid, signal.SIGKILL)
    thread.join(5)
    for _ in range(20):
        later = httpx2.post(f"{tiny_server.base_url}/v1/completions", json={**BODY, "max_tokens": 1})
        if later.status_code == 503:
            break
        time.sleep(0.1)
    assert later.status_code == 503
    assert later.json()["error"]["code"] == "engine_dead"
    assert httpx2.get(f"{tiny_server.base_url}/health").status_code == 503
    assert answers and answers[0].status_code in (200, 503)  # 200: it was done before the kill


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_it_ends_in_order_on_a_signal(tiny: Path, tmp_path: Path, number: int) -> None:
    with ServerProcess([str(tiny)], home=tmp_path) as process:
        worker = psutil.Process(process.worker_pid)
        os.kill(process.pid, number)
        assert process.process.wait(15) == 0
        assert not worker.is_running()


def test_the_worker_ends_when_the_front_is_killed(tiny: Path, tmp_path: Path) -> None:
    with ServerProcess([str(tiny)], home=tmp_path) as process:
        worker = psutil.Process(process.worker_pid)
        os.kill(process.pid, signal.SIGKILL)
        psutil.wait_procs([worker], timeout=10)
        assert not worker.is_running() or worker.status() == psutil.STATUS_ZOMBIE


def test_without_work_it_uses_no_processor_time(tiny_server: ServerProcess) -> None:
    httpx2.post(f"{tiny_server.base_url}/v1/completions", json={**BODY, "max_tokens": 4})
    processes = [psutil.Process(tiny_server.pid), psutil.Process(tiny_server.worker_pid)]
    time.sleep(0.5)
    before = sum(sum(process.cpu_times()[:2]) for process in processes)
    time.sleep(2)
    assert sum(sum(process.cpu_times()[:2]) for process in processes) - before <= 0.06
