"""The body of POST /v1/embeddings."""

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, PositiveInt, model_validator

from .body import RequestBody, invalid
from .generation import NoLimit
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


TruncatePromptTokens = Annotated[
    int | None, BeforeValidator(_check_truncation, json_schema_input_type=NoLimit | PositiveInt | None)
]


class EmbeddingBody(RequestBody):
    """POST /v1/embeddings."""

    other_fields = EMBEDDING

    model: str
    input: Inputs
    encoding_format: Literal["float", "base64"] = "float"
    dimensions: int | None = Field(default=None, ge=1)
    truncate_prompt_tokens: TruncatePromptTokens = None
    """Cut longer inputs to so many tokens; -1: to what the model takes. None: refuse longer inputs."""
    prompt_name: str | None = None
    """The model's own prompt of that name, such as "query", is put before every text."""
    input_type: str | None = None
    """Cohere's and Voyage's name of prompt_name."""
    task: str | None = None
    """Jina's name of it."""
    ttl: int | None = Field(default=None, ge=0, lt=2**31)
    """Seconds that the model stays after its last use, if this request loads it."""
    priority: int = Field(default=0, ge=-(2**31), lt=2**31)

    @property
    def prompt_param(self) -> str | None:
        """The field that names a prompt, if one does."""
        return next((name for name in ("prompt_name", "input_type", "task") if getattr(self, name) is not None), None)

    @model_validator(mode="after")
    def _one_prompt(self) -> "EmbeddingBody":
        param = self.prompt_param
        named = {name for name in (self.prompt_name, self.input_type, self.task) if name is not None}
        if len(named) > 1:
            raise invalid("invalid_value", "prompt_name, input_type and task name different prompts. Send one.", param)
        if named and not all(isinstance(item, str) for item in self.input):
            raise invalid("invalid_value", "a prompt cannot be put before token ids. Send texts as input.", param)
        return self

    @model_validator(mode="after")
    def _not_too_many(self) -> "EmbeddingBody":
        if len(self.input) > MAX_INPUTS:
            raise invalid(
                "array_above_max_length",
                f"{len(self.input)} inputs are more than {MAX_INPUTS}. Send them in several requests.",
                "input",
            )
        return self
