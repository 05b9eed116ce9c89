"""Python clients beside the official one, each doing a real run: Anthropic's, LangChain's and OpenAI's agents."""

import os
from collections.abc import Iterator

import pytest
from anthropic import Anthropic
from server_process import ServerProcess

CHAT, EMBEDDING = "smollm2-135m-instruct", "all-minilm-l6-v2"
QUESTION = "Name the capital of France."
WEATHER = {
    "name": "get_weather",
    "description": "Tells the weather in a city.",
    "input_schema": {
        "type": "object",
        "properties": {"city": {"type": "string", "maxLength": 20}},
        "required": ["city"],
        "additionalProperties": False,
    },
}


@pytest.fixture
def anthropic(server: ServerProcess) -> Iterator[Anthropic]:
    with Anthropic(base_url=server.base_url, api_key="none", max_retries=0, _strict_response_validation=True) as client:
        yield client


def test_anthropic_stream_and_tokens(anthropic: Anthropic) -> None:
    arguments = {"model": CHAT, "messages": [{"role": "user", "content": QUESTION}]}
    counted = anthropic.messages.count_tokens(**arguments).input_tokens  # type: ignore[arg-type]
    with anthropic.messages.stream(**arguments, max_tokens=20, extra_body={"temperature": 0}) as stream:  # type: ignore[arg-type]
        text = "".join(stream.text_stream)
        message = stream.get_final_message()
    assert "Paris" in text and message.content[0].text == text  # type: ignore[union-attr]
    usage = message.usage
    assert usage.input_tokens + (usage.cache_read_input_tokens or 0) == counted


def test_anthropic_tool_loop(anthropic: Anthropic) -> None:
    history: list[dict[str, object]] = [{"role": "user", "content": QUESTION}]
    arguments = {"model": CHAT, "max_tokens": 60, "tools": [WEATHER]}
    first = anthropic.messages.create(
        **arguments,  # type: ignore[arg-type]
        messages=history,  # type: ignore[arg-type]
        tool_choice={"type": "tool", "name": "get_weather", "disable_parallel_tool_use": True},
    )
    (call,) = first.content
    assert first.stop_reason == "tool_use" and call.type == "tool_use"
    assert isinstance(call.input["city"], str)
    result = {"type": "tool_result", "tool_use_id": call.id, "content": "Sunny."}
    history += [{"role": "assistant", "content": first.content}, {"role": "user", "content": [result]}]
    second = anthropic.messages.create(**arguments, messages=history, tool_choice={"type": "none"})  # type: ignore[arg-type]
    assert second.content[0].type == "text"


def test_anthropic_models(anthropic: Anthropic) -> None:
    models = {model.id: model for model in anthropic.models.list()}
    assert CHAT in models and models[CHAT].max_input_tokens
    assert anthropic.models.retrieve(CHAT).type == "model"


def test_langchain(server: ServerProcess) -> None:
    from langchain_openai import ChatOpenAI, OpenAIEmbeddings

    endpoint = {"base_url": f"{server.base_url}/v1", "api_key": "none", "max_retries": 0}
    chat = ChatOpenAI(model=CHAT, temperature=0, max_completion_tokens=20, **endpoint)  # type: ignore[arg-type]
    assert "Paris" in chat.invoke(QUESTION).text
    assert "Paris" in "".join(chunk.text for chunk in chat.stream(QUESTION))
    embeddings = OpenAIEmbeddings(model=EMBEDDING, tiktoken_enabled=False, check_embedding_ctx_length=False, **endpoint)  # type: ignore[arg-type]
    vectors = embeddings.embed_documents(["water under pressure", "a river"])
    assert [len(vector) for vector in vectors] == [384, 384]


async def test_openai_agents(server: ServerProcess, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(os.environ, "OPENAI_AGENTS_DISABLE_TRACING", "1")
    from agents import Agent, ModelSettings, OpenAIResponsesModel, Runner, function_tool
    from openai import AsyncOpenAI

    asked = []

    @function_tool
    def get_weather(city: str) -> str:
        """Tells the weather in a city."""
        asked.append(city)
        return "Sunny."

    async with AsyncOpenAI(base_url=f"{server.base_url}/v1", api_key="none", max_retries=0) as client:
        agent = Agent(
            name="Forecaster",
            instructions="Answer briefly.",
            tools=[get_weather],
            model=OpenAIResponsesModel(model=CHAT, openai_client=client),
            model_settings=ModelSettings(
                tool_choice="get_weather", parallel_tool_calls=False, temperature=0, max_tokens=60
            ),
        )
        # After a forced call the agent lets the model choose, so the second turn is an answer.
        result = await Runner.run(agent, QUESTION, max_turns=4)
    assert len(asked) >= 1
    assert isinstance(result.final_output, str)
