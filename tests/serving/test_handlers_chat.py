"""POST /v1/chat/completions: prompts, parameters, answers and streams."""

import math
from typing import Any

import pytest
from fake_engine import CHAT, MAX_MODEL_LEN, Front, events, open_front, use_template

from penstock.scheduler.messages import JobTimings
from penstock.serving.handlers.sampling import choice_seed

USAGE = {
    "prompt_tokens": 21,
    "completion_tokens": 3,
    "total_tokens": 24,
    "prompt_tokens_details": {"cached_tokens": 4},
    "completion_tokens_details": {"reasoning_tokens": 0},
}


async def prompt_of(front: Front, **fields: Any) -> str:
    """The prompt that a chat becomes, as text with its special tokens."""
    front.engine.jobs.clear()
    response = await front.chat(**fields)
    assert response.status_code == 200, response.text
    table = front.engine.tokenizer.table
    return "".join(table.name(token_id) for token_id in front.engine.job.prompt_token_ids)


async def test_answer_has_openais_shape() -> None:
    async with open_front() as front:
        body = (await front.chat()).json()
        assert body.pop("id").startswith("chatcmpl-")
        assert isinstance(body.pop("created"), int)
        assert body == {
            "object": "chat.completion",
            "model": CHAT,
            "choices": [
                {
                    "index": 0,
                    "message": {"role": "assistant", "content": "hello world", "refusal": None},
                    "logprobs": None,
                    "finish_reason": "stop",
                }
            ],
            "usage": USAGE,
        }


async def test_usage_tells_what_became_of_guessed_tokens() -> None:
    async with open_front() as front:
        front.engine.timings = JobTimings(0.25, 0.5, 2.0, 0, num_draft_tokens=7, num_accepted_tokens=5)
        details = {"reasoning_tokens": 0, "accepted_prediction_tokens": 10, "rejected_prediction_tokens": 4}
        assert (await front.chat(n=2)).json()["usage"]["completion_tokens_details"] == details
        chunks = events(await front.chat(n=2, stream=True, stream_options={"include_usage": True}))
        assert chunks[-1]["usage"]["completion_tokens_details"] == details


async def test_stream_has_role_first_then_texts_then_reason() -> None:
    async with open_front() as front:
        chunks = events(await front.chat(stream=True))
        assert len({chunk["id"] for chunk in chunks}) == 1
        assert all(chunk["object"] == "chat.completion.chunk" and "usage" not in chunk for chunk in chunks)
        assert [chunk["choices"] for chunk in chunks] == [
            [{"index": 0, "delta": delta, "logprobs": None, "finish_reason": reason}]
            for delta, reason in [
                ({"role": "assistant", "content": ""}, None),
                ({"content": "hello"}, None),
                ({"content": " world"}, None),
                ({}, "stop"),
            ]
        ]


async def test_stream_usage_comes_last_with_no_choices() -> None:
    async with open_front() as front:
        *chunks, last = events(await front.chat(stream=True, stream_options={"include_usage": True}))
        assert all(chunk["usage"] is None for chunk in chunks)
        assert last["choices"] == [] and last["usage"] == USAGE
        chunks = events(await front.chat(stream=True, stream_options={"continuous_usage_stats": True}))
        counts = [chunk["usage"]["completion_tokens"] for chunk in chunks]
        assert counts == sorted(counts) and counts[0] >= 1 and counts[-1] == 3


async def test_tokens_that_wait_come_as_one_chunk() -> None:
    async with open_front() as front:
        front.engine.script = lambda job: [out for out in front.engine.say(job)]
        front.engine.tokens_per_step = 8
        texts = [c["choices"][0]["delta"].get("content") for c in events(await front.chat(stream=True))]
        assert texts == ["", "hello world", None]


@pytest.mark.parametrize("tokens_per_step", [1, 3])
async def test_character_split_over_tokens_arrives_whole(tokens_per_step: int) -> None:
    async with open_front() as front:
        front.engine.text = "a🦊b é"
        front.engine.tokens_per_step = tokens_per_step
        assert len(front.engine.encode("🦊")) == 4
        chunks = events(await front.chat(stream=True))
        texts = [chunk["choices"][0]["delta"].get("content", "") for chunk in chunks]
        assert "".join(texts) == "a🦊b é" and not any("\ufffd" in text for text in texts)
        assert (await front.chat()).json()["choices"][0]["message"]["content"] == "a🦊b é"


async def test_character_cut_by_the_limit_is_marked() -> None:
    async with open_front() as front:
        front.engine.text = "a🦊"
        choice = (await front.chat(max_tokens=3)).json()["choices"][0]
        assert choice["message"]["content"] == "a\ufffd" and choice["finish_reason"] == "length"


@pytest.mark.parametrize("tokens_per_step", [1, 2, 100])
async def test_stop_string_never_leaks_and_cancels_the_job(tokens_per_step: int) -> None:
    async with open_front() as front:
        front.engine.text = "the quick brown fox" + " says hello" * 20
        front.engine.tokens_per_step = tokens_per_step
        for stop in ("ck br", ["zzz", "ck br", "fox"]):
            front.engine.cancelled.clear()
            front.engine.jobs.clear()
            chunks = events(await front.chat(stream=True, stop=stop))
            texts = [chunk["choices"][0]["delta"].get("content", "") for chunk in chunks]
            assert "".join(texts) == "the qui"
            assert chunks[-1]["choices"][0]["finish_reason"] == "stop"
            finished = tokens_per_step == 100
            assert front.engine.cancelled == ([] if finished else [front.engine.job.request_id])


async def test_text_that_only_begins_like_a_stop_string_is_sent() -> None:
    async with open_front() as front:
        choice = (await front.chat(stop=["world!", "xyz"])).json()["choices"][0]
        assert choice["message"]["content"] == "hello world"


async def test_min_tokens_keeps_stop_strings_from_ending_early() -> None:
    async with open_front() as front:
        front.engine.text = "hello hello world"
        assert (await front.chat(stop="hello")).json()["choices"][0]["message"]["content"] == ""
        choice = (await front.chat(stop="hello", min_tokens=1)).json()["choices"][0]
        assert choice["message"]["content"] == "hello "
        assert front.engine.jobs[-1].sampling.min_tokens == 1  # type: ignore[union-attr]


async def test_choices_have_their_own_seeds_and_indices() -> None:
    async with open_front() as front:
        body = (await front.chat(n=3, seed=2**63 - 2)).json()
        assert [choice["index"] for choice in body["choices"]] == [0, 1, 2]
        assert [job.sampling.seed for job in front.engine.jobs] == [2**63 - 2, 2**63 - 1, -(2**63)]  # type: ignore[union-attr]
        assert body["usage"]["prompt_tokens"] == 21 and body["usage"]["completion_tokens"] == 9
        assert body["usage"]["prompt_tokens_details"] == {"cached_tokens": 4}


async def test_streamed_choices_keep_their_index() -> None:
    async with open_front() as front:
        chunks = events(await front.chat(stream=True, n=3))
        for index in range(3):
            mine = [chunk["choices"][0] for chunk in chunks if chunk["choices"][0]["index"] == index]
            assert mine[0]["delta"] == {"role": "assistant", "content": ""}
            assert "".join(choice["delta"].get("content", "") for choice in mine) == "hello world"
            assert [choice["finish_reason"] for choice in mine] == [None, None, None, "stop"]


def test_choice_seed_stays_in_64_bits() -> None:
    assert choice_seed(5, 0) == 5 and choice_seed(5, 2) == 7
    assert choice_seed(2**63 - 1, 1) == -(2**63)


async def test_seeds_differ_when_the_client_names_none() -> None:
    async with open_front() as front:
        for _ in range(2):
            await front.chat()
        first, second = front.engine.jobs
        assert first.sampling.seed != second.sampling.seed  # type: ignore[union-attr]


async def test_logprobs_spell_the_text_byte_by_byte() -> None:
    async with open_front() as front:
        front.engine.text = "hi 🦊"
        body = (await front.chat(logprobs=True, top_logprobs=2)).json()
        content = body["choices"][0]["logprobs"]["content"]
        assert bytes(b for token in content for b in token["bytes"]).decode() == "hi 🦊"
        assert all(set(token) == {"token", "logprob", "bytes", "top_logprobs"} for token in content)
        assert [len(token["top_logprobs"]) for token in content] == [2] * len(content)
        plain = (await front.chat(logprobs=True)).json()["choices"][0]["logprobs"]["content"]
        assert all(token["top_logprobs"] == [] for token in plain)


async def test_streamed_logprobs_are_those_of_the_answer() -> None:
    async with open_front() as front:
        front.engine.text = "the quick brown fox"
        fields: dict[str, Any] = {"logprobs": True, "top_logprobs": 1, "stop": "k brown"}
        whole = (await front.chat(**fields)).json()["choices"][0]
        chunks = events(await front.chat(**fields, stream=True))
        streamed = [e for c in chunks if (lp := c["choices"][0]["logprobs"]) for e in lp["content"]]
        assert streamed == whole["logprobs"]["content"]
        assert whole["message"]["content"] == "the quic"
        spelled = bytes(b for token in streamed for b in token["bytes"]).decode()
        assert spelled.startswith("the quic") and "brown" not in spelled


async def test_impossible_tokens_have_a_logprob_json_can_say() -> None:
    async with open_front() as front:
        lowest = front.engine._logprobs

        def impossible(job: Any, ids: list[int]) -> Any:
            return [type(e)(-math.inf, e.top_token_ids, e.top_logprobs) for e in lowest(job, ids) or []]

        front.engine._logprobs = impossible  # type: ignore[method-assign]
        content = (await front.chat(logprobs=True)).json()["choices"][0]["logprobs"]["content"]
        assert content[0]["logprob"] == -9999.0


async def test_prompt_is_the_rendered_template() -> None:
    async with open_front() as front:
        prompt = "<|im_start|>user\nhi<|im_end|>\n"
        answer = "<|im_start|>assistant\n"
        assert await prompt_of(front) == prompt + answer
        assert await prompt_of(front, add_generation_prompt=False) == prompt
        parts = [{"type": "text", "text": "a"}, {"type": "text", "text": "b", "cache_control": {"type": "x"}}]
        messages: list[dict[str, Any]] = [
            {"role": "developer", "content": "be nice"},
            {"role": "user", "content": parts, "name": "eva"},
            {"role": "assistant", "content": None, "tool_calls": [{"id": "1", "function": {"name": "f"}}]},
            {"role": "function", "content": "42", "name": "f"},
            {"role": "assistant", "content": "so", "refusal": None, "annotations": [], "audio": None},
        ]
        call = '<tool_call>\n{"name": "f", "arguments": {}}\n</tool_call>'
        said = "".join(
            f"<|im_start|>{role}\n{text}<|im_end|>\n"
            for role, text in [
                ("system", "be nice"),
                ("user", "a\nb"),
                ("assistant", call),
                ("user", "<tool_response>\n42\n</tool_response>"),
            ]
        )
        assert await prompt_of(front, messages=messages) == f"{said}<|im_start|>assistant\nso<|im_end|>\n{answer}"
        continued = await prompt_of(front, messages=messages, continue_final_message=True)
        assert continued == f"{said}<|im_start|>assistant\nso"


SWITCHES = "{{ messages[0].content }}{% if enable_thinking is defined %}, thinking {{ enable_thinking }}{% endif %}"
EFFORTS = SWITCHES + "{% if reasoning_effort is defined %}, effort {{ reasoning_effort }}{% endif %}"


@pytest.mark.parametrize(
    ("template", "fields", "prompt"),
    [
        (SWITCHES, {}, "hi"),
        (SWITCHES, {"enable_thinking": False}, "hi, thinking False"),
        (SWITCHES, {"chat_template_kwargs": {"enable_thinking": True}}, "hi, thinking True"),
        (SWITCHES, {"chat_template_kwargs": {"enable_thinking": True}, "enable_thinking": False}, "hi, thinking True"),
        (SWITCHES, {"reasoning_effort": "none"}, "hi, thinking False"),
        (SWITCHES, {"reasoning_effort": "none", "enable_thinking": True}, "hi, thinking True"),
        (EFFORTS, {"reasoning_effort": "high"}, "hi, effort high"),
        (EFFORTS, {"reasoning_effort": "none"}, "hi, effort none"),
        ("{{ messages[0].content }}", {"reasoning_effort": "none"}, "hi"),
    ],
)
async def test_variables_reach_templates_that_read_them(template: str, fields: dict[str, Any], prompt: str) -> None:
    async with open_front() as front:
        use_template(front, template)
        assert await prompt_of(front, **fields) == prompt


async def test_long_chats_are_rendered_off_the_loop_alike() -> None:
    async with open_front() as front:
        messages = [{"role": "user", "content": "hello world " * 300}]
        for name in front.engine.models:
            object.__setattr__(front.engine.models[name], "max_model_len", 10_000)
        assert "hello world hello world" in await prompt_of(front, messages=messages)


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({}, MAX_MODEL_LEN - 21),
        ({"max_tokens": 5}, 5),
        ({"max_tokens": -1}, MAX_MODEL_LEN - 21),
        ({"max_tokens": 32000}, MAX_MODEL_LEN - 21),
        ({"max_tokens": 5, "max_completion_tokens": 7}, 7),
        ({"max_tokens": None, "max_completion_tokens": None}, MAX_MODEL_LEN - 21),
    ],
)
async def test_max_tokens_is_clamped_to_the_context(fields: dict[str, Any], expected: int) -> None:
    async with open_front() as front:
        assert (await front.chat(**fields)).status_code == 200
        assert front.engine.job.sampling.max_tokens == expected


async def test_max_tokens_is_clamped_to_the_kv_cache() -> None:
    async with open_front() as front:
        object.__setattr__(front.engine.models[CHAT], "num_kv_blocks", 2)
        await front.chat()
        assert front.engine.job.sampling.max_tokens == 2 * 16 - 21


async def test_sampling_fields_reach_the_engine() -> None:
    async with open_front() as front:
        response = await front.chat(
            temperature=0.5,
            top_p=0,
            top_k=-1,
            min_p=0.1,
            presence_penalty=-2,
            frequency_penalty=2,
            repeat_penalty=1.1,
            logit_bias={"7": -100, "8": 100},
            min_tokens=1,
            stop_token_ids=[3],
            ignore_eos=True,
            seed=-5,
            priority=-3,
            cache_salt="s",
        )
        assert response.status_code == 200
        job = front.engine.job
        sampling = job.sampling
        assert (sampling.temperature, sampling.top_k, sampling.min_p) == (0.5, 0, 0.1)
        assert 0 < sampling.top_p < 1e-3
        assert (sampling.presence_penalty, sampling.frequency_penalty) == (-2, 2)
        assert (sampling.repetition_penalty, sampling.logit_bias) == (1.1, {7: -100, 8: 100})
        assert (sampling.stop_token_ids, sampling.ignore_eos, sampling.seed) == ((3,), True, -5)
        assert (job.priority, job.cache_salt, sampling.logprobs) == (-3, "s", None)


@pytest.mark.parametrize(
    ("top_k", "expected"), [(-1, 0), (0, 0), (1, 1), (319, 319), (320, 0), (2**63, 0), (2**64 - 1, 0)]
)
async def test_a_top_k_that_keeps_everything_is_none(top_k: int, expected: int) -> None:
    async with open_front() as front:
        assert (await front.chat(top_k=top_k)).status_code == 200
        assert front.engine.job.sampling.top_k == expected


async def test_whole_numbers_beyond_64_bits_are_refused() -> None:
    async with open_front() as front:
        for name in ("top_k", "seed", "priority", "min_tokens", "max_tokens", "n", "stop_token_ids", "top_logprobs"):
            for value in (2**64, -(2**64)):
                body = f'{{"model": "{CHAT}", "messages": [{{"role": "user", "content": "hi"}}], "{name}": '
                body += f"[{value}]}}" if name == "stop_token_ids" else f"{value}}}"
                response = await front.http.post("/v1/chat/completions", content=body)
                assert response.status_code == 400, (name, value, response.text)
        assert not front.engine.jobs


async def test_the_models_own_defaults_fill_what_the_client_leaves_out() -> None:
    async with open_front() as front:
        defaults = front.shelf[CHAT].defaults
        object.__setattr__(front.shelf[CHAT], "defaults", type(defaults)(0.6, 0.9, 20, 0.05, 1.2))
        await front.chat(top_k=3, temperature=None)
        sampling = front.engine.job.sampling
        assert (sampling.temperature, sampling.top_p, sampling.top_k) == (0.6, 0.9, 3)
        assert (sampling.min_p, sampling.repetition_penalty) == (0.05, 1.2)


async def test_harmless_fields_of_clients_are_accepted() -> None:
    async with open_front() as front:
        response = await front.chat(
            client_metadata={"a": "b"},
            metadata={},
            user="u",
            safety_identifier="s",
            prompt_cache_key="k",
            store=False,
            service_tier="auto",
            ttl=60,
            tools=[],
            tool_choice="auto",
            parallel_tool_calls=True,
            verbosity="medium",
            response_format={"type": "text"},
            modalities=["text"],
            reasoning_effort="none",
            functions=None,
            audio=None,
            anything=None,
            stream_options={"continuous_usage_stats": True, "include_obfuscation": False},
        )
        assert response.status_code == 200, response.text


async def test_official_client_accepts_every_form() -> None:
    async with open_front() as front:
        client = front.openai
        messages: Any = [{"role": "user", "content": "hi"}]
        answer = await client.chat.completions.create(model=CHAT, messages=messages, n=2, logprobs=True, top_logprobs=1)
        assert [choice.message.content for choice in answer.choices] == ["hello world"] * 2
        assert answer.usage is not None and answer.usage.prompt_tokens_details is not None
        assert answer.usage.prompt_tokens_details.cached_tokens == 4
        stream = await client.chat.completions.create(
            model=CHAT, messages=messages, stream=True, logprobs=True, stream_options={"include_usage": True}
        )
        chunks = [chunk async for chunk in stream]
        text = "".join(c.choices[0].delta.content or "" for c in chunks if c.choices)
        assert text == "hello world" and chunks[-1].usage is not None
        async with client.chat.completions.stream(model=CHAT, messages=messages) as helper:
            final = await helper.get_final_completion()
        assert final.choices[0].message.content == "hello world"


THINKING = "{{ messages[0].content }}{% if add_generation_prompt %}<think>\n{% endif %}{# </think> #}"


@pytest.mark.parametrize("tokens_per_step", [1, 4, 100])
async def test_thinking_is_no_part_of_the_content(tokens_per_step: int) -> None:
    async with open_front() as front:
        use_template(front, THINKING)
        front.engine.tokens_per_step = tokens_per_step
        front.engine.text = "so it is</think>\n\nhello END world"
        body = (await front.chat(stop="END", logprobs=True)).json()
        message = body["choices"][0]["message"]
        assert (message["content"], message["reasoning_content"], message["reasoning"]) == ("hello ", *["so it is"] * 2)
        spelled = bytes(b for token in body["choices"][0]["logprobs"]["content"] for b in token["bytes"]).decode()
        assert spelled.startswith("hello ") and "think" not in spelled
        num_thinking = len(front.engine.encode("so it is</think>"))
        assert 0 <= body["usage"]["completion_tokens_details"]["reasoning_tokens"] - num_thinking <= 1
        deltas = [c["choices"][0]["delta"] for c in events(await front.chat(stream=True, stop="END"))]
        assert deltas[0] == {"role": "assistant", "content": ""}
        assert "".join(delta.get("reasoning_content", "") for delta in deltas) == "so it is"
        assert "".join(delta.get("content", "") for delta in deltas) == "hello "


async def test_stop_strings_do_not_end_the_thinking() -> None:
    async with open_front() as front:
        use_template(front, "{{ messages[0].content }}{# </think> #}")
        front.engine.text = "<think>an END is near</think>but not END yet"
        message = (await front.chat(stop="END")).json()["choices"][0]["message"]
        assert (message["reasoning"], message["content"]) == ("an END is near", "but not ")
