"""POST /api/v1/chat: answers, the stream of events, what it remembers, what it refuses."""

import json
from typing import Any

import httpx2
import pytest
from fake_engine import CHAT, EMBED, Exchange, Front, model_ready, open_front, until, use_template
from openai.types.responses import Response
from starlette.datastructures import Headers

from penstock.scheduler.messages import JobError, ModelFailed, RequestOutput
from penstock.serving.keys.doorkeeper import anybody

HI = {"model": CHAT, "input": "hi"}
THINKING_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message.role }}\n{{ message.content }}<|im_end|>\n{% endfor %}"
    "{% if enable_thinking is defined and not enable_thinking %}<think>\n\n</think>\n\n{% endif %}"
)


async def chat(front: Front, **fields: Any) -> dict[str, Any]:
    """The body of an answer that must succeed."""
    response = await front.post("/api/v1/chat", HI | fields)
    assert response.status_code == 200, response.text
    body: dict[str, Any] = response.json()
    return body


async def streamed(front: Front, **fields: Any) -> list[dict[str, Any]]:
    """The events of a stream, each named after its type."""
    response = await front.post("/api/v1/chat", HI | {"stream": True} | fields)
    assert response.status_code == 200 and response.headers["content-type"].startswith("text/event-stream")
    *frames, rest = response.text.split("\n\n")
    assert rest == ""
    events = []
    for frame in frames:
        name, data = frame.split("\n")
        events.append(json.loads(data.removeprefix("data: ")))
        assert name == f"event: {events[-1]['type']}"
    assert events[0] == {"type": "chat.start", "model_instance_id": CHAT} and events[-1]["type"] == "chat.end"
    return events


def error(response: httpx2.Response, status: int) -> dict[str, str]:
    """LM Studio's error object."""
    assert response.status_code == status, response.text
    (body,) = response.json().values()
    assert set(body) <= {"type", "message", "code", "param"} and body["message"]
    found: dict[str, str] = body
    return found


def prompts(front: Front) -> list[str]:
    """What the model was shown in each job, special tokens left out."""
    return [front.engine.tokenizer.decode(job.prompt_token_ids) for job in front.engine.jobs]  # type: ignore[union-attr]


async def test_an_answer() -> None:
    async with open_front() as front:
        body = await chat(
            front, system_prompt="Be brief.", temperature=0.5, top_p=0.5, top_k=5, min_p=0.1, repeat_penalty=1.1
        )
        assert body["model_instance_id"] == CHAT and body["response_id"].startswith("resp_")
        assert body["output"] == [{"type": "message", "content": "hello world"}]
        job, stats = front.engine.job, body["stats"]
        assert stats["input_tokens"] == len(job.prompt_token_ids)
        assert stats["total_output_tokens"] == len(front.engine.encode("hello world")) + 1
        assert stats["reasoning_output_tokens"] == 0
        assert stats["tokens_per_second"] > 0 and stats["time_to_first_token_seconds"] > 0
        assert "model_load_time_seconds" not in stats
        assert prompts(front) == ["system\nBe brief.\nuser\nhi\nassistant\n"]
        sampling = job.sampling
        assert (sampling.temperature, sampling.top_p, sampling.top_k, sampling.min_p) == (0.5, 0.5, 5, 0.1)
        assert sampling.repetition_penalty == 1.1


async def test_a_stream_is_the_same_answer() -> None:
    async with open_front() as front:
        whole = await chat(front)
        events = await streamed(front)
        kinds = [event["type"] for event in events]
        assert kinds[:4] == ["chat.start", "prompt_processing.start", "prompt_processing.end", "message.start"]
        assert kinds[-2:] == ["message.end", "chat.end"] and set(kinds[4:-2]) == {"message.delta"}
        assert "".join(event["content"] for event in events[4:-2]) == "hello world"
        result = events[-1]["result"]
        assert result.keys() == whole.keys() and result["output"] == whole["output"]


async def test_progress_of_a_long_prompt() -> None:
    async with open_front() as front:
        front.engine.script = lambda job: [
            RequestOutput(job.request_id, [], num_computed_tokens=len(job.prompt_token_ids) // 2),
            *front.engine.say(job),
        ]
        _, start, progress, end, *_ = await streamed(front)
        assert (start["type"], end["type"]) == ("prompt_processing.start", "prompt_processing.end")
        assert progress["type"] == "prompt_processing.progress" and 0 < progress["progress"] < 1


async def test_a_prompt_that_is_computed_again_is_no_news() -> None:
    async with open_front() as front:
        front.engine.script = lambda job: [
            *front.engine.say(job)[:1],
            RequestOutput(job.request_id, [], num_computed_tokens=2),
            *front.engine.say(job)[1:],
        ]
        events = await streamed(front)
        assert events[-1]["result"]["output"] == [{"type": "message", "content": "hello world"}]
        assert [event["type"] for event in events].count("message.start") == 1


@pytest.mark.parametrize("stream", [False, True])
async def test_thinking(stream: bool) -> None:
    async with open_front() as front:
        use_template(front, THINKING_TEMPLATE)
        front.engine.text = "<think>hello</think>world"
        if stream:
            events = await streamed(front)
            body = events[-1]["result"]
            kinds = list(dict.fromkeys(event["type"] for event in events))
            assert kinds[3:9] == [
                f"{part}.{do}" for part in ("reasoning", "message") for do in ("start", "delta", "end")
            ]
        else:
            body = await chat(front)
        assert body["output"] == [{"type": "reasoning", "content": "hello"}, {"type": "message", "content": "world"}]
        assert body["stats"]["reasoning_output_tokens"] > 0


async def test_thinking_is_switched_where_it_can_be() -> None:
    async with open_front() as front:
        refused = error(await front.post("/api/v1/chat", HI | {"reasoning": "off"}), 400)
        assert (refused["param"], refused["code"]) == ("reasoning", "unsupported_parameter")
        use_template(front, THINKING_TEMPLATE)
        for reasoning in ("off", "on", "high"):
            await chat(front, reasoning=reasoning)
        assert ["</think>" in prompt for prompt in prompts(front)] == [True, False, False]


async def test_a_chat_goes_on() -> None:
    async with open_front() as front:
        first = await chat(front, system_prompt="Be brief.")
        second = await chat(front, input="And now?", previous_response_id=first["response_id"])
        third = await chat(front, input="Again.", system_prompt="Be long.", previous_response_id=second["response_id"])
        said = "user\nhi\nassistant\nhello world\nuser\nAnd now?\nassistant\n"
        assert prompts(front)[1] == "system\nBe brief.\n" + said
        assert prompts(front)[2] == "system\nBe long.\n" + said + "hello world\nuser\nAgain.\nassistant\n"
        principal = anybody(Headers({"authorization": ""})).id
        stored = Response.model_validate(await front.store.responses.get(principal, third["response_id"]), strict=True)
        assert stored.output_text == "hello world" and stored.previous_response_id == second["response_id"]
        other = {"authorization": "Bearer somebody-else"}
        body = HI | {"previous_response_id": first["response_id"]}
        refused = error(await front.http.post("/api/v1/chat", json=body, headers=other), 400)
        assert refused["code"] == "previous_response_not_found"


async def test_what_is_not_stored_is_not_found() -> None:
    async with open_front() as front:
        body = await chat(front, store=False)
        assert "response_id" not in body
        refused = error(await front.post("/api/v1/chat", HI | {"previous_response_id": "resp_none"}), 400)
        assert refused["param"] == "previous_response_id"


@pytest.mark.parametrize("stream", [False, True])
async def test_the_model_is_loaded_first(stream: bool) -> None:
    async with open_front() as front:
        del front.engine.models[CHAT]
        if stream:
            events = await streamed(front)
            kinds = list(dict.fromkeys(event["type"] for event in events))
            assert kinds[1:5] == [
                "model_load.start",
                "model_load.progress",
                "model_load.end",
                "prompt_processing.start",
            ]
            progress = [event["progress"] for event in events if event["type"] == "model_load.progress"]
            assert progress and progress == sorted(progress)
            body = events[-1]["result"]
        else:
            body = await chat(front)
        assert body["stats"]["model_load_time_seconds"] >= 0 and body["output"]
        assert front.engine.loads == [CHAT]


async def test_a_model_that_cannot_be_loaded() -> None:
    async with open_front() as front:
        del front.engine.models[CHAT]
        front.engine.load_answers = lambda spec: [ModelFailed(spec.name, "the disk is broken")]
        *_, failed, end = await streamed(front)
        assert failed["type"] == "error" and failed["error"]["type"] == "model_not_found"
        assert "the disk is broken" in failed["error"]["message"]
        assert end["result"]["output"] == []


async def test_a_job_that_fails_in_the_middle() -> None:
    async with open_front() as front:
        fault = JobError("the device ran out of memory", "internal_error", None, 500)
        front.engine.script = lambda job: [
            *front.engine.say(job)[:1],
            RequestOutput(job.request_id, [], 0, "error", error=fault),
        ]
        *_, failed, end = await streamed(front)
        assert failed["error"] == {"type": "internal_error", "message": fault.message, "code": "internal_error"}
        assert end["result"]["output"] == [{"type": "message", "content": "hello"}]
        assert "response_id" not in end["result"]
        assert error(await front.post("/api/v1/chat", HI), 500)["type"] == "internal_error"


FAULTS: list[tuple[dict[str, Any], str, str]] = [
    ({"model": None}, "missing_required_parameter", "model"),
    ({"input": None}, "missing_required_parameter", "input"),
    ({"input": []}, "empty_array", "input"),
    ({"input": [{"type": "image", "data_url": "data:"}]}, "unsupported_parameter", "input.0.type"),
    ({"integrations": ["mcp/files"]}, "not_implemented", "integrations"),
    ({"temperature": 2}, "integer_above_max_value", "temperature"),
    ({"reasoning": "much"}, "invalid_value", "reasoning"),
    ({"context_length": 10**6}, "integer_above_max_value", "context_length"),
    ({"previous_response_id": "chat_1"}, "invalid_value", "previous_response_id"),
    ({"tools": []}, "unknown_parameter", "tools"),
    ({"model": EMBED}, "model_not_supported", "model"),
    ({"input": "hello " * 300}, "context_length_exceeded", "input"),
]


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(("fields", "code", "param"), FAULTS)
async def test_bad_requests_name_the_field(fields: dict[str, Any], code: str, param: str, stream: bool) -> None:
    async with open_front() as front:
        front.engine.models[CHAT] = model_ready(CHAT)
        refused = error(await front.post("/api/v1/chat", HI | {"stream": stream} | fields), 400)
        assert refused["type"] == ("not_implemented" if code == "not_implemented" else "invalid_request")
        assert (refused["code"].replace("decimal", "integer"), refused["param"]) == (code, param)
        assert front.engine.jobs == []


async def test_a_shorter_context_than_the_models_is_kept() -> None:
    async with open_front() as front:
        front.engine.text = "hello " * 200
        answer = (await front.post("/api/v1/chat", HI | {"context_length": 60})).json()
        prompt_tokens = len(front.engine.job.prompt_token_ids)
        assert answer["stats"]["input_tokens"] + answer["stats"]["total_output_tokens"] == 60 > prompt_tokens
        refused = error(await front.post("/api/v1/chat", HI | {"context_length": prompt_tokens}), 400)
        assert (refused["code"], refused["param"]) == ("context_length_exceeded", "input")


async def test_an_unknown_model() -> None:
    async with open_front() as front:
        assert error(await front.post("/api/v1/chat", HI | {"model": "none"}), 404)["type"] == "model_not_found"


@pytest.mark.parametrize("stream", [False, True])
async def test_a_client_that_goes_away_is_cancelled(stream: bool) -> None:
    async with open_front() as front:
        front.engine.script = lambda job: [*front.engine.say(job)[:1], 60.0]
        exchange = Exchange(front.app, "/api/v1/chat", HI | {"stream": stream})
        await until(lambda: len(front.engine.jobs) == 1 and (not stream or b"hello" in exchange.body))
        exchange.disconnect()
        await exchange.task
        assert front.engine.cancelled == [front.engine.job.request_id] and front.engine.num_jobs == 0
