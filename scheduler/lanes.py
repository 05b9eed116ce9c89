"""What the scheduler keeps of each resident model: its waiting and its running jobs."""

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import TypeVar

from .kv_cache import KVCacheManager
from .policy import EmbeddingJob, JobQueue
from .request import Request


@dataclass(slots=True, eq=False)
class GenerationLane:
    """The requests of one generation model."""

    model: str
    kv: KVCacheManager
    max_model_len: int
    waiting: JobQueue
    token_cost: float = 1.0
    """Of a prompt token or a text's, see `Accounts.charge`."""
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
    waiting: JobQueue
    token_cost: float = 1.0
    """Of a prompt token or a text's, see `Accounts.charge`."""
    unfinished: dict[str, EmbeddingJob] = field(default_factory=dict)
    """Every job whose result is not out yet; those with inputs left are also in `waiting`."""
    num_prompt_tokens: int = 0


Lane = GenerationLane | EmbeddingLane
_LaneT = TypeVar("_LaneT", GenerationLane, EmbeddingLane)


def first_lane(lanes: Iterable[_LaneT]) -> _LaneT | None:
    """The lane whose first waiting job is the policy's first of all; None: nothing waits."""
    waiting = [lane for lane in lanes if lane.waiting]
    return min(waiting, key=lambda lane: lane.waiting.key(lane.waiting.peek()), default=None)
