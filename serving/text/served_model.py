"""What the API side knows of a model: its name, tokenizer, chat template and defaults, read from its folder."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from penstock.scheduler.config import ModelKind
from penstock.scheduler.errors import ModelLoadError

from .chat_template import ChatTemplate, load_chat_template
from .tokenizer import TextTokenizer

_UNLIMITED = 10**6  # tokenizer configurations say "no limit" by absurd lengths


@dataclass(frozen=True, slots=True)
class GenerationDefaults:
    """The model's own sampling parameters, for clients that are silent; from generation_config.json."""

    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    repetition_penalty: float = 1.0


@dataclass(frozen=True, slots=True)
class EmbeddingInputRules:
    """What sentence-transformers does to a text before it is tokenised."""

    max_tokens: int = 0
    """Longest input, special tokens included; 0: the worker's limit alone counts."""
    lower_case: bool = False
    prefix: str = ""
    """The default prompt."""
    prompts: Mapping[str, str] = field(default_factory=dict)
    """Named prompts, such as `query`."""
    dimensions: tuple[int, ...] = ()
    """The sizes that its vectors may be cut to; empty: the model does not say."""


@dataclass(frozen=True, slots=True)
class ServedModel:
    """One model under the name that clients use."""

    name: str
    kind: ModelKind
    created: int
    """Unix seconds."""
    tokenizer: TextTokenizer
    chat_template: ChatTemplate | None = None
    defaults: GenerationDefaults = GenerationDefaults()
    input_rules: EmbeddingInputRules = EmbeddingInputRules()
    owned_by: str = "penstock"


def load_served_model(name: str, kind: ModelKind, folder: Path) -> ServedModel:
    """Read a model folder in Hugging Face form.

    Raises:
        ModelLoadError: a file is missing or unusable; the message says which and why.
    """
    config = _read(folder / "tokenizer_config.json")
    try:
        return ServedModel(
            name=name,
            kind=kind,
            created=int(folder.stat().st_mtime),
            tokenizer=TextTokenizer.from_folder(folder),
            chat_template=load_chat_template(folder, _special_tokens(folder, config)) if kind == "generate" else None,
            defaults=_generation_defaults(_read(folder / "generation_config.json")),
            input_rules=_input_rules(folder, config) if kind != "generate" else EmbeddingInputRules(),
        )
    except Exception as error:  # the tokenizers library raises bare Exception, jinja its own kinds
        raise ModelLoadError(f"the text files of {name} in {folder} cannot be used: {error}") from error


def _read(path: Path) -> dict[str, Any]:
    if not path.is_file():
        return {}
    try:
        raw = json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        raise ModelLoadError(f"{path} is not valid JSON: {error}") from error
    return raw if isinstance(raw, dict) else {}


def _special_tokens(folder: Path, config: dict[str, Any]) -> dict[str, str]:
    """`bos_token` and its like; a token is a text or an object with its text in `content`."""
    tokens = {}
    for source in (_read(folder / "special_tokens_map.json"), config):
        for key, value in source.items():
            text = value.get("content") if isinstance(value, dict) else value
            if key.endswith("_token") and isinstance(text, str):
                tokens[key] = text
    return tokens


def _generation_defaults(config: dict[str, Any]) -> GenerationDefaults:
    """Values out of range are left at the neutral value: such files are written by hand."""

    def number(name: str, low: float, high: float, neutral: float) -> float:
        value = config.get(name)
        if isinstance(value, bool) or not isinstance(value, int | float) or not low <= value <= high:
            return neutral
        return value

    return GenerationDefaults(
        temperature=number("temperature", 0.0, 2.0, 1.0),
        top_p=number("top_p", 1e-6, 1.0, 1.0),
        top_k=int(number("top_k", 0, 2**31, 0)),
        min_p=number("min_p", 0.0, 1.0, 0.0),
        repetition_penalty=number("repetition_penalty", 1e-6, 100.0, 1.0),
    )


def _input_rules(folder: Path, tokenizer_config: dict[str, Any]) -> EmbeddingInputRules:
    module = next(iter(sorted(folder.glob("sentence_*_config.json"))), None)
    config = _read(module) if module else {}
    model = _read(folder / "config_sentence_transformers.json")
    limit = config.get("max_seq_length") or tokenizer_config.get("model_max_length")
    prompts = {name: text for name, text in (model.get("prompts") or {}).items() if isinstance(text, str)}
    pooling = _read(folder / "1_Pooling" / "config.json")
    if prompts and pooling.get("include_prompt") is False:
        raise ModelLoadError("its pooling leaves the tokens of prompts out (include_prompt), which is not supported")
    sizes = _read(folder / "config.json").get("matryoshka_dimensions")
    return EmbeddingInputRules(
        max_tokens=int(limit) if isinstance(limit, int | float) and 0 < limit < _UNLIMITED else 0,
        lower_case=bool(config.get("do_lower_case")),
        prefix=prompts.get(model.get("default_prompt_name") or "", ""),
        prompts=prompts,
        dimensions=tuple(sizes) if isinstance(sizes, list) and all(type(size) is int for size in sizes) else (),
    )
