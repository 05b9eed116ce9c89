"""The query parameters of the routes that read what is stored."""

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, ConfigDict, Field, model_validator

from .body import RequestBody, Tolerated, invalid
from .metadata import Metadata
from .responses.body import Include

MAX_PAGE = 100
"""OpenAI's limit."""
_OBFUSCATION = Tolerated("Obfuscation is padding that clients skip.")


def _as_list(value: Any) -> Any:
    return [value] if isinstance(value, str) else value


Includes = Annotated[list[Include], Field(default_factory=list, max_length=64), BeforeValidator(_as_list)]


class Query(RequestBody):
    """Parameters arrive as text, which becomes what each field is."""

    model_config = ConfigDict(strict=False)


class PageQuery(Query):
    """Which part of a list is wanted."""

    after: str | None = None
    """The id of the last entry of the page before."""
    limit: int = Field(default=20, ge=1, le=MAX_PAGE)
    order: Literal["asc", "desc"] = "asc"


class ItemsQuery(PageQuery):
    """The same of items, newest first."""

    order: Literal["asc", "desc"] = "desc"
    include: Includes


class IncludeQuery(Query):
    """What an answer shall have beside what it always has."""

    include: Includes


class ResponseQuery(IncludeQuery):
    """How to give back a stored response."""

    other_fields = {"include_obfuscation": _OBFUSCATION}

    stream: bool = False
    starting_after: int | None = None
    """Of its events, only those with a higher sequence number."""

    @model_validator(mode="after")
    def _only_streams_are_resumed(self) -> "ResponseQuery":
        if self.starting_after is not None and not self.stream:
            raise invalid("invalid_value", "it says where a stream goes on. Send stream=true too.", "starting_after")
        return self


class ChatListQuery(PageQuery):
    """Which stored chat completions are wanted."""

    model: str | None = None
    metadata: Metadata = Field(default_factory=dict)
