"""Sends one request and records what became of it: arrival times of its output, token counts, or its error."""

import time
from array import array
from dataclasses import dataclass, field

import aiohttp

from .answers import EVENT_READERS, Answer, BadAnswerError, read_body
from .settings import BenchSettings, EndpointName
from .sse import SseParser
from .workload import PATHS, PlannedRequest


@dataclass(slots=True)
class Record:
    """One finished or failed request. Times are seconds of the machine's monotonic clock."""

    endpoint: EndpointName
    start: float
    """Just before the request is sent; a new connection is opened after it."""
    end: float = 0.0
    arrivals: "array[float]" = field(default_factory=lambda: array("d"))
    """When each piece of output of a streamed answer came in; empty if the answer was not streamed."""
    prompt_tokens: int = 0
    cached_tokens: int = 0
    output_tokens: int = 0
    wanted_tokens: int = 0
    """Output tokens asked for."""
    num_texts: int = 0
    has_usage: bool = True
    """Without a usage object `output_tokens` is the number of pieces, and `prompt_tokens` 0."""
    error: str | None = None
    """None: it succeeded. Else the kind: http_<status>, timeout, connection, malformed or server_error."""
    message: str = ""
    """The error in words."""


class Client:
    """A pool of connections to one server, without a limit on their number. Use as `async with`."""

    def __init__(self, settings: BenchSettings) -> None:
        self._settings = settings
        self._session: aiohttp.ClientSession | None = None

    async def __aenter__(self) -> "Client":
        settings = self._settings
        headers = {"Content-Type": "application/json"}
        if settings.api_key:
            headers["Authorization"] = f"Bearer {settings.api_key}"
        self._session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=0, force_close=not settings.keep_alive),
            timeout=aiohttp.ClientTimeout(total=settings.timeout),
            headers=headers,
        )
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        assert self._session is not None
        await self._session.close()

    async def send(self, request: PlannedRequest) -> Record:
        """Send one request and read its answer to the end. Never raises for what server or network do."""
        record = Record(
            request.endpoint,
            start=time.monotonic(),
            num_texts=request.num_texts,
            wanted_tokens=request.output_len,
        )
        try:
            await self._exchange(request, record)
        except TimeoutError:
            record.error, record.message = "timeout", f"no whole answer in {self._settings.timeout:g} s"
        except aiohttp.ClientError as error:
            record.error, record.message = "connection", f"{type(error).__name__}: {error}"
        except BadAnswerError as error:
            record.error, record.message = error.kind, str(error)
        except ValueError as error:  # of the JSON decoder
            record.error, record.message = "malformed", str(error)
        if record.error is not None:
            record.end = time.monotonic()
        return record

    async def _exchange(self, request: PlannedRequest, record: Record) -> None:
        assert self._session is not None
        url = self._settings.url + PATHS[request.endpoint]
        async with self._session.post(url, data=request.body) as response:
            if response.status != 200:
                record.error = f"http_{response.status}"
                record.message = (await response.content.read(500)).decode(errors="replace")
                return
            if request.streams:
                answer = await _read_stream(response.content, record)
            else:
                answer = read_body(request.endpoint, await response.read(), request.num_texts)
            record.end = time.monotonic()
        record.has_usage = answer.has_usage
        record.prompt_tokens = answer.prompt_tokens
        record.cached_tokens = answer.cached_tokens
        record.output_tokens = answer.output_tokens if answer.has_usage else len(record.arrivals)


async def _read_stream(content: aiohttp.StreamReader, record: Record) -> Answer:
    """Read a stream to its end, so that its connection can be used again; adds to `record.arrivals`.

    Pieces that one read of the socket brings together arrived together and get the same time.
    """
    answer, parser = Answer(), SseParser()
    read_event, arrivals = EVENT_READERS[record.endpoint], record.arrivals
    while piece := await content.readany():
        now = time.monotonic()
        for data in parser.feed(piece):
            if read_event(data, answer):
                arrivals.append(now)
    if not answer.finished:
        raise BadAnswerError("malformed", f"the stream ended early, after {len(arrivals)} pieces of output")
    return answer
