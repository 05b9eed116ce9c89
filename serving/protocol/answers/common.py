"""What several answers have in common: their base, usage, errors in the three forms."""

from typing import Literal

from pydantic import BaseModel, ConfigDict


class Answer(BaseModel):
    """A JSON object that the server writes; fields without a default are always there."""

    model_config = ConfigDict(extra="forbid", protected_namespaces=())


class OpenAIErrorDetails(Answer):
    """What is wrong."""

    message: str
    type: Literal["invalid_request_error", "server_error", "requests", "tokens"]
    """The last two: of which limit has been reached."""
    param: str | None
    """Dotted path of the request field at fault."""
    code: str | None


class OpenAIError(Answer):
    """An error in OpenAI's form."""

    error: OpenAIErrorDetails


class AnthropicErrorDetails(Answer):
    """What is wrong."""

    type: str
    message: str


class AnthropicError(Answer):
    """An error in Anthropic's form."""

    type: Literal["error"]
    error: AnthropicErrorDetails
    request_id: str | None


class LMStudioErrorDetails(Answer):
    """What is wrong."""

    type: str
    message: str
    code: str = ""
    param: str = ""


class LMStudioError(Answer):
    """An error in LM Studio's form."""

    error: LMStudioErrorDetails


class PromptTokensDetails(Answer):
    """Of the prompt tokens."""

    cached_tokens: int


class CompletionTokensDetails(Answer):
    """Of the completion tokens."""

    reasoning_tokens: int
    accepted_prediction_tokens: int = 0
    """Guessed by the server's speculation, and right. Both fields are there if it has computed guesses."""
    rejected_prediction_tokens: int = 0
    """Guessed, and wrong; no part of the completion."""


class Usage(Answer):
    """Tokens of a generation."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    prompt_tokens_details: PromptTokensDetails
    completion_tokens_details: CompletionTokensDetails
