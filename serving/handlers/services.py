"""What every handler works with, and the lookup of a model that can serve a request."""

from collections.abc import Mapping
from dataclasses import dataclass

from penstock.scheduler.config import ModelKind
from penstock.scheduler.messages import ModelReady

from ..engine_client import EngineClient
from ..errors import ApiError, model_not_found, wrong_kind
from ..metrics import Metrics
from ..store.store import Store
from ..text.served_model import ServedModel
from .background import ResponseRuns


@dataclass(frozen=True, slots=True)
class Services:
    """The API process's parts, handed to each handler."""

    engine: EngineClient
    shelf: Mapping[str, ServedModel]
    metrics: Metrics
    store: Store
    runs: ResponseRuns

    async def find(
        self, name: str, kind: ModelKind | None, *, ttl: int | None = None
    ) -> tuple[ServedModel, ModelReady]:
        """The model of a request, resident and of the right kind.

        Args:
            name: as the client wrote it.
            kind: what the endpoint needs; None: any.
            ttl: seconds that the model stays after its last use, if this request loads it.

        Raises:
            ApiError: 404 unknown or failed to load, 400 of the other kind, 503 still loading.
            EngineDeadError: the worker is gone.
        """
        served = self.look_up(name)
        if kind is not None and served.kind != kind:
            raise wrong_kind(name, served.kind, [m.name for m in self.served() if m.kind == kind])
        self.engine.check_alive()
        ready = self.engine.models.get(name)
        if ready is None:
            progress = self.engine.loading.get(name)
            stage = f" ({progress.stage}, {progress.fraction:.0%})" if progress else ""
            raise ApiError(
                f"The model '{name}' is still loading{stage}. Try again soon.", status=503, code="model_loading"
            )
        return served, ready

    def look_up(self, name: str) -> ServedModel:
        """A model that is served, or will be as soon as it is loaded.

        Raises:
            ApiError: 404 unknown or failed to load.
        """
        served, failed = self.shelf.get(name), self.engine.failed.get(name)
        if served is None or failed is not None:
            raise model_not_found(name, [m.name for m in self.served()], failed.message if failed else "")
        return served

    def served(self) -> list[ServedModel]:
        """The models whose loading has not failed."""
        return [served for name, served in self.shelf.items() if name not in self.engine.failed]
