"""The bodies of the conversation routes."""

from typing import Annotated, Any

from pydantic import Field, TypeAdapter, WithJsonSchema, model_validator

from .body import RequestBody, invalid
from .metadata import Metadata, MetadataForm
from .responses.items import CompactionTrigger, Items

MAX_NEW_ITEMS = 20
"""OpenAI's limit."""


class _WithItems(RequestBody):
    """A body that adds items."""

    items: Items = Field(default_factory=list)

    @model_validator(mode="after")
    def _can_be_kept(self) -> "_WithItems":
        if len(self.items) > MAX_NEW_ITEMS:
            raise invalid(
                "array_above_max_length",
                f"{len(self.items)} items are too many. Send at most {MAX_NEW_ITEMS} at once.",
                "items",
            )
        for index, item in enumerate(self.items):
            if isinstance(item, CompactionTrigger):
                raise invalid(
                    "invalid_value",
                    "a compaction trigger is for POST /v1/responses; a conversation cannot keep it. Leave it out.",
                    f"items.{index}",
                )
        return self


class ConversationBody(_WithItems):
    """POST /v1/conversations."""

    metadata: Metadata = Field(default_factory=dict)


class NewItemsBody(_WithItems):
    """POST /v1/conversations/{id}/items."""

    items: Items = Field(min_length=1)


class MetadataBody(RequestBody):
    """An update of something's metadata, the only thing of it that can change."""

    metadata: Annotated[Metadata, WithJsonSchema(TypeAdapter(MetadataForm | None).json_schema())]
    """null: none from now on."""

    @model_validator(mode="before")
    @classmethod
    def _null_is_none(cls, raw: Any) -> Any:
        """Everywhere else null is the same as silence, which is an error here."""
        return raw | {"metadata": {}} if isinstance(raw, dict) and raw.get("metadata", raw) is None else raw
