"""One real server for all end-to-end tests: both starter models in fp32, so that answers can be compared exactly."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from openai import OpenAI
from server_process import ServerProcess
from starter_models import minilm_folder, smollm2_folder


@pytest.fixture(scope="session")
def starter_home() -> Path:
    """A PENSTOCK_HOME that holds both starter models."""
    smollm2_folder()
    return minilm_folder().parents[1]


@pytest.fixture(scope="session")
def server(starter_home: Path) -> Iterator[ServerProcess]:
    """Both starter models on a free port."""
    with ServerProcess([], home=starter_home, arguments=["--dtype", "float32"]) as process:
        yield process


@pytest.fixture(scope="session")
def client(server: ServerProcess) -> Iterator[OpenAI]:
    """The official client, which checks every answer's shape and retries nothing."""
    with OpenAI(
        base_url=f"{server.base_url}/v1", api_key="none", max_retries=0, _strict_response_validation=True
    ) as client:
        yield client
