"""The statistics that LM Studio's answers have: speed, waiting, and why the model stopped."""

import time
from importlib.metadata import version
from typing import Any

from ..generation import Generation
from .models import FORMATS


def stats_v0(generation: Generation[Any]) -> dict[str, object]:
    """Of an answer of /api/v0 that is complete."""
    pace = generation.pace
    generating = max(0.0, pace.last - pace.first)
    return {
        "tokens_per_second": round(_speed(generation), 3),
        "time_to_first_token": round(max(0.0, pace.first - generation.started), 6),
        "generation_time": round(generating, 6),
        "stop_reason": _stop_reason(generation),
    }


def stats_v1(generation: Generation[Any], load_seconds: float | None) -> dict[str, object]:
    """Of an answer of /api/v1/chat; `load_seconds` if its model was loaded for it."""
    usage = generation.usage()
    first = generation.pace.first or time.monotonic()
    stats: dict[str, object] = {
        "input_tokens": usage.prompt_tokens,
        "total_output_tokens": usage.completion_tokens,
        "reasoning_output_tokens": usage.reasoning_tokens,
        "tokens_per_second": round(_speed(generation), 3),
        "time_to_first_token_seconds": round(max(0.0, first - generation.started - (load_seconds or 0.0)), 6),
    }
    return stats | {"model_load_time_seconds": round(load_seconds, 3)} if load_seconds is not None else stats


def runtime() -> dict[str, object]:
    """What has run the model."""
    return {"name": "penstock", "version": version("penstock"), "supported_formats": list(FORMATS)}


def _speed(generation: Generation[Any]) -> float:
    """Tokens a second after the first, of all choices together; 0 for a single token."""
    seconds = generation.pace.last - generation.pace.first
    num_tokens = sum(choice.num_tokens for choice in generation.choices) - 1
    return num_tokens / seconds if seconds > 0 else 0.0


def _stop_reason(generation: Generation[Any]) -> str:
    """Of the first choice."""
    choice = generation.choices[0]
    if choice.stop_string is not None:
        return "stopStringFound"
    reasons = {"length": "maxPredictedTokensReached", "tool_calls": "toolCalls"}
    return reasons.get(choice.finish_reason or "", "eosFound")
