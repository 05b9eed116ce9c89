"""The state of one generation job inside the engine: its tokens, how many are computed, the blocks they live in."""

from dataclasses import dataclass, field
from enum import IntEnum
from typing import TYPE_CHECKING, NewType

from .messages import Submit, TokenLogprobs
from .sampling_params import SamplingParams

if TYPE_CHECKING:
    from .drafts import Drafter
    from .grammar import Matcher
    from .sampling import SamplerState

BlockId = NewType("BlockId", int)


class RequestStatus(IntEnum):
    """Where a request is; a preempted request is a waiting one whose tokens must be computed again."""

    WAITING = 0
    RUNNING = 1
    FINISHED = 2


@dataclass(slots=True, eq=False)
class Request:
    """One sequence being generated.

    The ranges of `token_ids`, when a request has 6 prompt tokens, 3 output tokens and 7 computed ones:

        0           prompt          6     output    9
        |---------------------------|---------------|
        |-------- computed ---------------|- target-|
                                          7         9

    There is no prefill and no decode phase: every step computes some of the tokens between `num_computed_tokens` and
    `num_tokens`, and when it reaches the end one more token is sampled.

    While the host prepares a step, the tokens that the step before samples are still on the device: they count, since
    the next ones are computed from them, but are not in `token_ids` before they have come.
    """

    request_id: str
    model: str
    prompt_token_ids: list[int]
    sampling: SamplingParams
    arrival_time: float
    principal: str = ""
    weight: float = 1.0
    """Of its principal."""
    priority: int = 0
    cache_salt: str = ""
    group: str = ""
    is_resumed: bool = False
    alone: bool = False
    """Whether it is computed in steps that hold nothing else, until its next token; kept by `AloneJobs`."""

    token_ids: list[int] = field(default_factory=list)
    """Prompt and output, as far as the host knows it."""
    num_pending_tokens: int = 0
    """Tokens that launched steps sample and the host has not got yet."""
    num_computed_tokens: int = 0
    """Tokens whose keys and values are in the KV cache, or will be when every launched step has run."""
    block_ids: list[BlockId] = field(default_factory=list)
    """Token i lives in block `block_ids[i // block_size]` at offset `i % block_size`."""
    block_hashes: list[bytes] = field(default_factory=list)
    """Chained hashes of the full blocks of `token_ids`, as far as they were needed."""
    num_shared_blocks: int = 0
    """Leading blocks that the prefix cache has been told of or that came from it."""
    status: RequestStatus = RequestStatus.WAITING
    num_cached_tokens: int = 0
    """Prompt tokens found in the prefix cache when the request was first scheduled."""
    num_charged_tokens: int = 0
    """Tokens from the start that its principal has paid for, or need not."""
    num_preemptions: int = 0
    sequence: int = 0
    """Counts the scheduler's jobs: orders those of equal priority and arrival, so that one always goes first."""
    first_scheduled_time: float = 0.0
    first_token_time: float = 0.0
    sampler_state: "SamplerState | None" = None
    """Kept by `sampling`; None until the request needs it."""
    prompt_logprobs: list[TokenLogprobs] = field(default_factory=list)
    """Of prompt tokens 1, 2, …, as far as they are computed, if they were asked for."""
    drafter: "Drafter | None" = None
    """Guesses its next tokens; None: nobody does."""
    matcher: "Matcher | None" = None
    """Where the output is in its grammar, always behind the last token; None: it has no grammar."""

    @classmethod
    def from_submit(cls, job: Submit) -> "Request":
        """The request of a freshly submitted or resumed job."""
        return cls(
            request_id=job.request_id,
            model=job.model,
            prompt_token_ids=job.prompt_token_ids,
            sampling=job.sampling,
            arrival_time=job.arrival_time,
            principal=job.principal,
            weight=job.weight,
            priority=job.priority,
            cache_salt=job.cache_salt,
            group=job.group,
            is_resumed=job.is_resumed,
            alone=job.alone,
            token_ids=job.prompt_token_ids + job.output_token_ids,
            num_charged_tokens=len(job.prompt_token_ids) + len(job.output_token_ids) - 1 if job.output_token_ids else 0,
        )

    @property
    def num_tokens(self) -> int:
        """Prompt and output tokens, those on the device included."""
        return len(self.token_ids) + self.num_pending_tokens

    @property
    def num_output_tokens(self) -> int:
        """Generated tokens, those on the device included."""
        return len(self.token_ids) + self.num_pending_tokens - len(self.prompt_token_ids)

    @property
    def awaits_token(self) -> bool:
        """Whether its next step has to wait for the token that is still on the device, or there is none to come.

        A grammar is followed on the host.
        """
        if not self.num_pending_tokens:
            return False
        return self.matcher is not None or self.num_tokens == self.max_num_tokens

    @property
    def needs_prompt_logprobs(self) -> bool:
        """Whether all logits of the prompt are wanted: until the first token, with which they go out."""
        return self.scores_prompt and not self.num_output_tokens

    @property
    def scores_prompt(self) -> bool:
        """Whether log probabilities of the prompt were asked for."""
        return self.sampling.prompt_logprobs is not None

    def append(self, token_id: int) -> None:
        """A pending token has come."""
        self.token_ids.append(token_id)
        self.num_pending_tokens -= 1

    @property
    def max_num_tokens(self) -> int:
        """Tokens when the request ends at its `max_tokens`."""
        return len(self.prompt_token_ids) + self.sampling.max_tokens
