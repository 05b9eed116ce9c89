"""The contract between the scheduler, which decides, and the runners, which compute: one step's work and results."""

from collections.abc import Sequence
from dataclasses import dataclass, field

from .messages import TokenLogprobs
from .request import Request


@dataclass(slots=True, eq=False)
class ScheduledRow:
    """The tokens of one request that this step computes: those from `start` to `start + num_tokens`.

    The request's blocks already cover them. `start` is its `num_computed_tokens` when the plan was made. The last of
    them may still be on the device, where the step before sampled it: it has no place in `token_ids` yet.
    """

    request: Request
    start: int
    num_tokens: int
    drafts: Sequence[int] = ()
    """Guesses of what follows the request's tokens: the last of the row, each checked by sampling in its place."""
    samples: bool = field(init=False)
    """Whether the row reaches the end of its request's tokens, so that the next token is sampled from it."""

    def __post_init__(self) -> None:
        self.samples = self.end - len(self.drafts) == self.request.num_tokens

    @property
    def num_sampled(self) -> int:
        """Tokens sampled from the row: after the request's last token and after each draft."""
        return 1 + len(self.drafts) if self.samples else 0

    @property
    def is_stream(self) -> bool:
        """Whether the row computes a single token of its request, whatever is guessed to follow."""
        return self.num_tokens - len(self.drafts) == 1

    @property
    def end(self) -> int:
        """First token index after the row: also the sequence length the row's last token attends to."""
        return self.start + self.num_tokens


@dataclass(frozen=True, slots=True)
class GenerationBatch:
    """All rows of one model in one step: one packed forward pass."""

    model: str
    rows: list[ScheduledRow]
    """Rows of one token first, then longer ones: attention treats the two kinds differently."""

    @property
    def num_tokens(self) -> int:
        """Tokens of all rows."""
        return sum(row.num_tokens for row in self.rows)


@dataclass(frozen=True, slots=True)
class EmbeddingInput:
    """One text, or pair of texts, of an embedding job."""

    request_id: str
    index: int
    """Its place in the job's inputs."""
    token_ids: list[int]
    second_start: int
    """See `Embed.second_starts`."""


@dataclass(frozen=True, slots=True)
class EmbeddingBatch:
    """All texts of one embedding model in one step, shortest first."""

    model: str
    inputs: list[EmbeddingInput]

    @property
    def num_tokens(self) -> int:
        """Tokens of all texts."""
        return sum(len(item.token_ids) for item in self.inputs)


@dataclass(frozen=True, slots=True)
class StepPlan:
    """Everything one engine step computes."""

    generation: list[GenerationBatch] = field(default_factory=list)
    embedding: list[EmbeddingBatch] = field(default_factory=list)
    num_batched_tokens: int = 0
    """Tokens of all batches together."""
    alone: bool = False
    """Nothing else may be on the device while this step is."""

    def __bool__(self) -> bool:
        return bool(self.generation or self.embedding)

    @property
    def num_tokens_beside(self) -> int:
        """Tokens of prompts and texts that streams have beside them; 0: there are none, of the one or the other."""
        streams = [row.num_tokens for batch in self.generation for row in batch.rows if row.is_stream]
        return self.num_batched_tokens - sum(streams) if streams else 0

    @property
    def job_ids(self) -> set[str]:
        """The ids of all jobs in it."""
        ids = {row.request.request_id for batch in self.generation for row in batch.rows}
        return ids.union(text.request_id for batch in self.embedding for text in batch.inputs)


@dataclass(frozen=True, slots=True)
class SampledToken:
    """What a generation runner returns for each place that is sampled, in row order."""

    token_id: int
    logprobs: TokenLogprobs | None
