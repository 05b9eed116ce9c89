"""Everything `penstock serve` can be told, and the one order in which flags, environment, file and defaults win.

A setting called `max_num_seqs` is the flag `--max-num-seqs`, the environment variable `PENSTOCK_MAX_NUM_SEQS` and the
key `max_num_seqs` of the TOML file that `--config` names. A flag wins over the environment, that over the file, that
over the default. 0 or the empty string, where it is the default, means that Penstock decides.
"""

import shlex
import tomllib
from pathlib import Path
from typing import Annotated, Any, Literal

import platformdirs
from pydantic import ByteSize, Field, ValidationError, field_validator, model_validator
from pydantic.fields import FieldInfo
from pydantic_settings import BaseSettings, NoDecode, PydanticBaseSettingsSource, SettingsConfigDict

from penstock.scheduler.config import (
    DeviceName,
    DtypeName,
    EngineConfig,
    KVCacheDtype,
    ModelKind,
    ModelSpec,
    Quantization,
)

from .shelf.card import ModelCard
from .shelf.residency import LoadingPolicy

LogLevel = Literal["debug", "info", "warning", "error"]
ENVIRONMENT_PREFIX = "PENSTOCK_"


class SettingsError(ValueError):
    """Settings that cannot be used; the message has one line for each thing that is wrong."""


def _metavar(text: str) -> dict[str, Any]:
    """What stands for the setting's value in the help."""
    return {"metavar": text}


class Settings(BaseSettings):
    """The settings of one server; build them with `load_settings`, whose errors are fit for people.

    Each description is the setting's help; it says what 0 or the empty string means.
    """

    model_config = SettingsConfigDict(env_prefix=ENVIRONMENT_PREFIX, env_ignore_empty=True, extra="forbid", frozen=True)

    models: Annotated[list[str], NoDecode] = Field(
        default=[],
        description="what to serve: a starter model, a folder, a .gguf file or a Hugging Face id (owner/name); "
        "none: both starter models",
    )
    config: Path | None = Field(
        default=None, description="TOML file with any of these settings", json_schema_extra=_metavar("FILE")
    )
    host: str = Field(
        default="127.0.0.1",
        min_length=1,
        description="address to listen on; 0.0.0.0 opens the server to the network",
        json_schema_extra=_metavar("ADDRESS"),
    )
    auth: bool = Field(
        default=True,
        description="listen for other machines only if there are API keys (see `penstock keys add`); --no-auth: "
        "also without any, and then serve everybody, by whatever name they call it",
    )
    port: int = Field(default=1234, ge=0, le=65535, description="port to listen on; 0 takes a free one")
    api_processes: int = Field(
        default=1,
        ge=1,
        le=64,
        description="processes that speak HTTP and share the port; one serves some 20,000 tokens a second",
    )
    served_model_name: str = Field(
        default="",
        description="the id that clients use, when one model is served",
        json_schema_extra=_metavar("NAME"),
    )
    jit: bool = Field(default=True, description="let the first request for a model of the home load it")
    idle_ttl: float = Field(
        default=3600,
        ge=0,
        description="seconds that a model loaded by a request stays idle until it is unloaded; 0: it stays",
        json_schema_extra=_metavar("SECONDS"),
    )
    max_resident_models: int = Field(default=0, ge=0, description="models in memory at once; 0: as many as fit")
    alias: Annotated[dict[str, str], NoDecode] = Field(
        default={},
        description="another name for a model, such as gpt-4o=smollm2-135m-instruct; may be repeated",
        json_schema_extra=_metavar("NAME=MODEL"),
    )
    default_model: str = Field(
        default="",
        description="the chat model that answers to names that are not known here; without it they are errors",
        json_schema_extra=_metavar("NAME"),
    )
    default_embedding_model: str = Field(
        default="", description="the same for embeddings", json_schema_extra=_metavar("NAME")
    )
    device: DeviceName = Field(default="auto", description="where the models run; auto: the GPU if there is one")
    dtype: DtypeName = Field(
        default="auto", description="number format of the weights; auto: what suits the model and the device"
    )
    embedding_dtype: DtypeName = Field(
        default="auto",
        description="the same for embedding models and cross-encoders; auto: as dtype says, which left automatic is "
        "float32 for these on a CPU",
    )
    quantization: Quantization = Field(
        default="none",
        description="linear layers of chat models in 8 bits, less exact: int8 on CPUs with avx512_bf16; fp8 on GPUs "
        "with float8 (NVIDIA Ada, Hopper and later), on a CPU only for trials, since it is slow there",
    )
    kv_cache_dtype: KVCacheDtype = Field(
        default="auto",
        description="number format of the keys and values of chat models; fp8: float8, half the memory and so "
        "twice the tokens, on the same GPUs, and on a CPU only for trials",
    )
    max_model_len: int = Field(
        default=0, ge=0, description="longest prompt and output together, in tokens; 0: what the model allows"
    )
    kv_cache_memory: ByteSize = Field(
        default=ByteSize(0),
        ge=0,
        description="memory for the keys and values of all models, such as 2GiB; 0: a share of what is free",
        json_schema_extra=_metavar("SIZE"),
    )
    block_size: int = Field(default=16, ge=8, le=256, description="tokens in one block of that memory, a power of two")
    max_num_seqs: int = Field(default=256, ge=1, le=8192, description="requests that may run at once")
    max_num_batched_tokens: int = Field(
        default=0, ge=0, description="tokens that one step may compute; 0: 512 on a CPU, 8192 on a GPU"
    )
    itl_target: int | None = Field(
        default=None,
        ge=0,
        le=60_000,
        description="milliseconds between two tokens of a stream, which prompts and texts beside it shall not exceed; "
        "0: no bound; without it: 400 on a CPU, 50 on a GPU",
        json_schema_extra=_metavar("MS"),
    )
    max_waiting_requests: int = Field(
        default=2048,
        ge=0,
        description="requests of one model that may wait while others run; more are refused with 429; 0: no bound",
    )
    max_waiting_tokens: int = Field(
        default=0,
        ge=0,
        description="tokens of theirs, likewise; 0: what the model has lately taken up in half of the queue timeout",
    )
    queue_timeout: float = Field(
        default=120.0,
        ge=0,
        le=86_400,
        description="seconds that a request may wait for its first step, after which it fails with 503; 0: no bound",
        json_schema_extra=_metavar("SECONDS"),
    )
    request_timeout: float = Field(
        default=0.0,
        ge=0,
        le=86_400,
        description="seconds that a request may take in all, after which it fails with 504; 0: no bound",
        json_schema_extra=_metavar("SECONDS"),
    )
    fair_share: bool = Field(
        default=True,
        description="serve the API key first that has had least of the device, in proportion to the keys' weights; "
        "without it requests go by priority and arrival alone, whoever sends them",
    )
    enable_prefix_caching: bool = Field(default=True, description="let requests share the computed parts of prompts")
    shared_prefix_cache: bool = Field(
        default=False,
        description="let requests with different API keys share them too: first tokens come sooner where prompts begin "
        "alike, but by that a client can find out what another has sent",
    )
    speculation: Literal["off", "ngram"] = Field(
        default="off",
        description="ngram: guess tokens from what followed the last ones earlier in the text, and compute them "
        "together where that pays; the output is the same, sooner where text repeats itself",
    )
    num_draft_tokens: int = Field(default=4, ge=1, le=16, description="guessed tokens of a request in one step")
    min_ngram: int = Field(default=2, ge=1, le=16, description="last tokens that must have come before for a guess")
    max_ngram: int = Field(default=4, ge=1, le=16, description="longest run of last tokens that is looked for")
    num_threads: int = Field(
        default=0,
        ge=0,
        le=1024,
        description="CPU threads of one operation; 0: one a physical core, or fewer if a trial at load says so",
    )
    trust_remote_code: bool = Field(default=False, description="run Python code that comes with a model")
    home: Path = Field(
        default_factory=lambda: Path(platformdirs.user_data_dir("penstock")),
        description="where models and state are kept; without it: the platform's data directory",
        json_schema_extra=_metavar("FOLDER"),
    )
    store_max_bytes: ByteSize = Field(
        default=ByteSize(2**30),
        ge=2**20,
        description="size of what is stored (responses, conversations, chat completions); the oldest makes room",
        json_schema_extra=_metavar("SIZE"),
    )
    store_max_age: float = Field(
        default=30.0, gt=0, le=36_500, description="days that something stored is kept after its last change"
    )
    drain_timeout: float = Field(
        default=30.0,
        ge=0,
        le=3600,
        description="seconds that requests in flight get to finish when the server is to stop; new ones are refused",
        json_schema_extra=_metavar("SECONDS"),
    )
    watchdog_timeout: float = Field(
        default=120.0,
        ge=0,
        le=24 * 3600,
        description="seconds that the device worker may go without progress before it is replaced; 0: for ever",
        json_schema_extra=_metavar("SECONDS"),
    )
    log_level: LogLevel = Field(default="info", description="least severe messages to log")

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Flags arrive as init arguments; what an earlier source names wins."""
        return init_settings, env_settings, _FileSource(settings_cls)

    @field_validator("models", mode="before")
    @classmethod
    def _split_models(cls, value: object) -> object:
        """An environment variable lists models as a shell does, so that a path may have quoted spaces."""
        return shlex.split(value) if isinstance(value, str) else value

    @field_validator("alias", mode="before")
    @classmethod
    def _read_aliases(cls, value: object) -> object:
        """A table in the file; flags and the environment list NAME=MODEL."""
        pairs = shlex.split(value) if isinstance(value, str) else value
        if not isinstance(pairs, list):
            return pairs
        aliases: dict[str, str] = {}
        for pair in pairs:
            alias, equals, model = str(pair).partition("=")
            if not (alias and equals and model):
                raise ValueError(f"an alias has the form NAME=MODEL, which {pair!r} has not")
            aliases[alias] = model
        return aliases

    @field_validator("port", mode="before")
    @classmethod
    def _refuse_service_link(cls, value: object) -> object:
        if isinstance(value, str) and value.startswith("tcp://"):
            raise ValueError(
                "Kubernetes sets PENSTOCK_PORT for a service called penstock; "
                "set enableServiceLinks: false in the pod, or give --port"
            )
        return value

    @field_validator("block_size")
    @classmethod
    def _require_power_of_two(cls, value: int) -> int:
        if value.bit_count() != 1:
            raise ValueError("must be a power of two, such as 16")
        return value

    @field_validator("home", "config")
    @classmethod
    def _make_absolute(cls, value: Path | None) -> Path | None:
        return value.expanduser().absolute() if value is not None else None

    @model_validator(mode="after")
    def _check_served_model_name(self) -> "Settings":
        if self.served_model_name and len(self.models) != 1:
            raise ValueError(f"served_model_name needs exactly one model, but {len(self.models)} are named")
        return self

    @model_validator(mode="after")
    def _check_ngrams(self) -> "Settings":
        if self.min_ngram > self.max_ngram:
            raise ValueError(f"min_ngram is {self.min_ngram}, more than max_ngram, {self.max_ngram}")
        return self

    def loading_policy(self) -> LoadingPolicy:
        """What may be loaded, and for how long it stays."""
        return LoadingPolicy(self.jit, self.idle_ttl, self.max_resident_models)

    def default_models(self) -> dict[ModelKind, str]:
        """The models that answer to unknown names."""
        return {"generate": self.default_model, "embed": self.default_embedding_model}

    def dtype_of(self, kind: ModelKind) -> DtypeName:
        """The number format for the weights of a model of this kind."""
        return self.dtype if kind == "generate" or self.embedding_dtype == "auto" else self.embedding_dtype

    def model_spec(self, card: ModelCard) -> ModelSpec:
        """What the worker is told of a model."""
        return ModelSpec(
            name=card.name,
            path=str(card.folder),
            kind=card.kind,
            dtype=self.dtype_of(card.kind),
            quantization=self.quantization if card.kind == "generate" else "none",
            kv_cache_dtype=self.kv_cache_dtype if card.kind == "generate" else "auto",
            max_model_len=self.max_model_len if card.kind == "generate" else 0,
            trust_remote_code=self.trust_remote_code,
        )

    def engine_config(self) -> EngineConfig:
        """The engine's part of the settings."""
        return EngineConfig(
            device=self.device,
            kv_cache_memory=int(self.kv_cache_memory),
            block_size=self.block_size,
            max_num_seqs=self.max_num_seqs,
            max_num_batched_tokens=self.max_num_batched_tokens,
            itl_target_ms=-1 if self.itl_target is None else self.itl_target,
            max_waiting_requests=self.max_waiting_requests,
            max_waiting_tokens=self.max_waiting_tokens,
            queue_timeout=self.queue_timeout,
            request_timeout=self.request_timeout,
            fair_share=self.fair_share,
            enable_prefix_caching=self.enable_prefix_caching,
            shared_prefix_cache=self.shared_prefix_cache,
            speculation=self.speculation,
            num_draft_tokens=self.num_draft_tokens,
            min_ngram=self.min_ngram,
            max_ngram=self.max_ngram,
            num_threads=self.num_threads,
        )


class _FileSource(PydanticBaseSettingsSource):
    """The TOML file that a flag or the environment named."""

    def get_field_value(self, field: FieldInfo, field_name: str) -> tuple[Any, str, bool]:
        """Not used: the file is read as a whole."""
        raise NotImplementedError

    def __call__(self) -> dict[str, Any]:
        path = self.current_state.get("config")
        if path is None:
            return {}
        try:
            content = tomllib.loads(Path(path).expanduser().read_text(encoding="utf-8"))
        except OSError as error:
            raise SettingsError(f"config: cannot read {path}: {error.strerror}") from error
        except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
            raise SettingsError(f"config: {path} is not TOML: {error}") from error
        known = self.settings_cls.model_fields.keys() - {"config"}
        if unknown := content.keys() - known:
            raise SettingsError(
                f"config: {path} has unknown keys: {', '.join(sorted(unknown))}; known are: {', '.join(sorted(known))}"
            )
        return content


def load_settings(flags: dict[str, Any]) -> Settings:
    """The settings that flags, environment and file add up to.

    Args:
        flags: setting name to value, of those flags that were given.

    Raises:
        SettingsError: something is out of range, unknown or unreadable.
    """
    try:
        return Settings(**flags)
    except ValidationError as error:
        raise SettingsError("\n".join(_explain(problem) for problem in error.errors())) from error


def _explain(problem: Any) -> str:
    """One line for one of pydantic's complaints: setting, value, reason."""
    message = str(problem["msg"])
    own = message.removeprefix("Value error, ")
    reason = own if own != message else message[0].lower() + message[1:]
    if not problem["loc"]:
        return reason
    return f"{'.'.join(map(str, problem['loc']))} is {problem['input']!r}: {reason}"
