"""The answers of /v1/embeddings."""

from typing import Literal

from .common import Answer


class InputUsage(Answer):
    """Tokens of inputs."""

    prompt_tokens: int
    total_tokens: int


class Embedding(Answer):
    """One vector."""

    object: Literal["embedding"]
    index: int
    embedding: list[float] | str
    """Numbers, or float32 little-endian in base64."""


class Embeddings(Answer):
    """The whole answer."""

    object: Literal["list"]
    data: list[Embedding]
    model: str
    usage: InputUsage
