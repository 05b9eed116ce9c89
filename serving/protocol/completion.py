"""The body of POST /v1/completions."""

from typing import Annotated, Any

from pydantic import BeforeValidator, Field, model_validator

from .body import invalid
from .generation import GenerationBody
from .inputs import Inputs
from .other_fields import COMPLETION

MAX_PROMPTS = 1024
"""Choices of one request, over all its prompts."""
MAX_BEST_OF = 20
"""OpenAI's limit."""
MAX_LOGPROBS = 20
"""OpenAI stops at 5 here and at 20 in chats."""


def _check_max_tokens(value: Any) -> Any:
    if type(value) is int and value < -1:
        raise invalid(
            "integer_below_min_value", f"{value} is below the minimum of 0. Send 0 or more, or -1 for no limit."
        )
    return value


_MaxTokens = Annotated[int, Field(ge=-1)] | None


class CompletionBody(GenerationBody):
    """POST /v1/completions."""

    other_fields = COMPLETION

    prompt: Inputs
    suffix: str | None = None
    """The text after the gap that is to be filled; empty: none."""
    echo: bool = False
    max_tokens: Annotated[int | None, BeforeValidator(_check_max_tokens, json_schema_input_type=_MaxTokens)] = None
    """0: only the prompt is scored (`echo` with `logprobs`); -1: as many as fit."""
    best_of: int | None = Field(default=None, ge=0, le=MAX_BEST_OF)
    """So many choices are generated for each prompt, and the `n` of the highest mean log probability returned."""
    logprobs: int | None = Field(default=None, ge=0, le=MAX_LOGPROBS)
    prompt_logprobs: int | None = Field(default=None, ge=0, le=MAX_LOGPROBS)
    """vLLM's form of the prompt's log probabilities, beside or without `echo`."""
    add_special_tokens: bool = True
    """Whether text prompts get the tokens that the tokenizer adds by itself, such as a begin token."""
    ttl: int | None = Field(default=None, ge=0, lt=2**31)
    """Seconds that the model stays after its last use, if this request loads it."""

    @model_validator(mode="after")
    def _fields_agree(self) -> "CompletionBody":
        if self.best_of and self.best_of < self.n:
            raise invalid(
                "invalid_value",
                f"it is {self.best_of}, but n = {self.n} choices are wanted. Send n or more.",
                "best_of",
            )
        if self.stream and self.best_of and self.best_of > self.n:
            raise invalid(
                "invalid_value",
                "the best choices are known only at the end. Leave it out, or do not stream.",
                "best_of",
            )
        if self.stream and self.prompt_logprobs is not None:
            raise invalid(
                "invalid_value", "they come with the whole answer only. Do not stream, or send echo.", "prompt_logprobs"
            )
        if self.suffix and self.echo and self.logprobs is not None:
            raise invalid(
                "invalid_value",
                "with a suffix the model reads more than the prompt, so that its log probabilities are no echo of the "
                "prompt's. Leave out one of suffix, echo and logprobs.",
                "echo",
            )
        per_prompt = max(self.n, self.best_of or 0)
        if len(self.prompt) * per_prompt > MAX_PROMPTS:
            raise invalid(
                "array_above_max_length",
                f"{len(self.prompt)} prompts with {per_prompt} choices each make {len(self.prompt) * per_prompt}, but "
                f"one request may ask for {MAX_PROMPTS}. Send fewer.",
                "prompt",
            )
        return self
