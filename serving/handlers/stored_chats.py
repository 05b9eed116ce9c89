"""Keeps chat completions whose request says `store: true`."""

import logging
from collections.abc import Sequence
from typing import Any

from ..errors import ApiError
from ..protocol.chat import ChatMessage
from ..store.store import Store

_log = logging.getLogger(__name__)
Json = dict[str, Any]


async def check_can_keep(store: Store, messages: Sequence[ChatMessage]) -> None:
    """See before the work that its answer can be kept.

    Raises:
        ApiError: 413, the request alone is too large; 503, the store cannot be used.
    """
    await store.database.check(sum(len(part.text) for message in messages for part in message.content))


async def keep_completion(
    store: Store, principal: str, completion: Json, messages: Sequence[ChatMessage], metadata: dict[str, str]
) -> None:
    """Keep a finished answer, before its client hears of the end and may ask for it.

    The client gets its answer in any case; what could not be kept is in the log.

    Args:
        store: where.
        principal: whose it is.
        completion: the `chat.completion` object, also of a streamed answer.
        messages: the request's.
        metadata: the request's.
    """
    try:
        await store.chats.save(principal, completion, [_as_sent(message) for message in messages], metadata)
    except ApiError as error:
        _log.error("chat completion %s could not be stored: %s", completion["id"], error.message)


def _as_sent(message: ChatMessage) -> Json:
    """A message as the client wrote it; a single text part counts as plain text."""
    sent: Json = {name: value for name, value in message.model_dump(exclude_none=True).items() if value != []}
    if len(message.content) == 1 and message.content[0].type == "text":
        sent["content"] = message.content[0].text
    return sent
