"""Holds every exchange of the front's tests against /openapi.json: what is accepted and answered must be described."""

import json
import re
from functools import cached_property
from typing import Any

import httpx2
import jsonschema_rs

END_MARK = "[DONE]"


class Conformance:
    """A description.

    Args:
        description: the OpenAPI document.
    """

    def __init__(self, description: dict[str, Any]) -> None:
        self._description = description
        self._validators: dict[str, jsonschema_rs.Draft202012Validator] = {}

    async def check(self, response: httpx2.Response) -> None:
        """Check an exchange whose answer has come.

        Raises:
            AssertionError: the exchange is not as described.
        """
        request = response.request
        operation = self._operation(request.url.path, request.method.lower())
        if operation is None or request.method == "HEAD":
            return
        await response.aread()
        status = response.status_code
        described = operation["responses"].get(str(status)) or operation["responses"].get(f"{status // 100}XX")
        assert described is not None, f"status {status} is not described"
        if status < 300 and "requestBody" in operation:
            body = operation["requestBody"]["content"]["application/json"]
            self._check(json.loads(request.content), body["schema"], "an accepted request")
        media_type = response.headers["content-type"].partition(";")[0]
        schema = described["content"][media_type].get("schema")
        if media_type == "text/event-stream":
            schema = schema["properties"]["data"]["contentSchema"]
            for line in response.text.splitlines():
                data = line.removeprefix("data: ")
                if data != line and data != END_MARK and "error" not in (event := json.loads(data)):
                    self._check(event, schema, "an event")
        elif schema is not None:
            self._check(response.json(), schema, "an answer")

    def _check(self, value: object, schema: dict[str, Any], what: str) -> None:
        key = json.dumps(schema)
        if key not in self._validators:
            components = {"components": self._description["components"]}
            self._validators[key] = jsonschema_rs.Draft202012Validator(schema | components)
        error = next(self._validators[key].iter_errors(value), None)
        assert error is None, f"{what} is not as described at {error.instance_path}: {error.message[:300]}"

    @cached_property
    def _patterns(self) -> list[tuple[re.Pattern[str], dict[str, Any]]]:
        """Paths without parameters first, as they win."""
        paths = sorted(self._description["paths"].items(), key=lambda item: "{" in item[0])
        return [(re.compile(re.sub(r"\{\w+\}", "[^/]+", path)), operations) for path, operations in paths]

    def _operation(self, path: str, method: str) -> dict[str, Any] | None:
        for pattern, operations in self._patterns:
            if pattern.fullmatch(path) and method in operations:
                found: dict[str, Any] = operations[method]
                return found
        return None
