"""The answers of /api/v0: OpenAI's, with LM Studio's statistics behind them."""

from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import dataclass
from typing import Any

from ...sse import DONE, event
from ..generation import Generation
from ..services import Services
from .models import model_info
from .stats import runtime, stats_v0


@dataclass(frozen=True, slots=True)
class StatisticsHandler:
    """Adds what /api/v0 says beyond OpenAI's answers."""

    services: Services

    def complete(self, answer: dict[str, object], generation: Generation[Any]) -> dict[str, object]:
        """A finished answer with its statistics."""
        return answer | self._statistics(generation)

    async def stream(self, frames: AsyncGenerator[bytes], generation: Generation[Any]) -> AsyncGenerator[bytes]:
        """A stream with a last chunk of statistics before its end mark."""
        async with aclosing(frames):
            async for framed in frames:
                if not framed.endswith(DONE):
                    yield framed
                    continue
                head: dict[str, object] = {
                    "id": generation.request_id,
                    "object": "chat.completion.chunk"
                    if generation.request_id.startswith("chat")
                    else "text_completion",
                    "created": generation.created,
                    "model": generation.model,
                    "choices": [],
                }
                yield framed.removesuffix(DONE) + event(head | self._statistics(generation)) + DONE

    def _statistics(self, generation: Generation[Any]) -> dict[str, object]:
        card = self.services.registry.get(generation.model)
        ready = self.services.engine.models.get(generation.model)
        known = model_info(card, ready) if card is not None and ready is not None else {}
        return {"stats": stats_v0(generation), "model_info": known, "runtime": runtime()}
