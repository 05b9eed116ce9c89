"""POST /v1/completions: prompts in every form, echo, the log probabilities of old."""

from typing import Any

import pytest
from fake_engine import CHAT, events, open_front, tiny_embedding_tokenizer

from penstock.serving.text.chat_template import ChatTemplate
from penstock.serving.text.tokenizer import TextTokenizer


@pytest.mark.parametrize("prompt", ["hello", ["hello", "fox"], [5, 6, 7], [[5, 6], [7]], ["hello", [5, 6]]])
async def test_prompts_come_in_every_form(prompt: Any) -> None:
    async with open_front() as front:
        body = (await front.complete(prompt=prompt)).json()
        single = isinstance(prompt, str) or all(isinstance(item, int) for item in prompt)
        wanted = [
            item if isinstance(item, list) else front.engine.encode(item) for item in ([prompt] if single else prompt)
        ]
        assert [job.prompt_token_ids for job in front.engine.jobs] == wanted  # type: ignore[union-attr]
        assert [choice["index"] for choice in body["choices"]] == list(range(len(wanted)))
        assert body["usage"]["prompt_tokens"] == sum(map(len, wanted))


async def test_answer_has_openais_shape() -> None:
    async with open_front() as front:
        body = (await front.complete()).json()
        assert body.pop("id").startswith("cmpl-")
        assert isinstance(body.pop("created"), int)
        usage = body.pop("usage")
        assert body == {
            "object": "text_completion",
            "model": CHAT,
            "choices": [{"index": 0, "text": "hello world", "logprobs": None, "finish_reason": "stop"}],
        }
        assert usage["completion_tokens"] == 3 and "cached_tokens" in usage["prompt_tokens_details"]


async def test_choices_of_all_prompts_are_numbered_through() -> None:
    async with open_front() as front:
        body = (await front.complete(prompt=["hello", "fox"], n=2, seed=1, echo=True)).json()
        assert [choice["text"] for choice in body["choices"]] == [
            "hellohello world",
            "hellohello world",
            "foxhello world",
            "foxhello world",
        ]
        assert [job.sampling.seed for job in front.engine.jobs] == [1, 2, 3, 4]  # type: ignore[union-attr]


async def test_stream_interleaves_choices_with_their_index() -> None:
    async with open_front() as front:
        chunks = events(await front.complete(prompt=["hello", [5]], n=2, stream=True, echo=True))
        assert all(chunk["object"] == "text_completion" for chunk in chunks)
        assert [chunk["choices"][0]["index"] for chunk in chunks[:4]] == [0, 1, 2, 3]
        echo = front.engine.tokenizer.decode([5])
        for index, begin in enumerate(["hello", "hello", echo, echo]):
            mine = [chunk["choices"][0] for chunk in chunks if chunk["choices"][0]["index"] == index]
            assert "".join(choice["text"] for choice in mine) == begin + "hello world"
            assert mine[-1]["finish_reason"] == "stop"


@pytest.mark.parametrize("fields", [{}, {"max_tokens": None}])
async def test_default_is_sixteen_tokens(fields: dict[str, Any]) -> None:
    async with open_front() as front:
        await front.complete(**fields)
        assert front.engine.job.sampling.max_tokens == 16


async def test_minus_one_is_the_rest_of_the_context() -> None:
    async with open_front() as front:
        await front.complete(max_tokens=-1)
        job = front.engine.job
        assert job.sampling.max_tokens == 256 - len(job.prompt_token_ids)


async def test_logprobs_in_the_shape_of_old() -> None:
    async with open_front() as front:
        front.engine.text = "hi 🦊!"
        logprobs = (await front.complete(logprobs=2)).json()["choices"][0]["logprobs"]
        assert set(logprobs) == {"tokens", "token_logprobs", "top_logprobs", "text_offset"}
        fox = [f"bytes:\\x{byte:02x}" for byte in "🦊".encode()]
        assert logprobs["tokens"] == ["h", "i", " ", *fox, "!"]
        assert logprobs["text_offset"] == [0, 1, 2, 3, 3, 3, 3, 4]
        assert logprobs["token_logprobs"] == [-0.5] * 8
        assert logprobs["top_logprobs"][3] == {fox[0]: -0.5, "(": -1.0}
        chosen_only = (await front.complete(logprobs=0)).json()["choices"][0]["logprobs"]
        assert chosen_only["top_logprobs"][0] == {"h": -0.5}


async def test_streamed_logprobs_are_those_of_the_answer() -> None:
    async with open_front() as front:
        front.engine.text = "hi 🦊!"
        whole = (await front.complete(logprobs=1)).json()["choices"][0]["logprobs"]
        chunks = events(await front.complete(logprobs=1, stream=True))
        for key, values in whole.items():
            assert [v for chunk in chunks for v in chunk["choices"][0]["logprobs"][key]] == values


async def test_official_client_accepts_the_answer() -> None:
    async with open_front() as front:
        answer = await front.openai.completions.create(model=CHAT, prompt=["a", "b"], n=2, logprobs=1)
        assert [choice.text for choice in answer.choices] == ["hello world"] * 4
        assert answer.usage is not None and answer.usage.prompt_tokens == 2


async def test_begin_tokens_are_written_once() -> None:
    """The tokenizer adds one to completions; in chats the template has written it already."""
    async with open_front() as front:
        tokenizer = TextTokenizer(tiny_embedding_tokenizer())
        (begin, *_, end) = tokenizer.encode("hi", 100, add_special_tokens=True)
        template = ChatTemplate("<|endoftext|>{{ messages[0].content }}", {})
        for name, value in (("tokenizer", tokenizer), ("chat_template", template)):
            object.__setattr__(front.shelf[CHAT], name, value)
        await front.chat()
        await front.complete(prompt="hi")
        await front.complete(prompt="hi", add_special_tokens=False)
        chat, completion, bare = (job.prompt_token_ids for job in front.engine.jobs)  # type: ignore[union-attr]
        assert bare == tokenizer.encode("hi", 100, add_special_tokens=False)
        assert chat == [begin, *bare] and completion == [begin, *bare, end]
