"""Runs one embedding model: token ids of many texts in, one vector for each out.

What a vector is (pooling, projection, normalisation) is the sentence-transformers library's reading of the model
folder.
"""

from typing import TYPE_CHECKING, Any

import torch

from .config import ModelSpec
from .encoder import EncoderRunner

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer


class EmbeddingRunner(EncoderRunner):
    """One resident embedding model; a row of its result is a vector, normalised if the model says so."""

    kind = "embed"

    @staticmethod
    def read(spec: ModelSpec, **arguments: Any) -> "SentenceTransformer":
        """The library's model of `spec`."""
        from sentence_transformers import SentenceTransformer

        return SentenceTransformer(spec.path, **arguments)

    def forward(self, features: dict[str, torch.Tensor], second_starts: torch.Tensor) -> torch.Tensor:
        """One pass of the model, to vectors."""
        vectors: torch.Tensor = self._model(features)["sentence_embedding"]
        return vectors[:, : self._model.truncate_dim]
