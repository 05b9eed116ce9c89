"""Real servers in small surroundings: hardly any KV memory, a GGUF file, settings from a file and the environment."""

import asyncio
import re
from pathlib import Path

import httpx2
import pytest
from openai import AsyncOpenAI, BadRequestError
from server_process import ServerProcess
from tiny_gguf import gguf_tensors, tiny_llama, write_gguf
from tiny_models import make_tiny, make_tiny_tokenizer

PROMPTS = [f"water under pressure {number} turns the wheel" for number in range(8)]


async def test_answers_stay_the_same_when_blocks_run_out(tmp_path: Path) -> None:
    folder = make_tiny_tokenizer(make_tiny("llama", tmp_path / "tiny"))
    arguments = ["--dtype", "float32", "--kv-cache-memory", "160KiB", "--num-threads", "1"]  # 13 blocks of 16 tokens
    with ServerProcess([str(folder)], home=tmp_path, arguments=arguments) as server:
        async with AsyncOpenAI(base_url=f"{server.base_url}/v1", api_key="none", max_retries=0) as client:

            async def ask(prompt: str) -> tuple[str, str | None]:
                answer = await client.completions.create(
                    model="tiny", prompt=prompt, max_tokens=60, temperature=0, extra_body={"ignore_eos": True}
                )
                return answer.choices[0].text, answer.choices[0].finish_reason

            alone = [await ask(prompt) for prompt in PROMPTS]
            together = await asyncio.gather(*map(ask, PROMPTS))
            assert list(together) == alone
            with pytest.raises(BadRequestError, match="208") as refusal:  # the tokens that 13 blocks hold
                await ask("water " * 300)
            assert refusal.value.code == "context_length_exceeded"
        metrics = httpx2.get(f"{server.base_url}/metrics").text
        preemptions = re.search(r"^vllm:num_preemptions_total\{.*\} (\S+)$", metrics, re.MULTILINE)
        assert preemptions is not None and float(preemptions[1]) > 0
        assert re.search(r"^vllm:kv_cache_usage_perc\{.*\} 0.0$", metrics, re.MULTILINE)


def test_a_gguf_file_with_settings_from_a_file_and_the_environment(tmp_path: Path) -> None:
    source = write_gguf(tmp_path / "Tiny.Q8.gguf", gguf_tensors(tiny_llama()))
    config = tmp_path / "penstock.toml"
    config.write_text('max_model_len = 96\nserved_model_name = "from-file"\nnum_threads = 1\n')
    environment = {"PENSTOCK_MAX_MODEL_LEN": "64", "PENSTOCK_CONFIG": str(config)}
    converted = []
    for _ in range(2):
        with ServerProcess([str(source)], home=tmp_path, environment=environment) as server:
            (model,) = httpx2.get(f"{server.base_url}/v1/models").json()["data"]
            assert (model["id"], model["max_model_len"]) == ("from-file", 64)  # the environment wins over the file
            body = {"model": "from-file", "prompt": "hello", "max_tokens": 3, "ignore_eos": True}
            answer = httpx2.post(f"{server.base_url}/v1/completions", json=body)
            assert answer.json()["usage"]["completion_tokens"] == 3
        (folder,) = (tmp_path / "models").iterdir()
        converted.append((folder.name, folder.stat().st_mtime_ns))
    assert converted[0] == converted[1]  # the second start has converted nothing
