"""Limits of keys over HTTP: which routes count, what a client that reaches one hears, and what headers say."""

import asyncio
import logging
import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx2
import pytest
from anthropic import AsyncAnthropic
from anthropic import RateLimitError as AnthropicRateLimitError
from fake_engine import CHAT, EMBED, Exchange, Front, Script, error, model_ready, open_front, step, until
from openai import AsyncOpenAI, RateLimitError
from starlette.datastructures import Headers

from penstock.scheduler.messages import JobError, RequestOutput, Submit
from penstock.serving.limits.gate import LimitsGate
from penstock.serving.limits.ledger import Ledger
from penstock.serving.limits.standing import DAY, Usage
from penstock.serving.principal import EVERYBODY, Limits, Principal

NOON = 20_000 * DAY + DAY // 2
SECOND = 1_000_000
HI: list[Any] = [{"role": "user", "content": "hi"}]
CALLS: dict[str, dict[str, Any]] = {
    "/v1/chat/completions": {"model": CHAT, "messages": HI, "n": 2},
    "/v1/completions": {"model": CHAT, "prompt": ["hello", "world"], "best_of": 2, "n": 1},
    "/v1/responses": {"model": CHAT, "input": "hi"},
    "/v1/responses/compact": {"model": CHAT, "input": "hi"},
    "/v1/messages": {"model": CHAT, "messages": HI, "max_tokens": 20},
    "/v1/embeddings": {"model": EMBED, "input": ["hello", "world"]},
    "/v1/rerank": {"model": EMBED, "query": "hello", "documents": ["hello", "world"]},
    "/v1/score": {"model": EMBED, "text_1": "hello", "text_2": "world"},
    "/api/v0/chat/completions": {"model": CHAT, "messages": HI},
    "/api/v0/completions": {"model": CHAT, "prompt": "hello"},
    "/api/v0/embeddings": {"model": EMBED, "input": "hello"},
    "/api/v1/chat": {"model": CHAT, "input": "hi"},
}
ALIASES = {"/rerank": "/v1/rerank", "/v2/rerank": "/v1/rerank", "/score": "/v1/score"}


class Clock:
    def __init__(self) -> None:
        self.now = NOON

    def __call__(self) -> int:
        return self.now


@asynccontextmanager
async def open_limited(**limits: int) -> AsyncIterator[tuple[Front, Clock]]:
    """A front all of whose requests come with one key."""
    clock = Clock()
    ada = Principal("ada-id", "ada", limits=Limits(**limits))
    async with open_front(ledger=Ledger(None, clock), identify=lambda headers: ada) as front:
        yield front, clock


async def used(front: Front) -> Usage:
    """What the ledger has been told by now."""
    front.meter._write()
    await asyncio.gather(*front.meter._writing)
    return front.meter._ledger.usage_today().get("ada-id", Usage())


def rate_headers(answer: httpx2.Response) -> dict[str, str]:
    return {name: value for name, value in answer.headers.items() if "ratelimit" in name or "retry" in name}


async def test_requests_per_minute() -> None:
    async with open_limited(requests_per_minute=2) as (front, clock):
        first = await front.chat()
        assert rate_headers(first) == {
            "x-ratelimit-limit-requests": "2",
            "x-ratelimit-remaining-requests": "1",
            "x-ratelimit-reset-requests": "30s",
        }
        assert (await front.embed()).headers["x-ratelimit-remaining-requests"] == "0"
        clock.now += 500_000
        refused = await front.complete()
        message = error(refused, 429, "rate_limit_exceeded", None)
        assert message == (
            "Rate limit reached for key 'ada' on requests per min (RPM): Limit 2, Used 2, Requested 1. "
            "Please try again in 29.5s."
        )
        assert refused.json()["error"]["type"] == "requests"
        assert rate_headers(refused) == {
            "retry-after": "30",
            "retry-after-ms": "29500",
            "x-ratelimit-limit-requests": "2",
            "x-ratelimit-remaining-requests": "0",
            "x-ratelimit-reset-requests": "59.5s",
        }
        assert len(front.engine.jobs) == 2
        clock.now += 29_500_000
        assert (await front.complete()).status_code == 200


async def test_tokens_per_minute_are_those_of_the_usage() -> None:
    async with open_limited(tokens_per_minute=60) as (front, clock):
        answer = await front.chat(stream=False)
        usage = answer.json()["usage"]
        assert (usage["prompt_tokens"], usage["completion_tokens"]) == (21, 3), "what the numbers below are made of"
        assert answer.headers["x-ratelimit-remaining-tokens"] == "36"
        assert answer.headers["x-ratelimit-reset-tokens"] == "24s"
        streamed = await front.chat(stream=True)
        assert streamed.headers["x-ratelimit-remaining-tokens"] == "14", "with the first of the answer's tokens"
        refused = await front.chat(stream=True)
        assert "(TPM): Limit 60, Used 48, Requested 21. Please try again in 9s." in error(
            refused, 429, "rate_limit_exceeded", None
        )
        assert refused.json()["error"]["type"] == "tokens"
        clock.now += 9 * SECOND
        assert (await front.chat()).status_code == 200


async def test_a_day_of_tokens() -> None:
    async with open_limited(tokens_per_minute=1000, tokens_per_day=50) as (front, clock):
        answer = await front.chat()
        assert answer.headers["x-ratelimit-limit-tokens"] == "50"
        assert answer.headers["x-ratelimit-remaining-tokens"] == "26"
        assert answer.headers["x-ratelimit-reset-tokens"] == "12h0m0s"
        assert (await front.chat()).status_code == 200
        refused = await front.chat()
        assert "(TPD): Limit 50, Used 48, Requested 21. Please try again in 43200s." in error(
            refused, 429, "rate_limit_exceeded", None
        )
        assert refused.headers["retry-after"] == "43200" and refused.headers["x-should-retry"] == "false"
        clock.now += DAY // 2
        assert (await front.chat()).status_code == 200


async def test_a_prompt_above_the_limit_is_told_that_it_can_never_pass() -> None:
    async with open_limited(tokens_per_minute=20) as (front, _):
        refused = await front.chat()
        message = error(refused, 429, "rate_limit_exceeded", None)
        assert "too large for key 'ada' on tokens per min (TPM): Limit 20, Requested 21. It can never" in message
        assert refused.headers["x-should-retry"] == "false" and "retry-after" not in refused.headers
        assert not front.engine.jobs and (await front.complete()).status_code == 200


async def test_the_calls_below_are_all_routes_that_call_models() -> None:
    async with open_front() as front:
        (gate,) = (middleware for middleware in front.app.user_middleware if middleware.cls is LimitsGate)
        limited = set(gate.kwargs["paths"])  # type: ignore[call-overload]
        assert limited == CALLS.keys() | ALIASES.keys()


@pytest.mark.parametrize("path", [*CALLS, *ALIASES])
async def test_every_route_counts_and_refuses_in_its_protocols_form(path: str) -> None:
    body = CALLS[ALIASES.get(path, path)]
    async with open_limited(requests_per_minute=1, tokens_per_minute=10_000) as (front, _):
        front.engine.models[CHAT] = model_ready(CHAT, max_model_len=1000)  # for what asks for a summary
        answer = await front.post(path, body)
        assert answer.status_code == 200, answer.text
        assert answer.headers["x-ratelimit-remaining-requests"] == "0"
        usage = await used(front)
        counted = answer.json().get("usage") or answer.json().get("stats") or {}
        of_prompt = {
            counted.get("prompt_tokens"),
            counted.get("input_tokens", 0) + counted.get("cache_read_input_tokens", 0),
        }
        of_output = {counted.get(name, 0) for name in ("completion_tokens", "output_tokens", "total_output_tokens")}
        assert usage.num_requests == 1 and usage.num_prompt_tokens in of_prompt
        if path != "/v1/completions":  # whose usage tells of the best choices and of the others too
            assert usage.num_output_tokens in of_output
        refused = await front.post(path, body)
        assert refused.status_code == 429 and refused.headers["retry-after"] == "60", refused.text
        failure = refused.json()["error"]
        assert failure["message"].endswith("Requested 1. Please try again in 60s.")
        if path == "/v1/messages":
            assert failure["type"] == "rate_limit_error"
            assert refused.headers["anthropic-ratelimit-requests-limit"] == "1"
            assert refused.headers["anthropic-ratelimit-requests-remaining"] == "0"
            assert refused.headers["anthropic-ratelimit-requests-reset"] == "2024-10-04T12:01:00Z"
            assert refused.headers["anthropic-ratelimit-tokens-limit"] == "10000"
        elif path == "/api/v1/chat":
            assert failure["type"] == failure["code"] == "rate_limit_exceeded"
        else:
            assert (failure["type"], failure["code"]) == ("requests", "rate_limit_exceeded")
        assert (await used(front)).num_requests == 1


async def test_what_calls_no_model_is_free() -> None:
    async with open_limited(requests_per_minute=1) as (front, _):
        for _ in range(3):
            assert (await front.http.get("/v1/models")).status_code == 200
            counted = await front.post("/v1/messages/count_tokens", {"model": CHAT, "messages": HI})
            assert counted.status_code == 200 and not rate_headers(counted)
        assert (await front.chat()).status_code == 200


async def test_requests_in_flight() -> None:
    async with open_limited(max_in_flight=2) as (front, _):
        go_on = hold_back(front)
        running = [asyncio.create_task(front.chat()) for _ in range(2)]
        await until(lambda: len(front.engine.jobs) == 2)
        refused = await front.chat()
        assert "requests in flight: Limit 2, Used 2, Requested 1. Please try again in 1s." in error(
            refused, 429, "rate_limit_exceeded", None
        )
        assert rate_headers(refused) == {"retry-after": "1", "retry-after-ms": "1000"}
        go_on.set()
        assert [answer.status_code for answer in await asyncio.gather(*running)] == [200, 200]
        assert (await front.chat()).status_code == 200


async def test_a_client_that_leaves_and_a_request_that_fails_give_their_places_back() -> None:
    async with open_limited(max_in_flight=1) as (front, _):
        go_on = hold_back(front)
        exchange = Exchange(front.app, "/v1/chat/completions", {"model": CHAT, "messages": HI})
        await until(lambda: len(front.engine.jobs) == 1)
        exchange.disconnect()
        await exchange.task
        assert (await front.chat(model="nobody")).status_code == 404
        go_on.set()
        assert (await front.chat()).status_code == 200


async def test_a_client_that_leaves_before_it_is_let_in_has_used_nothing() -> None:
    async with open_limited(max_in_flight=1, tokens_per_minute=60) as (front, _):
        ledger = front.meter._ledger
        loop = asyncio.get_running_loop()
        for name in ("enter", "admit"):
            patched, go_on, asking = getattr(ledger, name), threading.Event(), asyncio.Event()

            def held(*arguments: Any, patched: Any = patched, go_on: Any = go_on, asking: Any = asking) -> Any:
                loop.call_soon_threadsafe(asking.set)
                go_on.wait(5)
                return patched(*arguments)

            setattr(ledger, name, held)
            exchange = Exchange(front.app, "/v1/chat/completions", {"model": CHAT, "messages": HI})
            await asking.wait()
            exchange.task.cancel()
            await asyncio.gather(exchange.task, return_exceptions=True)
            go_on.set()
            setattr(ledger, name, patched)
            await until(lambda: ledger._places.get("ada-id") == 0)
        assert not front.engine.jobs
        answer = await front.chat()
        assert answer.status_code == 200 and answer.headers["x-ratelimit-remaining-tokens"] == "36"


async def test_those_refused_together_are_to_come_back_one_after_another() -> None:
    async with open_limited(requests_per_minute=6) as (front, clock):
        assert [(await front.chat()).status_code for _ in range(6)] == [200] * 6
        waits = [(await front.chat()).headers["retry-after"] for _ in range(9)]
        assert waits == ["10", "20", "30", "40", "50", "60", "70", "70", "70"]
        for _ in range(7):
            clock.now += 10 * SECOND
            assert (await front.chat()).status_code == 200
        metrics = front.app_metrics()
        assert 'penstock_refused_requests_total{reason="requests_per_minute"} 9.0' in metrics


async def test_a_background_response_is_in_flight_until_it_is_finished() -> None:
    async with open_limited(max_in_flight=1) as (front, _):
        go_on = hold_back(front)
        begun = await front.post("/v1/responses", {"model": CHAT, "input": "hi", "background": True})
        assert begun.status_code == 200
        assert (await front.chat()).status_code == 429
        go_on.set()
        run = front.runs.find("ada-id", begun.json()["id"])
        assert run is not None
        await run.result()
        assert (await front.chat()).status_code == 200


def hold_back(front: Front) -> asyncio.Event:
    """Let no job end before the event that is returned is set."""
    go_on = asyncio.Event()

    async def play(job: Submit) -> None:
        await go_on.wait()
        for output in front.engine.script(job):
            assert isinstance(output, RequestOutput)
            front.engine._deliver(step(outputs=[output]))

    front.engine._play = play  # type: ignore[method-assign]
    return go_on


async def test_what_the_worker_refuses_is_given_back() -> None:
    async with open_limited(tokens_per_minute=60) as (front, _):

        def refuse(job: Submit) -> Script:
            failure = JobError("The queue is full.", "rate_limit_exceeded", status=429, retry_after=2.25)
            return [RequestOutput(job.request_id, [], finish_reason="error", error=failure)]

        front.engine.script = refuse
        front.engine.embed_error = JobError("The queue is full.", "rate_limit_exceeded", status=429)
        for _ in range(4):
            refused = await front.chat()
            error(refused, 429, "rate_limit_exceeded", None)
            assert refused.headers["retry-after"] == "3" and refused.headers["retry-after-ms"] == "2250"
            assert refused.headers["x-ratelimit-remaining-tokens"] == "60"
            assert (await front.embed()).status_code == 429
        assert (await used(front)).num_tokens == 0


async def test_the_openai_client_gets_through_by_itself() -> None:
    ada = Principal("ada-id", "ada", limits=Limits(requests_per_minute=600))
    clock = Clock()
    async with open_front(ledger=Ledger(None, clock), identify=lambda headers: ada) as front:
        front.meter._ledger.charge({ada: Usage(num_requests=600)})
        refusals = 0

        async def pass_time(response: httpx2.Response) -> None:
            nonlocal refusals
            refusals += response.status_code == 429
            clock.now += round(float(response.headers.get("retry-after-ms", "0")) * 1000)

        front.http.event_hooks["response"].append(pass_time)
        client = AsyncOpenAI(api_key="key", base_url="http://front/v1", http_client=front.http, max_retries=2)
        answer = await client.chat.completions.create(model=CHAT, messages=HI)
        assert answer.choices[0].message.content == "hello world" and refusals == 1
        with pytest.raises(RateLimitError) as caught:
            await client.with_options(max_retries=0).embeddings.create(model=EMBED, input="hello")
        assert caught.value.type == "requests" and caught.value.code == "rate_limit_exceeded"


async def test_the_anthropic_client_knows_the_error() -> None:
    async with open_limited(requests_per_minute=1) as (front, _):
        client = AsyncAnthropic(api_key="key", base_url="http://front", http_client=front.http, max_retries=0)
        await client.messages.create(model=CHAT, messages=HI, max_tokens=5)
        with pytest.raises(AnthropicRateLimitError, match="requests per min"):
            async with client.messages.stream(model=CHAT, messages=HI, max_tokens=5):
                pass


async def test_only_keys_are_counted_and_those_without_limits_hear_nothing_of_it() -> None:
    names = {"a": Principal("ada-id", "ada"), "": EVERYBODY}

    def identify(headers: Headers) -> Principal:
        return names[headers.get("x-api-key", "")]

    async with open_front(identify=identify) as front:
        assert not rate_headers(await front.chat())
        answer = await front.http.post(
            "/v1/chat/completions", json=CALLS["/v1/chat/completions"], headers={"x-api-key": "a"}
        )
        assert answer.status_code == 200 and not rate_headers(answer)
        assert await used(front) == Usage(1, 21, 6)
        assert front.meter._ledger.usage_today().keys() == {"ada-id"}


async def test_changed_limits_hold_at_once() -> None:
    ada = Principal("ada-id", "ada", limits=Limits(requests_per_minute=1))
    async with open_front(identify=lambda headers: ada) as front:
        assert (await front.chat()).status_code == 200 and (await front.chat()).status_code == 429
        ada = replace(ada, limits=Limits(requests_per_minute=5))
        assert (await front.chat()).headers["x-ratelimit-limit-requests"] == "5"
        ada = replace(ada, limits=Limits())
        assert not rate_headers(await front.chat())


async def test_a_ledger_that_cannot_be_used_stops_nobody(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "limits").write_text("in the way")
    ada = Principal("ada-id", "ada", limits=Limits(1, 1, 1, 1))
    async with open_front(ledger=Ledger(tmp_path / "limits"), identify=lambda headers: ada) as front:
        for _ in range(3):
            assert (await front.chat()).status_code == 200
    complaints = [record for record in caplog.records if record.levelno == logging.ERROR]
    assert len(complaints) == 1 and "limits of keys are not kept" in complaints[0].getMessage()
