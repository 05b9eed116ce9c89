"""LM Studio's native API through a real server: metadata, statistics, and a chat that goes on in the Responses API."""

import json

import httpx2
from openai import OpenAI
from server_process import ServerProcess

CHAT, EMBEDDING = "smollm2-135m-instruct", "all-minilm-l6-v2"


def test_metadata_of_the_starter_models(server: ServerProcess) -> None:
    listed = httpx2.get(f"{server.base_url}/api/v1/models").json()["models"]
    models = {model["key"]: model for model in listed}
    chat, embedding = models[CHAT], models[EMBEDDING]
    assert (chat["type"], chat["params_string"], chat["max_context_length"]) == ("llm", "135M", 8192)
    assert chat["loaded_instances"][0]["config"]["context_length"] == 8192 and chat["size_bytes"] > 10**8
    assert (embedding["type"], embedding["params_string"]) == ("embedding", "23M")
    old = {model["id"]: model for model in httpx2.get(f"{server.base_url}/api/v0/models").json()["data"]}
    assert (old[CHAT]["state"], old[CHAT]["arch"], old[EMBEDDING]["type"]) == ("loaded", "llama", "embeddings")


def test_a_chat_with_statistics_goes_on_in_the_responses_api(server: ServerProcess, client: OpenAI) -> None:
    body = {"model": CHAT, "input": "Name the capital of France.", "temperature": 0, "max_output_tokens": 20}
    url, key = f"{server.base_url}/api/v1/chat", {"authorization": f"Bearer {client.api_key}"}
    with httpx2.stream("POST", url, json=body | {"stream": True}, headers=key, timeout=60) as stream:
        lines = [line for line in stream.iter_lines() if line.startswith("data: ")]
    events = [json.loads(line.removeprefix("data: ")) for line in lines]
    result = events[-1]["result"]
    (message,) = result["output"]
    assert "Paris" in message["content"]
    assert "".join(event["content"] for event in events if event["type"] == "message.delta") == message["content"]
    stats = result["stats"]
    assert stats["tokens_per_second"] > 1 and 0 < stats["time_to_first_token_seconds"] < 60
    again = client.responses.create(
        model=CHAT, input="Say it again.", previous_response_id=result["response_id"], max_output_tokens=5
    )
    assert again.usage is not None and again.usage.input_tokens > stats["input_tokens"]


def test_openais_answer_with_statistics(server: ServerProcess) -> None:
    body = {"model": CHAT, "messages": [{"role": "user", "content": "Hi."}], "max_tokens": 4, "temperature": 0}
    answer = httpx2.post(f"{server.base_url}/api/v0/chat/completions", json=body, timeout=60).json()
    assert answer["stats"]["stop_reason"] == "maxPredictedTokensReached"
    assert answer["stats"]["generation_time"] > 0 and answer["model_info"]["arch"] == "llama"
