"""Measures what a grammar costs a stream: tokens per second of chats held to a JSON Schema, against free ones.

    python benchmarks/structured_output.py --url http://127.0.0.1:1234/v1 --model smollm2-135m-instruct

Both kinds run the same number of chats at once and the same number of tokens, in turns, so that whatever else the
machine does falls on both.
"""

import argparse
import asyncio
import statistics
import time
from typing import Any

import aiohttp

SCHEMA = {
    "type": "object",
    "properties": {
        "people": {
            "type": "array",
            "minItems": 1000,  # so that no chat ends by itself
            "items": {
                "type": "object",
                "properties": {
                    "name": {"type": "string", "maxLength": 20},
                    "age": {"type": "integer", "minimum": 0, "maximum": 120},
                    "role": {"enum": ["admin", "user", "guest"]},
                },
                "required": ["name", "age", "role"],
                "additionalProperties": False,
            },
        }
    },
    "required": ["people"],
    "additionalProperties": False,
}
HELD = {"response_format": {"type": "json_schema", "json_schema": {"name": "people", "schema": SCHEMA}}}
FREE = {"ignore_eos": True}


async def _round(session: aiohttp.ClientSession, url: str, bodies: list[dict[str, Any]]) -> float:
    """Tokens per second of all chats together."""

    async def ask(body: dict[str, Any]) -> int:
        async with session.post(f"{url}/chat/completions", json=body) as answer:
            answer.raise_for_status()
            return int((await answer.json())["usage"]["completion_tokens"])

    started = time.monotonic()
    tokens = await asyncio.gather(*map(ask, bodies))
    return sum(tokens) / (time.monotonic() - started)


async def _measure(arguments: argparse.Namespace) -> None:
    def bodies(fields: dict[str, Any], seed: int) -> list[dict[str, Any]]:
        base = {"model": arguments.model, "max_tokens": arguments.max_tokens, "temperature": 1.0} | fields
        ask = "List people of a village, with their ages and roles."
        return [
            base | {"seed": seed + number, "messages": [{"role": "user", "content": ask}]}
            for number in range(arguments.concurrency)
        ]

    rates: dict[str, list[float]] = {"free": [], "held": []}
    async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(600)) as session:
        for number in range(arguments.rounds + 1):
            for kind, fields in (("free", FREE), ("held", HELD)):
                rate = await _round(session, arguments.url, bodies(fields, 100 * number))
                if number:  # the first round compiles, and fills the prefix cache
                    rates[kind].append(rate)
    free, held = (statistics.median(rates[kind]) for kind in ("free", "held"))
    print(f"free {free:.1f} tokens/s, held to a schema {held:.1f} tokens/s: {100 * (1 - held / free):.1f} % slower")
    print({kind: [round(rate, 1) for rate in values] for kind, values in rates.items()})


def main() -> None:
    """Read the command line and print one line of results."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--url", default="http://127.0.0.1:1234/v1")
    parser.add_argument("--model", default="smollm2-135m-instruct")
    parser.add_argument("--concurrency", type=int, default=8)
    parser.add_argument("--max-tokens", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=5)
    asyncio.run(_measure(parser.parse_args()))


if __name__ == "__main__":
    main()
