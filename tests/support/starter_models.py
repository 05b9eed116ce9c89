"""The two starter models, for tests: where the server keeps them, fetched and converted once."""

import os
from pathlib import Path

from rich.console import Console

from penstock.serving.shelf.download import fetch_starter
from penstock.serving.shelf.starter import STARTER_MODELS


def _fetch(name: str) -> Path:
    home = Path(os.environ.get("PENSTOCK_HOME") or Path(__file__).parents[2] / ".penstock")
    return fetch_starter(STARTER_MODELS[name], home, Console(stderr=True, quiet=True))


def smollm2_folder() -> Path:
    """SmolLM2-135M-Instruct in bfloat16, a chat model."""
    return _fetch("smollm2-135m-instruct")


def minilm_folder() -> Path:
    """all-MiniLM-L6-v2 in float32, an embedding model."""
    return _fetch("all-minilm-l6-v2")
