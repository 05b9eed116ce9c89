"""Sixty-four clients at once, seven of whom leave: all others get exactly the answer that they get alone."""

import asyncio
import random
import re
from dataclasses import dataclass
from typing import Any

import httpx2
from openai import AsyncOpenAI
from server_process import ServerProcess

CHAT = "smollm2-135m-instruct"
TOPICS = ["rivers", "trains", "tea", "the moon", "bread", "chess", "Iceland", "wool"]


NUM_CLIENTS, NUM_LEAVERS = 64, 7


@dataclass(frozen=True)
class Job:
    """One client's request."""

    number: int
    stream: bool
    leaves: bool
    max_tokens: int

    @property
    def arguments(self) -> dict[str, Any]:
        """What the client asks for; those who leave ask for more than they could ever wait for."""
        padding = "Please be kind. " * (self.number % 5)
        content = f"{padding}Write {self.number} words about {TOPICS[self.number % len(TOPICS)]}."
        return {
            "model": CHAT,
            "messages": [{"role": "user", "content": content}],
            "max_tokens": 5000 if self.leaves else self.max_tokens,
            "temperature": 0,
            "extra_body": {"ignore_eos": self.leaves},
        }


Answer = tuple[str, str, int]
"""Text, finish reason, completion tokens."""


def make_jobs() -> list[Job]:
    rng = random.Random(64)
    leavers = set(rng.sample(range(NUM_CLIENTS), NUM_LEAVERS))
    jobs = [Job(number, number % 2 == 0, number in leavers, rng.randint(3, 12)) for number in range(NUM_CLIENTS)]
    assert {job.stream for job in jobs if job.leaves} == {True, False}
    return jobs


async def ask(client: AsyncOpenAI, job: Job) -> Answer:
    if not job.stream:
        answer = await client.chat.completions.create(**job.arguments)
        return answer.choices[0].message.content, answer.choices[0].finish_reason, answer.usage.completion_tokens
    text, finish_reason, num_tokens = "", "", 0
    async with await client.chat.completions.create(
        **job.arguments, stream=True, stream_options={"include_usage": True}
    ) as stream:
        async for chunk in stream:
            if chunk.choices:
                text += chunk.choices[0].delta.content or ""
                finish_reason = chunk.choices[0].finish_reason or finish_reason
            if chunk.usage:
                num_tokens = chunk.usage.completion_tokens
    return text, finish_reason, num_tokens


async def ask_and_leave(client: AsyncOpenAI, job: Job, server: ServerProcess) -> None:
    """A stream is left at its first text, an answer while requests are running."""
    if job.stream:
        async with await client.chat.completions.create(**job.arguments, stream=True) as stream:
            async for chunk in stream:
                if chunk.choices[0].delta.content:
                    return
        raise AssertionError("the stream ended without text")
    waiting = asyncio.create_task(client.chat.completions.create(**job.arguments))
    while await asyncio.to_thread(metric, server, "vllm:num_requests_running") == 0:
        assert not waiting.done(), waiting.result()
        await asyncio.sleep(0.05)
    assert waiting.cancel()


def metric(server: ServerProcess, name: str) -> float:
    """The sum of a metric over its labels."""
    text = httpx2.get(f"{server.base_url}/metrics").text
    values = re.findall(rf"^{re.escape(name)}(?:{{[^}}]*}})? (\S+)$", text, re.MULTILINE)
    assert values, f"no metric {name}"
    return sum(map(float, values))


async def test_every_answer_is_the_one_they_get_alone(server: ServerProcess) -> None:
    jobs = make_jobs()
    stayers = [job for job in jobs if not job.leaves]
    async with AsyncOpenAI(
        base_url=f"{server.base_url}/v1",
        api_key="none",
        max_retries=0,
        timeout=240,
        http_client=httpx2.AsyncClient(limits=httpx2.Limits(max_connections=100), timeout=240),
    ) as client:
        together = await asyncio.gather(
            *(ask_and_leave(client, job, server) if job.leaves else ask(client, job) for job in jobs)
        )
        for job in stayers:
            assert together[job.number] == await ask(client, job)
    for name in ("vllm:num_requests_running", "vllm:num_requests_waiting", "vllm:kv_cache_usage_perc"):
        async with asyncio.timeout(30):
            while metric(server, name) > 0:
                await asyncio.sleep(0.1)
