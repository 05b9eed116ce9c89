"""The parts of `penstock bench` that need no server."""

import io
import itertools
import json
import random
from array import array
from dataclasses import replace

import numpy as np
import pytest
from rich.console import Console

from penstock.serving.bench.answers import Answer, BadAnswerError, read_body, read_chunk, read_response_event
from penstock.serving.bench.arguments import make_parser, make_settings
from penstock.serving.bench.cli import public_command
from penstock.serving.bench.client import Record
from penstock.serving.bench.compare import print_comparison
from penstock.serving.bench.document import read_document, write_document
from penstock.serving.bench.lengths import SHAREGPT_INPUTS, SHAREGPT_OUTPUTS, FixedLength, parse_lengths
from penstock.serving.bench.processes import RunResult
from penstock.serving.bench.prompts import WORDS, WordCost
from penstock.serving.bench.report import make_document, print_document
from penstock.serving.bench.settings import BenchSettings
from penstock.serving.bench.sse import SseParser
from penstock.serving.bench.summary import distribution, summarise, timeline
from penstock.serving.bench.workload import Workload

SETTINGS = BenchSettings(url="http://127.0.0.1:1", model="m")
ONE_TOKEN_A_WORD = WordCost(1.0, 0.0)


def workload(**changes):
    settings = replace(SETTINGS, **changes)
    return Workload(settings, {endpoint: ONE_TOKEN_A_WORD for endpoint in settings.endpoints})


# ------------------------------------------------------------------------------------------------------------- events

STREAM = b': hello\n\ndata: {"a": 1}\n\nevent: x\ndata: one\ndata:two\nid: 7\n\n\n'
STREAM += b"retry: 5\n\ndata: \xc3\xa9\n\ndata: [DONE]\n\n"
EVENTS = [b'{"a": 1}', b"one\ntwo", b"\xc3\xa9", b"[DONE]"]


@pytest.mark.parametrize("line_end", [b"\n", b"\r\n", b"\r"])
@pytest.mark.parametrize("size", [1, 2, 3, 7, 1000])
def test_events_are_the_same_however_the_stream_is_cut(line_end, size):
    stream, parser, events = STREAM.replace(b"\n", line_end), SseParser(), []
    for start in range(0, len(stream), size):
        events += parser.feed(stream[start : start + size])
    assert events == EVENTS


def test_an_event_is_out_as_soon_as_its_blank_line_is_in():
    parser = SseParser()
    assert parser.feed(b"data: a\r\n") == []
    assert parser.feed(b"\r") == [b"a"]
    assert parser.feed(b"\ndata: b\n\ndata: c") == [b"b"]


# ------------------------------------------------------------------------------------------------------------ answers


def test_only_chunks_with_generated_tokens_count_as_output():
    answer = Answer()
    deltas = [{"role": "assistant", "content": ""}, {"content": "a"}, {"content": None, "reasoning_content": "b"}, {}]
    deltas += [{"tool_calls": [{"index": 0}]}]
    output = [read_chunk(json.dumps({"choices": [{"delta": delta}]}).encode(), answer) for delta in deltas]
    assert output == [False, True, True, False, True]
    assert read_chunk(b'{"choices": [{"text": "a", "index": 0}]}', answer)
    assert not answer.finished and not answer.has_usage
    assert not read_chunk(b'{"choices": [{"delta": {}, "finish_reason": "length"}], "usage": null}', answer)
    usage = {"prompt_tokens": 9, "completion_tokens": 4, "prompt_tokens_details": {"cached_tokens": 3}}
    assert not read_chunk(json.dumps({"choices": [], "usage": usage}).encode(), answer)
    assert answer.finished
    assert (answer.prompt_tokens, answer.cached_tokens, answer.output_tokens) == (9, 3, 4)


def test_response_events_give_output_and_usage():
    answer = Answer()
    assert not read_response_event(b'{"type": "response.created", "response": {"status": "in_progress"}}', answer)
    assert read_response_event(b'{"type": "response.output_text.delta", "delta": "a"}', answer)
    assert not answer.finished
    usage = {"input_tokens": 9, "output_tokens": 4, "total_tokens": 13, "input_tokens_details": {"cached_tokens": 3}}
    done = {"type": "response.incomplete", "response": {"status": "incomplete", "usage": usage}}
    assert not read_response_event(json.dumps(done).encode(), answer)
    assert answer.finished
    assert (answer.prompt_tokens, answer.cached_tokens, answer.output_tokens) == (9, 3, 4)


@pytest.mark.parametrize(
    "read, data",
    [
        (read_chunk, {"error": {"message": "out of blocks"}}),
        (read_response_event, {"type": "error", "message": "out of blocks"}),
        (read_response_event, {"type": "response.failed", "response": {"error": {"message": "out of blocks"}}}),
    ],
)
def test_an_error_in_a_stream_is_told_apart_from_a_malformed_one(read, data):
    with pytest.raises(BadAnswerError, match="^out of blocks$") as raised:
        read(json.dumps(data).encode(), Answer())
    assert raised.value.kind == "server_error"


@pytest.mark.parametrize(
    "data", [b"not json", b"[]", b'{"choices": 3}', b'{"choices": [{"delta": {"content": "\xff"}}]}']
)
def test_malformed_chunks_are_value_errors(data):
    with pytest.raises(ValueError):
        read_chunk(data, Answer())


def test_a_missing_embedding_makes_the_answer_malformed():
    body = b'{"data": [{"embedding": "AAA="}], "usage": {"prompt_tokens": 5, "total_tokens": 5}}'
    assert read_body("embeddings", body, 1).prompt_tokens == 5
    with pytest.raises(BadAnswerError, match="1 embeddings for 2 texts"):
        read_body("embeddings", body, 2)


# ------------------------------------------------------------------------------------------------- lengths and arrivals


@pytest.mark.parametrize(
    "text, mean, low, high",
    [("64", 64, 64, 64), ("uniform:100:1024", 562, 100, 1024), ("sharegpt", 200, 4, 1024)],
)
def test_lengths_have_the_mean_and_the_range_they_promise(text, mean, low, high):
    lengths = parse_lengths(text, SHAREGPT_INPUTS)
    rng = random.Random(1)
    samples = [lengths.sample(rng) for _ in range(20_000)]
    assert np.mean(samples) == pytest.approx(mean, rel=0.03)
    assert low <= min(samples) and max(samples) <= high
    assert str(lengths) == text


def test_sharegpt_outputs_average_180_tokens_and_are_skewed():
    rng = random.Random(1)
    samples = [SHAREGPT_OUTPUTS.sample(rng) for _ in range(20_000)]
    assert np.mean(samples) == pytest.approx(180, rel=0.03)
    assert np.median(samples) < 130


@pytest.mark.parametrize("text", ["", "0", "-3", "ten", "uniform:5", "uniform:9:5", "uniform:0:5", "fixed:5"])
def test_a_wrong_length_is_refused_with_what_would_be_right(text):
    with pytest.raises(ValueError, match="is no length: "):
        parse_lengths(text, SHAREGPT_INPUTS)


@pytest.mark.parametrize("burstiness, spread", [(1.0, 1.0), (0.25, 2.0), (100.0, 0.1)])
def test_arrivals_come_at_the_rate_and_as_bursty_as_asked(burstiness, spread):
    arrivals = workload(concurrency=0, request_rate=20.0, burstiness=burstiness).arrivals()
    gaps = np.diff(list(itertools.islice(arrivals, 20_000)))
    assert gaps.mean() == pytest.approx(1 / 20, rel=0.06)
    assert gaps.std() / gaps.mean() == pytest.approx(spread, rel=0.06)  # a gamma distribution's is shape^-1/2


# ------------------------------------------------------------------------------------------------------------ requests


def prompt(planned):
    return json.loads(planned.body)["messages"][0]["content"].split()


def test_requests_depend_on_seed_and_index_only_and_all_differ():
    bodies = [workload(seed=3).request(index).body for index in range(200)]
    again = workload(seed=3, processes=4, concurrency=99)
    assert [again.request(index).body for index in reversed(range(200))] == bodies[::-1]
    assert len(set(bodies)) == 200
    others = {workload(seed=4).request(index).body for index in range(200)}
    others |= {workload(seed=3).request(index, "warmup").body for index in range(200)}
    assert len(others) == 400 and not others & set(bodies)


def test_the_prompt_has_as_many_words_as_the_wanted_tokens_need():
    settings = replace(SETTINGS, input_len=FixedLength(100))
    assert len(prompt(Workload(settings, {"chat": WordCost(2.5, 30.0)}).request(0))) == 40
    assert len(prompt(Workload(settings, {"chat": WordCost(500.0, 0.0)}).request(0))) == 1


def test_shared_prefixes_are_few_and_come_before_texts_that_differ():
    planned = workload(shared_prefix_len=50, num_prefixes=3, input_len=FixedLength(20))
    prompts = [prompt(planned.request(index)) for index in range(60)]
    assert {len(words) for words in prompts} == {70}
    assert len({tuple(words[:50]) for words in prompts}) == 3
    assert len({tuple(words[50:]) for words in prompts}) == 60


def test_bodies_say_what_each_endpoint_calls_it():
    endpoints = ("chat", "completions", "responses", "embeddings")
    bodies = {}
    for endpoint in endpoints:
        planned = workload(endpoints=(endpoint,), output_len=FixedLength(9), batch_size=3, embedding_model="e")
        bodies[endpoint] = json.loads(planned.request(0).body)
    for endpoint in endpoints[:3]:
        body = bodies[endpoint]
        assert body["model"] == "m" and body["stream"] and body["ignore_eos"] and body["min_tokens"] == 9
        assert body["max_output_tokens" if endpoint == "responses" else "max_tokens"] == 9
        assert (body.get("stream_options") == {"include_usage": True}) == (endpoint != "responses")
    assert bodies["embeddings"]["model"] == "e"
    assert [len(text.split()) for text in bodies["embeddings"]["input"]] == [128] * 3
    plain = json.loads(workload(ignore_eos=False, stream=False).request(0).body)
    assert not plain.keys() & {"ignore_eos", "min_tokens", "stream_options"} and plain["stream"] is False


def test_a_mix_draws_its_endpoints_as_often_as_they_are_named():
    mixed = workload(endpoints=("chat", "embeddings", "embeddings"))
    drawn = [mixed.request(index).endpoint for index in range(1500)]
    assert drawn.count("embeddings") == pytest.approx(1000, abs=80)


def test_calibration_words_are_distinct_and_fit_a_short_context():
    assert len(set(WORDS)) == len(WORDS) == 96


# ------------------------------------------------------------------------------------------------------------- numbers


def record(start, arrivals, tokens, **changes):
    fields = {"end": arrivals[-1], "prompt_tokens": 10, "output_tokens": tokens, "wanted_tokens": tokens}
    return Record("chat", start=start, arrivals=array("d", arrivals), **(fields | changes))


def test_percentiles_are_those_of_the_samples():
    found = distribution([float(value) for value in range(101)])
    assert [found.mean, found.p50, found.p90, found.p99, found.max] == pytest.approx([50, 50, 90, 99, 100])
    assert found.count == 101
    assert found.quantiles == pytest.approx([value / 2 for value in range(201)])
    assert distribution([1.0, 2.0]).p90 == pytest.approx(1.9)
    assert distribution([]) is None


def test_latencies_are_taken_between_the_right_moments():
    records = [
        record(10.0, [10.5, 10.6, 10.8], 3, end=10.9),
        record(11.0, [12.0, 12.0, 12.6], 7, end=12.7, cached_tokens=4),  # 7 tokens in 3 pieces
    ]
    found = summarise(records, 4.0)
    assert found.ttft_ms.quantiles[0] == pytest.approx(500) and found.ttft_ms.max == pytest.approx(1000)
    assert found.itl_ms.count == 4
    assert [found.itl_ms.quantiles[0], found.itl_ms.max] == pytest.approx([0, 600])
    assert found.itl_ms.mean == pytest.approx((100 + 200 + 0 + 600) / 4)
    assert [found.tpot_ms.quantiles[0], found.tpot_ms.max] == pytest.approx([100, 150])
    assert [found.latency_ms.quantiles[0], found.latency_ms.max] == pytest.approx([900, 1700])
    assert found.tokens_per_piece == pytest.approx(10 / 6)
    assert (found.sum_prompt_tokens, found.sum_cached_tokens, found.sum_output_tokens) == (20, 4, 10)
    rates = (found.requests_per_s, found.output_tokens_per_s, found.total_tokens_per_s, found.texts_per_s)
    assert rates == (0.5, 2.5, 7.5, 0.0)


def test_a_failed_request_is_an_error_and_no_sample():
    failed = record(0.0, [5.0, 9.0], 2, error="timeout", message="no whole answer in 9 s")
    refused = Record("chat", start=0.0, end=0.1, error="http_429", message="slow down")
    also_refused = Record("chat", start=0.0, end=0.1, error="http_429", message="later")
    good = record(0.0, [1.0, 2.0], 2)
    found, alone = summarise([failed, refused, good, also_refused], 10.0), summarise([good], 10.0)
    assert (found.num_requests, found.num_failed) == (4, 3)
    assert found.errors == {"http_429": 2, "timeout": 1}
    assert found.error_examples == {"http_429": "slow down", "timeout": "no whole answer in 9 s"}
    nothing = {"num_requests": 0, "num_failed": 0, "errors": {}, "error_examples": {}}
    assert replace(found, **nothing) == replace(alone, **nothing)
    assert sum(timeline([failed, good], 0.0, 10.0).output_tokens_per_s) * 10 / 60 == pytest.approx(2)


def test_the_timeline_puts_tokens_and_texts_where_they_arrived():
    records = [
        record(0.0, [0.5, 59.5], 8),
        Record("embeddings", start=0.0, end=30.5, num_texts=16, prompt_tokens=99),
        Record("chat", start=0.0, end=45.5, output_tokens=6),
    ]
    found = timeline(records, 0.0, 60.0)
    assert found.interval_s == 1.0
    assert {at: rate for at, rate in enumerate(found.output_tokens_per_s) if rate} == {0: 4, 45: 6, 59: 4}
    assert {at: rate for at, rate in enumerate(found.texts_per_s) if rate} == {30: 16}


# ------------------------------------------------------------------------------------------------- documents and tables


def document(label, speed=1.0, client_load=0.1, **changes):
    records = [record(100.0, [100 + step / 8 / speed for step in (1, 2, 3)], 3) for _ in range(5)]
    result = RunResult(start=100.0, records=records, client_load=client_load)
    settings = replace(SETTINGS, api_key="sk-secret", **changes)
    return make_document(settings, {"chat": ONE_TOKEN_A_WORD}, [], result, label=label, command="penstock bench")


def printed(show, *arguments):
    console = Console(file=io.StringIO(), width=150)
    show(*arguments, console)
    return console.file.getvalue()


def test_a_document_survives_its_file_and_has_no_key_in_it(tmp_path):
    path = tmp_path / "run.json"
    written = document("first")
    write_document(written, path)
    assert "sk-secret" not in path.read_text()
    assert read_document(path) == written
    raw = json.loads(path.read_text())
    assert raw["machine"]["cores"] >= 1 and raw["machine"]["cpu"] and raw["date"].endswith("+00:00")
    assert raw["settings"]["input_len"] == "128" and raw["total"]["ttft_ms"]["p50"] == 125
    assert raw["duration_s"] == 0.375


def test_other_files_are_refused_by_name(tmp_path):
    path = tmp_path / "run.json"
    path.write_text('{"version": 1}')
    with pytest.raises(ValueError, match="run.json is no result file"):
        read_document(path)
    write_document(replace(document("old"), version=0), path)
    with pytest.raises(ValueError, match="has version 0"):
        read_document(path)


def test_a_comparison_shows_both_runs_their_ratio_and_what_differs():
    shown = printed(print_comparison, document("slow", concurrency=8), document("fast", 2.0, concurrency=16))
    lines = [[cell.strip() for cell in line.split("│")] for line in shown.splitlines()]
    rows = {cells[1]: cells[2:5] for cells in lines if len(cells) > 4}
    assert rows["output tokens/s"] == ["40.00", "80.00", "2.00"]
    assert rows["chat: time to first token, ms, p50"] == ["125.0", "62.50", "0.50"]
    assert rows["failed requests"] == ["0", "0", ""]
    assert "concurrency differs: 8 against 16" in shown


def test_the_table_warns_of_a_busy_client_and_of_short_answers():
    short = RunResult(0.0, [record(0.0, [1.0, 2.0], 2, wanted_tokens=9)], client_load=0.95)
    shown = printed(print_document, make_document(SETTINGS, {}, ["by the way"], short, label="", command=""))
    assert "raise --processes above 1" in shown
    assert "2 output tokens came of 9 asked for" in shown
    assert "by the way" in shown
    assert "note:" not in printed(print_document, document("fine"))


# ----------------------------------------------------------------------------------------------------------- arguments


def settings_of(*arguments):
    return make_settings(make_parser().parse_args(["--model", "m", *arguments]))


def test_options_become_settings():
    found = settings_of("--url", "http://host:9/v1/", "--request-rate", "5", "--duration", "3", "--seed", "7")
    assert (found.url, found.concurrency, found.request_rate, found.num_requests) == ("http://host:9", 0, 5.0, 0)
    found = settings_of("--endpoint", "chat", "embeddings", "--concurrency", "32", "--no-ignore-eos", "--no-stream")
    assert found.endpoints == ("chat", "embeddings") and found.num_requests == 100
    assert not found.ignore_eos and not found.stream
    assert settings_of().seed != settings_of().seed


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["--concurrency", "0"], "--concurrency is 0, but must be at least 1"),
        (["--request-rate", "-1"], "--request-rate is -1.0, but must be more than 0"),
        (["--concurrency", "2", "--processes", "3"], "lower --processes"),
        (["--url", "localhost:1234"], "is no http"),
        (["--url", "http://u:p@host"], "use --api-key"),
        (["--input-len", "many"], "'many' is no length"),
        (["--json", "no/such/folder/x.json"], "there is no folder no/such/folder"),
        (["--model", ""], "--model is missing"),
    ],
)
def test_wrong_options_say_what_would_be_right(arguments, message):
    with pytest.raises(ValueError, match=message):
        settings_of(*arguments)


def test_the_published_command_has_no_key():
    shown = public_command(["--api-key", "sk-1", "--model", "a b", "--api-key=sk-2"])
    assert shown == "penstock bench --api-key ... --model 'a b' --api-key=..."
