"""LM Studio's lists of models, loading and unloading by hand, and /api/v0 with its statistics."""

from typing import Any

import pytest
from fake_engine import BARE, CHAT, EMBED, Exchange, events, model_ready, open_front, until

from penstock.serving.handlers.lmstudio.models import params_string


async def test_the_models_of_v0() -> None:
    async with open_front() as front:
        del front.engine.models[EMBED]
        listed = (await front.http.get("/api/v0/models")).json()
        assert listed["object"] == "list"
        models = {model["id"]: model for model in listed["data"]}
        assert set(models) == {CHAT, BARE, EMBED}
        assert models[CHAT] == {
            "id": CHAT,
            "object": "model",
            "type": "llm",
            "publisher": "local",
            "arch": "tiny",
            "compatibility_type": "safetensors",
            "quantization": "F32",
            "state": "loaded",
            "max_context_length": 256,
            "loaded_context_length": 256,
            "capabilities": [],
        }
        assert models[EMBED]["type"] == "embeddings" and models[EMBED]["state"] == "not-loaded"
        assert (await front.http.get(f"/api/v0/models/{CHAT}")).json() == models[CHAT]
        assert (await front.http.get("/api/v0/models/none")).status_code == 404


async def test_the_models_of_v1() -> None:
    async with open_front() as front:
        del front.engine.models[EMBED]
        models = {model["key"]: model for model in (await front.http.get("/api/v1/models")).json()["models"]}
        assert models[CHAT]["loaded_instances"] == [{"id": CHAT, "config": {"context_length": 256, "parallel": 8}}]
        assert models[CHAT]["capabilities"] == {"vision": False, "trained_for_tool_use": False}
        assert models[CHAT]["quantization"] == {"name": "F32", "bits_per_weight": 32.0}
        assert (models[CHAT]["params_string"], models[CHAT]["size_bytes"]) == ("1K", 4000)
        assert (models[EMBED]["type"], models[EMBED]["loaded_instances"]) == ("embedding", [])
        assert "architecture" not in models[EMBED]


async def test_a_loaded_model_tells_how_much_it_takes_whatever_its_configuration_says() -> None:
    async with open_front() as front:
        front.engine.models[CHAT] = model_ready(CHAT, max_model_len=100)
        for path in (f"/api/v0/models/{CHAT}", "/api/v1/models"):
            answer = (await front.http.get(path)).json()
            model = answer if "models" not in answer else next(m for m in answer["models"] if m["key"] == CHAT)
            assert model["max_context_length"] == 100
        refused = await front.post("/api/v1/models/load", {"model": CHAT, "context_length": 101})
        assert refused.status_code == 400 and "101 is above 100" in refused.text


@pytest.mark.parametrize(
    ("number", "text"),
    [(0, None), (999, "999"), (1000, "1K"), (134_515_008, "135M"), (1_100_000_000, "1.1B"), (7 * 10**9, "7B")],
)
def test_sizes_for_people(number: int, text: str | None) -> None:
    assert params_string(number) == text


async def test_loading_and_unloading_by_hand() -> None:
    async with open_front() as front:
        del front.engine.models[CHAT]
        body = {"model": CHAT, "context_length": 128, "flash_attention": True, "echo_load_config": True}
        answer = (await front.post("/api/v1/models/load", body)).json()
        assert answer.pop("load_time_seconds") >= 0
        assert answer == {
            "type": "llm",
            "instance_id": CHAT,
            "status": "loaded",
            "load_config": {"context_length": 256, "parallel": 8},
        }
        assert front.engine.loads == [CHAT]
        unloaded = await front.post("/api/v1/models/unload", {"instance_id": CHAT})
        assert unloaded.json() == {"instance_id": CHAT} and front.engine.unloads == [CHAT]


@pytest.mark.parametrize(
    ("path", "body", "status", "kind", "param"),
    [
        ("load", {}, 400, "invalid_request", "model"),
        ("load", {"model": "none"}, 404, "model_not_found", "model"),
        ("load", {"model": CHAT, "context_length": 512}, 400, "invalid_request", "context_length"),
        ("load", {"model": CHAT, "num_experts": 2}, 400, "invalid_request", "num_experts"),
        ("unload", {}, 400, "invalid_request", "instance_id"),
        ("unload", {"instance_id": "none"}, 404, "model_not_found", "model"),
    ],
)
async def test_errors_of_loading(path: str, body: dict[str, Any], status: int, kind: str, param: str) -> None:
    async with open_front() as front:
        response = await front.post(f"/api/v1/models/{path}", body)
        assert response.status_code == status, response.text
        error = response.json()["error"]
        assert (error["type"], error["param"]) == (kind, param)


async def test_a_model_in_use_is_not_unloaded() -> None:
    async with open_front() as front:
        front.engine.script = lambda job: [60.0]
        exchange = Exchange(front.app, "/api/v1/chat", {"model": CHAT, "input": "hi"})
        await until(lambda: len(front.engine.jobs) == 1)
        response = await front.post("/api/v1/models/unload", {"instance_id": CHAT})
        assert response.status_code == 409 and "in flight" in response.json()["error"]["message"]
        exchange.disconnect()
        await exchange.task


REQUESTS: list[tuple[str, dict[str, Any]]] = [
    ("/api/v0/chat/completions", {"model": CHAT, "messages": [{"role": "user", "content": "hi"}]}),
    ("/api/v0/completions", {"model": CHAT, "prompt": "hi", "max_tokens": 50}),
]


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(("path", "body"), REQUESTS)
@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({}, "eosFound"),
        ({"max_tokens": 2}, "maxPredictedTokensReached"),
        ({"stop": ["orl"]}, "stopStringFound"),
    ],
)
async def test_answers_of_v0_have_statistics(
    path: str, body: dict[str, Any], fields: dict[str, Any], reason: str, stream: bool
) -> None:
    async with open_front() as front:
        plain = await front.post(path.replace("/api/v0", "/v1"), body | fields)
        response = await front.post(path, body | fields | {"stream": stream})
        answer = events(response)[-1] if stream else response.json()
        assert answer["object"].startswith(plain.json()["object"])
        if not stream:
            assert answer["choices"] == plain.json()["choices"] and answer["usage"]["completion_tokens"] > 0
        stats = answer["stats"]
        assert stats["stop_reason"] == reason
        assert stats["tokens_per_second"] > 0 and stats["time_to_first_token"] > 0 and stats["generation_time"] > 0
        assert answer["model_info"] == {
            "arch": "tiny",
            "quant": "F32",
            "format": "safetensors",
            "context_length": 256,
        }
        assert answer["runtime"]["name"] == "penstock" and answer["runtime"]["supported_formats"]


async def test_embeddings_of_v0() -> None:
    async with open_front() as front:
        body = {"model": EMBED, "input": "hello", "encoding_format": "float"}
        assert (await front.post("/api/v0/embeddings", body)).json() == (
            await front.embed(encoding_format="float")
        ).json()
