"""The fate of the fields of Responses requests that no model executes, object by object."""

from ..body import Refused, Tolerated
from ..other_fields import COMMON

_EARLIER = Tolerated("It describes an earlier answer.")
_CACHE_HINT = Tolerated("Prefix caching is always on and needs no hint.")
_ONE_CALLER = Tolerated("Tools are called by the model alone.")

RESPONSE: dict[str, Tolerated | Refused] = COMMON | {
    "client_metadata": Tolerated("It is for the client's own records."),
    "context_management": Refused(
        "The server does not compact a conversation by itself.", "Call POST /v1/responses/compact, or leave it out."
    ),
    "frequency_penalty_decay": Refused("No such penalty is computed."),
    "max_completion_tokens": Refused("It is a field of chat completions.", "Send max_output_tokens."),
    "max_tokens": Refused("It is a field of chat completions.", "Send max_output_tokens."),
    "messages": Refused("It is a field of chat completions.", "Send 'input'."),
    "moderation": Refused("No moderation model runs here."),
    "prompt": Refused("There are no stored prompts here.", "Send the prompt's text as instructions and input."),
    "prompt_cache_options": _CACHE_HINT,
    "prompt_cache_retention": _CACHE_HINT,
    "reasoning_effort": Refused("It is a field of chat completions.", "Send reasoning: {effort}."),
    "response_format": Refused("It is a field of chat completions.", "Send text: {format}."),
}

INPUT_TOKENS: dict[str, Tolerated | Refused] = RESPONSE | {
    "personality": Refused("Models here have no personalities to choose from.", "Send instructions."),
}

COMPACT: dict[str, Tolerated | Refused] = RESPONSE | {
    "prompt_cache_key": _CACHE_HINT,
}

REASONING: dict[str, Tolerated | Refused] = {
    "mode": Tolerated("Models here know one mode.", only=("standard",)),
}

ITEM: dict[str, Tolerated | Refused] = {
    "agent": _EARLIER,
    "async": Tolerated("Tools are awaited.", only=(False,)),
    "cache_control": _CACHE_HINT,
    "caller": _ONE_CALLER,
    "created_by": _EARLIER,
    "id": _EARLIER,
    "internal_chat_message_metadata_passthrough": Tolerated("It is for the client's own records."),
    "name": _EARLIER,
    "namespace": _EARLIER,
    "phase": _EARLIER,
    "provider_specific_fields": Tolerated("Other providers wrote them."),
    "status": _EARLIER,
}
"""For one item of the input."""

PART: dict[str, Tolerated | Refused] = {
    "annotations": _EARLIER,
    "cache_control": _CACHE_HINT,
    "logprobs": _EARLIER,
    "prompt_cache_breakpoint": _CACHE_HINT,
}
"""For one part of an item's content."""

TOOL: dict[str, Tolerated | Refused] = {
    "allowed_callers": Tolerated("Tools are called by the model alone.", only=(["direct"],)),
    "async": Tolerated("Tools are awaited.", only=(False,)),
    "cache_control": _CACHE_HINT,
    "defer_loading": Tolerated("Every tool is offered to the model at once."),
    "output_schema": Tolerated("The client runs the tool, and the model reads its output as text."),
}
"""For one tool."""
