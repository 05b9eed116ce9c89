"""POST /tokenize and /detokenize: texts and chats to token ids, and back."""

from typing import Any

import pytest
from fake_engine import CHAT, EMBED, error, open_front


@pytest.mark.parametrize("prefix", ["", "/v1"])
async def test_texts_make_the_round_trip(prefix: str) -> None:
    async with open_front() as front:
        text = "hello 🦊<|im_end|>"
        body = (await front.post(f"{prefix}/tokenize", {"model": CHAT, "prompt": text})).json()
        ids = front.engine.encode(text)
        assert body == {"count": len(ids), "max_model_len": 256, "tokens": ids, "token_strs": None}
        back = await front.post(f"{prefix}/detokenize", {"model": CHAT, "tokens": body["tokens"]})
        assert back.json() == {"prompt": text}
        assert not front.engine.jobs


async def test_special_tokens_and_names_on_wish() -> None:
    async with open_front() as front:
        asked = {"model": EMBED, "prompt": "hello", "return_token_strs": True}
        whole = (await front.post("/tokenize", asked)).json()
        bare = (await front.post("/tokenize", asked | {"add_special_tokens": False})).json()
        assert whole["tokens"][1:-1] == bare["tokens"]
        assert whole["token_strs"] == ["<|endoftext|>", *bare["token_strs"], "<|endoftext|>"]
        assert "".join(bare["token_strs"]) == "hello"


async def test_chats_give_the_tokens_of_their_prompt() -> None:
    async with open_front() as front:
        chat = {"model": CHAT, "messages": [{"role": "user", "content": "hi"}]}
        tokens = (await front.post("/tokenize", chat)).json()["tokens"]
        await front.post("/v1/chat/completions", chat)
        assert tokens == front.engine.job.prompt_token_ids
        open_ended = (await front.post("/tokenize", chat | {"add_generation_prompt": False})).json()["tokens"]
        assert open_ended == tokens[: len(open_ended)] != tokens


@pytest.mark.parametrize(
    ("path", "fields", "code", "param"),
    [
        ("/tokenize", {}, "missing_required_parameter", "prompt"),
        ("/tokenize", {"prompt": 5}, "invalid_type", "prompt"),
        ("/tokenize", {"prompt": "a", "model": EMBED, "wand": 1}, "unknown_parameter", "wand"),
        ("/tokenize", {"messages": []}, "empty_array", "messages"),
        ("/detokenize", {}, "missing_required_parameter", "tokens"),
        ("/detokenize", {"tokens": [1, -1]}, "integer_below_min_value", "tokens.1"),
        ("/detokenize", {"tokens": [400]}, "invalid_value", "tokens"),
        ("/detokenize", {"tokens": ["a"]}, "invalid_type", "tokens.0"),
    ],
)
async def test_faults_name_code_and_param(path: str, fields: dict[str, Any], code: str, param: str) -> None:
    async with open_front() as front:
        error(await front.post(path, {"model": CHAT} | fields), 400, code, param)
