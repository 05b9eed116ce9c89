"""The models in Anthropic's form, for clients that send its version header."""

from dataclasses import dataclass
from datetime import UTC, datetime

from ...errors import ApiError
from ...protocol.anthropic.models import ModelPage
from ...shelf.card import ModelCard
from ..models import ModelsHandler
from ..services import Services


@dataclass(frozen=True, slots=True)
class AnthropicModelsHandler:
    """GET /v1/models and /v1/models/{id}."""

    services: Services

    async def page(self, wanted: ModelPage) -> dict[str, object]:
        """Some of the models that generate text.

        Raises:
            ApiError: there is no such model.
        """
        entries = [
            self._entry(name, card)
            for name, card in await ModelsHandler(self.services).listing()
            if card.kind == "generate"
        ]
        ids = [str(entry["id"]) for entry in entries]
        if wanted.before_id is not None:
            end = _position(ids, wanted.before_id, "before_id")
            first = max(0, end - wanted.limit)
            has_more = first > 0
        else:
            first = 0 if wanted.after_id is None else _position(ids, wanted.after_id, "after_id") + 1
            end = first + wanted.limit
            has_more = end < len(ids)
        shown = ids[first:end]
        return {
            "data": entries[first:end],
            "has_more": has_more,
            "first_id": shown[0] if shown else None,
            "last_id": shown[-1] if shown else None,
        }

    async def entry(self, name: str) -> dict[str, object]:
        """One model.

        Raises:
            ApiError: 404 unknown, or it cannot be loaded.
        """
        return self._entry(name, await self.services.look_up(name))

    def _entry(self, name: str, card: ModelCard) -> dict[str, object]:
        ready = self.services.engine.models.get(card.name)
        length = (ready.max_model_len if ready else card.max_context_length) or None
        return {
            "type": "model",
            "id": name,
            "display_name": card.name.rpartition("/")[2],
            "created_at": datetime.fromtimestamp(card.created, UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
            "lifecycle": "active",
            "max_input_tokens": length,
            "max_tokens": length,
        }


def _position(ids: list[str], wanted: str, param: str) -> int:
    if wanted not in ids:
        raise ApiError(
            f"Invalid '{param}': there is no model '{wanted}'. Send an id of a page before, or leave it out.",
            code="invalid_value",
            param=param,
        )
    return ids.index(wanted)
