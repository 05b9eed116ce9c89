"""GET /v1/models and /v1/models/{id}: what is served here."""

from fastapi import APIRouter

from ..handlers.services import Services
from ..text.served_model import ServedModel

_TYPES = {"generate": "llm", "embed": "embeddings", "score": "reranker"}


def models_router(services: Services) -> APIRouter:
    """The routes, over the given services."""
    router = APIRouter(prefix="/v1")

    @router.get("/models", response_model=None)
    async def list_models() -> dict[str, object]:
        return {"object": "list", "data": [_entry(services, model) for model in services.served()]}

    @router.get("/models/{model_id:path}", response_model=None)
    async def retrieve_model(model_id: str) -> dict[str, object]:
        return _entry(services, services.look_up(model_id))

    return router


def _entry(services: Services, served: ServedModel) -> dict[str, object]:
    """OpenAI's model object; what follows `owned_by` is ours and what routers and benchmarks look for."""
    ready = services.engine.models.get(served.name)
    entry: dict[str, object] = {
        "id": served.name,
        "object": "model",
        "created": served.created,
        "owned_by": served.owned_by,
        "type": _TYPES[served.kind],
        "state": "loaded" if ready else "loading",
        "max_model_len": ready.max_model_len if ready else None,
    }
    if ready:
        entry["architecture"] = ready.architecture
    return entry
