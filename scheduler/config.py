"""What the device worker is told when it starts: plain frozen data, resolved by the front, no None left to guess."""

from dataclasses import dataclass
from typing import Literal

ModelKind = Literal["generate", "embed", "score"]
"""score: a cross-encoder, which rates pairs of texts."""
DeviceName = Literal["auto", "cuda", "cpu"]
DtypeName = Literal["auto", "bfloat16", "float16", "float32"]
Quantization = Literal["none", "int8", "fp8"]
KVCacheDtype = Literal["auto", "fp8"]


@dataclass(frozen=True, slots=True)
class ModelSpec:
    """One model to load."""

    name: str
    """The id clients use."""
    path: str
    """A local folder in Hugging Face form: config.json and safetensors."""
    kind: ModelKind
    dtype: DtypeName = "auto"
    """auto: the checkpoint's own on a GPU; on a CPU bfloat16 for generation where it is native, else float32."""
    quantization: Quantization = "none"
    """Linear layers of a generation model in 8 bits. int8: on a CPU, about twice as fast; fp8: on a GPU with float8."""
    kv_cache_dtype: KVCacheDtype = "auto"
    """Number format of keys and values; auto: that of the weights; fp8: float8, half the memory, on a GPU with it."""
    max_model_len: int = 0
    """Longest sequence, prompt and output together; 0: what the model's config allows."""
    trust_remote_code: bool = False


@dataclass(frozen=True, slots=True)
class EngineConfig:
    """Limits of one engine; the defaults suit tests, the front passes its own."""

    device: DeviceName = "auto"
    kv_cache_memory: int = 0
    """Bytes for the KV blocks of all models together; 0: a share of what the device has free."""
    block_size: int = 16
    """Tokens in one KV block."""
    max_num_seqs: int = 256
    """Requests that may hold KV blocks at once, over all models."""
    max_num_batched_tokens: int = 0
    """Tokens one step may compute; 0: 512 on a CPU, 8192 on a GPU."""
    itl_target_ms: int = -1
    """Milliseconds between two tokens of a stream that prompts and texts beside it should not exceed; 0: no bound,
    negative: 400 on a CPU, 50 on a GPU."""
    max_waiting_requests: int = 0
    """Jobs of one model that may wait to be scheduled; 0: any number."""
    max_waiting_tokens: int = 0
    """Tokens of theirs; 0: what the model takes up in half of the queue timeout, see `admission_control`."""
    queue_timeout: float = 0.0
    """Seconds that a job may wait to be scheduled for the first time; 0: for ever."""
    request_timeout: float = 0.0
    """Seconds that a job may take in all; 0: for ever."""
    fair_share: bool = True
    """Serve the principal first that has had least; else by priority and arrival alone."""
    enable_prefix_caching: bool = True
    shared_prefix_cache: bool = False
    """Requests share blocks whoever sends them; else only those of one principal do."""
    overlap: Literal["auto", "on", "off"] = "auto"
    """Prepare a step on the host while the device computes the one before; auto: on a GPU. A CPU would be both."""
    speculation: Literal["off", "ngram"] = "off"
    """ngram: compute what followed the last tokens earlier in the text together with them, where that pays."""
    num_draft_tokens: int = 4
    """Guessed tokens of one request in a step, at most."""
    min_ngram: int = 2
    """Last tokens that have to come before in the text for a guess."""
    max_ngram: int = 4
    """Longest run of last tokens that is looked for first."""
    num_threads: int = 0
    """Threads of one CPU operation; 0: one for each physical core, or fewer if a trial at load says so."""


@dataclass(frozen=True, slots=True)
class WorkerConfig:
    """Everything one device worker process is started with."""

    address: str
    """ZeroMQ address that the worker binds, for example ipc:///run/penstock/worker-0.sock."""
    engine: EngineConfig
    models: tuple[ModelSpec, ...]
    log_level: str = "info"
    flight_record: str = ""
    """The file in which the worker says what it is doing, see `flight_record`; "": nowhere."""
