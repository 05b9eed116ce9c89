"""The query of GET /v1/models in Anthropic's form."""

from pydantic import Field

from ..body import RequestBody, Tolerated

VERSION_HEADER = "anthropic-version"
"""Anthropic's clients send it with every request."""


class ModelPage(RequestBody):
    """Which part of the list; queries are texts, so the number may be one."""

    other_fields = {
        "beta": Tolerated("Nothing here depends on it."),
        "lifecycle": Tolerated("All models are active.", only=("active",)),
    }

    limit: int = Field(default=20, ge=1, le=1000, strict=False)
    after_id: str | None = None
    before_id: str | None = None
