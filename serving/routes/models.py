"""GET /v1/models and /v1/models/{id}: what is served here, for OpenAI's clients, for Codex and for Anthropic's."""

from fastapi import APIRouter
from starlette.requests import Request

from ..errors import ApiError
from ..handlers.anthropic.models import AnthropicModelsHandler
from ..handlers.models import ModelsHandler
from ..handlers.services import Services
from ..protocol.answers.anthropic import AnthropicModel, AnthropicModels
from ..protocol.answers.server import Model, Models
from ..protocol.anthropic.models import VERSION_HEADER, ModelPage
from .operation import documented


def models_router(services: Services) -> APIRouter:
    """The routes, over the given services."""
    router = APIRouter(prefix="/v1")
    models = ModelsHandler(services)
    anthropic = AnthropicModelsHandler(services)

    @router.get(
        "/models",
        **documented(
            "All models; Anthropic's form with its version header",
            tag="Models",
            needs="embeddings",
            answer=Models | AnthropicModels,
        ),
    )
    async def list_models(request: Request) -> dict[str, object]:
        if VERSION_HEADER in request.headers:
            return await anthropic.page(ModelPage.model_validate(dict(request.query_params)))
        return await models.openai_list()

    @router.get(
        "/models/{model_id:path}",
        **documented("One model", tag="Models", needs="embeddings", answer=Model | AnthropicModel),
    )
    async def retrieve_model(model_id: str, request: Request) -> dict[str, object]:
        if VERSION_HEADER in request.headers:
            return await anthropic.entry(model_id)
        return await models.openai_entry(model_id)

    @router.delete(
        "/models/{model_id:path}", **documented("Refused, with the reason", tag="Models", needs="admin", statuses=())
    )
    async def delete_model(model_id: str) -> None:
        card = await services.look_up(model_id)
        raise ApiError(
            f"The model '{card.name}' is a folder of the server and no fine-tune of yours, so it is not deleted here. "
            f"Unload it with POST /api/v1/models/unload, or remove it on the server with `penstock rm {card.name}`.",
            status=403,
            code="model_not_deletable",
            param="model",
        )

    return router
