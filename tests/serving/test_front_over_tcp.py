"""The front behind a real HTTP server: many official clients at once, some of which hang up."""

import asyncio
import socket
from typing import Any

import httpx2
import uvicorn
from fake_engine import CHAT, Front, until
from openai import AsyncOpenAI

NUM_CLIENTS = 40
MESSAGES: Any = [{"role": "user", "content": "hi"}]


async def test_many_clients_of_which_some_hang_up() -> None:
    front = Front()
    front.engine.text = "the quick brown fox says hello to the world " * 3
    front.engine.script = lambda job: [item for output in front.engine.say(job) for item in (output, 0.001)]
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        server = uvicorn.Server(uvicorn.Config(front.app, log_level="warning", http="httptools", lifespan="off"))
        serving = asyncio.create_task(server.serve([listener]))
        await until(lambda: server.started)
        client = AsyncOpenAI(api_key="none", base_url=f"http://127.0.0.1:{port}/v1", max_retries=0)

        async def ask(number: int) -> str | None:
            if number % 2:
                answer = await client.chat.completions.create(model=CHAT, messages=MESSAGES)
                return answer.choices[0].message.content
            stream = await client.chat.completions.create(model=CHAT, messages=MESSAGES, stream=True)
            text = ""
            async for chunk in stream:
                text += chunk.choices[0].delta.content or ""
                if number % 10 == 0 and text:
                    await stream.close()
                    return None
            return text

        answers = await asyncio.gather(*map(ask, range(NUM_CLIENTS)))
        assert [answer for i, answer in enumerate(answers) if i % 10] == [front.engine.text] * (NUM_CLIENTS * 9 // 10)
        await until(lambda: front.engine.num_jobs == 0)
        assert len(front.engine.cancelled) == NUM_CLIENTS // 10

        front.engine.script = lambda job: [60.0]
        async with httpx2.AsyncClient() as impatient:
            body = {"model": CHAT, "messages": MESSAGES}
            for stream in (False, True):
                asking = asyncio.create_task(
                    impatient.post(f"http://127.0.0.1:{port}/v1/chat/completions", json=body | {"stream": stream})
                )
                await until(lambda: front.engine.num_jobs == 1)
                asking.cancel()
                await until(lambda: front.engine.num_jobs == 0)
        await client.close()
        server.should_exit = True
        await serving
    await front.http.aclose()
