"""What the scheduler keeps of each resident model: its waiting and its running jobs."""

from dataclasses import dataclass, field

from .kv_cache import KVCacheManager
from .policy import EmbeddingJob, FifoQueue, JobQueue
from .request import Request


@dataclass(slots=True, eq=False)
class GenerationLane:
    """The requests of one generation model."""

    model: str
    kv: KVCacheManager
    max_model_len: int
    waiting: JobQueue = field(default_factory=FifoQueue)
    running: dict[str, Request] = field(default_factory=dict)
    """By request id, in the order of admission."""
    num_preemptions: int = 0
    num_prompt_tokens: int = 0
    """Computed, not found in the prefix cache."""
    num_generation_tokens: int = 0
    num_draft_tokens: int = 0
    """Guesses that were computed."""
    num_accepted_tokens: int = 0
    """Those of them that came true."""


@dataclass(slots=True, eq=False)
class EmbeddingLane:
    """The jobs of one embedding model."""

    model: str
    max_model_len: int
    waiting: JobQueue = field(default_factory=FifoQueue)
    unfinished: dict[str, EmbeddingJob] = field(default_factory=dict)
    """Every job whose result is not out yet; those with inputs left are also in `waiting`."""
    num_prompt_tokens: int = 0


Lane = GenerationLane | EmbeddingLane
