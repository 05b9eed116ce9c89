"""Runs one cross-encoder: token ids of many pairs of texts in, how well each pair fits together out.

What a score is (the head, the function over its logit) is the sentence-transformers library's reading of the model
folder.
"""

from typing import TYPE_CHECKING, Any

import torch

from .config import ModelSpec
from .encoder import EncoderRunner
from .errors import UnsupportedModelError

if TYPE_CHECKING:
    from sentence_transformers import CrossEncoder

_PROBE = ("a", "b")


class ScoringRunner(EncoderRunner):
    """One resident cross-encoder; a row of its result is one score."""

    kind = "score"

    def __init__(self, name: str, model: "CrossEncoder", max_model_len: int) -> None:
        """Use `load`."""
        self._has_token_types = "token_type_ids" in model.preprocess([_PROBE])
        super().__init__(name, model, max_model_len)

    @staticmethod
    def read(spec: ModelSpec, **arguments: Any) -> "CrossEncoder":
        """The library's model of `spec`.

        Raises:
            UnsupportedModelError: it gives several numbers for a pair, or wants more around a pair than its tokenizer
                writes.
        """
        from sentence_transformers import CrossEncoder

        model = CrossEncoder(spec.path, **arguments)
        if model.num_labels != 1:
            raise UnsupportedModelError(
                f"{spec.name} has {model.num_labels} labels; models that score pairs have one and can be served"
            )
        wanted = model.preprocess([_PROBE])["input_ids"][0].tolist()
        if wanted != model.tokenizer(*_PROBE)["input_ids"]:
            raise UnsupportedModelError(
                f"{spec.name} wants a prompt or a template around its pairs; only bare pairs are served"
            )
        config = model[0].auto_model.config.get_text_config()
        if config.pad_token_id is None:  # decoders find the last token of a text by it
            config.pad_token_id = model.tokenizer.pad_token_id
        return model

    def forward(self, features: dict[str, torch.Tensor], second_starts: torch.Tensor) -> torch.Tensor:
        """One pass of the model, to scores."""
        if self._has_token_types:
            positions = torch.arange(features["input_ids"].shape[1], device=self.device)
            is_second = positions[None, :] >= second_starts[:, None]
            features["token_type_ids"] = is_second.long() * features["attention_mask"]
        scores: torch.Tensor = self._model(features)["scores"].float()
        rated: torch.Tensor = self._model.activation_fn(scores)
        return rated.reshape(len(scores), 1)
