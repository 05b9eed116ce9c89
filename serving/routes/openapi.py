"""GET /openapi.json, the description of every route, and GET /docs, which shows it without any other host.

The description is made of what the routes declare (`operation.py`), at the first request for it.
"""

from collections.abc import Sequence
from functools import cache
from importlib import resources
from importlib.metadata import version
from typing import Any, Literal

import orjson
from fastapi import APIRouter
from fastapi.openapi.docs import get_swagger_ui_html
from fastapi.routing import APIRoute
from pydantic import TypeAdapter
from starlette.responses import HTMLResponse, Response
from starlette.staticfiles import StaticFiles

from ..error_forms import ANTHROPIC, LM_STUDIO, form_of
from ..protocol.answers.common import AnthropicError, LMStudioError, OpenAIError
from .operation import JSON, Operation, declared, documented

DOCS_ASSETS = "/docs/assets"
"""Where `docs_assets` is to be mounted."""

JsonSchema = dict[str, Any]
_Mode = Literal["validation", "serialization"]
_ABOUT = """Local models over the OpenAI HTTP API, and over those of its neighbours.

Fields that are not described here are refused by name. `null` means that a field is absent.

A server that has API keys (`penstock keys add`) answers only requests that present one; before that, it needs none."""
_SECURITY = {
    "bearer": {"type": "http", "scheme": "bearer"},
    "api_key": {"type": "apiKey", "in": "header", "name": "x-api-key"},
}

_LIMITED = {
    name: {"description": description, "schema": {"type": kind}}
    for name, description, kind in (
        ("Retry-After", "Seconds after which to try again; not where that can never succeed.", "integer"),
        ("retry-after-ms", "The same in milliseconds.", "integer"),
        ("x-should-retry", "`false`: not soon enough for a client to wait.", "string"),
        ("x-ratelimit-limit-requests", "The key's requests a minute, if they are limited.", "integer"),
        ("x-ratelimit-remaining-requests", "How many of them may come now.", "integer"),
        ("x-ratelimit-reset-requests", "When all of them may, such as `1m30s`.", "string"),
        ("x-ratelimit-limit-tokens", "The same of tokens, of a minute or a day, whichever has less left.", "integer"),
        ("x-ratelimit-remaining-tokens", "How many of them are left.", "integer"),
        ("x-ratelimit-reset-tokens", "When all of them are there again.", "string"),
    )
}


def openapi_router(routers: Sequence[APIRouter]) -> APIRouter:
    """The routes that describe those of `routers`, and themselves."""
    router = APIRouter()

    @cache
    def description() -> bytes:
        return orjson.dumps(describe([*routers, router]))

    @router.get(
        "/openapi.json",
        **documented("This description, as OpenAPI 3.1", tag="Server", needs="key", answer=dict[str, Any]),
    )
    def openapi() -> Response:
        return Response(description(), media_type=JSON)

    @router.get("/docs", **documented("The description for people", tag="Server", needs="key", media_type="text/html"))
    async def docs() -> HTMLResponse:
        return get_swagger_ui_html(
            openapi_url="/openapi.json",
            title="Penstock",
            swagger_js_url=f"{DOCS_ASSETS}/swagger-ui-bundle.js",
            swagger_css_url=f"{DOCS_ASSETS}/swagger-ui.css",
            swagger_favicon_url=f"{DOCS_ASSETS}/favicon.png",
        )

    return router


def docs_assets() -> StaticFiles:
    """The script and the style of /docs."""
    return StaticFiles(directory=str(resources.files("fastapi_offline") / "static"))


def describe(routers: Sequence[APIRouter]) -> dict[str, Any]:
    """The OpenAPI document of all routes.

    Raises:
        ValueError: a route declares nothing.
    """
    routes = list(declared(routers))
    schemas = _Schemas([operation for _, operation in routes])
    paths: dict[str, dict[str, Any]] = {}
    for route, operation in routes:
        path, parameters = _path(route)
        for method in sorted(route.methods or ()):
            described = _operation(route, operation, schemas)
            described["operationId"] = f"{method.lower()}_{route.path}"
            described["parameters"] = parameters + described["parameters"]
            paths.setdefault(path, {})[method.lower()] = described
    return {
        "openapi": "3.1.0",
        "info": {"title": "Penstock", "version": version("penstock"), "description": _ABOUT},
        "paths": paths,
        "components": {"schemas": schemas.definitions, "securitySchemes": _SECURITY},
        "security": [{}, *({name: []} for name in _SECURITY)],  # {}: not needed while there are no keys
    }


def _path(route: APIRoute) -> tuple[str, list[dict[str, Any]]]:
    """The path as OpenAPI writes it, and its parameters: texts, some of which may hold slashes."""
    names = list(route.param_convertors)
    path = route.path
    for name in names:
        path = path.replace(f"{{{name}:path}}", f"{{{name}}}")
    return path, [{"name": name, "in": "path", "required": True, "schema": {"type": "string"}} for name in names]


def _operation(route: APIRoute, operation: Operation, schemas: "_Schemas") -> dict[str, Any]:
    content: dict[str, Any] = {operation.media_type: {}}
    if operation.answer is not None:
        content[operation.media_type]["schema"] = schemas.of(operation.answer, "serialization")
    if operation.events is not None:
        content["text/event-stream"] = {"schema": schemas.event(operation.events)}
    error = {"content": {JSON: {"schema": schemas.of(_error_of(route.path), "serialization")}}}
    responses: dict[str, Any] = {
        str(status): {"description": "The answer."} | ({"content": content} if status != 204 else {})
        for status in operation.statuses
    }
    responses["4XX"] = {"description": "The request is at fault; `param` and `code` say where and why."} | error
    responses["5XX"] = {"description": "The server is at fault, or not ready; Retry-After says when it may be."} | error
    if operation.unavailable is not None:
        schema = schemas.of(operation.unavailable, "serialization")
        responses["503"] = {"description": "The worker is gone.", "content": {JSON: {"schema": schema}}}
    described: dict[str, Any] = {
        "summary": operation.summary,
        "tags": [operation.tag],
        "parameters": schemas.query(operation.query) if operation.query is not None else [],
        "responses": responses,
    }
    if operation.needs == "nothing":
        described["security"] = []
    else:
        needed = "a valid API key" if operation.needs == "key" else f"an API key with the scope `{operation.needs}`"
        challenge = {"headers": {"WWW-Authenticate": {"schema": {"type": "string"}}}}
        responses["401"] = {"description": "There are API keys, and this needs a valid one."} | challenge | error
        responses["403"] = {"description": f"This is not allowed; where there are keys, it needs {needed}."} | error
    if operation.is_limited:
        responses["429"] = {
            "description": "A limit of the key, or the queue's, is reached.",
            "headers": _LIMITED,
        } | error
    if operation.bodies:
        choices = [schemas.of(body, "validation") for body in operation.bodies]
        schema = choices[0] if len(choices) == 1 else {"anyOf": choices}
        described["requestBody"] = {"required": True, "content": {JSON: {"schema": schema}}}
    return described


def _error_of(path: str) -> Any:
    form = form_of({"type": "http", "path": path, "headers": []})
    if path.startswith("/v1/models"):
        return OpenAIError | AnthropicError  # by the version header
    return AnthropicError if form is ANTHROPIC else LMStudioError if form is LM_STUDIO else OpenAIError


class _Schemas:
    """The JSON Schemas of all types of some operations, with the definitions that they share."""

    def __init__(self, operations: Sequence[Operation]) -> None:
        inputs = [body for operation in operations for body in (*operation.bodies, operation.query)]
        outputs = [
            kind for operation in operations for kind in (operation.answer, operation.events, operation.unavailable)
        ]
        modes: dict[_Mode, list[Any]] = {
            "validation": inputs,
            "serialization": [*outputs, OpenAIError, AnthropicError, LMStudioError, OpenAIError | AnthropicError],
        }
        kinds = {(repr(kind), mode): kind for mode, all_ in modes.items() for kind in all_ if kind is not None}
        schemas, shared = TypeAdapter.json_schemas(
            [(name, mode, TypeAdapter(kind)) for (name, mode), kind in kinds.items()],
            ref_template="#/components/schemas/{model}",
        )
        self._schemas = schemas
        self.definitions: dict[str, Any] = shared.get("$defs", {})

    def of(self, kind: Any, mode: _Mode) -> JsonSchema:
        """The schema of a type."""
        return self._schemas[repr(kind), mode]

    def event(self, kind: Any) -> JsonSchema:
        """The schema of one event of a stream: its data is JSON in a text, or the end mark."""
        data = {"contentMediaType": JSON, "contentSchema": self.of(kind, "serialization")}
        return {"type": "object", "properties": {"data": {"type": "string"} | data}}

    def query(self, kind: Any) -> list[dict[str, Any]]:
        """The parameters of a query; null cannot be written in one."""
        schema = self.of(kind, "validation")
        schema = self.definitions[schema["$ref"].rpartition("/")[2]] if "$ref" in schema else schema
        required = schema.get("required", ())
        parameters = []
        for name, value in schema["properties"].items():
            options = [option for option in value.get("anyOf", [value]) if option != {"type": "null"}]
            own = options[0] if len(options) == 1 else {"anyOf": options}
            parameters.append({"name": name, "in": "query", "required": name in required, "schema": own})
        return parameters
