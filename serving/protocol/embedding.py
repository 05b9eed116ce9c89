"""The body of POST /v1/embeddings."""

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, model_validator

from .body import RequestBody, invalid
from .inputs import Inputs
from .other_fields import EMBEDDING

MAX_INPUTS = 2048
"""OpenAI's limit."""


def _check_truncation(value: Any) -> Any:
    if type(value) is int and value < 1 and value != -1:
        raise invalid(
            "integer_below_min_value",
            f"{value} is below the minimum of 1. Send 1 or more, or -1 for the model's limit.",
        )
    return value


class EmbeddingBody(RequestBody):
    """POST /v1/embeddings."""

    other_fields = EMBEDDING

    model: str
    input: Inputs
    encoding_format: Literal["float", "base64"] = "float"
    dimensions: int | None = Field(default=None, ge=1)
    truncate_prompt_tokens: Annotated[int | None, BeforeValidator(_check_truncation)] = None
    """Cut longer inputs to so many tokens; -1: to what the model takes. None: refuse longer inputs."""
    priority: int = Field(default=0, ge=-(2**31), lt=2**31)

    @model_validator(mode="after")
    def _not_too_many(self) -> "EmbeddingBody":
        if len(self.input) > MAX_INPUTS:
            raise invalid(
                "array_above_max_length",
                f"{len(self.input)} inputs are more than {MAX_INPUTS}. Send them in several requests.",
                "input",
            )
        return self
