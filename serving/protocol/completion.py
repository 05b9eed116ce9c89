"""The body of POST /v1/completions."""

from pydantic import Field, model_validator

from .body import invalid
from .generation import GenerationBody
from .inputs import Inputs
from .other_fields import COMPLETION

MAX_PROMPTS = 1024
"""Prompts times `n` of one request."""


class CompletionBody(GenerationBody):
    """POST /v1/completions."""

    other_fields = COMPLETION

    prompt: Inputs
    echo: bool = False
    logprobs: int | None = Field(default=None, ge=0, le=5)
    add_special_tokens: bool = True
    """Whether text prompts get the tokens that the tokenizer adds by itself, such as a begin token."""

    @model_validator(mode="after")
    def _fields_agree(self) -> "CompletionBody":
        if self.echo and self.logprobs is not None:
            raise invalid(
                "unsupported_parameter",
                "log probabilities of the prompt are not computed, so echo excludes logprobs. Leave one out.",
                "echo",
            )
        if len(self.prompt) * self.n > MAX_PROMPTS:
            raise invalid(
                "array_above_max_length",
                f"{len(self.prompt)} prompts with n = {self.n} make {len(self.prompt) * self.n} choices, but one "
                f"request may ask for {MAX_PROMPTS}. Send fewer.",
                "prompt",
            )
        return self
