"""The answers of LM Studio's native API."""

from typing import Any, Literal

from .chat import ChatChunk, ChatCompletion
from .common import Answer
from .completion import Completion, CompletionChunk

JsonObject = dict[str, Any]


class NativeModelV0(Answer):
    """One model, as /api/v0 tells of it."""

    id: str
    object: Literal["model"]
    type: Literal["llm", "vlm", "embeddings"]
    publisher: str
    arch: str
    compatibility_type: str
    quantization: str
    state: Literal["loaded", "not-loaded"]
    max_context_length: int
    loaded_context_length: int = 0
    capabilities: list[str] = []


class NativeModelsV0(Answer):
    """All models, as /api/v0 tells of them."""

    object: Literal["list"]
    data: list[NativeModelV0]


class NativeModels(Answer):
    """All models."""

    models: list[JsonObject]


class LoadedModel(Answer):
    """A model that is in memory now."""

    type: str
    instance_id: str
    load_time_seconds: float
    status: Literal["loaded"]
    load_config: JsonObject = {}


class UnloadedModel(Answer):
    """A model that is in memory no more."""

    instance_id: str


class DownloadStatus(Answer):
    """A model that is fetched; the moments are in ISO 8601."""

    job_id: str = ""
    status: Literal["downloading", "completed", "failed", "already_downloaded"]
    started_at: str = ""
    completed_at: str = ""
    estimated_completion: str = ""
    total_size_bytes: int = 0
    downloaded_bytes: int = 0
    bytes_per_second: int = 0
    error: str = ""


class NativeChat(Answer):
    """The model's turn."""

    model_instance_id: str
    output: list[JsonObject]
    stats: JsonObject
    response_id: str = ""


class _Statistics(Answer):
    stats: JsonObject
    model_info: JsonObject
    runtime: JsonObject


class MeasuredChat(ChatCompletion, _Statistics):
    """OpenAI's answer with statistics."""


class MeasuredCompletion(Completion, _Statistics):
    """OpenAI's answer with statistics."""


class MeasuredChatChunk(ChatChunk):
    """One event of a stream; the last one has statistics."""

    stats: JsonObject = {}
    model_info: JsonObject = {}
    runtime: JsonObject = {}


class MeasuredCompletionChunk(CompletionChunk):
    """One event of a stream; the last one has statistics."""

    stats: JsonObject = {}
    model_info: JsonObject = {}
    runtime: JsonObject = {}
