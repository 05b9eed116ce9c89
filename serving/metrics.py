"""The Prometheus metrics of one server: the `vllm:` names that routers and dashboards know, and our own.

What the worker counts is read from its last message at scrape time; only what is measured here, in the API process,
costs anything per token.
"""

import os
from collections.abc import Callable, Iterator

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.metrics_core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.multiprocess import MultiProcessCollector
from prometheus_client.registry import Collector

from penstock.scheduler.messages import JobTimings, ModelStats, StepOutputs

from .engine_client import EngineClient

FOLDER_VARIABLE = "PROMETHEUS_MULTIPROC_DIR"
"""Where several API processes keep their counts; the Prometheus client reads it when it is imported."""
_LATENCY_BUCKETS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0)
_GAP_BUCKETS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
_TOKEN_BUCKETS = (1, 4, 16, 64, 256, 512, 1024, 2048, 4096, 8192, 16384)
_MODEL = ("model_name",)
_PHASES = {
    "queue": "Submission of a job to its first scheduling, in the worker.",
    "prefill": "First scheduling of a job to its first token.",
    "decode": "First token of a job to its last.",
}


class Metrics:
    """Everything `/metrics` shows.

    Args:
        engine: whose steps and statistics are shown; its `on_step` is taken.
        counts_steps: of several API processes, which all hear of every step, one counts them.
    """

    content_type = "text/plain; version=0.0.4; charset=utf-8"

    def __init__(self, engine: EngineClient, *, counts_steps: bool = True) -> None:
        self._engine = engine
        self._counts_steps = counts_steps
        self._registry = registry = CollectorRegistry()
        self._jobs = Gauge(
            "penstock_jobs_in_flight", "Jobs of all API processes.", registry=registry, multiprocess_mode="livesum"
        )
        self._first_token = Histogram(
            "vllm:time_to_first_token_seconds",
            "Arrival of a request to its first token.",
            _MODEL,
            registry=registry,
            buckets=_LATENCY_BUCKETS,
        )
        self._gap = Histogram(
            "vllm:inter_token_latency_seconds",
            "Time from one token of a choice to the next.",
            _MODEL,
            registry=registry,
            buckets=_GAP_BUCKETS,
        )
        self._mean_gap = Histogram(
            "vllm:time_per_output_token_seconds",
            "Mean time between the tokens of a finished choice.",
            _MODEL,
            registry=registry,
            buckets=_GAP_BUCKETS,
        )
        self._latency = Histogram(
            "vllm:e2e_request_latency_seconds",
            "Arrival of a request to the end of a choice.",
            _MODEL,
            registry=registry,
            buckets=_LATENCY_BUCKETS,
        )
        self._phases = {
            phase: Histogram(
                f"vllm:request_{phase}_time_seconds", text, _MODEL, registry=registry, buckets=_LATENCY_BUCKETS
            )
            for phase, text in _PHASES.items()
        }
        self._finished = Counter(
            "vllm:request_success", "Finished choices.", (*_MODEL, "finished_reason"), registry=registry
        )
        self._step_seconds = Histogram(
            "penstock_step_seconds", "Duration of an engine step.", registry=registry, buckets=_GAP_BUCKETS
        )
        self._step_tokens = Histogram(
            "penstock_step_batched_tokens", "Tokens of an engine step.", registry=registry, buckets=_TOKEN_BUCKETS
        )
        self._embedded = Counter("penstock_embedded_texts", "Texts embedded.", _MODEL, registry=registry)
        self._http = Counter("penstock_http_requests", "HTTP answers.", ("route", "status"), registry=registry)
        self._refused = Counter(
            "penstock_refused_requests",
            "Requests refused for their key, or for want of one, by the limit's name or the error's code.",
            ("reason",),
            registry=registry,
        )
        engine.on_step = self._on_step

    def exposition(self) -> bytes:
        """The text that Prometheus scrapes, the same from every API process.

        Each of several processes keeps its counts in a file, as the Prometheus client does it; here they are added up.
        What the worker says is the same in all of them.
        """
        self._jobs.set(self._engine.num_jobs)
        counts = self._registry
        if FOLDER_VARIABLE in os.environ:
            counts = CollectorRegistry()
            MultiProcessCollector(counts)  # type: ignore[no-untyped-call]
        told = CollectorRegistry()
        told.register(_EngineCollector(self._engine))
        return generate_latest(told) + generate_latest(counts)

    def count_answer(self, route: str, status: int) -> None:
        """One HTTP answer; 499 is a client that went away."""
        self._http.labels(route, str(status)).inc()

    def count_refusal(self, reason: str) -> None:
        """One request that was refused for its key, or for want of one."""
        self._refused.labels(reason).inc()

    def observe_first_token(self, model: str, seconds: float) -> None:
        """One choice's time to its first token."""
        self._first_token.labels(model).observe(seconds)

    def gap_observer(self, model: str) -> Callable[[float], None]:
        """What takes the seconds between two tokens of a choice; looking the model up for each costs too much."""
        observer: Callable[[float], None] = self._gap.labels(model).observe
        return observer

    def observe_end(self, model: str, reason: str, seconds: float, mean_gap: float | None) -> None:
        """One choice's end.

        Args:
            model: its model.
            reason: "stop", "length", "tool_calls", "error" or "abort".
            seconds: since the request's arrival.
            mean_gap: seconds between its tokens, None if it had less than two.
        """
        self._finished.labels(model, reason).inc()
        self._latency.labels(model).observe(seconds)
        if mean_gap is not None:
            self._mean_gap.labels(model).observe(mean_gap)

    def observe_timings(self, model: str, timings: JobTimings) -> None:
        """Where one finished job spent its time; jobs that the front cancels, at a stop string too, have no timings."""
        for phase, seconds in (("queue", timings.queued), ("prefill", timings.prefill), ("decode", timings.decode)):
            self._phases[phase].labels(model).observe(seconds)

    def count_embedded(self, model: str, num_texts: int) -> None:
        """Texts of a finished embedding job."""
        self._embedded.labels(model).inc(num_texts)

    def _on_step(self, step: StepOutputs) -> None:
        self._jobs.set(self._engine.num_jobs)
        if not (step.num_batched_tokens and self._counts_steps):
            return  # news between two steps, or counted by another process
        self._step_seconds.observe(step.step_seconds)
        self._step_tokens.observe(step.num_batched_tokens)


class _EngineCollector(Collector):
    """The worker's own counts, as of its last step."""

    def __init__(self, engine: EngineClient) -> None:
        self._engine = engine

    def collect(self) -> Iterator[Metric]:
        stats = dict.fromkeys(self._engine.models, _IDLE) | self._engine.stats
        for name, help_text, value in _GAUGES:
            gauge = GaugeMetricFamily(name, help_text, labels=_MODEL)
            for model, numbers in stats.items():
                gauge.add_metric((model,), value(numbers))
            yield gauge
        for name, help_text, value in _COUNTERS:
            counter = CounterMetricFamily(name, help_text, labels=_MODEL)
            for model, numbers in stats.items():
                counter.add_metric((model,), value(numbers))
            yield counter
        refused = CounterMetricFamily(
            "penstock_refused_jobs", "Jobs refused or ended for want of room or time.", labels=(*_MODEL, "reason")
        )
        for model, numbers in stats.items():
            for reason, count in numbers.refusals.items():
                refused.add_metric((model, reason), count)
        yield refused
        is_up = self._engine.death is None and self._engine.lost is None
        yield GaugeMetricFamily("penstock_worker_up", "1 while the device worker lives.", is_up)
        restarts = self._engine.worker.generation
        yield CounterMetricFamily("penstock_worker_restarts", "Workers that took another's place.", restarts)


_IDLE = ModelStats(0, 0, 0, 0, 0, 0, 0, 0, 0)
"""Of a model that has not had a step yet: routers and dashboards look for its numbers from the start."""


def _cache_usage(stats: ModelStats) -> float:
    return stats.kv_blocks_used / stats.kv_blocks_total if stats.kv_blocks_total else 0.0


_Rows = tuple[tuple[str, str, Callable[[ModelStats], float]], ...]
_GAUGES: _Rows = (
    ("vllm:num_requests_running", "Requests that are being computed.", lambda s: s.num_running),
    ("vllm:num_requests_waiting", "Requests that wait to be scheduled.", lambda s: s.num_waiting),
    (
        "penstock_waiting_tokens",
        "Tokens of prompts and texts that wait to be scheduled.",
        lambda s: s.num_waiting_tokens,
    ),
    ("vllm:kv_cache_usage_perc", "Used share of the KV blocks, 0 to 1.", _cache_usage),
    ("vllm:gpu_cache_usage_perc", "Older name of vllm:kv_cache_usage_perc.", _cache_usage),
)
_COUNTERS: _Rows = (
    ("vllm:prompt_tokens", "Prompt tokens, cached ones included.", lambda s: s.prompt_tokens + s.prefix_cache_hits),
    ("vllm:generation_tokens", "Generated tokens.", lambda s: s.generation_tokens),
    ("vllm:prefix_cache_queries", "Prompt tokens looked up in the prefix cache.", lambda s: s.prefix_cache_queries),
    ("vllm:prefix_cache_hits", "Prompt tokens found in the prefix cache.", lambda s: s.prefix_cache_hits),
    ("vllm:num_preemptions", "Preemptions.", lambda s: s.num_preemptions),
    ("vllm:spec_decode_num_draft_tokens", "Guessed tokens that were computed.", lambda s: s.draft_tokens),
    ("vllm:spec_decode_num_accepted_tokens", "Guessed tokens that were right.", lambda s: s.accepted_draft_tokens),
)
