"""Everything one benchmark run is told, in plain frozen data that crosses to the client processes."""

from dataclasses import dataclass, field, fields
from typing import Literal, get_args

from .lengths import FixedLength, Lengths

EndpointName = Literal["chat", "completions", "responses", "embeddings"]
ENDPOINT_NAMES: tuple[EndpointName, ...] = get_args(EndpointName)


@dataclass(frozen=True, slots=True)
class BenchSettings:
    """Where the load goes, how it arrives and what it looks like."""

    url: str
    """Scheme, host and port, without /v1 and without a slash at the end."""
    model: str
    embedding_model: str = ""
    """Model of the embeddings endpoint; empty: `model`."""
    endpoints: tuple[EndpointName, ...] = ("chat",)
    """Each request draws one of these; a name that stands here twice is drawn twice as often."""

    concurrency: int = 8
    """Requests in flight at any time; 0: they arrive at `request_rate` instead."""
    request_rate: float = 0.0
    """Requests per second, whether or not earlier ones have ended."""
    burstiness: float = 1.0
    """Shape of the gamma-distributed gaps between arrivals: 1 is Poisson, less is burstier, more is steadier."""
    num_requests: int = 100
    """Requests to send; 0: no limit."""
    duration: float = 0.0
    """Seconds in which requests are started, the running ones are then awaited; 0: no limit."""
    warmup: int = 0
    """Requests sent first and not measured."""
    processes: int = 1
    """Client processes that share the load."""

    input_len: Lengths = FixedLength(128)
    """Tokens of the user's text, without the chat template."""
    output_len: Lengths = FixedLength(128)
    shared_prefix_len: int = 0
    """Tokens of a prefix put before the user's text; they come on top of `input_len`."""
    num_prefixes: int = 1
    """Different prefixes; each request draws one."""
    batch_size: int = 1
    """Texts in one embeddings request."""
    seed: int = 0
    """The same seed gives the same requests in the same order, however many processes send them."""
    ignore_eos: bool = True
    """Send `ignore_eos` and `min_tokens`, so that each answer has the wanted length."""
    temperature: float = 0.0
    stream: bool = True

    keep_alive: bool = True
    """Reuse connections; without it each request opens its own."""
    timeout: float = 600.0
    """Seconds one request may take."""
    api_key: str = field(default="", repr=False)

    def model_of(self, endpoint: EndpointName) -> str:
        """The model that requests of `endpoint` name."""
        return (endpoint == "embeddings" and self.embedding_model) or self.model

    def public(self) -> dict[str, object]:
        """Every setting but the key, in JSON types."""
        raw = {item.name: getattr(self, item.name) for item in fields(self) if item.name != "api_key"}
        lengths = {"input_len": str(self.input_len), "output_len": str(self.output_len)}
        return raw | lengths | {"endpoints": list(self.endpoints)}
