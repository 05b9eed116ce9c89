"""/openapi.json describes every route, and exactly what it accepts; /docs needs no other host."""

import asyncio
import re
from typing import Any

import pytest
from fake_engine import open_front
from fastapi import APIRouter, FastAPI
from fastapi.routing import APIRoute
from jsonschema import Draft202012Validator

from penstock.serving.protocol.body import RequestBody
from penstock.serving.protocol.completion import CompletionBody
from penstock.serving.routes.openapi import describe


@pytest.fixture(scope="module")
def document() -> dict[str, Any]:
    """What the server says; made once, since it takes a second."""

    async def ask() -> dict[str, Any]:
        async with open_front() as front:
            response = await front.http.get("/openapi.json")
            assert response.status_code == 200, response.text
            described: dict[str, Any] = response.json()
            return described

    return asyncio.run(ask())


def schema_of(document: dict[str, Any], name: str) -> dict[str, Any]:
    """One of the document's schemas, by itself."""
    return {"$ref": f"#/components/schemas/{name}", "components": document["components"]}


async def test_every_route_is_described(document: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    routers: list[APIRouter] = []
    monkeypatch.setattr(FastAPI, "include_router", lambda app, router: routers.append(router))
    async with open_front() as front:
        own = [route for route in front.app.routes if isinstance(route, APIRoute)]
        there = {
            (route.path.replace(":path}", "}"), method.lower())
            for route in [*own, *(route for router in routers for route in router.routes)]
            for method in route.methods  # type: ignore[attr-defined]
        }
    described = {(path, method) for path, operations in document["paths"].items() for method in operations}
    assert described == there and ("/v1/chat/completions", "post") in described
    ids = [operation["operationId"] for operations in document["paths"].values() for operation in operations.values()]
    assert len(set(ids)) == len(ids)


def test_a_route_without_a_description_is_an_error() -> None:
    router = APIRouter()
    router.get("/new")(lambda: None)
    with pytest.raises(ValueError, match="/new"):
        describe([router])


def test_schemas_are_schemas_and_refer_to_what_is_there(document: dict[str, Any]) -> None:
    for schema in document["components"]["schemas"].values():
        Draft202012Validator.check_schema(schema)
    references = set(re.findall(r"'\$ref': '#/components/schemas/([^']+)'", str(document)))
    assert references <= document["components"]["schemas"].keys() and "CompletionBody" in references


@pytest.mark.parametrize("path", ["/v1/completions", "/v1/chat/completions", "/v1/messages"])
def test_streams_and_errors_are_described(path: str, document: dict[str, Any]) -> None:
    responses = document["paths"][path]["post"]["responses"]
    assert set(responses) == {"200", "401", "403", "429", "4XX", "5XX"}
    assert {"Retry-After", "x-ratelimit-remaining-tokens"} < responses["429"]["headers"].keys()
    assert set(responses["200"]["content"]) == {"application/json", "text/event-stream"}
    error = "AnthropicError" if "messages" in path else "OpenAIError"
    assert responses["4XX"]["content"]["application/json"]["schema"]["$ref"].endswith(error)


@pytest.mark.parametrize(
    ("fields", "accepted"),
    [
        ({}, True),
        ({"prompt": [1, 2], "stop": "x", "user": "me", "suffix": None}, True),
        ({"stop": ["x"] * 17}, False),
        ({"max_tokens": -1, "logit_bias": {"5": 1}}, True),
        ({"max_tokens": -2}, False),
        ({"logit_bias": {"x": 1}}, False),
        ({"service_tier": "auto"}, True),
        ({"service_tier": "priority"}, False),
        ({"kv_transfer_params": {}}, False),
        ({"prompt": None}, False),
        ({"wand": 1}, False),
        ({"stream_options": {"include_usage": True, "include_obfuscation": 5}}, True),
        ({"stream_options": {"wand": True}}, False),
    ],
)
async def test_bodies_are_described_as_they_are_accepted(
    fields: dict[str, Any], accepted: bool, document: dict[str, Any]
) -> None:
    async with open_front() as front:
        body = {"model": "tiny-chat", "prompt": "hello"} | fields
        validator = Draft202012Validator(schema_of(document, "CompletionBody"))
        assert validator.is_valid(body) == accepted
        assert ((await front.post("/v1/completions", body)).status_code == 200) == accepted


def test_reasons_beside_fields_become_descriptions() -> None:
    class Body(RequestBody):
        width: int = 0
        """In
        metres."""
        height: int

    properties = Body.model_json_schema()["properties"]
    assert list(properties) == ["height", "width"], "required ones first"
    assert properties["width"]["description"] == "In metres." and "description" not in properties["height"]
    assert "Every choice" not in str(CompletionBody.model_json_schema())
    assert "Prefix caching" in CompletionBody.model_json_schema()["properties"]["cache_prompt"]["description"]


async def test_docs_ask_no_other_host() -> None:
    async with open_front() as front:
        page = await front.http.get("/docs")
        assert page.headers["content-type"].startswith("text/html")
        assert not re.search(r"https?://|[\"']//", page.text)
        links = re.findall(r"(?:src|href)=\"([^\"]+)\"", page.text)
        assert len(links) == 3
        for link in [*links, "/openapi.json"]:
            assert (await front.http.get(link)).status_code == 200
