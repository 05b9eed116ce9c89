"""The answers of the routes for what is stored: responses, conversations, chat completions."""

from typing import Any, Literal

from .common import Answer

JsonObject = dict[str, Any]


class StoredPage(Answer):
    """One page of a list."""

    object: Literal["list"]
    data: list[JsonObject]
    first_id: str | None
    last_id: str | None
    has_more: bool


class Deleted(Answer):
    """Something is gone."""

    id: str
    object: Literal["response", "conversation.deleted", "chat.completion.deleted"]
    deleted: Literal[True]


class Conversation(Answer):
    """A conversation; its items have routes of their own."""

    id: str
    object: Literal["conversation"]
    created_at: int
    metadata: dict[str, str]
