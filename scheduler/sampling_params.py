"""How one request wants its tokens chosen, fully resolved: no field is optional at the engine."""

import math
from dataclasses import dataclass, field

MAX_LOGPROBS = 20  # OpenAI's limit on `top_logprobs`


@dataclass(frozen=True, slots=True)
class SamplingParams:
    """Sampling parameters of one request, applied in the order of the fields from `logit_bias` on.

    The draw is a function of (`seed`, position of the token in its sequence) and the row's distribution only, so a
    request samples the same tokens alone, in any batch, after a preemption and after a restart.

    Raises:
        ValueError: a field is out of its range; the message names field, value and range.
    """

    max_tokens: int
    """Tokens to generate at most, >= 1."""
    seed: int
    """Any 64-bit integer; the front draws one for requests that name none."""
    logit_bias: dict[int, float] = field(default_factory=dict)
    """Added to the logits of these token ids."""
    repetition_penalty: float = 1.0
    """> 0. Logits of tokens seen in prompt or output are divided (positive) or multiplied (negative) by it."""
    presence_penalty: float = 0.0
    """Subtracted from the logits of tokens seen in the output."""
    frequency_penalty: float = 0.0
    """Subtracted once per occurrence in the output."""
    min_tokens: int = 0
    """No stop token before this many output tokens."""
    temperature: float = 1.0
    """0 means greedy: the argmax after penalties and bias."""
    top_k: int = 0
    """0 means all."""
    top_p: float = 1.0
    """In (0, 1]; 1 means all."""
    min_p: float = 0.0
    """In [0, 1]; keeps tokens of at least min_p times the likeliest token's probability."""
    stop_token_ids: tuple[int, ...] = ()
    """Ends generation, besides the model's own end tokens."""
    ignore_eos: bool = False
    """Do not end at the model's own end tokens."""
    logprobs: int | None = None
    """None: no log probabilities. n: the chosen token's and the n likeliest tokens', of the unmodified distribution."""
    prompt_logprobs: int | None = None
    """The same for the prompt's tokens, each given those before it."""
    grammar: str = ""
    """llguidance grammar (JSON or Lark) that the output must match; empty: none. Masks the logits before any draw."""
    grammar_fallback: str = ""
    """Tried by the worker if the grammar cannot be compiled; empty: the request is refused."""
    grammar_param: str = ""
    """Request field that errors about the grammar name."""
    grammar_params: dict[str, str] = field(default_factory=dict)
    """Those of single rules, and of named grammars in the grammar, that come from other fields."""

    @property
    def has_penalties(self) -> bool:
        """Whether seen tokens change the logits."""
        return self.repetition_penalty != 1.0 or self.presence_penalty != 0.0 or self.frequency_penalty != 0.0

    def __post_init__(self) -> None:
        def check(ok: bool, name: str, value: object, wants: str) -> None:
            if not ok:
                raise ValueError(f"{name} is {value}, but must be {wants}")

        check(1 <= self.max_tokens < 2**31, "max_tokens", self.max_tokens, "at least 1, below 2**31")
        check(0 <= self.min_tokens <= self.max_tokens, "min_tokens", self.min_tokens, "between 0 and max_tokens")
        check(-(2**63) <= self.seed < 2**63, "seed", self.seed, "a 64-bit integer")
        for name in (
            "temperature",
            "top_p",
            "min_p",
            "presence_penalty",
            "frequency_penalty",
            "repetition_penalty",
        ):
            check(math.isfinite(getattr(self, name)), name, getattr(self, name), "a finite number")
        check(self.temperature >= 0, "temperature", self.temperature, "0 or more")
        check(0 <= self.top_k < 2**31, "top_k", self.top_k, "0 (all) or more, below 2**31")
        check(0 < self.top_p <= 1, "top_p", self.top_p, "in (0, 1]")
        check(0 <= self.min_p <= 1, "min_p", self.min_p, "in [0, 1]")
        check(self.repetition_penalty > 0, "repetition_penalty", self.repetition_penalty, "more than 0")
        if self.logprobs is not None:
            check(0 <= self.logprobs <= MAX_LOGPROBS, "logprobs", self.logprobs, f"between 0 and {MAX_LOGPROBS}")
        if self.prompt_logprobs is not None:
            in_range = 0 <= self.prompt_logprobs <= MAX_LOGPROBS
            check(in_range, "prompt_logprobs", self.prompt_logprobs, f"between 0 and {MAX_LOGPROBS}")
        for token_id, bias in self.logit_bias.items():
            check(math.isfinite(bias), f"logit_bias[{token_id}]", bias, "a finite number")
