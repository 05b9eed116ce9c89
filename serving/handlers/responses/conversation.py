"""Gathers the conversation that a request goes on with: what is stored of it, its own items, and all as messages."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ...errors import ApiError
from ...principal import Principal
from ...protocol.responses.body import InputTokensBody, ResponseBody
from ...protocol.responses.items import ITEMS, AdditionalToolsItem, CompactionTrigger, Item, ItemReference
from ...store.items import complete_items
from ...text.chat_template import Message
from ..services import Services
from .messages import SUMMARY_REQUEST, messages_of
from .stored_items import stored_item

Json = dict[str, Any]

_CHARACTERS_PER_ITEM = 20
"""An item costs about as much time as tokenising so many."""


@dataclass(frozen=True, slots=True)
class Conversation:
    """What a request goes on with."""

    messages: list[Message]
    """All of it."""
    new_items: list[Json]
    """What the request adds, in the form in which it is stored."""
    compacts: bool
    """It is to be summarised; its last message asks for that."""


async def gather_conversation(
    services: Services, body: ResponseBody | InputTokensBody, principal: Principal
) -> Conversation:
    """The conversation of a request, off the event loop if it is long.

    Raises:
        ApiError: an answer, conversation or item that is not stored; an output without its call; nothing at all.
    """
    store = services.store
    stored: list[Json] = []
    if body.previous_response_id is not None:
        stored = await store.responses.history(principal.id, body.previous_response_id)
    elif body.conversation is not None:
        stored = await store.conversations.items(principal.id, body.conversation.id)
    ids = [item.id for item in body.input if isinstance(item, ItemReference)]
    found = await store.responses.find_items(principal.id, ids)
    size = (len(stored) + len(body.input)) * _CHARACTERS_PER_ITEM
    return await services.threads.run(size, lambda: _assemble(body, stored, found))


def _assemble(body: ResponseBody | InputTokensBody, stored: Sequence[Json], found: Mapping[str, Json]) -> Conversation:
    items: list[Item] = []
    for index, item in enumerate(body.input):
        items += _resolve(item, found, f"input.{index}") if isinstance(item, ItemReference) else [item]
    all_thinking = body.reasoning.context != "current_turn"
    messages = messages_of(body.instructions, ITEMS.validate_python(stored), items, all_thinking=all_thinking)
    if not messages:
        raise ApiError(
            "Missing required parameter: 'input'. Send a text or items, or a previous_response_id or conversation.",
            code="missing_required_parameter",
            param="input",
        )
    compacts = bool(items) and isinstance(items[-1], CompactionTrigger)
    if compacts:
        messages.append({"role": "user", "content": SUMMARY_REQUEST})
    kept = (stored_item(item) for item in items if not isinstance(item, AdditionalToolsItem | CompactionTrigger))
    return Conversation(messages, complete_items(kept), compacts)


def _resolve(reference: ItemReference, found: Mapping[str, Json], param: str) -> list[Item]:
    if reference.id not in found:
        raise ApiError(
            f"Item with id '{reference.id}' not found. It may have been deleted, have expired, or never been stored: "
            "answers with store: false are not. Send the item itself.",
            status=404,
            code="item_not_found",
            param=param,
        )
    return ITEMS.validate_python([found[reference.id]])
