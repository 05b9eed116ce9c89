"""Talks to a running server over HTTP: JSON in, JSON or a stream of events out, errors as one line for people."""

import json
from collections.abc import Generator
from http.client import HTTPException, HTTPResponse
from typing import Any
from urllib.error import HTTPError, URLError
from urllib.parse import quote
from urllib.request import ProxyHandler, Request, build_opener

API_KEY_VARIABLE = "PENSTOCK_API_KEY"
"""Of the environment: the key with which commands call a server."""
UNAUTHORIZED = 401
QUICK_SECONDS = 10.0
"""For what a server answers at once."""
LOAD_SECONDS = 1000.0
"""For what may load a model first: more than the server waits for it."""


class ServerError(Exception):
    """The server is not there, or refuses; the message is for people."""


class NoServerError(ServerError):
    """Nothing answers at that address."""


class Server:
    """A running server.

    Args:
        host: name or address.
        port: TCP port.
        api_key: "": none is sent.
    """

    def __init__(self, host: str, port: int, api_key: str = "") -> None:
        self.url = f"http://{f'[{host}]' if ':' in host else host}:{port}"
        self._headers = {"authorization": f"Bearer {api_key}"} if api_key else {}
        self._opener = build_opener(ProxyHandler({}))  # a proxy cannot know this machine's own servers

    def get(self, path: str) -> Any:
        """The JSON at `path`.

        Raises:
            ServerError: no server, or it refuses.
        """
        return self._json(Request(self.url + path), QUICK_SECONDS)

    def post(self, path: str, body: object) -> Any:
        """What the server answers to `body`, which may take as long as loading a model.

        Raises:
            ServerError: no server, or it refuses.
        """
        return self._json(_request(self.url + path, body), LOAD_SECONDS)

    def models(self) -> list[dict[str, Any]]:
        """The server's models as GET /v1/models lists them, without aliases.

        Raises:
            ServerError: no server, or it refuses.
        """
        entries = self.get("/v1/models")["data"]
        return [entry for entry in entries if entry.get("root", entry["id"]) == entry["id"]]

    def model(self, name: str) -> dict[str, Any]:
        """One model or alias.

        Raises:
            ServerError: no server, or it has no such model.
        """
        entry: dict[str, Any] = self.get(f"/v1/models/{quote(name)}")
        return entry

    def stream(self, path: str, body: object) -> Generator[Any]:
        """The JSON of each event that the server sends; closing the iterator ends the work there.

        Raises:
            ServerError: no server, it refuses, or an event is an error.
        """
        with self._open(_request(self.url + path, body), LOAD_SECONDS) as response:
            try:
                for line in response:
                    data = line.strip().removeprefix(b"data: ")
                    if not line.startswith(b"data: ") or data == b"[DONE]":
                        continue
                    event = json.loads(data)
                    if isinstance(event, dict) and "error" in event:
                        raise ServerError(_message(event))
                    yield event
            except (OSError, HTTPException) as error:
                raise ServerError(f"the connection to {self.url} broke: {error}") from error

    def _json(self, request: Request, timeout: float) -> Any:
        with self._open(request, timeout) as response:
            try:
                return json.loads(response.read())
            except (OSError, HTTPException) as error:
                raise ServerError(f"the connection to {self.url} broke: {error}") from error
            except ValueError as error:
                raise ServerError(f"what runs at {self.url} is no Penstock: it answers without JSON") from error

    def _open(self, request: Request, timeout: float) -> HTTPResponse:
        try:
            for name, value in self._headers.items():
                request.add_header(name, value)
            response: HTTPResponse = self._opener.open(request, timeout=timeout)
            return response
        except HTTPError as error:
            with error:
                raise ServerError(_message_of(error)) from None
        except (URLError, OSError, HTTPException) as error:
            reason = getattr(error, "reason", error)
            raise NoServerError(
                f"no server answers at {self.url} ({reason}); start one with `penstock serve`, "
                "or say where it is with --host and --port"
            ) from None


def _request(url: str, body: object) -> Request:
    return Request(url, json.dumps(body).encode(), {"content-type": "application/json"})


def _message_of(error: HTTPError) -> str:
    if error.code == UNAUTHORIZED:
        return f"the server wants an API key that is valid: give it in the environment as {API_KEY_VARIABLE}"
    try:
        return _message(json.loads(error.read()))
    except (OSError, ValueError):
        return f"the server answers {error.code} {error.reason}"


def _message(body: Any) -> str:
    """The words in an error body of any of the protocols."""
    error = body.get("error", body) if isinstance(body, dict) else body
    return str(error.get("message", error) if isinstance(error, dict) else error)
