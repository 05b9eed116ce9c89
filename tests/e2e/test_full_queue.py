"""A real server with hardly any room: clients of a full queue are told when to come back, and are served then."""

import asyncio
import re
from collections.abc import Iterator

import httpx2
import pytest
from openai import APIError, AsyncOpenAI, InternalServerError, RateLimitError
from server_process import ServerProcess
from tiny_models import make_tiny, make_tiny_tokenizer

ENDLESS = {"model": "tiny", "prompt": "water", "max_tokens": 60_000, "extra_body": {"ignore_eos": True}}
SHORT = {"model": "tiny", "prompt": "water", "max_tokens": 3}


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    home = tmp_path_factory.mktemp("home")
    folder = make_tiny_tokenizer(make_tiny("llama", home / "tiny", max_position_embeddings=1 << 17))
    limits = ["--max-num-seqs", "1", "--max-waiting-requests", "1", "--queue-timeout", "0.5", "--request-timeout", "3"]
    arguments = ["--dtype", "float32", "--num-threads", "1", "--kv-cache-memory", "256MiB", *limits]
    with ServerProcess([str(folder)], home=home, arguments=arguments) as server:
        yield server


def client_of(server: ServerProcess, max_retries: int = 0) -> AsyncOpenAI:
    return AsyncOpenAI(base_url=f"{server.base_url}/v1", api_key="none", max_retries=max_retries)


async def test_one_runs_one_waits_and_the_others_come_back_later(server: ServerProcess) -> None:
    async with client_of(server) as client, client_of(server, max_retries=8) as patient:
        refused: list[RateLimitError] = []
        late: list[InternalServerError] = []
        while not (refused and late):  # on a busy machine the endless one may end before the others have come
            running = await client.completions.create(**ENDLESS, stream=True)
            await anext(running)
            for outcome in await asyncio.gather(
                *(client.completions.create(**SHORT) for _ in range(4)), return_exceptions=True
            ):
                refused += [outcome] if isinstance(outcome, RateLimitError) else []
                late += [outcome] if isinstance(outcome, InternalServerError) else []
            served_later = asyncio.create_task(patient.completions.create(**SHORT))
            with pytest.raises(APIError, match="not complete within 3 s") as ended:
                async for _ in running:
                    pass
            assert ended.value.code == "request_timeout"
            assert (await served_later).choices[0].finish_reason == "length"
    assert {(error.status_code, error.code) for error in refused} == {(429, "rate_limit_exceeded")}
    assert "requests wait of at most 1" in refused[0].message
    assert {(error.status_code, error.code) for error in late} == {(503, "queue_timeout")}
    for error in [*refused, *late]:
        assert 1 <= int(error.response.headers["retry-after"]) <= 60
    metrics = httpx2.get(f"{server.base_url}/metrics").text
    for reason in ("requests", "queue_timeout", "request_timeout"):
        assert re.search(rf'^penstock_refused_jobs_total\{{model_name="tiny",reason="{reason}"\}} [1-9]', metrics, re.M)
    assert re.search(r'^penstock_waiting_tokens\{model_name="tiny"\} 0.0$', metrics, re.M)
    assert re.search(r'^vllm:kv_cache_usage_perc\{model_name="tiny"\} 0.0$', metrics, re.M)


async def test_an_answer_that_takes_too_long_is_not_asked_for_again(server: ServerProcess) -> None:
    async with client_of(server, max_retries=2) as client:
        with pytest.raises(InternalServerError, match="not complete within 3 s") as ended:
            await client.completions.create(**ENDLESS)
        assert (ended.value.status_code, ended.value.code) == (504, "request_timeout")


async def test_all_choices_of_a_request_are_let_in_or_none(server: ServerProcess) -> None:
    async with client_of(server, max_retries=8) as client:
        answer = await client.completions.create(**SHORT, n=3)
        assert len(answer.choices) == 3
