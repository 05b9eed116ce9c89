"""The routes that need no model: health, metrics, the root."""

import subprocess
import sys
from pathlib import Path

from fake_engine import CHAT, EMBED, open_front, step
from prometheus_client.parser import text_string_to_metric_families

from penstock.scheduler.flight_record import FlightRecord
from penstock.serving.worker_news import WorkerLost, WorkerStarted


async def test_health_is_200_while_the_worker_lives() -> None:
    async with open_front() as front:
        assert (await front.http.get("/health")).json()["status"] == "ok"
        front.engine.ready.clear()
        response = await front.http.get("/health")
        assert response.status_code == 200 and response.json()["status"] == "loading"


async def test_health_and_readiness_while_a_worker_takes_anothers_place(tmp_path: Path) -> None:
    async with open_front() as front:
        assert (await front.http.get("/ready")).json() == {"status": "ready"}
        front.engine.take_news(WorkerLost("was killed by signal 9"))
        health = await front.http.get("/health")
        assert health.status_code == 200 and health.json()["worker"]["status"] == "restarting"
        refused = await front.http.get("/ready")
        assert refused.status_code == 503 and refused.headers["retry-after"]
        assert "was killed by signal 9" in refused.json()["reason"]
        record = FlightRecord(tmp_path / "flight")
        front.engine.lost, front.engine.worker = None, WorkerStarted(1, "inproc://nobody", str(tmp_path / "flight"))
        worker = (await front.http.get("/health")).json()["worker"]
        assert worker == {"status": "restarting", "restarts": 1, "seconds_since_progress": None}
        assert (await front.http.get("/ready")).json()["reason"] == "models are being loaded"
        record.beat()
        front.engine.ready.set()
        worker = (await front.http.get("/health")).json()["worker"]
        assert (worker["status"], worker["restarts"]) == ("up", 1) and worker["seconds_since_progress"] >= 0
        assert "penstock_worker_restarts_total 1.0" in front.app_metrics()
        assert (await front.http.get("/ready")).status_code == 200
        front.engine.take_news(WorkerLost("ended with status 1", is_hopeless=True))
        assert (await front.http.get("/health")).status_code == 503
        assert "gone" in (await front.http.get("/ready")).json()["reason"]


async def test_probes_by_head() -> None:
    async with open_front() as front:
        for path in ("/", "/metrics", "/health", "/ready"):
            assert (await front.http.head(path)).status_code == 200
        assert (await front.http.get("/")).json()["name"] == "penstock"


async def test_metrics_show_engine_and_front() -> None:
    async with open_front() as front:
        await front.chat()
        await front.chat(stop="lo wor")  # cancelled by the front: such a job has no timings
        await front.embed(input=["a", "b"])
        await front.http.get("/nowhere")
        await front.chat(n=0)
        response = await front.http.get("/metrics")
        assert response.headers["content-type"].startswith("text/plain; version=0.0.4")
        samples = {
            (sample.name, *sorted(sample.labels.values())): sample.value
            for family in text_string_to_metric_families(response.text)
            for sample in family.samples
        }
        for name, value in [
            ("vllm:num_requests_running", 1),
            ("vllm:num_requests_waiting", 2),
            ("vllm:kv_cache_usage_perc", 0.25),
            ("vllm:gpu_cache_usage_perc", 0.25),
            ("vllm:prompt_tokens_total", 40),
            ("vllm:generation_tokens_total", 7),
            ("vllm:prefix_cache_queries_total", 40),
            ("vllm:prefix_cache_hits_total", 10),
            ("vllm:num_preemptions_total", 3),
            ("penstock_waiting_tokens", 50),
            ("vllm:spec_decode_num_draft_tokens_total", 20),
            ("vllm:spec_decode_num_accepted_tokens_total", 15),
            ("vllm:time_to_first_token_seconds_count", 2),
            ("vllm:e2e_request_latency_seconds_count", 2),
            ("vllm:request_queue_time_seconds_count", 1),
            ("vllm:request_queue_time_seconds_sum", 0.25),
            ("vllm:request_prefill_time_seconds_sum", 0.5),
            ("vllm:request_decode_time_seconds_sum", 2.0),
        ]:
            assert samples[name, CHAT] == value, name
        assert samples["vllm:request_success_total", "stop", CHAT] == 2
        assert samples["penstock_refused_jobs_total", CHAT, "tokens"] == 4
        assert samples["vllm:inter_token_latency_seconds_count", CHAT] >= 2
        assert samples["vllm:time_per_output_token_seconds_count", CHAT] == 2
        assert samples["penstock_step_seconds_count",] >= 4
        assert samples["penstock_embedded_texts_total", EMBED] == 2
        assert samples["penstock_worker_up",] == 1 and samples["penstock_jobs_in_flight",] == 0
        assert samples["penstock_http_requests_total", "/v1/chat/completions", "200"] == 2
        assert samples["penstock_http_requests_total", "/v1/chat/completions", "400"] == 1
        assert samples["penstock_http_requests_total", "404", "other"] == 1


async def test_metrics_show_models_before_their_first_step() -> None:
    async with open_front() as front:
        for name in ("vllm:num_requests_running", "vllm:kv_cache_usage_perc", "vllm:generation_tokens_total"):
            for model in (CHAT, EMBED):
                assert f'{name}{{model_name="{model}"}} 0.0' in front.app_metrics()


async def test_answers_are_counted_by_route_and_not_by_what_stands_in_the_path() -> None:
    async with open_front() as front:
        for path in (f"/v1/models/{CHAT}", f"/v1/models/{EMBED}", "/nowhere", "/nowhere/else"):
            await front.http.get(path)
        counted = [
            line for line in front.app_metrics().splitlines() if line.startswith("penstock_http_requests_total{")
        ]
        assert counted == [
            'penstock_http_requests_total{route="/v1/models/{model_id:path}",status="200"} 2.0',
            'penstock_http_requests_total{route="other",status="404"} 2.0',
        ]


async def test_news_between_steps_is_no_step() -> None:
    async with open_front() as front:
        front.engine._deliver(step(num_batched_tokens=0))
        assert "penstock_step_seconds_count 0.0" in front.app_metrics()
        assert 'vllm:num_requests_running{model_name="tiny-chat"} 1.0' in front.app_metrics()
        front.engine._deliver(step())
        assert "penstock_step_seconds_count 1.0" in front.app_metrics()
        assert "penstock_step_batched_tokens_sum 12.0" in front.app_metrics()


async def test_two_applications_do_not_share_metrics() -> None:
    async with open_front() as front, open_front() as other:
        await front.chat()
        assert "vllm:request_success_total{" not in other.app_metrics()
        assert "vllm:request_success_total{" in front.app_metrics()


def test_front_needs_neither_torch_nor_transformers() -> None:
    code = (
        "import sys; import penstock.serving.app; "
        "sys.exit(bool({'torch', 'transformers', 'sentence_transformers'} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", f"import sys; sys.path.insert(0, '.dev'); {code}"]).returncode == 0
