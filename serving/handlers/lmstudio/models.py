"""The models as LM Studio's clients know them: metadata, where each is, loading and unloading by hand."""

from dataclasses import dataclass

from penstock.scheduler.messages import ModelReady

from ...errors import ApiError
from ...protocol.lmstudio.models import LoadBody
from ...shelf.card import ModelCard
from ...shelf.residency import Resident
from ..models import ModelsHandler
from ..services import Services

FORMATS = ("safetensors", "gguf")
"""What models are read from; GGUF files are converted once."""


@dataclass(frozen=True, slots=True)
class NativeModelsHandler:
    """Behind /api/v0/models and /api/v1/models."""

    services: Services

    @property
    def _models(self) -> ModelsHandler:
        return ModelsHandler(self.services)

    async def list_v0(self) -> dict[str, object]:
        """GET /api/v0/models."""
        return {"object": "list", "data": [self._entry_v0(card) for card in await self._cards()]}

    async def entry_v0(self, name: str) -> dict[str, object]:
        """GET /api/v0/models/{name}.

        Raises:
            ApiError: 404 unknown, or it cannot be loaded.
        """
        return self._entry_v0(await self.services.look_up(name))

    async def list_v1(self) -> dict[str, object]:
        """GET /api/v1/models."""
        residents = self._models.residents()
        return {"models": [_entry_v1(card, residents.get(card.name)) for card in await self._cards()]}

    async def load(self, body: LoadBody) -> dict[str, object]:
        """POST /api/v1/models/load; answered when the model is there.

        Raises:
            ApiError: 404 unknown or cannot be loaded; 400 the context length is beyond it; 503 no room.
            EngineDeadError: the worker is gone.
        """
        known = await self.services.look_up(body.model)
        check_context_length(known, self.services.engine.models.get(known.name), body.context_length)
        card, ready, seconds = await self._models.load(body.model, ttl=body.ttl)
        answer: dict[str, object] = {
            "type": _type_v1(card),
            "instance_id": card.name,
            "load_time_seconds": round(seconds, 3),
            "status": "loaded",
        }
        return answer | {"load_config": _config(ready)} if body.echo_load_config else answer

    async def unload(self, instance_id: str) -> dict[str, object]:
        """POST /api/v1/models/unload.

        Raises:
            ApiError: 404 unknown or not in memory; 409 it has requests in flight.
            EngineDeadError: the worker is gone.
        """
        return {"instance_id": await self._models.unload(instance_id)}

    async def _cards(self) -> list[ModelCard]:
        """Each model once, without its aliases."""
        return [card for name, card in await self._models.listing() if name == card.name]

    def _entry_v0(self, card: ModelCard) -> dict[str, object]:
        ready = self.services.engine.models.get(card.name)
        entry: dict[str, object] = {
            "id": card.name,
            "object": "model",
            "type": "embeddings" if card.kind == "embed" else "vlm" if card.vision else "llm",
            "publisher": card.publisher,
            "arch": card.architecture,
            "compatibility_type": card.format,
            "quantization": card.quantization,
            "state": "loaded" if card.name in self.services.engine.models else "not-loaded",
            "max_context_length": longest_context(card, ready),
        }
        if ready is not None:
            entry["loaded_context_length"] = ready.max_model_len
        if card.kind == "generate":
            entry["capabilities"] = ["tool_use"] if card.trained_for_tool_use else []
        return entry


def longest_context(card: ModelCard, ready: ModelReady | None) -> int:
    """Tokens that a model takes; what its configuration says may be more than it was made for, or is allowed here."""
    return card.max_context_length if ready is None else ready.max_model_len


def check_context_length(card: ModelCard, ready: ModelReady | None, wanted: int | None) -> None:
    """Refuse a context longer than the model's.

    Raises:
        ApiError: naming both.
    """
    limit = longest_context(card, ready)
    if wanted is not None and limit and wanted > limit:
        raise ApiError(
            f"Invalid 'context_length': {wanted} is above {limit}, the longest context of "
            f"'{card.name}'. Send that or less.",
            code="integer_above_max_value",
            param="context_length",
        )


def model_info(card: ModelCard, ready: ModelReady) -> dict[str, object]:
    """What answers of /api/v0 say of their model."""
    return {
        "arch": card.architecture,
        "quant": card.quantization,
        "format": card.format,
        "context_length": ready.max_model_len,
    }


def _type_v1(card: ModelCard) -> str:
    return "embedding" if card.kind == "embed" else "llm"


def _entry_v1(card: ModelCard, resident: Resident | None) -> dict[str, object]:
    entry: dict[str, object] = {
        "type": _type_v1(card),
        "publisher": card.publisher,
        "key": card.name,
        "display_name": card.name.rpartition("/")[2],
        "quantization": {"name": card.quantization, "bits_per_weight": card.bits_per_weight},
        "size_bytes": card.size_bytes,
        "params_string": params_string(card.num_parameters),
        "loaded_instances": [] if resident is None else [{"id": card.name, "config": _config(resident.ready)}],
        "max_context_length": longest_context(card, None if resident is None else resident.ready),
        "format": card.format,
        "description": None,
    }
    if card.kind == "generate":
        entry |= {"architecture": card.architecture, "capabilities": _capabilities(card)}
    return entry


def _capabilities(card: ModelCard) -> dict[str, object]:
    capabilities: dict[str, object] = {"vision": card.vision, "trained_for_tool_use": card.trained_for_tool_use}
    if card.reasoning:
        capabilities["reasoning"] = {"allowed_options": ["off", "on", "low", "medium", "high"], "default": "on"}
    return capabilities


def _config(ready: ModelReady) -> dict[str, object]:
    return {"context_length": ready.max_model_len, "parallel": ready.max_num_seqs}


def params_string(num_parameters: int) -> str | None:
    """A size for people, such as 135M or 1.1B; None: unknown."""
    for unit, size in (("B", 10**9), ("M", 10**6), ("K", 10**3)):
        if num_parameters >= size:
            number = num_parameters / size
            return f"{number:.0f}{unit}" if number >= 9.95 else f"{number:.1f}".removesuffix(".0") + unit
    return str(num_parameters) if num_parameters else None
