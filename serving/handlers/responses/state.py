"""What the Responses endpoints ask of stored state; the store implements it, each call within one principal's own."""

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

Item = dict[str, Any]
"""An input or output item as JSON; every stored one has an `id`."""


class ResponseState(Protocol):
    """Answers and conversations that outlive their request."""

    async def save_response(self, principal: str, response: Mapping[str, Any], input_items: Sequence[Item]) -> None:
        """Keep a finished answer.

        Args:
            principal: whose it is.
            response: the response object, `model`, `output` and `previous_response_id` in it.
            input_items: what this request brought, without the history before it; each has an `id`.

        Raises:
            ApiError: 503, the store cannot take it.
        """

    async def history(self, principal: str, response_id: str) -> list[Item]:
        """Input and output items of a stored answer and of all before it, oldest first.

        Raises:
            ApiError: 404 `previous_response_not_found`, param previous_response_id.
        """

    async def find_items(self, principal: str, item_ids: Sequence[str]) -> dict[str, Item]:
        """Those of the items that are stored, by id."""

    async def conversation_items(self, principal: str, conversation_id: str) -> list[Item]:
        """All items of a conversation, oldest first.

        Raises:
            ApiError: 404, no such conversation.
        """

    async def append_items(self, principal: str, conversation_id: str, items: Sequence[Item]) -> None:
        """Add items at the end of a conversation.

        Raises:
            ApiError: 404, no such conversation.
        """
