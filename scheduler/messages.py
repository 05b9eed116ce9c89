"""Every message between the API processes and the device worker, and how it is framed.

Only these dataclasses cross the process border, as two ZeroMQ frames: the class name and the msgpack body. Up
(API process to worker): Hello, Submit, Embed, Cancel, Load, Unload. Down: ModelLoading, ModelReady, ModelFailed,
ModelUnloaded, WorkerReady and, once per engine step and API process, StepOutputs. The dataclasses need only the
standard library; msgspec is imported when the first frame is coded, so that the engine runs in-process without it.
"""

from dataclasses import dataclass, field
from functools import cache
from typing import TYPE_CHECKING

from .config import ModelKind, ModelSpec
from .sampling_params import SamplingParams

if TYPE_CHECKING:
    import msgspec

# --------------------------------------------------------------------------------------------------- up to the worker


@dataclass(frozen=True, slots=True)
class Hello:
    """First message of an API process: asks for the state of every model, answered by the messages below."""


@dataclass(frozen=True, slots=True)
class Submit:
    """One sequence to generate. `n` choices are n of these; the prefix cache computes their prompt once."""

    request_id: str
    model: str
    prompt_token_ids: list[int]
    sampling: SamplingParams
    arrival_time: float
    """Unix seconds."""
    output_token_ids: list[int] = field(default_factory=list)
    """Tokens this job already has: a job that outlived its worker goes on from here."""
    principal: str = ""
    """Whose job it is, for fair share."""
    weight: float = 1.0
    """The principal's share of the device, in proportion to those of the others."""
    priority: int = 0
    """Lower runs earlier."""
    cache_salt: str = ""
    """Requests share prefix-cache blocks only under the same salt, those of two principals only if so configured."""
    group: str = ""
    """The jobs of one request, which are let into the queue or refused together; empty: it is the only one."""
    is_resumed: bool = False
    """A worker that has died had let it in: it is never refused for want of room."""
    alone: bool = False
    """Computed in steps that hold nothing else until it has its first new token: it may have brought a worker down."""


@dataclass(frozen=True, slots=True)
class Embed:
    """Texts to embed, or pairs of texts to score, as one job; the scheduler may spread them over several steps."""

    request_id: str
    model: str
    inputs: list[list[int]]
    """Token ids, special tokens included, each non-empty and within the model's length."""
    arrival_time: float
    principal: str = ""
    weight: float = 1.0
    priority: int = 0
    second_starts: list[int] = field(default_factory=list)
    """For pairs: where in each input the tokens of the second text start, by the tokenizer's token types; the input's
    length if it gives both texts the same type."""
    is_resumed: bool = False
    """As `Submit.is_resumed`."""
    alone: bool = False
    """Computed in steps that hold nothing else: it may have brought a worker down."""


@dataclass(frozen=True, slots=True)
class Cancel:
    """Forget these jobs; nothing more is sent for them. Unknown ids are ignored."""

    request_ids: list[str]


@dataclass(frozen=True, slots=True)
class Load:
    """Make a model resident. Answered by ModelLoading and ModelReady or ModelFailed; one that is resident is ready."""

    spec: ModelSpec


@dataclass(frozen=True, slots=True)
class Unload:
    """Give a model's memory back. Answered by ModelUnloaded, or ModelReady again if it has jobs meanwhile."""

    name: str


# --------------------------------------------------------------------------------------------- down to an API process


@dataclass(frozen=True, slots=True)
class ModelLoading:
    """Progress of one model's loading."""

    name: str
    stage: str
    """What is going on, for people: "reading weights" or "packing weights"."""
    fraction: float
    """0 to 1."""


@dataclass(frozen=True, slots=True)
class ModelReady:
    """A model is resident; what the front needs to admit requests for it."""

    name: str
    kind: ModelKind
    architecture: str
    device: str
    dtype: str
    max_model_len: int
    vocab_size: int
    num_kv_blocks: int
    """What it can have if no other model holds any of the shared KV memory; 0 for all but generation models."""
    block_size: int
    max_num_seqs: int
    embedding_dim: int
    """0 for generation models; 1 for scoring models."""
    num_parameters: int
    weight_bytes: int
    """Memory of its weights."""
    kv_block_bytes: int
    """Memory of one of its KV blocks."""


@dataclass(frozen=True, slots=True)
class ModelFailed:
    """A model could not be loaded."""

    name: str
    message: str
    code: str = "load_failed"
    """Or "out_of_memory": it would fit if other models were unloaded."""


@dataclass(frozen=True, slots=True)
class ModelUnloaded:
    """A model is no longer resident."""

    name: str


@dataclass(frozen=True, slots=True)
class WorkerReady:
    """Every model of the start list is ready or failed; jobs are served from now on."""


@dataclass(frozen=True, slots=True)
class JobError:
    """Why a job ended without its result."""

    message: str
    code: str
    param: str | None = None
    status: int = 400
    """HTTP status that fits: 400 the request is at fault, 429 too much waits, 500 we are, 503 try again, 504 it took
    too long."""
    retry_after: float | None = None
    """Seconds after which it may be tried again; None: nobody knows, or it would fail again."""


@dataclass(frozen=True, slots=True)
class TokenLogprobs:
    """Log probabilities at one output position, of the distribution before any sampling parameter."""

    logprob: float
    """Of the chosen token."""
    top_token_ids: list[int]
    top_logprobs: list[float]
    """Descending."""


@dataclass(frozen=True, slots=True)
class JobTimings:
    """Seconds spent by a finished job, measured in the worker."""

    queued: float
    """Submission to first scheduling."""
    prefill: float
    """First scheduling to first token."""
    decode: float
    """First token to last."""
    num_preemptions: int
    num_draft_tokens: int = 0
    """Tokens that were guessed and computed with others in one step."""
    num_accepted_tokens: int = 0
    """Those of them that turned out right."""


@dataclass(frozen=True, slots=True)
class RequestOutput:
    """New tokens of one generation job."""

    request_id: str
    token_ids: list[int]
    """Only the new ones; an end token that ended the job is included and is the last."""
    num_cached_tokens: int = 0
    """Prompt tokens taken from the prefix cache."""
    num_computed_tokens: int = 0
    """Without new tokens: prompt tokens computed so far, a sign of life from a long prompt."""
    finish_reason: str | None = None
    """None: more will come. Else "stop" (end token), "length" or "error"."""
    stop_token_id: int | None = None
    """The end token that ended the job, which is then the last of `token_ids` and no part of the text."""
    logprobs: list[TokenLogprobs] | None = None
    """One per entry of `token_ids`, if asked for."""
    prompt_logprobs: list[TokenLogprobs] | None = None
    """With the first token, if asked for: one per prompt token but the first, which nothing predicts."""
    error: JobError | None = None
    timings: JobTimings | None = None
    """Set together with `finish_reason`."""


@dataclass(frozen=True, slots=True)
class EmbeddingOutput:
    """A finished embedding job."""

    request_id: str
    dim: int
    data: bytes
    """float32, little-endian, row-major [len(inputs), dim]: vectors, normalised if the model says so, or scores."""
    error: JobError | None = None


@dataclass(frozen=True, slots=True)
class ModelStats:
    """One model's load at the end of a step."""

    num_running: int
    num_waiting: int
    kv_blocks_total: int
    """What it can have if no other model holds any of the shared KV memory."""
    kv_blocks_used: int
    """Held by running requests; blocks that only the prefix cache remembers count as free."""
    prefix_cache_queries: int
    """Prompt tokens looked up, since the start."""
    prefix_cache_hits: int
    """Prompt tokens found, since the start."""
    num_preemptions: int
    """Since the start."""
    prompt_tokens: int
    """Prompt tokens computed, since the start: cache hits are not among them, recomputed ones count again."""
    generation_tokens: int
    """Since the start."""
    draft_tokens: int = 0
    """Guessed tokens that were computed, since the start."""
    accepted_draft_tokens: int = 0
    """Those of them that turned out right, since the start."""
    num_waiting_tokens: int = 0
    """Of prompts and texts of which nothing was scheduled yet, those whose grammars are being compiled included."""
    refusals: dict[str, int] = field(default_factory=dict)
    """Jobs that were refused or ended for want of room or time, since the start, by reason: requests, tokens, grammars,
    queue_timeout, request_timeout."""


@dataclass(frozen=True, slots=True)
class StepOutputs:
    """Everything one engine step has for one API process."""

    outputs: list[RequestOutput]
    embeddings: list[EmbeddingOutput]
    stats: dict[str, ModelStats]
    """By model name."""
    step_seconds: float
    num_batched_tokens: int
    """0: no step, only news (a refused job, the load after a cancellation)."""


UpMessage = Hello | Submit | Embed | Cancel | Load | Unload
DownMessage = ModelLoading | ModelReady | ModelFailed | ModelUnloaded | WorkerReady | StepOutputs
Message = UpMessage | DownMessage

_KINDS: dict[bytes, type] = {
    kind.__name__.encode(): kind
    for kind in (
        Hello,
        Submit,
        Embed,
        Cancel,
        Load,
        Unload,
        ModelLoading,
        ModelReady,
        ModelFailed,
        ModelUnloaded,
        WorkerReady,
        StepOutputs,
    )
}


@cache
def _decoder(kind: bytes) -> "msgspec.msgpack.Decoder[Message]":
    import msgspec

    return msgspec.msgpack.Decoder(_KINDS[kind])


@cache
def _encoder() -> "msgspec.msgpack.Encoder":
    import msgspec

    return msgspec.msgpack.Encoder()


def encode(message: Message) -> list[bytes]:
    """Frames of a message: its class name and its msgpack body."""
    return [type(message).__name__.encode(), _encoder().encode(message)]


def decode(frames: list[bytes]) -> Message:
    """The message in two frames.

    Raises:
        ValueError: an unknown kind, or a body that does not fit it.
    """
    if len(frames) != 2 or frames[0] not in _KINDS:
        raise ValueError(f"not a message: {len(frames)} frames, the first {frames[:1]!r:.60}")
    return _decoder(frames[0]).decode(frames[1])
