"""Turn a GGUF file into a folder of safetensors, config and tokenizer: `python -m ... SOURCE.gguf DESTINATION`.

transformers reads the weights and most of the config. What it loses is restored here or refused by name: the
pre-tokenizer, scaled rotary embeddings, further end tokens, tensors that it would drop or invent. The folder appears
whole or not at all.
"""

import math
import shutil
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import ModelLoadError, PenstockError, UnsupportedModelError
from .pre_tokenizers import restore_spaces, restore_split, split_kind

if TYPE_CHECKING:
    import torch

_LOSES_MEANING = {
    "gpt-oss": "its attention sinks and rotary settings are not stored completely",
    "gemma4": "its two kinds of rotary embeddings are not stored completely",
}


def _progress(fraction: float, stage: str) -> None:
    """One line for the process that started this one, see `launch.convert_gguf`."""
    print(f"PROGRESS {fraction} {stage}", flush=True)


class GgufFile:
    """The metadata and tensor table of a GGUF file.

    Attributes:
        path: the file.
        architecture: llama.cpp's name of the architecture.
        reader: the gguf library's reader.
    """

    def __init__(self, path: Path) -> None:
        from gguf import GGUFReader

        self.path = path
        if not path.is_file():
            raise ModelLoadError(f"{path} is not a file")
        try:
            self.reader: GGUFReader = GGUFReader(path)
        except (ValueError, IndexError, OSError) as error:
            raise ModelLoadError(f"{path} cannot be read as a GGUF file: {error}") from error
        self.architecture = str(self.get("general.architecture", ""))
        if self.get("split.count", 1) > 1:
            raise UnsupportedModelError(
                f"{path.name} is one part of {self.get('split.count')}; merge the parts into one GGUF file first"
            )
        if self.architecture in _LOSES_MEANING:
            raise UnsupportedModelError(
                f"GGUF files of {self.architecture!r} are not converted: {_LOSES_MEANING[self.architecture]}; "
                "use the model's safetensors folder instead"
            )

    def get(self, key: str, default: Any = None) -> Any:
        """A metadata value, or `default` where the file has none."""
        field = self.reader.get_field(key)
        return default if field is None else field.contents()

    @property
    def dtype(self) -> "torch.dtype":
        """The dtype that keeps what the file has: float32 or float16 files as they are, all others bfloat16."""
        import torch

        kinds = {tensor.tensor_type.name for tensor in self.reader.tensors}
        if kinds == {"F32"}:
            return torch.float32
        return torch.float16 if kinds <= {"F32", "F16"} else torch.bfloat16

    def num_weights(self, *, tied: bool) -> int:
        """Elements of all tensors that a model must take up; a tied output matrix may be stored twice."""
        return sum(
            int(tensor.n_elements)
            for tensor in self.reader.tensors
            if not tensor.name.startswith("rope_") and not (tied and tensor.name == "output.weight")
        )


def scaled_rotary(file: GgufFile) -> dict[str, Any] | None:
    """The rotary scaling that the file describes, as transformers' `rope_parameters` without `rope_theta`.

    Raises:
        UnsupportedModelError: a scaling that cannot be told from the file.
    """
    factors = {tensor.name: tensor.data for tensor in file.reader.tensors if tensor.name.startswith("rope_")}
    if "rope_freqs.weight" in factors:
        return _llama3_rotary(file, factors["rope_freqs.weight"].astype("float64"))
    kind = file.get(f"{file.architecture}.rope.scaling.type", "none")
    if factors or kind not in ("none", "linear", "yarn"):
        raise UnsupportedModelError(
            f"the GGUF file's rotary embeddings are scaled in a way ({kind}, tensors {sorted(factors)}) that is not "
            "restored here; use the model's safetensors folder instead"
        )
    factor = file.get(f"{file.architecture}.rope.scaling.factor")
    if kind == "none" or factor is None:
        return None
    scaling: dict[str, Any] = {"rope_type": kind, "factor": float(factor)}
    if kind == "yarn":
        original = file.get(f"{file.architecture}.rope.scaling.original_context_length")
        if original is None:
            raise UnsupportedModelError("the GGUF file says YaRN without the original context length")
        scaling["original_max_position_embeddings"] = int(original)
    return scaling


def _llama3_rotary(file: GgufFile, stored: Any) -> dict[str, Any]:
    """Llama 3's scaling, whose parameters a GGUF file only holds as their effect: one divisor per frequency.

    Llama 3.1 and 3.2 differ in the factor alone, which is the largest divisor.
    """
    import numpy as np

    theta = float(file.get(f"{file.architecture}.rope.freq_base", 10000.0))
    factor = float(stored.max())
    low, high, original = 1.0, 4.0, 8192
    frequencies = theta ** (-np.arange(len(stored)) / len(stored))
    turns = original * frequencies / (2 * math.pi)
    share = np.clip((turns - low) / (high - low), 0.0, 1.0)
    if not np.allclose(stored, 1 / ((1 - share) / factor + share), rtol=1e-3):
        raise UnsupportedModelError(
            "the GGUF file's rope_freqs.weight is not Llama 3's rotary scaling; use the model's safetensors folder"
        )
    return {
        "rope_type": "llama3",
        "factor": factor,
        "low_freq_factor": low,
        "high_freq_factor": high,
        "original_max_position_embeddings": original,
    }


def _load_config(file: GgufFile) -> Any:
    from transformers import AutoConfig

    try:
        config = AutoConfig.from_pretrained(file.path.parent, gguf_file=file.path.name)
    except (ValueError, KeyError) as error:
        raise UnsupportedModelError(
            f"GGUF files of architecture {file.architecture!r} cannot be converted: {error}"
        ) from error
    scaling = scaled_rotary(file)
    if scaling is not None:
        parameters = config.rope_parameters
        # Gemma 3 has one set per layer type, and scales the full-attention layers only.
        parameters.get("full_attention", parameters).update(scaling)
    return config


def _load_model(file: GgufFile, config: Any) -> Any:
    from transformers import AutoModelForCausalLM
    from transformers.utils.quantization_config import GgufConfig

    try:
        model, report = AutoModelForCausalLM.from_pretrained(
            file.path.parent,
            config=config,
            gguf_file=file.path.name,
            quantization_config=GgufConfig(dequantize=True),
            dtype=file.dtype,
            output_loading_info=True,
        )
    except (ValueError, KeyError, NotImplementedError) as error:
        raise ModelLoadError(f"{file.path.name} cannot be dequantised: {error}") from error
    # Both would give a model that runs and answers nonsense: weights made up at random, weights left out.
    invented = sorted(report["missing_keys"])
    if invented:
        raise ModelLoadError(f"{file.path.name} lacks the weights {', '.join(invented[:3])} ({len(invented)} in all)")
    taken = sum(parameter.numel() for parameter in model.parameters())
    stored = file.num_weights(tied=bool(config.tie_word_embeddings))
    if taken != stored:
        raise UnsupportedModelError(
            f"{file.path.name} stores {stored} weights, but {type(model).__name__} has {taken}; "
            "use the model's safetensors folder instead"
        )
    return model


def _end_tokens(file: GgufFile) -> list[int]:
    """Ids of the tokens that end a generation: of the text, of a turn, of a message."""
    ids = [file.get(f"tokenizer.ggml.{name}_token_id") for name in ("eos", "eot", "eom")]
    return list(dict.fromkeys(int(token_id) for token_id in ids if token_id is not None))


def _load_tokenizer(file: GgufFile) -> Any:
    from transformers import AutoTokenizer

    family = file.get("tokenizer.ggml.model")
    # Gemma's vocabulary is in another order than its merges, and no other family could be compared with its original.
    if family not in ("gpt2", "llama") or file.architecture.startswith("gemma"):
        raise UnsupportedModelError(
            f"this GGUF file's tokenizer (family {family!r}, architecture {file.architecture!r}) is not converted; "
            "byte-level BPE ('gpt2') and SentencePiece BPE ('llama') are, but Gemma's is not; use the model's "
            "safetensors folder instead"
        )
    kind = split_kind(file.get("tokenizer.ggml.pre")) if family == "gpt2" else None
    tokenizer = AutoTokenizer.from_pretrained(
        file.path.parent,
        gguf_file=file.path.name,
        add_bos_token=bool(file.get("tokenizer.ggml.add_bos_token", kind is None or kind.add_bos)),
        model_max_length=file.get(f"{file.architecture}.context_length"),
    )
    if kind is not None:
        restore_split(tokenizer.backend_tokenizer, kind)
    else:
        add_prefix = bool(file.get("tokenizer.ggml.add_space_prefix", True))
        restore_spaces(tokenizer.backend_tokenizer, add_prefix=add_prefix)
    return tokenizer


def convert(source: Path, destination: Path) -> None:
    """Write the model of the GGUF file `source` as a Hugging Face folder `destination`, which must not exist.

    Raises:
        ModelLoadError: the file cannot be read or written.
        UnsupportedModelError: a folder made from it would not be the model in it.
    """
    if destination.exists():
        raise ModelLoadError(f"{destination} exists already; remove it or name another folder")
    _progress(0.0, "reading metadata")
    file = GgufFile(source)
    config = _load_config(file)
    tokenizer = _load_tokenizer(file)
    _progress(0.3, "dequantising")
    model = _load_model(file, config)
    model.generation_config.eos_token_id = _end_tokens(file) or None
    destination.parent.mkdir(parents=True, exist_ok=True)
    partial = Path(tempfile.mkdtemp(dir=destination.parent, prefix=f".{destination.name}.partial-"))
    try:
        _progress(0.8, "writing weights")
        model.save_pretrained(partial)
        _progress(0.9, "writing tokenizer")
        tokenizer.save_pretrained(partial)
        partial.chmod(0o755)
        for written in partial.iterdir():
            written.chmod(0o644)
        partial.rename(destination)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise
    _progress(1.0, "done")


def main(arguments: list[str]) -> int:
    """Command line; returns the exit status and explains a refusal in the last line of standard error."""
    if len(arguments) != 2:
        print("usage: python -m penstock.scheduler.models.convert_gguf SOURCE.gguf DESTINATION", file=sys.stderr)
        return 2
    try:
        convert(Path(arguments[0]), Path(arguments[1]))
    except (PenstockError, OSError) as error:
        print(" ".join(str(error).split()), file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
