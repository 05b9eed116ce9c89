"""How much memory a model's weights will take, read off the headers of its safetensors files."""

import json
import math
from pathlib import Path
from typing import Any

from ..config import ModelSpec
from .load import cpu_has_fast_bfloat16

_SIZES = {"float32": 4, "bfloat16": 2, "float16": 2}
_FLOATS = {"F64", "F32", "F16", "BF16"}
_MAX_HEADER = 100_000_000  # the format's own limit


def loaded_bytes(spec: ModelSpec, device: str) -> int:
    """Bytes of all weights of `spec` in the number format that they are loaded in.

    Args:
        spec: its folder is looked through as deep as a sentence-transformers model has folders.
        device: "cpu" or "cuda".

    Raises:
        OSError: a file cannot be read.
        ValueError: a file is not in the safetensors format.
    """
    size = _SIZES.get(spec.dtype)
    if size is None and device == "cpu":
        size = 2 if spec.kind == "generate" and cpu_has_fast_bfloat16() else 4
    folder = Path(spec.path)
    return sum(_file_bytes(file, size) for file in (*folder.glob("*.safetensors"), *folder.glob("*/*.safetensors")))


def _file_bytes(file: Path, float_size: int | None) -> int:
    """Bytes of the tensors of one file; floating-point numbers take `float_size`, None: as they are stored."""
    with file.open("rb") as stream:
        length = int.from_bytes(stream.read(8), "little")
        if length > _MAX_HEADER:
            raise ValueError(f"{file} is not a safetensors file")
        header = stream.read(length)
    try:
        tensors = json.loads(header)
        return sum(_tensor_bytes(tensor, float_size) for name, tensor in tensors.items() if name != "__metadata__")
    except (KeyError, TypeError, AttributeError, RecursionError) as error:
        raise ValueError(f"the header of {file} is not one of a safetensors file: {error}") from error


def _tensor_bytes(tensor: dict[str, Any], float_size: int | None) -> int:
    start, end = tensor["data_offsets"]
    converted = float_size is not None and tensor["dtype"] in _FLOATS
    return int(math.prod(tensor["shape"]) * float_size if converted else end - start)
