"""Loads a decoder from a local folder into a transformers model that attends through the paged cache."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM, GenerationConfig, PreTrainedConfig, PreTrainedModel
from transformers.utils import logging as transformers_logging

from ..config import ModelSpec
from ..errors import ModelLoadError
from .admission import check_config, resolve_max_model_len
from .attention import ATTENTION_NAME, register
from .config_file import check_config_file
from .kv_scales import check_kv_cache
from .quantize import check_quantization

_DTYPES = {"bfloat16": torch.bfloat16, "float16": torch.float16, "float32": torch.float32}


def load_decoder(
    spec: ModelSpec, device: torch.device, progress: Callable[[float], None]
) -> tuple[PreTrainedModel, int]:
    """The model of `spec` on `device`, in evaluation mode, and its longest sequence.

    Args:
        spec: names the folder; pickled weights in it are never read.
        device: where the weights go.
        progress: gets the share of the weights that is loaded, 0 to 1.

    Raises:
        ModelLoadError: the folder cannot be loaded as asked.
        UnsupportedModelError: its architecture would give wrong answers.
    """
    config = _read_config(spec)
    max_model_len = resolve_max_model_len(config, spec.max_model_len, spec.name)
    check_config(config, max_model_len, trust_remote_code=spec.trust_remote_code)
    dtype = choose_dtype(spec, config, device)
    check_quantization(spec, config, device, dtype)
    check_kv_cache(spec, device)
    register()
    with report_loading(progress):
        try:
            model: PreTrainedModel = AutoModelForCausalLM.from_pretrained(
                spec.path,
                config=config,
                dtype=dtype,
                attn_implementation=ATTENTION_NAME,
                use_safetensors=True,
                local_files_only=True,
                trust_remote_code=spec.trust_remote_code,
            )
        # Missing or broken files, wrong shapes, an optional quantisation library that is not installed.
        except (OSError, ValueError, RuntimeError, ImportError, KeyError) as error:
            raise ModelLoadError(f"{spec.name} cannot be loaded from {spec.path}: {error}") from error
    if model.config._attn_implementation != ATTENTION_NAME:
        raise ModelLoadError(
            f"{spec.name} uses attention {model.config._attn_implementation!r} although {ATTENTION_NAME!r} was asked "
            "for: this version of transformers cannot exchange it"
        )
    model.requires_grad_(False)
    return model.to(device).eval(), max_model_len


def eos_token_ids(model: PreTrainedModel) -> frozenset[int]:
    """The tokens that end a sequence: the generation config's, else the model config's; may be empty."""
    generation_config: GenerationConfig | None = getattr(model, "generation_config", None)
    for config in (generation_config, model.config):
        ids: int | list[int] | None = getattr(config, "eos_token_id", None)
        if ids is not None:
            return frozenset([ids] if isinstance(ids, int) else ids)
    return frozenset()


def choose_dtype(spec: ModelSpec, config: PreTrainedConfig, device: torch.device) -> torch.dtype:
    """The number format of weights and cache: the one asked for, else the fastest that the model allows.

    A GPU takes the checkpoint's own. A CPU multiplies bfloat16 faster than float32 only with instructions for it.
    """
    if spec.dtype != "auto":
        return _DTYPES[spec.dtype]
    if device.type == "cpu":
        return torch.bfloat16 if cpu_has_fast_bfloat16() else torch.float32
    return config.dtype if isinstance(config.dtype, torch.dtype) else torch.bfloat16


def cpu_has_fast_bfloat16() -> bool:
    """Whether the CPU has instructions that multiply bfloat16."""
    return bool(torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported())


def _read_config(spec: ModelSpec) -> PreTrainedConfig:
    check_config_file(spec)
    try:
        config: PreTrainedConfig = AutoConfig.from_pretrained(
            spec.path, local_files_only=True, trust_remote_code=spec.trust_remote_code
        )
    except (OSError, ValueError, KeyError, ImportError) as error:
        raise ModelLoadError(f"{spec.name} has no usable config.json in {spec.path}: {error}") from error
    return config


class _ReportingBar(transformers_logging.EmptyTqdm):  # type: ignore[misc]
    """Stands in for transformers' progress bar and passes the share done on instead of drawing it."""

    def __init__(self, progress: Callable[[float], None], items: Any) -> None:
        super().__init__(items)
        self._progress = progress
        self._items = items

    def __iter__(self) -> Iterator[Any]:
        total = max(1, len(self._items))
        for done, item in enumerate(self._items):
            self._progress(done / total)
            yield item
        self._progress(1.0)


@contextmanager
def report_loading(progress: Callable[[float], None]) -> Iterator[None]:
    """Within it, transformers reports the share of weights it has loaded to `progress` instead of drawing a bar."""

    def hook(factory: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if args and hasattr(args[0], "__len__"):
            return _ReportingBar(progress, args[0])
        return transformers_logging.EmptyTqdm(*args, **kwargs)

    previous = transformers_logging.set_tqdm_hook(hook)
    try:
        yield
    finally:
        transformers_logging.set_tqdm_hook(previous)
