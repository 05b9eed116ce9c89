"""The bodies of POST /api/v1/models/load, unload and download."""

from pydantic import Field

from ..body import Refused, RequestBody, Tolerated

_TUNING = Tolerated("It tunes speed and memory, which the server does by itself.")


class LoadBody(RequestBody):
    """POST /api/v1/models/load."""

    other_fields = {
        "eval_batch_size": _TUNING,
        "flash_attention": _TUNING,
        "num_experts": Refused("Models run with the number of experts that they were trained with."),
        "offload_kv_cache_to_gpu": _TUNING,
        "parallel": _TUNING,
    }

    model: str
    context_length: int | None = Field(default=None, ge=1)
    """A model has one context length here; more than that is refused, less is always granted."""
    echo_load_config: bool = False
    ttl: int | None = Field(default=None, ge=1, lt=2**31)
    """Seconds of idleness after which it is unloaded; without it, it stays."""


class UnloadBody(RequestBody):
    """POST /api/v1/models/unload."""

    instance_id: str


class DownloadBody(RequestBody):
    """POST /api/v1/models/download."""

    other_fields = {"quantization": Refused("A repository's weights are taken as they are.", "Name a repository.")}

    model: str
    """A starter model, a Hugging Face id (owner/name) or its address."""
