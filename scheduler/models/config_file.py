"""Looks at a model's config.json before the libraries do, which believe every number in it."""

import json
from pathlib import Path

from ..config import ModelSpec
from ..errors import ModelLoadError

_MAX_BYTES = 2**24
_MAX_LAYERS = 1024
"""The deepest models have some hundred; a library makes as many as the file says, until the memory is full."""
_LAYER_COUNTS = ("num_hidden_layers", "n_layer", "n_layers", "num_layers")


def check_config_file(spec: ModelSpec) -> None:
    """Refuse a file that no model has; one that is missing is left to the libraries, which say so.

    Raises:
        ModelLoadError: what is wrong with it.
    """
    path = Path(spec.path) / "config.json"
    if not path.is_file():
        return
    if (size := path.stat().st_size) > _MAX_BYTES:
        raise ModelLoadError(f"the config.json of {spec.name} has {size} bytes; the limit is {_MAX_BYTES}")
    try:
        config = json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        raise ModelLoadError(f"{spec.name} has no usable config.json in {spec.path}: {error}") from error
    if not isinstance(config, dict):
        raise ModelLoadError(f"{spec.name} has no usable config.json in {spec.path}: it is no JSON object")
    for part in (config, *(value for value in config.values() if isinstance(value, dict))):
        for name in _LAYER_COUNTS:
            if isinstance(count := part.get(name), int) and not 0 <= count <= _MAX_LAYERS:
                raise ModelLoadError(
                    f"the config.json of {spec.name} says {name}: {count}; models of up to {_MAX_LAYERS} layers are "
                    "served"
                )
