"""Sixty-four clients at once, some of whom leave: everybody else gets exactly the answer they get alone."""

import asyncio
import random
import re
from dataclasses import dataclass

import httpx2
from openai import AsyncOpenAI
from server_process import ServerProcess

CHAT = "smollm2-135m-instruct"
TOPICS = ["rivers", "trains", "tea", "the moon", "bread", "chess", "Iceland", "wool"]


@dataclass(frozen=True)
class Job:
    """One client's request."""

    number: int
    stream: bool
    leaves: bool
    max_tokens: int

    @property
    def messages(self) -> list[dict[str, str]]:
        topic = TOPICS[self.number % len(TOPICS)]
        padding = "Please be kind. " * (self.number % 5 * 4)
        return [{"role": "user", "content": f"{padding}Write {self.number} words about {topic}."}]


def make_jobs() -> list[Job]:
    rng = random.Random(64)
    leavers = set(rng.sample(range(64), 6))
    return [Job(number, number % 2 == 0, number in leavers, rng.randint(4, 24)) for number in range(64)]


async def ask(client: AsyncOpenAI, job: Job) -> tuple[str, str, int] | None:
    """Text, finish reason and completion tokens; None for a client that left."""
    arguments = {
        "model": CHAT,
        "messages": job.messages,
        "max_tokens": 200 if job.leaves else job.max_tokens,
        "temperature": 0,
    }
    if job.leaves and not job.stream:
        try:
            await asyncio.wait_for(client.chat.completions.create(**arguments), 1.0)  # type: ignore[call-overload]
        except TimeoutError:
            return None
        raise AssertionError("200 tokens for 64 clients in a second?")
    if not job.stream:
        answer = await client.chat.completions.create(**arguments)  # type: ignore[call-overload]
        return answer.choices[0].message.content, answer.choices[0].finish_reason, answer.usage.completion_tokens
    text, finish_reason, num_tokens = "", "", 0
    stream = await client.chat.completions.create(  # type: ignore[call-overload]
        **arguments, stream=True, stream_options={"include_usage": True}
    )
    async with stream:
        async for chunk in stream:
            if chunk.choices:
                text += chunk.choices[0].delta.content or ""
                finish_reason = chunk.choices[0].finish_reason or finish_reason
                if job.leaves and text:
                    return None
            if chunk.usage:
                num_tokens = chunk.usage.completion_tokens
    return text, finish_reason, num_tokens


def metric(server: ServerProcess, name: str) -> float:
    """The sum of a metric over its labels."""
    text = httpx2.get(f"{server.base_url}/metrics").text
    values = re.findall(rf"^{re.escape(name)}(?:{{[^}}]*}})? (\S+)$", text, re.MULTILINE)
    assert values, f"no metric {name}"
    return sum(map(float, values))


async def test_every_answer_is_the_one_they_get_alone(server: ServerProcess) -> None:
    jobs = make_jobs()
    limits = httpx2.Limits(max_connections=100)
    async with AsyncOpenAI(
        base_url=f"{server.base_url}/v1",
        api_key="none",
        max_retries=0,
        timeout=240,
        http_client=httpx2.AsyncClient(limits=limits, timeout=240),
    ) as client:
        together = await asyncio.gather(*(ask(client, job) for job in jobs))
        for job, answer in zip(jobs, together, strict=True):
            assert (answer is None) == job.leaves
        stayers = [job for job in jobs if not job.leaves]
        alone = {job.number: await ask(client, job) for job in stayers[::3]}
    for number, answer in alone.items():
        assert together[number] == answer
    for _ in range(100):
        if metric(server, "vllm:num_requests_running") == 0:
            break
        await asyncio.sleep(0.1)
    assert metric(server, "vllm:num_requests_running") == 0
    assert metric(server, "vllm:num_requests_waiting") == 0
    assert metric(server, "vllm:kv_cache_usage_perc") == 0
