"""POST /v1/completions: prompts in every form, echo, the log probabilities of old."""

from dataclasses import replace
from typing import Any

import pytest
from fake_engine import CHAT, Script, events, model_ready, open_front, tiny_embedding_tokenizer, tiny_tokenizer
from tokenizers import AddedToken

from penstock.scheduler.messages import RequestOutput, Submit, TokenLogprobs
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
        assert logprobs["tokens"] == ["h", "i", " ", *fox, "!", "<|im_end|>"]
        assert logprobs["text_offset"] == [0, 1, 2, 3, 3, 3, 3, 4, 5]
        assert logprobs["token_logprobs"] == [-0.5] * 9
        assert logprobs["top_logprobs"][3] == {fox[0]: -0.5, "(": -1.0}
        chosen_only = (await front.complete(logprobs=0)).json()["choices"][0]["logprobs"]
        assert chosen_only["top_logprobs"][0] == {"h": -0.5}


async def test_echo_comes_with_the_prompts_logprobs() -> None:
    async with open_front() as front:
        front.engine.text = "!"
        choice = (await front.complete(prompt="hé fox", echo=True, logprobs=2)).json()["choices"][0]
        assert front.engine.job.sampling.prompt_logprobs == 2
        assert choice["text"] == "hé fox!"
        logprobs = choice["logprobs"]
        num_prompt = len(front.engine.encode("hé fox"))
        assert logprobs["tokens"][num_prompt:] == ["!", "<|im_end|>"]
        assert "".join(logprobs["tokens"]).startswith("hbytes:\\xc3bytes:\\xa9 ")
        assert logprobs["text_offset"][:4] == [0, 1, 1, 2] and logprobs["text_offset"][num_prompt:] == [6, 7]
        assert logprobs["token_logprobs"] == [None] + [-0.5] * (num_prompt + 1)
        assert logprobs["top_logprobs"][0] is None and len(logprobs["top_logprobs"][1]) == 2


async def test_streamed_echo_is_that_of_the_answer() -> None:
    async with open_front() as front:
        wanted: dict[str, Any] = {"prompt": ["hello", [5, 6]], "n": 2, "echo": True, "logprobs": 1}
        whole = (await front.complete(**wanted)).json()["choices"]
        chunks = [chunk["choices"][0] for chunk in events(await front.complete(stream=True, **wanted))]
        for index, choice in enumerate(whole):
            mine = [chunk for chunk in chunks if chunk["index"] == index]
            assert "".join(chunk["text"] for chunk in mine) == choice["text"]
            for key, values in choice["logprobs"].items():
                assert [value for chunk in mine for value in chunk["logprobs"][key]] == values


@pytest.mark.parametrize("max_tokens", [0, 1])
async def test_loglikelihood_as_lm_eval_asks_for_it(max_tokens: int) -> None:
    """It reads `[context length : -1]` of each list and compares the token with the likeliest one."""
    async with open_front() as front:
        context, continuation = front.engine.encode("hello world"), front.engine.encode(" fox says")
        front.engine.text = ""  # the model would end here: the end token counts all the same
        asked = {"prompt": [[*context, *continuation]], "echo": True, "logprobs": 1, "seed": 1234, "temperature": 0}
        body = (await front.complete(max_tokens=max_tokens, **asked)).json()
        logprobs = body["choices"][0]["logprobs"]
        end = -1 if max_tokens else None
        assert logprobs["token_logprobs"][len(context) : end] == [-0.5] * len(continuation)
        names = logprobs["tokens"][len(context) : end]
        assert [max(top, key=top.get) for top in logprobs["top_logprobs"][len(context) : end]] == names
        assert body["usage"]["completion_tokens"] == max_tokens


async def test_nothing_but_the_prompt_is_scored_for_zero_tokens() -> None:
    async with open_front() as front:
        for stream in (False, True):
            response = await front.complete(max_tokens=0, echo=True, stream=stream)
            (choice,) = events(response)[0]["choices"] if stream else response.json()["choices"]
            assert (choice["text"], choice["finish_reason"]) == ("hello", "length")


async def test_best_of_returns_the_likeliest() -> None:
    async with open_front() as front:

        def script(job: Submit) -> Script:
            number = int(job.request_id.rpartition("-")[2]) % 4
            outputs = front.engine.outputs(job, front.engine.encode("abcd"[number]), "length")
            entry = TokenLogprobs([-3.0, -1.0, -4.0, -2.0][number], [], [])
            return [replace(output, logprobs=[entry]) for output in outputs if isinstance(output, RequestOutput)]

        front.engine.script = script
        body = (await front.complete(prompt=["x", "y"], n=2, best_of=4)).json()
        assert [(choice["index"], choice["text"]) for choice in body["choices"]] == [
            (0, "b"),
            (1, "d"),
            (2, "b"),
            (3, "d"),
        ]
        assert {choice["logprobs"] for choice in body["choices"]} == {None}
        assert body["usage"]["completion_tokens"] == 8, "all that was generated counts"


async def test_prompt_logprobs_in_vllms_shape() -> None:
    async with open_front() as front:
        (choice,) = (await front.complete(prompt=[5, 6, 7], prompt_logprobs=2)).json()["choices"]
        first, second, third = choice["prompt_logprobs"]
        assert first is None and choice["text"] == "hello world"
        assert second["6"] == {"logprob": -0.5, "rank": 1, "decoded_token": front.engine.tokenizer.table.name(6)}
        assert set(third) == {"7", "10"} and third["10"]["rank"] == 2
        (choice,) = (await front.complete(prompt=[5, 6], prompt_logprobs=0)).json()["choices"]
        assert choice["prompt_logprobs"][1]["6"]["rank"] is None


async def test_suffix_is_framed_by_the_tokens_of_the_model() -> None:
    async with open_front() as front:
        tokenizer = tiny_tokenizer()
        tokenizer.add_special_tokens(
            [AddedToken(name) for name in ("<|fim_prefix|>", "<|fim_suffix|>", "<|fim_middle|>")]
        )
        object.__setattr__(front.shelf[CHAT], "tokenizer", TextTokenizer(tokenizer))
        front.engine.models[CHAT] = model_ready(CHAT, vocab_size=400)
        prefix, suffix, middle = (tokenizer.token_to_id(f"<|fim_{name}|>") for name in ("prefix", "suffix", "middle"))
        body = (await front.complete(prompt="hello", suffix=" fox", echo=True)).json()
        job = front.engine.job
        before, after = front.engine.encode("hello"), front.engine.encode(" fox")
        assert job.prompt_token_ids == [prefix, *before, suffix, *after, middle]
        assert tokenizer.token_to_id("<|endoftext|>") in job.sampling.stop_token_ids
        assert body["choices"][0]["text"] == "hellohello world"
        assert body["usage"]["prompt_tokens"] == len(job.prompt_token_ids)
        assert (await front.complete(suffix="")).status_code == 200


@pytest.mark.parametrize(
    "fields",
    [
        {"response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": {"type": "object"}}}},
        {"guided_json": {"type": "object"}},
        {"regex": "[ab]+"},
    ],
)
async def test_forms_of_the_text_reach_the_engine_as_grammars(fields: dict[str, Any]) -> None:
    async with open_front() as front:
        assert (await front.complete(**fields)).status_code == 200
        assert "lark_grammar" in front.engine.job.sampling.grammar


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
