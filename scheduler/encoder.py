"""Runs texts through a model of the sentence-transformers library: token ids in, one row of numbers for each text out.

What a row is (a vector, a score) is the library's reading of the model folder. This file only chooses how texts are
put together: the library pads all texts of a batch to the longest; here texts of similar length go together, as many
as fill the caches and no more.
"""

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Self

import numpy as np
import numpy.typing as npt
import torch

from . import device as devices
from .config import EngineConfig, ModelKind, ModelSpec
from .errors import ModelLoadError, UnsupportedModelError
from .models.config_file import check_config_file
from .models.fused_encoder import fuse_encoder
from .models.load import report_loading
from .models.surgery import speed_up
from .results import HostCopies
from .staging import upload

if TYPE_CHECKING:
    from sentence_transformers import CrossEncoder, SentenceTransformer

# One forward pass: at most so many tokens, padding included, and so many of padding that a pass of its own would cost
# more. On a CPU larger passes fall out of the cache: 32 texts of 200 tokens take 1.6 times as long in one as in four.
# Fused layers divide a pass themselves and compute no padding.
_CPU_PASS = 1024, 16
_FUSED_PASS = 8192, 2048
_GPU_PASS = 32768, 1024
_PADDING_SHARE = 8  # beyond that, one token of padding for eight real ones
_READING_SHARE = 0.7  # of the loading time
_DTYPES = {"bfloat16": torch.bfloat16, "float16": torch.float16, "float32": torch.float32}


def length_groups(lengths: list[int], max_tokens: int, free_padding: int) -> list[list[int]]:
    """Divide texts among forward passes so that each pads little.

    Args:
        lengths: tokens of each text.
        max_tokens: of one pass, padding included; a longer text goes alone.
        free_padding: tokens of padding that a pass may have at least.

    Returns:
        Indices into `lengths`, every one once, longest text first.
    """
    groups: list[list[int]] = []
    longest = num_real = 0
    for index in sorted(range(len(lengths)), key=lambda index: -lengths[index]):
        num_padded = longest * (len(groups[-1]) + 1) if groups else 0
        padding = num_padded - num_real - lengths[index]
        if not groups or num_padded > max_tokens or padding > max(free_padding, num_real // _PADDING_SHARE):
            groups.append([])
            longest, num_real = lengths[index], 0
        groups[-1].append(index)
        num_real += lengths[index]
    return groups


class LaunchedTexts:
    """Texts that the device has been told to compute."""

    def __init__(self, rows: torch.Tensor, order: list[int]) -> None:
        """Begin to copy `rows` [n, output_dim] float32 from the device; row i is that of text `order[i]`."""
        self._order = order
        self._copies = HostCopies([rows], rows.device)

    def collect(self) -> npt.NDArray[np.float32]:
        """Wait for the rows [n, output_dim], in the order of the texts.

        Raises:
            RuntimeError: the device has failed.
        """
        (rows,) = self._copies.wait()
        result = np.empty(rows.shape, np.float32)
        result[self._order] = rows.numpy()
        return result


class EncoderRunner:
    """One resident model; what it makes of a text is said by its subclasses.

    Attributes:
        kind: what the model is for.
        name: the id clients use.
        architecture: class name of the transformer in it.
        device: where it runs.
        dtype: of its weights.
        max_model_len: longest text in tokens, special tokens included.
        vocab_size: number of token ids.
        output_dim: numbers for each text.
        num_parameters: shared ones counted once.
    """

    kind: ClassVar[ModelKind]

    def __init__(self, name: str, model: "SentenceTransformer | CrossEncoder", max_model_len: int) -> None:
        """Use `load`; this takes a model in evaluation mode whose first module is a transformer."""
        transformer = model[0].auto_model
        self.name = name
        self.architecture = type(transformer).__name__
        self.device: torch.device = transformer.device
        self.dtype: torch.dtype = transformer.dtype
        self.max_model_len = max_model_len
        self.vocab_size: int = transformer.config.get_text_config().vocab_size
        self.num_parameters = sum(parameter.numel() for parameter in model.parameters())
        self._model = model
        self._pad_token_id: int = getattr(model.tokenizer, "pad_token_id", None) or 0
        self._pass_limits = _GPU_PASS if self.device.type == "cuda" else _CPU_PASS
        self.output_dim = self.execute([[0]]).shape[1]

    @staticmethod
    def read(spec: ModelSpec, **arguments: Any) -> "SentenceTransformer | CrossEncoder":
        """The library's model of `spec`, loaded with these arguments.

        Raises:
            UnsupportedModelError: it needs more than this runner gives it.
        """
        raise NotImplementedError

    def forward(self, features: dict[str, torch.Tensor], second_starts: torch.Tensor) -> torch.Tensor:
        """One pass of the model.

        Args:
            features: `input_ids` and `attention_mask`, both [n, T].
            second_starts: [n], index of each row's first token of a second text; T if it has none.

        Returns:
            [n, output_dim].
        """
        raise NotImplementedError

    @classmethod
    def load(cls, spec: ModelSpec, config: EngineConfig, progress: Callable[[str, float], None]) -> Self:
        """Load and speed up the model of `spec`.

        Args:
            spec: which model and how.
            config: of the engine; its device and thread count are resolved here if they are still automatic.
            progress: gets the stage in words and the share of all stages that is done, 0 to 1.

        Raises:
            ModelLoadError: the folder cannot be loaded as asked.
            UnsupportedModelError: it does not turn token ids into what this runner is for.
        """
        config = devices.resolve(config)
        with report_loading(lambda done: progress("reading weights", done * _READING_SHARE)):
            model = cls._read_checked(spec, config.device)
        runner = cls(spec.name, model, _max_model_len(spec, model))
        probe = [list(range(min(runner.vocab_size, runner.max_model_len, 16)))]
        expected = runner.execute(probe)
        if fuse_encoder(model[0].auto_model):
            runner._pass_limits = _FUSED_PASS
        speed_up(model, lambda done: progress("packing weights", _READING_SHARE + done * (1 - _READING_SHARE)))
        tolerance = 1e-4 if runner.dtype == torch.float32 else 3e-2
        if not np.allclose(runner.execute(probe), expected, atol=tolerance * float(np.abs(expected).max())):
            raise ModelLoadError(
                f"{spec.name} gives other results with packed weights: {runner.architecture} needs a fix"
            )
        return runner

    @classmethod
    def _read_checked(cls, spec: ModelSpec, device: str) -> "SentenceTransformer | CrossEncoder":
        check_config_file(spec)
        dtype = _DTYPES.get(spec.dtype, torch.float32 if device == "cpu" else "auto")
        try:
            model = cls.read(
                spec,
                device=device,
                local_files_only=True,
                trust_remote_code=spec.trust_remote_code,
                model_kwargs={"dtype": dtype, "use_safetensors": True},
            )
        # Missing or broken files, wrong shapes, an optional library that is not installed.
        except (OSError, ValueError, RuntimeError, ImportError, KeyError, TypeError) as error:
            raise ModelLoadError(f"{spec.name} cannot be loaded from {spec.path}: {error}") from error
        transformer = getattr(model[0], "auto_model", None)
        if transformer is None or not hasattr(transformer.config.get_text_config(), "vocab_size"):
            raise UnsupportedModelError(
                f"{spec.name} starts with a {type(model[0]).__name__}; only models that start with a transformer over "
                "token ids can be served"
            )
        # Model and card hold each other, so that an unloaded model's memory would wait for the garbage collector.
        model.model_card_data.model = None
        model.requires_grad_(False)
        return model.eval()

    @torch.inference_mode()
    def launch(self, inputs: list[list[int]], second_starts: Sequence[int] = ()) -> LaunchedTexts:
        """Compute texts. A GPU is only told to.

        Args:
            inputs: token ids below `vocab_size`, special tokens included, each text of 1 to `max_model_len`.
            second_starts: of pairs of texts, where in each input the second one starts; empty: there are no pairs.

        Returns:
            Gives a row for each input.
        """
        starts = second_starts or [len(token_ids) for token_ids in inputs]
        groups = length_groups([len(token_ids) for token_ids in inputs], *self._pass_limits)
        rows = torch.cat([self._pass([(inputs[index], starts[index]) for index in group]) for group in groups])
        return LaunchedTexts(rows, [index for group in groups for index in group])

    def execute(self, inputs: list[list[int]], second_starts: Sequence[int] = ()) -> npt.NDArray[np.float32]:
        """`launch`, and wait for the rows."""
        return self.launch(inputs, second_starts).collect()

    def _pass(self, texts: list[tuple[list[int], int]]) -> torch.Tensor:
        """Texts with the starts of their second part, the first the longest, to [len(texts), output_dim] float32."""
        token_ids = np.full((len(texts), len(texts[0][0])), self._pad_token_id, np.int64)
        attention_mask = np.zeros(token_ids.shape, np.int64)
        for row, (text, _) in enumerate(texts):
            token_ids[row, : len(text)] = text
            attention_mask[row, : len(text)] = 1
        # Padding goes to the right whatever the tokenizer says: pooling reads the mask, and positions start at 0.
        starts = np.array([start for _, start in texts], np.int64)
        ids, mask, second_starts = upload([token_ids, attention_mask, starts], self.device)
        return self.forward({"input_ids": ids, "attention_mask": mask}, second_starts).float()


def _max_model_len(spec: ModelSpec, model: "SentenceTransformer | CrossEncoder") -> int:
    """What the folder allows, lowered to what the spec asks for."""
    config = model[0].auto_model.config.get_text_config()
    limits = [limit for limit in (model.max_seq_length, getattr(config, "max_position_embeddings", None)) if limit]
    for name, module in model.named_modules():
        # RoBERTa counts positions from padding_idx + 1, so that many of its table's rows are never used.
        if name.endswith("position_embeddings") and getattr(module, "padding_idx", None) is not None:
            limits.append(module.num_embeddings - module.padding_idx - 1)
    allowed = int(min(limits))
    if spec.max_model_len > allowed:
        raise ModelLoadError(
            f"{spec.name} takes at most {allowed} tokens, but max_model_len is {spec.max_model_len}; lower it"
        )
    return spec.max_model_len or allowed
