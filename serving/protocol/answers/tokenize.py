"""The answers of /tokenize and /detokenize."""

from .common import Answer


class Tokens(Answer):
    """The tokens of a prompt."""

    count: int
    max_model_len: int
    tokens: list[int]
    token_strs: list[str] | None


class DetokenizedText(Answer):
    """The text of tokens."""

    prompt: str
