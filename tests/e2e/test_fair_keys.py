"""Real servers with clients of different keys: none waits for another's queue, none finds another's prompts."""

import asyncio
from pathlib import Path

import pytest
from openai import AsyncOpenAI
from server_process import ServerProcess
from tiny_models import make_tiny, make_tiny_tokenizer

PROMPT = "water under pressure turns the wheel " * 20


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_tokenizer(make_tiny("llama", tmp_path_factory.mktemp("tiny")))


def client_of(server: ServerProcess, key: str) -> AsyncOpenAI:
    return AsyncOpenAI(base_url=f"{server.base_url}/v1", api_key=key, max_retries=0)


async def ask(client: AsyncOpenAI, folder: Path, prompt: str, max_tokens: int, **extra: object) -> tuple[str, int]:
    """The answer, and how many tokens of the prompt were cached."""
    answer = await client.completions.create(
        model=folder.name, prompt=prompt, max_tokens=max_tokens, temperature=0, extra_body={"ignore_eos": True, **extra}
    )
    assert answer.usage is not None
    details = answer.usage.prompt_tokens_details
    return answer.choices[0].text, (details.cached_tokens or 0) if details else 0


async def cached_tokens(server: ServerProcess, folder: Path, key: str, salt: str = "") -> int:
    async with client_of(server, key) as client:
        return (await ask(client, folder, PROMPT, 1, cache_salt=salt))[1]


async def test_the_light_client_does_not_wait_for_the_queue_of_the_greedy_one(folder: Path, tmp_path: Path) -> None:
    arguments = ["--dtype", "float32", "--num-threads", "1", "--max-num-seqs", "2"]
    with ServerProcess([str(folder)], home=tmp_path, arguments=arguments) as server:
        async with client_of(server, "greedy") as greedy, client_of(server, "light") as light:
            (alone, _) = await ask(light, folder, "the light one", 8)
            done: list[int] = []

            async def flood(number: int) -> None:
                await ask(greedy, folder, f"greedy {number}", 40)
                done.append(number)

            many = [asyncio.create_task(flood(number)) for number in range(40)]
            while not done:
                await asyncio.sleep(0.001)
            (text, _) = await ask(light, folder, "the light one", 8)
            assert text == alone
            assert len(done) < 20, "it waited for what was there before it"
            await asyncio.gather(*many)
        # A prompt is found by the key that sent it, and by no other.
        assert await cached_tokens(server, folder, "alice") == 0
        assert await cached_tokens(server, folder, "alice") > 0
        assert await cached_tokens(server, folder, "bob") == 0
        assert await cached_tokens(server, folder, "alice", salt="other") == 0


async def test_the_prefix_cache_is_shared_on_purpose(folder: Path, tmp_path: Path) -> None:
    arguments = ["--dtype", "float32", "--num-threads", "1", "--shared-prefix-cache"]
    with ServerProcess([str(folder)], home=tmp_path, arguments=arguments) as server:
        assert await cached_tokens(server, folder, "alice") == 0
        assert await cached_tokens(server, folder, "bob") > 0
        assert await cached_tokens(server, folder, "bob", salt="own") == 0
