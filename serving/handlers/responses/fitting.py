"""Prepares a turn whose conversation may be too long for the model: its oldest parts go until it fits.

Instructions stay, and so does the last user message; what is left begins with a user message, as most templates demand.
"""

from collections.abc import Sequence
from dataclasses import replace

from ...errors import ApiError
from ...text.chat_template import Message
from ..services import Services
from ..turn import Turn, TurnRequest, prepare_turn

_ROOM_SHARE = 8
"""An answer of unknown length wants this fraction of the context."""


async def prepare_fitting(services: Services, request: TurnRequest) -> Turn:
    """The turn with as much of its conversation as leaves room for an answer.

    Raises:
        ApiError: not even the last user message fits, or the request cannot be served at all.
    """
    whole = await _try(services, request)
    if isinstance(whole, Turn) and _leaves_room(whole):
        return whole
    shorter = shorter_conversations(request.messages)
    best = whole
    low, high = 0, len(shorter)
    while low < high:  # the longest that fits; each trial renders and tokenises a prompt
        middle = (low + high) // 2
        turn = await _try(services, replace(request, messages=shorter[middle]))
        if isinstance(turn, Turn) and _leaves_room(turn):
            best, high = turn, middle
        else:
            low = middle + 1
            best = turn if isinstance(turn, Turn) and not isinstance(best, Turn) else best
    if isinstance(best, ApiError):
        raise best
    return best


async def _try(services: Services, request: TurnRequest) -> Turn | ApiError:
    try:
        return await prepare_turn(services, request)
    except ApiError as error:
        if error.code != "context_length_exceeded":
            raise
        return error


def _leaves_room(turn: Turn) -> bool:
    room, wanted = turn.generation.choices[0].job.sampling.max_tokens, turn.request.sampling.max_tokens
    return room == wanted or room * _ROOM_SHARE >= turn.num_prompt_tokens + room


def shorter_conversations(messages: Sequence[Message]) -> list[list[Message]]:
    """The conversations that remain as more and more of the beginning goes, the longest first."""
    head = 0
    while head < len(messages) and messages[head]["role"] in ("system", "developer"):
        head += 1
    kept, rest = list(messages[:head]), list(messages[head:])
    users = [index for index, message in enumerate(rest) if message["role"] == "user"]
    if not users:
        return []
    last = users[-1]
    steps = [i for i in range(last + 1, len(rest)) if rest[i]["role"] == "assistant"]
    return [kept + rest[i:] for i in users if i > 0] + [kept + [rest[last]] + rest[i:] for i in steps[1:]]
