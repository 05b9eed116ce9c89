"""What every handler works with, and the lookup of a model that can serve a request."""

from collections.abc import Mapping
from dataclasses import dataclass

from penstock.scheduler.config import ModelKind
from penstock.scheduler.messages import ModelReady

from ..engine_client import EngineClient
from ..errors import ApiError, model_not_found, wrong_kind
from ..metrics import Metrics
from ..text.served_model import ServedModel


@dataclass(frozen=True, slots=True)
class Services:
    """The API process's parts, handed to each handler."""

    engine: EngineClient
    shelf: Mapping[str, ServedModel]
    metrics: Metrics

    def find(self, name: str, kind: ModelKind) -> tuple[ServedModel, ModelReady]:
        """The model of a request, resident and of the right kind.

        Raises:
            ApiError: 404 unknown, 400 of the other kind, 503 still loading or failed to load.
            EngineDeadError: the worker is gone.
        """
        served = self.shelf.get(name)
        if served is None:
            raise model_not_found(name, self.shelf)
        if served.kind != kind:
            raise wrong_kind(name, served.kind, [other for other, m in self.shelf.items() if m.kind == kind])
        self.engine.check_alive()
        if (failed := self.engine.failed.get(name)) is not None:
            raise ApiError(
                f"The model '{name}' could not be loaded: {failed.message}", status=503, code="model_load_failed"
            )
        ready = self.engine.models.get(name)
        if ready is None:
            progress = self.engine.loading.get(name)
            stage = f" ({progress.stage}, {progress.fraction:.0%})" if progress else ""
            raise ApiError(
                f"The model '{name}' is still loading{stage}. Try again soon.", status=503, code="model_loading"
            )
        return served, ready
