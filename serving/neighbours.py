"""Makes several API processes one server: hands a request to the process that it concerns, over Unix sockets.

The first process decides about models, so it loads what the others ask for and answers everything about them and about
downloads. A response that is being made lives in the process that took it: the others ask around for it. Everything
else is the same in every process, through the worker or through the store.
"""

import re
from collections.abc import Callable, Coroutine, Iterable
from pathlib import Path
from socket import AF_UNIX, SOCK_STREAM, socket
from typing import TYPE_CHECKING, Any

import orjson
from starlette.datastructures import Headers
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from .app import MAX_BODY_BYTES
from .drain import Drain
from .errors import ApiError, translate
from .keys.gate import Identify
from .sse import until_disconnect

if TYPE_CHECKING:
    import aiohttp

    from .handlers.background import ResponseRuns

ENSURE = "/ensure-model"
"""Of the first process, on its Unix socket only."""
MISDIRECTED = 421
_OF_MODELS = re.compile(r"/api/v[01]/models(/.*)?")
_OF_RESPONSE = re.compile(r"/v1/responses/(resp_[^/]+)(/.*)?")
_OF_CONNECTION = frozenset({"connection", "content-length", "date", "host", "keep-alive", "transfer-encoding"})

Ensure = Callable[[str, float | None], Coroutine[Any, Any, None]]
"""Makes a model resident, by name, with the seconds that it may then be idle."""


class Neighbours:
    """The API processes of one server, as seen from one of them.

    Args:
        folder: of the processes' sockets.
        index: this process's.
        count: how many there are.
    """

    def __init__(self, folder: Path, index: int, count: int) -> None:
        self._folder = folder
        self._index = index
        self._count = count
        self._sessions: dict[int, aiohttp.ClientSession] = {}

    def listen(self) -> socket:
        """The socket through which the others reach this process."""
        path = self._path(self._index)
        path.unlink(missing_ok=True)  # of a process that died
        listener = socket(AF_UNIX, SOCK_STREAM)
        listener.bind(str(path))
        return listener

    def joined(self, app: ASGIApp, runs: "ResponseRuns", ensure: Ensure, identify: Identify, drain: Drain) -> ASGIApp:
        """The application, with what concerns other processes handed to them."""

        async def route(scope: Scope, receive: Receive, send: Send) -> None:
            path = scope["path"]
            is_neighbour = not (scope["server"] and scope["server"][1])  # other sockets than theirs have a port
            if is_neighbour and path == ENSURE:
                await _answer_ensure(ensure, scope, receive, send)
                return
            try:
                principal = identify(Headers(scope=scope))
            except ApiError:  # the gate in front of the routes says so, before anything is read or handed over
                await app(scope, receive, send)
                return
            made = _OF_RESPONSE.fullmatch(path)
            is_elsewhere = made is not None and runs.find(principal.id, made[1]) is None
            if is_neighbour:
                await (Response(status_code=MISDIRECTED) if is_elsewhere else app)(scope, receive, send)
                return
            others: Iterable[int] = ()
            body = b""
            if self._index and _OF_MODELS.fullmatch(path):
                body, is_whole = await _read_body(receive)
                receive = _again(body, is_whole, receive)
                others = (0,) if is_whole else ()
            elif is_elsewhere:
                others = (index for index in range(self._count) if index != self._index)
            with drain.counting(scope):
                for other in others:
                    if await self._hand_over(other, scope, body, receive, send):
                        return
            await app(scope, receive, send)

        return route

    async def ask_for_model(self, name: str, ttl: float | None) -> None:
        """Have the first process make a model resident.

        Raises:
            ApiError: as it says; 503, it does not answer.
        """
        import aiohttp

        try:
            async with self._session(0).post(f"http://api{ENSURE}", json={"name": name, "ttl": ttl}) as answer:
                answer.raise_for_status()
                said = await answer.json()
        except aiohttp.ClientError as error:
            message = "The process that loads models does not answer. Try again."
            raise ApiError(message, status=503, code="model_loading") from error
        if said:
            raise ApiError(**said)

    async def close(self) -> None:
        """Close the connections to the others."""
        for session in self._sessions.values():
            await session.close()
        self._path(self._index).unlink(missing_ok=True)

    async def _hand_over(self, other: int, scope: Scope, body: bytes, receive: Receive, send: Send) -> bool:
        """Let another process answer; False: it is not its business, or it is not there."""
        import aiohttp
        import yarl

        path = scope["raw_path"].decode() + (f"?{scope['query_string'].decode()}" if scope["query_string"] else "")
        address = yarl.URL(f"http://api{path}", encoded=True)
        headers = [(name.decode(), value.decode("latin-1")) for name, value in scope["headers"]]
        headers = [(name, value) for name, value in headers if name not in _OF_CONNECTION]
        asking = self._session(other).request(scope["method"], address, headers=headers, data=body)
        try:
            answer = await asking
        except aiohttp.ClientError:
            return False
        async with answer:
            if answer.status == MISDIRECTED:
                return False
            await until_disconnect(receive, _relay(answer, send))
        return True

    def _session(self, other: int) -> "aiohttp.ClientSession":
        import aiohttp

        if other not in self._sessions:
            self._sessions[other] = aiohttp.ClientSession(
                connector=aiohttp.UnixConnector(str(self._path(other)), limit=0),
                timeout=aiohttp.ClientTimeout(total=None),
                auto_decompress=False,
            )
        return self._sessions[other]

    def _path(self, index: int) -> Path:
        return self._folder / f"api-{index}.sock"


async def _read_body(receive: Receive) -> tuple[bytes, bool]:
    """A request's body, and whether that is all of it: not if it is too large, or its client has gone."""
    body = bytearray()
    while len(body) <= MAX_BODY_BYTES:
        message = await receive()
        if message["type"] != "http.request":
            break
        body += message.get("body", b"")
        if not message.get("more_body", False):
            return bytes(body), True
    return bytes(body), False


def _again(body: bytes, is_whole: bool, receive: Receive) -> Receive:
    """A channel that begins with what was read from another, and goes on with that."""
    read: list[Message] = [{"type": "http.request", "body": body, "more_body": not is_whole}]

    async def receive_again() -> Message:
        return read.pop() if read else await receive()

    return receive_again


async def _relay(answer: "aiohttp.ClientResponse", send: Send) -> None:
    headers = [(name.lower(), value) for name, value in answer.raw_headers]
    kept = [(name, value) for name, value in headers if name.decode() not in _OF_CONNECTION]
    await send({"type": "http.response.start", "status": answer.status, "headers": kept})
    async for piece in answer.content.iter_any():
        await send({"type": "http.response.body", "body": piece, "more_body": True})
    await send({"type": "http.response.body", "body": b"", "more_body": False})


async def _answer_ensure(ensure: Ensure, scope: Scope, receive: Receive, send: Send) -> None:
    """Load what a neighbour needs; the answer is null, or the arguments of the error that its client gets."""
    wanted = orjson.loads(await Request(scope, receive).body())
    said = None
    try:
        await until_disconnect(receive, ensure(wanted["name"], wanted["ttl"]))
    except Exception as error:
        failure = translate(error)
        said = {
            "message": failure.message,
            "status": failure.status,
            "code": failure.code,
            "param": failure.param,
            "headers": failure.headers,
        }
    await Response(orjson.dumps(said), media_type="application/json")(scope, receive, send)
