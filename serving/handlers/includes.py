"""What `include` adds to items that are read back; everything else that it can name is there already or not ours."""

from collections.abc import Sequence
from typing import Any

from .responses.sealed import seal

Json = dict[str, Any]


def with_included(items: list[Json], include: Sequence[str]) -> list[Json]:
    """Items with what was asked for.

    Log probabilities are computed while an answer is made, or never; thinking can be sealed at any time.
    """
    if "reasoning.encrypted_content" not in include:
        return items
    return [_sealed(item) if item["type"] == "reasoning" else item for item in items]


def _sealed(item: Json) -> Json:
    text = "\n".join(part["text"] for part in item.get("content") or item.get("summary") or [])
    return {"encrypted_content": seal("reasoning", text)} | item
