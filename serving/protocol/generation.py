"""What chat and completion requests have in common: model, sampling, stopping, streaming."""

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, PlainValidator, PositiveInt, StringConstraints, WithJsonSchema

from .body import RequestBody, invalid
from .explain import preview
from .other_fields import STREAM_OPTIONS
from .output_format import OutputFormatFields

MAX_CHOICES = 128
"""OpenAI's limit on `n`."""
MAX_STOP_STRINGS = 16
MAX_STOP_LENGTH = 1024
"""Characters. Longer ones would make every token expensive to search."""
MAX_BIAS = 100
MAX_BIASES = 1024
"""Tokens that one request may favour or avoid: each step sends them to the device."""
_MAX_SEED = 2**63

StopString = Annotated[str, StringConstraints(min_length=1, max_length=MAX_STOP_LENGTH)]

_StopStrings = Annotated[list[StopString], Field(max_length=MAX_STOP_STRINGS)]


def _as_list(value: Any) -> Any:
    return [value] if isinstance(value, str) else value


def _check_max_tokens(value: Any) -> Any:
    """-1 is LM Studio's "no limit"."""
    if type(value) is int and value < 1 and value != -1:
        raise invalid(
            "integer_below_min_value", f"{value} is below the minimum of 1. Send 1 or more, or -1 for no limit."
        )
    return value


def _check_logit_bias(value: Any) -> dict[int, float]:
    if not isinstance(value, dict):
        raise invalid("invalid_type", f'expected an object such as {{"50256": -100}}, but got {preview(value)}.')
    if len(value) > MAX_BIASES:
        raise invalid("object_above_max_properties", f"{len(value)} tokens are too many. Send at most {MAX_BIASES}.")
    for key, bias in value.items():
        if not (key.isascii() and key.isdecimal() and len(key) < 10):
            raise invalid("invalid_value", f'the key {preview(key)} is not a token id. Send ids such as "50256".')
        if type(bias) not in (int, float) or not -MAX_BIAS <= bias <= MAX_BIAS:
            raise invalid(
                "invalid_value", f"{preview(bias)} is not a number from -{MAX_BIAS} to {MAX_BIAS}. Send one.", key
            )
    return {int(key): float(bias) for key, bias in value.items()}


_BIAS_SCHEMA = {
    "type": "object",
    "maxProperties": MAX_BIASES,
    "patternProperties": {"^[0-9]{1,9}$": {"type": "number", "minimum": -MAX_BIAS, "maximum": MAX_BIAS}},
    "additionalProperties": False,
}
NoLimit = Literal[-1]
LogitBias = Annotated[dict[int, float], PlainValidator(_check_logit_bias), WithJsonSchema(_BIAS_SCHEMA)]
MaxTokens = Annotated[
    int | None, BeforeValidator(_check_max_tokens, json_schema_input_type=NoLimit | PositiveInt | None)
]


class StreamOptions(RequestBody):
    """How to stream."""

    other_fields = STREAM_OPTIONS

    include_usage: bool = False
    continuous_usage_stats: bool = False
    """Usage in every chunk, as vLLM has it."""


class SamplingBody(RequestBody):
    """How tokens are chosen and when they end, on every endpoint that generates; None: the client is silent."""

    model: str
    stop: Annotated[_StopStrings, BeforeValidator(_as_list, json_schema_input_type=StopString | _StopStrings)] = Field(
        default_factory=list
    )
    stop_token_ids: list[Annotated[int, Field(ge=0)]] = Field(default_factory=list, max_length=256)
    ignore_eos: bool = False
    min_tokens: int = Field(default=0, ge=0)
    seed: int | None = Field(default=None, ge=-_MAX_SEED, lt=_MAX_SEED)
    temperature: float | None = Field(default=None, ge=0, le=2)
    top_p: float | None = Field(default=None, ge=0, le=1)
    top_k: int | None = Field(default=None, ge=-1)
    min_p: float | None = Field(default=None, ge=0, le=1)
    presence_penalty: float = Field(default=0.0, ge=-2, le=2)
    frequency_penalty: float = Field(default=0.0, ge=-2, le=2)
    repetition_penalty: float | None = Field(default=None, gt=0, le=100)
    repeat_penalty: float | None = Field(default=None, gt=0, le=100)
    """LM Studio's name of repetition_penalty, which wins if both are given."""
    logit_bias: LogitBias = Field(default_factory=dict)
    priority: int = Field(default=0, ge=-(2**31), lt=2**31)
    cache_salt: str = Field(default="", max_length=256)


class GenerationBody(SamplingBody, OutputFormatFields):
    """What chat and completion requests have in common besides."""

    stream: bool = False
    stream_options: StreamOptions = StreamOptions()
    n: int = Field(default=1, ge=1, le=MAX_CHOICES)
    max_tokens: MaxTokens = None
