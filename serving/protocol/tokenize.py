"""The bodies of POST /tokenize, for a text or a chat, and of POST /detokenize, as vLLM has them."""

from typing import Annotated

from pydantic import Field

from .body import RequestBody
from .chat import ChatCompletionBody
from .other_fields import TOKENIZE

MAX_TOKENS = 2**20
"""Token ids of one request."""


class TokenizeTextBody(RequestBody):
    """POST /tokenize with a `prompt`."""

    other_fields = TOKENIZE

    model: str
    prompt: str
    add_special_tokens: bool = True
    """Whether the text gets the tokens that the tokenizer adds by itself, such as a begin token."""
    return_token_strs: bool = False


class TokenizeChatBody(ChatCompletionBody):
    """POST /tokenize with `messages`: a chat's body, and what comes back is its prompt."""

    return_token_strs: bool = False


class DetokenizeBody(RequestBody):
    """POST /detokenize."""

    other_fields = TOKENIZE

    model: str
    tokens: list[Annotated[int, Field(ge=0, lt=2**31)]] = Field(max_length=MAX_TOKENS)
