"""GET /v1/models and /v1/models/{id}: what is served here."""

from fastapi import APIRouter

from ..errors import model_not_found
from ..handlers.services import Services
from ..text.served_model import ServedModel


def models_router(services: Services) -> APIRouter:
    """The routes, over the given services."""
    router = APIRouter(prefix="/v1")

    @router.get("/models", response_model=None)
    async def list_models() -> dict[str, object]:
        served = [_entry(services, m) for m in services.shelf.values() if m.name not in services.engine.failed]
        return {"object": "list", "data": served}

    @router.get("/models/{model_id:path}", response_model=None)
    async def retrieve_model(model_id: str) -> dict[str, object]:
        served = services.shelf.get(model_id)
        if served is None or model_id in services.engine.failed:
            raise model_not_found(model_id, (name for name in services.shelf if name not in services.engine.failed))
        return _entry(services, served)

    return router


def _entry(services: Services, served: ServedModel) -> dict[str, object]:
    """OpenAI's model object; what follows `owned_by` is ours and what routers and benchmarks look for."""
    ready = services.engine.models.get(served.name)
    entry: dict[str, object] = {
        "id": served.name,
        "object": "model",
        "created": served.created,
        "owned_by": served.owned_by,
        "type": "embeddings" if served.kind == "embed" else "llm",
        "state": "loaded" if ready else "loading",
        "max_model_len": ready.max_model_len if ready else None,
    }
    if ready:
        entry["architecture"] = ready.architecture
    return entry
