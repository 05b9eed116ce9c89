"""The models seen from outside: what is there, what is in memory, and loading, unloading and fetching by hand."""

import asyncio
from dataclasses import dataclass

from penstock.scheduler.config import ModelKind
from penstock.scheduler.messages import ModelReady

from ..shelf.card import ModelCard
from ..shelf.downloads import HUB_ADDRESS, DownloadJob
from ..shelf.residency import Resident
from .codex_catalog import codex_model
from .services import Services

_TYPES: dict[ModelKind, str] = {"generate": "llm", "embed": "embeddings", "score": "reranker"}


@dataclass(frozen=True, slots=True)
class ModelsHandler:
    """GET /v1/models and its like, and the commands that change what is in memory."""

    services: Services

    async def listing(self) -> list[tuple[str, ModelCard]]:
        """Every model and every alias of one, with the model's card."""
        services = self.services
        await services.registry.refresh()
        cards = services.served()
        names = {card.name: card for card in cards}
        aliases = {alias: services.registry.get(alias) for alias in services.registry.aliases}
        return [
            *names.items(),
            *((alias, card) for alias, card in aliases.items() if card in cards and alias not in names),
        ]

    def residents(self) -> dict[str, Resident]:
        """The models in memory, by name."""
        return {resident.ready.name: resident for resident in self.services.lifecycle.residents()}

    async def openai_list(self) -> dict[str, object]:
        """OpenAI's list of models, and Codex's beside it."""
        names, residents = await self.listing(), self.residents()
        engine = self.services.engine
        return {
            "object": "list",
            "data": [self._entry(name, card, residents.get(card.name)) for name, card in names],
            "models": [codex_model(name, card, engine) for name, card in names if card.kind == "generate"],
        }

    async def openai_entry(self, name: str) -> dict[str, object]:
        """OpenAI's object of one model.

        Raises:
            ApiError: 404 unknown, or it cannot be loaded.
        """
        card = await self.services.look_up(name)
        return self._entry(name, card, self.residents().get(card.name))

    def _entry(self, name: str, card: ModelCard, resident: Resident | None) -> dict[str, object]:
        """What follows `owned_by` is ours, and what routers, benchmarks and our own commands look for."""
        entry: dict[str, object] = {
            "id": name,
            "object": "model",
            "created": card.created,
            "owned_by": "penstock",
            "root": card.name,
            "type": _TYPES[card.kind],
            "state": self.state(card.name),
            "max_model_len": (resident.ready.max_model_len if resident else card.max_context_length) or None,
            "architecture": card.architecture,
            "publisher": card.publisher,
            "quantization": card.quantization,
            "num_parameters": (resident.ready.num_parameters if resident else card.num_parameters) or None,
            "size_bytes": card.size_bytes,
        }
        if resident is not None:
            entry |= {
                "requests_in_flight": resident.num_jobs,
                "ttl": resident.ttl,
                "ttl_left": resident.seconds_left,
                "load_time_seconds": resident.load_seconds,
                "memory_bytes": self._memory_bytes(resident.ready),
            }
        return entry

    def _memory_bytes(self, ready: ModelReady) -> int:
        """Memory of a model's weights, and of the KV blocks that its requests hold."""
        stats = self.services.engine.stats.get(ready.name)
        return ready.weight_bytes + (ready.kv_block_bytes * stats.kv_blocks_used if stats else 0)

    def state(self, name: str) -> str:
        """LM Studio's word for where a model is: "loaded", "loading" or "not-loaded"."""
        if name in self.services.engine.models:
            return "loaded"
        return "loading" if self.services.lifecycle.is_loading(name) else "not-loaded"

    async def load(self, name: str, *, ttl: float | None = None) -> tuple[ModelCard, ModelReady, float]:
        """Load a model by hand; it stays until it is unloaded by hand, or was idle for `ttl` seconds.

        Returns:
            Its card, what the worker says of it, and the seconds that loading took.

        Raises:
            ApiError: 404 unknown or cannot be loaded; 503 no room, or loading takes too long.
            EngineDeadError: the worker is gone.
        """
        services = self.services
        card = await services.registry.find(name)
        if card is None:
            raise services.unknown(name)
        await services.text(card)
        ready = await services.lifecycle.load(card, ttl=ttl)
        return card, ready, self.residents()[card.name].load_seconds

    async def unload(self, name: str) -> str:
        """Unload a model by hand; returns its id.

        Raises:
            ApiError: 404 unknown or not in memory; 409 it has requests in flight.
            EngineDeadError: the worker is gone.
        """
        card = self.services.registry.get(name)
        if card is None:
            raise self.services.unknown(name)
        await self.services.lifecycle.unload(card.name)
        return card.name

    async def download(self, model: str) -> DownloadJob | None:
        """Begin to fetch a model; None: it is here already.

        Args:
            model: a starter's name, a Hub id, or the Hub's address of one.

        Raises:
            ApiError: 400 it is neither; 429 too many downloads run.
        """
        card = await self.services.registry.find(model.removeprefix(HUB_ADDRESS).strip("/"))
        return None if card is not None else self.services.downloads.start(model)

    async def download_status(self, job_id: str) -> tuple[DownloadJob, int]:
        """A download job, and the bytes that have arrived.

        Raises:
            ApiError: 404 there is none of that id.
        """
        job = self.services.downloads.get(job_id)
        return job, await asyncio.to_thread(job.downloaded_bytes)
