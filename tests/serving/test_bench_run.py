"""`penstock bench` as a whole, against a stub server whose answers are known."""

import asyncio
import json
import threading
import time
from collections import Counter

import pytest
from aiohttp import web

from penstock.serving.bench.cli import run
from penstock.serving.bench.client import Client
from penstock.serving.bench.document import read_document
from penstock.serving.bench.load import Load
from penstock.serving.bench.prompts import WordCost
from penstock.serving.bench.settings import BenchSettings
from penstock.serving.bench.workload import PlannedRequest, Workload

TEMPLATE_TOKENS = 11
TOKENS_PER_WORD = 2


class StubServer:
    """An OpenAI-like server in a thread. A word is two tokens; the model's name says how it behaves.

    Models: `good`; `half` (every second load request gets a 503); `refuses` (429 to every request of more than one
    word); `silent` (no usage); `cut`, `broken`, `fails`, `slow` (streams that end early, are not JSON, turn into an
    error, never go on); `drops` (closes the connection in mid-stream).
    """

    def __init__(self):
        self.loop = asyncio.new_event_loop()
        self.requests = []
        self.connections = set()
        self.num_load_requests = 0
        ready = threading.Event()
        self.thread = threading.Thread(target=self._serve, args=(ready,))
        self.thread.start()
        ready.wait()

    def _serve(self, ready):
        async def start():
            app = web.Application()
            app.router.add_post("/v1/{endpoint:.+}", self.answer)
            self.runner = web.AppRunner(app, shutdown_timeout=0.1)
            await self.runner.setup()
            site = web.TCPSite(self.runner, "127.0.0.1", 0)
            await site.start()
            self.url = f"http://127.0.0.1:{self.runner.addresses[0][1]}"

        self.loop.run_until_complete(start())
        ready.set()
        self.loop.run_forever()
        self.loop.run_until_complete(self.runner.cleanup())
        self.loop.close()

    def close(self):
        self.loop.call_soon_threadsafe(self.loop.stop)
        self.thread.join()

    async def answer(self, request):
        body = json.loads(await request.read())
        endpoint, model = request.match_info["endpoint"], body["model"]
        self.requests.append((endpoint, body, request.headers.get("Authorization")))
        self.connections.add(request.transport.get_extra_info("peername"))
        texts = body.get("input") or body.get("prompt") or body["messages"][0]["content"]
        texts = [texts] if isinstance(texts, str) else texts
        num_words = sum(len(text.split()) for text in texts)
        is_load = body.get("min_tokens") is not None or endpoint == "embeddings" and len(texts) > 1
        self.num_load_requests += is_load
        if (model == "half" and is_load and self.num_load_requests % 2) or (model == "refuses" and is_load):
            status = 503 if model == "half" else 429
            return web.json_response({"error": {"message": "come back later"}}, status=status)
        prompt_tokens = TEMPLATE_TOKENS + TOKENS_PER_WORD * num_words
        if endpoint == "embeddings":
            usage = {"prompt_tokens": prompt_tokens, "total_tokens": prompt_tokens}
            return web.json_response({"data": [{"embedding": "AAAAAA=="} for _ in texts], "usage": usage})
        output_tokens = body.get("max_tokens") or body["max_output_tokens"]
        if endpoint == "responses":
            usage = {"input_tokens": prompt_tokens, "output_tokens": output_tokens, "total_tokens": 0}
        else:
            usage = {"prompt_tokens": prompt_tokens, "completion_tokens": output_tokens, "total_tokens": 0}
        if not body["stream"]:
            silent = model == "silent"
            whole = {
                "status": "completed",
                "choices": [{"finish_reason": "length"}],
                "usage": None if silent else usage,
            }
            return web.json_response(whole)
        return await self.stream(request, endpoint, model, output_tokens, usage)

    async def stream(self, request, endpoint, model, output_tokens, usage):
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await response.prepare(request)

        async def send(event):
            await response.write(b"data: " + json.dumps(event).encode() + b"\r\n\r\n")

        for _ in range(output_tokens // 2):  # two tokens in each piece
            if endpoint == "responses":
                await send({"type": "response.output_text.delta", "delta": "ab"})
            elif endpoint == "completions":
                await send({"choices": [{"text": "ab"}]})
            else:
                await send({"choices": [{"delta": {"content": "ab"}}]})
        if model == "slow":
            await asyncio.sleep(5)
        if model == "drops":
            request.transport.close()
        if model == "broken":
            await response.write(b"data: not json\n\n")
        if model == "fails":
            await send({"error": {"message": "out of blocks", "code": 500}})
        if model in ("good", "half", "silent"):
            if endpoint == "responses":
                await send({"type": "response.completed", "response": {"status": "completed", "usage": usage}})
            else:
                usage = None if model == "silent" else usage
                await send({"choices": [{"delta": {}, "finish_reason": "length"}], "usage": usage})
                await response.write(b"data: [DONE]\n\n")
        return response


@pytest.fixture
def server():
    stub = StubServer()
    yield stub
    stub.close()


def bench(server, tmp_path, *arguments, status=0):
    """Run the command and read back its result file."""
    path = tmp_path / "run.json"
    assert run(["--url", server.url, "--json", str(path), *arguments]) == status
    return read_document(path)


async def send(server, model, *, stream=True, timeout=30.0):
    body = {"model": model, "messages": [{"role": "user", "content": "a b c"}], "max_tokens": 8, "stream": stream}
    async with Client(BenchSettings(url=server.url, model=model, timeout=timeout)) as client:
        return await client.send(PlannedRequest("chat", json.dumps(body).encode(), stream, 0, 8))


async def test_a_streamed_answer_gives_arrivals_and_counts(server):
    record = await send(server, "good")
    assert record.error is None
    assert (record.prompt_tokens, record.output_tokens, record.wanted_tokens) == (TEMPLATE_TOKENS + 6, 8, 8)
    assert len(record.arrivals) == 4
    assert record.start < record.arrivals[0] <= record.arrivals[-1] <= record.end


async def test_a_whole_answer_gives_counts_alone(server):
    record = await send(server, "good", stream=False)
    assert (record.error, record.output_tokens, len(record.arrivals)) == (None, 8, 0)


async def test_pieces_stand_in_for_tokens_where_usage_is_missing(server):
    record = await send(server, "silent")
    assert (record.error, record.has_usage, record.output_tokens) == (None, False, 4)


@pytest.mark.parametrize(
    "model, kind, message",
    [
        ("cut", "malformed", "the stream ended early, after 4 pieces"),
        ("broken", "malformed", "invalid"),
        ("fails", "server_error", "out of blocks"),
        ("drops", "connection", ""),
        ("slow", "timeout", "no whole answer in 0.5 s"),
    ],
)
async def test_each_way_to_fail_has_its_kind(server, model, kind, message):
    record = await send(server, model, timeout=0.5 if model == "slow" else 30.0)
    assert record.error == kind
    assert message in record.message
    assert record.end > record.start


async def test_a_load_ends_when_its_reports_reach_nobody(server):
    def report(progress):
        raise BrokenPipeError

    settings = BenchSettings(url=server.url, model="good", num_requests=0, concurrency=2)  # else without end
    async with Client(settings) as client:
        load = Load(settings, Workload(settings, {"chat": WordCost(1.0, 0.0)}), client, 0)
        with pytest.raises(ExceptionGroup) as raised:
            await load.run(time.monotonic(), report)
    assert raised.group_contains(BrokenPipeError)


def test_a_chat_run_end_to_end(server, tmp_path, capsys):
    found = bench(
        server, tmp_path, "--model", "good", "--num-requests", "20", "--concurrency", "4", "--warmup", "3",
        "--input-len", "uniform:20:40", "--output-len", "6", "--api-key", "sk-1", "--label", "first",
        "--plot", str(tmp_path / "run.png"),
    )  # fmt: skip
    total = found.total
    assert (total.num_requests, total.num_failed, total.errors) == (20, 0, {})
    assert (total.sum_output_tokens, total.sum_wanted_tokens, total.tokens_per_piece) == (120, 120, 2.0)
    assert (total.ttft_ms.count, total.itl_ms.count, total.tpot_ms.count) == (20, 40, 20)
    assert found.calibration["chat"].tokens_per_word == TOKENS_PER_WORD
    assert found.calibration["chat"].overhead == TEMPLATE_TOKENS
    prompts = total.prompt_tokens
    assert TEMPLATE_TOKENS + 20 <= prompts.quantiles[0] < prompts.max <= TEMPLATE_TOKENS + 40
    assert total.output_tokens_per_s == pytest.approx(120 / found.duration_s)
    assert sum(found.timeline.output_tokens_per_s) * found.timeline.interval_s == pytest.approx(120)
    assert len(server.requests) == 2 + 3 + 20
    assert {key for _, _, key in server.requests} == {"Bearer sk-1"}
    assert found.command.startswith("penstock bench --url http://127.0.0.1") and "sk-1" not in found.command
    assert (tmp_path / "run.png").read_bytes().startswith(b"\x89PNG")
    shown = capsys.readouterr().out
    assert "first at http://127.0.0.1" in shown and "time to first token, ms" in shown


def test_several_processes_share_the_requests_and_their_records_meet(server, tmp_path):
    options = ("--model", "good", "--concurrency", "5", "--num-requests", "21", "--seed", "5", "--output-len", "4")
    options += ("--no-keep-alive",)
    texts = []
    for processes in ("1", "3"):
        server.requests.clear()
        found = bench(server, tmp_path, *options, "--processes", processes)
        assert (found.total.num_requests, found.total.num_failed, found.total.sum_output_tokens) == (21, 0, 84)
        texts.append(Counter(body["messages"][0]["content"] for _, body, _ in server.requests[2:]))
    assert texts[0] == texts[1] and len(texts[0]) == 21


def test_connections_are_reused_unless_told_otherwise(server, tmp_path):
    options = ("--model", "good", "--concurrency", "2", "--num-requests", "12", "--output-len", "4")
    bench(server, tmp_path, *options)
    assert len(server.connections) <= 3  # one of calibration, two of the load
    server.connections.clear()
    bench(server, tmp_path, *options, "--no-keep-alive")
    assert len(server.connections) == 2 + 12


def test_all_endpoints_mix_and_are_told_apart(server, tmp_path):
    found = bench(
        server, tmp_path, "--model", "good", "--endpoint", "chat", "completions", "responses", "embeddings",
        "--num-requests", "60", "--output-len", "4", "--input-len", "10", "--batch-size", "3",
        "--embedding-model", "vectors", "--request-rate", "200",
    )  # fmt: skip
    assert found.total.num_failed == 0
    assert sum(summary.num_requests for summary in found.endpoints.values()) == 60
    embeddings = found.endpoints["embeddings"]
    assert embeddings.sum_texts == 3 * embeddings.num_requests and embeddings.ttft_ms is None
    assert embeddings.prompt_tokens.max == TEMPLATE_TOKENS + 3 * 10
    for endpoint in ("chat", "completions", "responses"):
        summary = found.endpoints[endpoint]
        assert summary.sum_output_tokens == 4 * summary.num_requests > 0
        assert summary.ttft_ms.count == summary.num_requests
    assert {body["model"] for endpoint, body, _ in server.requests if endpoint == "embeddings"} == {"vectors"}


def test_a_duration_ends_a_run_of_any_number_of_requests(server, tmp_path):
    closed = ("--model", "good", "--output-len", "4", "--concurrency", "2", "--duration", "0.4", "--processes", "2")
    found = bench(server, tmp_path, *closed)
    assert found.total.num_requests > 2 and found.total.num_failed == 0
    found = bench(server, tmp_path, *closed[:4], "--request-rate", "50", "--duration", "0.4", "--seed", "1")
    again = bench(server, tmp_path, *closed[:4], "--request-rate", "50", "--duration", "0.4", "--seed", "1")
    assert found.total.num_requests == again.total.num_requests > 5


def test_failures_are_counted_and_the_others_measured(server, tmp_path, capsys):
    found = bench(
        server, tmp_path, "--model", "half", "--num-requests", "10", "--concurrency", "1", "--output-len", "4"
    )
    assert (found.total.num_requests, found.total.errors) == (10, {"http_503": 5})
    assert found.total.ttft_ms.count == 5 and found.total.sum_output_tokens == 20
    assert "5 × http_503" in capsys.readouterr().out


def test_the_status_is_1_if_every_request_failed(server, tmp_path):
    found = bench(server, tmp_path, "--model", "refuses", "--num-requests", "5", status=1)
    assert found.total.errors == {"http_429": 5} and found.total.latency_ms is None
    assert "come back later" in found.total.error_examples["http_429"]


def test_a_server_that_does_not_answer_is_said_at_once(server, tmp_path, capsys):
    server_gone = server.url.rsplit(":", 1)[0] + ":9"
    assert run(["--url", server_gone, "--model", "good"]) == 1
    assert "does not serve chat: connection" in " ".join(capsys.readouterr().err.split())


def test_missing_usage_is_warned_of(server, tmp_path):
    found = bench(server, tmp_path, "--model", "silent", "--num-requests", "4", "--output-len", "8")
    assert found.total.num_without_usage == 4 and found.total.prompt_tokens is None
    warnings = "\n".join(found.warnings)
    assert "chat reports no prompt tokens: taking one token per word" in warnings
    assert "4 answers had no usage object" in warnings and "ignore_eos" not in warnings


def test_two_runs_are_compared_and_drawn(server, tmp_path, capsys):
    paths = []
    for name in ("a", "b"):
        paths.append(str(tmp_path / f"{name}.json"))
        arguments = ["--model", "good", "--num-requests", "4", "--output-len", "4", "--label", name]
        assert run(["--url", server.url, *arguments, "--json", paths[-1]]) == 0
    capsys.readouterr()
    assert run(["--compare", *paths, "--plot", str(tmp_path / "both.png")]) == 0
    shown = capsys.readouterr().out
    assert "A: a" in shown and "B: b" in shown and "B/A" in shown
    assert (tmp_path / "both.png").read_bytes().startswith(b"\x89PNG")
    assert run(["--compare", paths[0], str(tmp_path / "none.json")]) == 2
    assert "none.json" in capsys.readouterr().err


def test_wrong_arguments_give_status_2(capsys):
    assert run(["--model", "m", "--concurrency", "0"]) == 2
    assert run(["--no-such-option"]) == 2
    assert run(["--help"]) == 0
    assert "--concurrency is 0" in capsys.readouterr().err
