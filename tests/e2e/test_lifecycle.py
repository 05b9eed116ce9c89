"""Starting without a network, ending on a signal, and being idle."""

import os
import signal
import time
from pathlib import Path

import httpx2
import psutil
import pytest
from server_process import ServerProcess
from tiny_models import make_tiny, make_tiny_tokenizer


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models") / "tiny"
    make_tiny("llama", folder)
    return make_tiny_tokenizer(folder)


@pytest.fixture
def tiny_server(tiny: Path, tmp_path: Path):  # type: ignore[no-untyped-def]
    with ServerProcess([str(tiny)], home=tmp_path) as process:
        yield process


def test_the_starter_models_start_again_without_a_network(starter_home: Path) -> None:
    def state() -> dict[Path, int]:
        return {path: path.stat().st_mtime_ns for path in (starter_home / "models").rglob("*")}

    before = state()
    nowhere = dict.fromkeys(("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY"), "http://127.0.0.1:9")
    nowhere |= {name.lower(): proxy for name, proxy in nowhere.items()}
    offline = nowhere | {"NO_PROXY": "", "no_proxy": "", "PIP_NO_INDEX": "1"}
    with ServerProcess([], home=starter_home, environment=offline) as process:
        for path, body in [
            ("chat/completions", {"model": "smollm2-135m-instruct", "messages": [{"role": "user", "content": "Hi"}]}),
            ("embeddings", {"model": "all-minilm-l6-v2", "input": "x"}),
        ]:
            limit = {"max_tokens": 3} if "messages" in body else {}
            answer = httpx2.post(f"{process.base_url}/v1/{path}", json=body | limit, timeout=60, trust_env=False)
            assert answer.status_code == 200, answer.text
    assert before and state() == before


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
    body = {"model": "tiny", "prompt": "water", "max_tokens": 4}
    assert httpx2.post(f"{tiny_server.base_url}/v1/completions", json=body, timeout=60).status_code == 200
    processes = [psutil.Process(tiny_server.pid), psutil.Process(tiny_server.worker_pid)]
    time.sleep(0.5)
    before = sum(sum(process.cpu_times()[:2]) for process in processes)
    time.sleep(2)
    assert sum(sum(process.cpu_times()[:2]) for process in processes) - before <= 0.06
