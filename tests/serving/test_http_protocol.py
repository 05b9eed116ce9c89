"""Connections that send too much, too slowly or nonsense, and clients that do not read; others are served meanwhile."""

import asyncio
import contextlib
import json
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any

import httpx2
from fake_engine import CHAT, Front, until
from starlette.types import Receive, Scope, Send

from penstock.serving.http_protocol import HttpLimits
from penstock.serving.listener import HttpServer, max_connections, open_listeners

LIMITS = HttpLimits(header_timeout=0.3, body_grace=0.3, write_timeout=0.3, linger=0.3)
BODY = json.dumps({"model": CHAT, "messages": [{"role": "user", "content": "hi"}]}).encode()
POST = b"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\n"
NUM_BYTES = 12 * 2**20
"""More than the system takes off the server's hands."""
Streams = tuple[asyncio.StreamReader, asyncio.StreamWriter]


class Attacked:
    """A front behind real HTTP, and raw connections to it."""

    def __init__(self, front: Front, server: HttpServer, port: int) -> None:
        self.front = front
        self.server = server
        self.port = port

    async def connect(self) -> Streams:
        return await asyncio.open_connection("127.0.0.1", self.port)

    async def send(self, data: bytes) -> bytes:
        """All that comes back, until the connection is closed."""
        reader, writer = await self.connect()
        with contextlib.suppress(ConnectionError):
            writer.write(data)
            await writer.drain()
        return await read_all(reader, writer)

    def look(self) -> None:
        """What the server does once a second."""
        for connection in list(self.server.server_state.connections):
            connection.enforce_deadlines(asyncio.get_running_loop().time())  # type: ignore[union-attr]

    async def chat(self) -> None:
        """Another client is served."""
        async with httpx2.AsyncClient(base_url=f"http://127.0.0.1:{self.port}") as http:
            response = await http.post("/v1/chat/completions", content=BODY)
        assert response.status_code == 200, response.text


async def read_all(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bytes:
    async with asyncio.timeout(5):
        data = await reader.read()
    writer.close()
    return data


@asynccontextmanager
async def attacked(limits: HttpLimits = LIMITS) -> AsyncIterator[Attacked]:
    front = Front()
    (listener,) = open_listeners("127.0.0.1", 0)
    server = HttpServer(front.app, [listener], debug=False, limits=limits)
    serving = asyncio.create_task(server.run_until_stopped())
    await until(lambda: server.started)
    target = Attacked(front, server, listener.getsockname()[1])
    watching = asyncio.create_task(watch(target))
    try:
        yield target
        await target.chat()
        await until(lambda: front.engine.num_jobs == 0)
    finally:
        watching.cancel()
        server.stop()
        await serving
        await front.http.aclose()


async def watch(target: Attacked) -> None:
    while True:
        target.look()
        await asyncio.sleep(0.02)


def check_refusal(answer: bytes, status: int, code: str) -> dict[str, Any]:
    head, _, body = answer.partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 %d " % status), answer[:200]
    assert b"connection: close" in head
    error = json.loads(body)["error"]
    assert (error["code"], error["param"], error["type"]) == (code, None, "invalid_request_error")
    return error  # type: ignore[no-any-return]


BAD_REQUESTS = {
    "a header of many fields": (431, "header_too_large", b"".join(b"h%d: 1\r\n" % i for i in range(101)) + b"\r\n"),
    "a large field": (431, "header_too_large", b"h: " + b"a" * 70_000 + b"\r\n\r\n"),
    "a field without an end": (431, "header_too_large", b"h: " + b"a" * 600_000),
    "two lengths": (400, "invalid_http", b"content-length: 4\r\ncontent-length: 5\r\n\r\n"),
    "a length and chunks": (400, "invalid_http", b"content-length: 4\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n"),
    "a negative length": (400, "invalid_http", b"content-length: -4\r\n\r\n"),
    "a length beyond 64 bits": (400, "invalid_http", b"content-length: 99999999999999999999999\r\n\r\n"),
    "chunks inside": (400, "invalid_http", b"transfer-encoding: chunked, identity\r\n\r\n"),
    "a bad chunk": (400, "invalid_http", b"transfer-encoding: chunked\r\n\r\nzz\r\n"),
    "a folded field": (400, "invalid_http", b"a: b\r\n c\r\n\r\n"),
    "a space before the colon": (400, "invalid_http", b"a : b\r\n\r\n"),
}


NO_HTTP = (b"\x16\x03\x01\x02\x00hello", b"GET /\xff HTTP/1.1\r\n\r\n", b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n")


async def test_bad_headers_are_refused() -> None:
    async with attacked() as target:
        for what, (status, code, rest) in BAD_REQUESTS.items():
            print(what)
            check_refusal(await target.send(POST + rest), status, code)
            await target.chat()
        check_refusal(await target.send(b"GET /" + b"a" * 17_000 + b" HTTP/1.1\r\n\r\n"), 414, "uri_too_long")
        for data in NO_HTTP:
            check_refusal(await target.send(data), 400, "invalid_http")


async def test_a_header_that_trickles_is_given_up() -> None:
    async with attacked() as target:
        reader, writer = await target.connect()
        for piece in (b"GET /health HT", b"TP/1.1\r\n"):
            writer.write(piece)
            await writer.drain()
        assert "0.3 s" in check_refusal(await read_all(reader, writer), 408, "request_timeout")["message"]
        assert await read_all(*await target.connect()) == b"", "one that says nothing is told nothing"


async def test_empty_lines_do_not_keep_a_connection() -> None:
    async with attacked() as target:
        reader, writer = await target.connect()
        writer.write(b"GET /health HTTP/1.1\r\nhost: x\r\n\r\n")
        await reader.readuntil(b"\r\n\r\n")
        (connection,) = target.server.server_state.connections
        await until(lambda: connection.timeout_keep_alive_task is not None)  # type: ignore[union-attr]
        timer = connection.timeout_keep_alive_task  # type: ignore[union-attr]
        writer.write(b"\r\n\r\n")
        await writer.drain()
        await target.chat()
        assert timer is not None and connection.timeout_keep_alive_task is timer  # type: ignore[union-attr]
        writer.close()


async def test_a_body_that_trickles_is_given_up() -> None:
    async with attacked() as target:
        reader, writer = await target.connect()
        writer.write(POST + b"content-length: %d\r\n\r\n{" % len(BODY))
        error = check_refusal(await read_all(reader, writer), 408, "request_timeout")
        assert "came 1 bytes" in error["message"]
        assert target.front.engine.jobs == []


async def test_a_body_that_is_large_and_fast_enough_is_read() -> None:
    async with attacked(replace(LIMITS, min_body_rate=1.0)) as target:
        reader, writer = await target.connect()
        writer.write(POST + b"connection: close\r\ncontent-length: %d\r\n\r\n" % len(BODY))
        for byte in BODY:
            writer.write(bytes([byte]))
            await asyncio.sleep(0.01)
        assert (await read_all(reader, writer)).startswith(b"HTTP/1.1 200 ")


async def test_fields_behind_a_body_are_dropped() -> None:
    async with attacked() as target:
        chunk = b"%x\r\n%s\r\n0\r\n" % (len(BODY), BODY)
        trailers = b"".join(b"x-request-id: late%d\r\n" % i for i in range(300))
        head = POST + b"connection: close\r\ntransfer-encoding: chunked\r\n\r\n"
        answer = await target.send(head + chunk + trailers + b"\r\n")
        assert answer.startswith(b"HTTP/1.1 200 ") and b"late" not in answer


async def test_a_flood_of_pipelined_requests_is_cut_off() -> None:
    async with attacked() as target:
        answer = await target.send(b"GET /health HTTP/1.1\r\nhost: x\r\n\r\n" * 5000)
        assert answer.count(b"HTTP/1.1 200 ") <= 65


async def test_a_client_that_does_not_read_loses_its_job() -> None:
    async with attacked() as target:
        connection = socket.socket()
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        connection.setblocking(False)
        loop = asyncio.get_running_loop()
        await loop.sock_connect(connection, ("127.0.0.1", target.port))
        body = json.dumps(json.loads(BODY) | {"stream": True, "max_tokens": 200}).encode()
        target.front.engine.script = lambda job: target.front.engine.outputs(job, [40] * 60_000, None)
        await loop.sock_sendall(connection, POST + b"content-length: %d\r\n\r\n" % len(body) + body)
        await until(lambda: len(target.front.engine.jobs) == 1)
        await until(lambda: target.front.engine.num_jobs == 0)
        assert len(target.front.engine.cancelled) == 1
        connection.close()
        target.front.engine.script = target.front.engine.say


async def large_answer(scope: Scope, receive: Receive, send: Send) -> None:
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"%d" % NUM_BYTES)]})
    await send({"type": "http.response.body", "body": bytes(NUM_BYTES)})


async def test_a_client_that_reads_a_large_answer_slowly_is_not_cut_off_until_it_reads_no_more() -> None:
    (listener,) = open_listeners("127.0.0.1", 0)
    server = HttpServer(large_answer, [listener], debug=False, limits=HttpLimits())
    serving = asyncio.create_task(server.run_until_stopped())
    reader, writer = await asyncio.open_connection(*listener.getsockname())
    writer.write(b"GET / HTTP/1.1\r\nhost: x\r\n\r\n")
    await until(lambda: any(connection._stuck_since for connection in server.server_state.connections))
    (connection,) = server.server_state.connections
    num_read, now = 0, asyncio.get_running_loop().time()
    while connection._stuck_since:
        waiting = connection.transport.get_write_buffer_size()
        while connection.transport.get_write_buffer_size() > max(0, waiting - 2**20):
            num_read += len(await reader.read(2**16))
        now += 31
        connection.enforce_deadlines(now)
        assert not connection.transport.is_closing()
    while num_read < NUM_BYTES:
        num_read += len(await reader.read(2**16))
    writer.close()
    _, writer = await asyncio.open_connection(*listener.getsockname())
    writer.write(b"GET / HTTP/1.1\r\nhost: x\r\n\r\n")
    await until(lambda: any(connection._stuck_since for connection in server.server_state.connections))
    (connection,) = (other for other in server.server_state.connections if other._stuck_since)
    connection.enforce_deadlines(now + 31)
    assert connection.transport.is_closing()
    writer.close()
    server.stop()
    await serving


async def test_a_pipelining_client_that_leaves_ends_the_request_that_runs() -> None:
    async with attacked() as target:
        target.front.engine.script = lambda job: [60.0]
        reader, writer = await target.connect()
        writer.write((POST + b"content-length: %d\r\n\r\n" % len(BODY) + BODY) * 2)
        await until(lambda: target.front.engine.num_jobs == 1)
        writer.close()
        await until(lambda: target.front.engine.num_jobs == 0)
        target.front.engine.script = target.front.engine.say


async def test_connections_have_a_limit_and_idle_ones_of_a_greedy_address_make_room() -> None:
    async with attacked(replace(LIMITS, max_connections=3, header_timeout=60)) as target:
        greedy = [await target.connect() for _ in range(3)]
        await until(lambda: len(target.server.server_state.connections) == 3)
        refused = await target.send(b"GET /health HTTP/1.1\r\nhost: x\r\n\r\n")
        assert refused.startswith(b"HTTP/1.1 503 ") and b"retry-after: 5" in refused
        assert json.loads(refused.partition(b"\r\n\r\n")[2])["error"]["code"] == "too_many_connections"
        reader, writer = await asyncio.open_connection("127.0.0.1", target.port, local_addr=("127.0.0.2", 0))
        writer.write(b"GET /health HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n")
        assert (await read_all(reader, writer)).startswith(b"HTTP/1.1 200 ")
        for _, greedy_writer in greedy:
            greedy_writer.close()
        await until(lambda: not target.server.server_state.connections)


def test_there_is_room_for_connections_below_the_limit_of_open_files() -> None:
    import resource

    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (min(1024, before[1]), before[1]))
        assert 0 < max_connections() < resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)


def test_connections_notice_a_machine_that_is_gone() -> None:
    (listener,) = open_listeners("127.0.0.1", 0)
    with listener, socket.create_connection(listener.getsockname()):
        accepted, _ = listener.accept()
        with accepted:
            assert accepted.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)
            assert accepted.getsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE) == 60
