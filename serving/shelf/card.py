"""What a model's folder says about it at a glance: kind, size, format and abilities, without reading its tokenizer."""

import json
import math
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from penstock.scheduler.config import ModelKind
from penstock.scheduler.errors import ModelLoadError

_GENERATION_HEADS = ("ForCausalLM", "LMHeadModel", "ForConditionalGeneration")
_SCORING_HEADS = ("ForSequenceClassification",)
_ENCODERS = ("Model", "ForMaskedLM")
_SENTENCE_TRANSFORMERS_FILES = ("modules.json", "config_sentence_transformers.json")
_MAX_HEADER_BYTES = 100 * 2**20  # the safetensors format's own limit
_MAX_TEXT_BYTES = 2**20  # of a chat template; real ones have some kilobytes
_THINKING_MARKS = ("<think>", "enable_thinking", "reasoning_content", "<|channel|>")


@dataclass(frozen=True, slots=True)
class ModelCard:
    """One model on this machine that can be served."""

    name: str
    """The id clients use."""
    kind: ModelKind
    folder: Path
    """Has config.json and safetensors."""
    publisher: str
    """The owner of a Hub id, "local" otherwise."""
    architecture: str
    """The family, as config.json's `model_type` names it: "llama"."""
    quantization: str
    """How most weights are stored: "BF16", or the method of a quantised checkpoint."""
    bits_per_weight: float
    """Mean over the whole checkpoint; 0 if it cannot be told."""
    size_bytes: int
    """Of the weights on disk."""
    num_parameters: int
    """0 if the files do not tell."""
    max_context_length: int
    """Tokens that the configuration allows; 0 if it does not say."""
    created: int
    """Unix seconds."""
    format: str = "safetensors"
    trained_for_tool_use: bool = False
    """Its chat template knows tools."""
    reasoning: bool = False
    """Its chat template knows thinking."""
    vision: bool = False


def read_card(name: str, folder: Path) -> ModelCard:
    """The card of the model in `folder`.

    Raises:
        ModelLoadError: the folder holds no model that could be served; the message says why.
    """
    config = _read_config(folder)
    kind = _kind(folder, config)
    weights = sorted(folder.glob("*.safetensors"))
    if not weights:
        raise ModelLoadError(
            f"{folder} has no *.safetensors file; other weight formats are not read, since pickled ones can run code"
        )
    text_config = config.get("text_config")
    dimensions = text_config if isinstance(text_config, dict) else config
    parameters = _count_parameters(weights)
    size_bytes = sum(file.stat().st_size for file in weights)
    num_parameters = sum(parameters.values())
    template = _template(folder) if kind == "generate" else ""
    owner, slash, _ = name.partition("/")
    return ModelCard(
        name=name,
        kind=kind,
        folder=folder,
        publisher=owner if slash else "local",
        architecture=str(config.get("model_type") or ""),
        quantization=_quantization(config, parameters),
        bits_per_weight=round(8 * size_bytes / num_parameters, 2) if num_parameters else 0.0,
        size_bytes=size_bytes,
        num_parameters=num_parameters,
        max_context_length=_context_length(dimensions),
        created=int((folder / "config.json").stat().st_mtime),
        trained_for_tool_use="tools" in template,
        reasoning=any(mark in template for mark in _THINKING_MARKS),
    )


def _read_config(folder: Path) -> dict[str, Any]:
    path = folder / "config.json"
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ModelLoadError(f"{folder} is no model folder: cannot read config.json: {error.strerror}") from error
    except (ValueError, RecursionError) as error:
        raise ModelLoadError(f"{path} is not JSON: {error}") from error
    return config if isinstance(config, dict) else {}


def _kind(folder: Path, config: dict[str, Any]) -> ModelKind:
    named = config.get("architectures")
    architectures = [name for name in named if isinstance(name, str)] if isinstance(named, list) else []
    # Cross-encoders have the same files as embedding models; only their architecture tells.
    if any(architecture.endswith(_SCORING_HEADS) for architecture in architectures):
        return "score"
    if any((folder / name).is_file() for name in _SENTENCE_TRANSFORMERS_FILES):
        return "embed"
    if any(architecture.endswith(_GENERATION_HEADS) for architecture in architectures):
        return "generate"
    if any(architecture.endswith(_ENCODERS) for architecture in architectures):
        return "embed"
    raise ModelLoadError(
        f"{folder / 'config.json'} names the architectures {architectures}, which neither generate text "
        f"({', '.join(_GENERATION_HEADS)}) nor embed it ({', '.join(_ENCODERS)}) nor score pairs "
        f"({', '.join(_SCORING_HEADS)})"
    )


def _count_parameters(weights: list[Path]) -> Counter[str]:
    """Numbers in the weight files by their format, from the files' headers; empty if one cannot be read."""
    counts: Counter[str] = Counter()
    for file in weights:
        try:
            with file.open("rb") as stream:
                size = int.from_bytes(stream.read(8), "little")
                header = json.loads(stream.read(size)) if 0 < size <= _MAX_HEADER_BYTES else {}
            for name, tensor in header.items():
                if name != "__metadata__":
                    counts[tensor["dtype"]] += math.prod(tensor["shape"])
        except (
            OSError,
            ValueError,
            TypeError,
            KeyError,
            AttributeError,
            RecursionError,
        ):  # the worker will say what is wrong with it
            return Counter()
    return counts


def _quantization(config: dict[str, Any], parameters: Counter[str]) -> str:
    method = config.get("quantization_config")
    if isinstance(method, dict) and method.get("quant_method"):
        bits = method.get("bits")
        return f"{method['quant_method']}{f'-{bits}bit' if bits else ''}".upper()
    return parameters.most_common(1)[0][0] if parameters else ""


def _context_length(config: dict[str, Any]) -> int:
    for key in ("max_position_embeddings", "n_positions", "n_ctx", "seq_length"):
        if isinstance(length := config.get(key), int):
            return length
    return 0


def _template(folder: Path) -> str:
    """The text of the chat template, wherever it stands; only looked through for words."""
    for name in ("chat_template.jinja", "tokenizer_config.json"):
        path = folder / name
        try:
            text = path.read_text(encoding="utf-8", errors="replace") if path.is_file() else ""
        except OSError:
            continue
        if name.endswith(".jinja") and text:
            return text[:_MAX_TEXT_BYTES]
        if "chat_template" in text:
            return _template_of_config(text)
    return ""


def _template_of_config(text: str) -> str:
    """The template inside tokenizer_config.json: a text, or a list of named ones."""
    try:
        config = json.loads(text)
    except (ValueError, RecursionError):
        return ""
    template = config.get("chat_template") if isinstance(config, dict) else ""
    return (template if isinstance(template, str) else json.dumps(template))[:_MAX_TEXT_BYTES]
