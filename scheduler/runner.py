"""Runs one generation model: a packed batch of all scheduled tokens in, the sampled tokens out.

Nothing may enter the path of `launch` that costs Python work per layer, or per row beyond a few list appends, or that
waits for a GPU: it may be called for the next step while the device computes this one.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace

import torch
from transformers import PreTrainedModel

from penstock.kernels.attention import AttentionBatch
from penstock.kernels.quantize_fp8 import FP8
from penstock.kernels.sampling import sample_rows

from . import device as devices
from .batch import LastTokens, build_inputs, only_decodes, pack_rows
from .block_tables import BlockTables
from .config import EngineConfig, ModelSpec
from .context import PagedContext, Trial, forward_context
from .errors import ModelLoadError, PenstockError
from .grammar import GrammarCompiler
from .graphs import Capture, CudaCapture, DecodeGraphs
from .layer_cache import KVScales, LayerCache, LayerShape, bytes_per_block, view_caches
from .masks import MaskFiller
from .models import self_check
from .models.admission import PROVEN
from .models.fused_decoder import FusedDecoder
from .models.kv_scales import NUM_TOKENS, measure_scales
from .models.load import eos_token_ids, load_decoder
from .models.quantize import quantize
from .models.surgery import speed_up
from .plan import GenerationBatch, SampledToken, ScheduledRow
from .request import BlockId, Request
from .results import LaunchedBatch, SampledRows
from .sampling import Sampler, row_params, wants_logits
from .sampling_params import SamplingParams

_READING_SHARE = 0.5  # of the loading time; packing the weights takes about as long


class GenerationRunner:
    """One resident decoder with its KV cache.

    Attributes:
        name: the id clients use.
        architecture: class name of the model.
        device: where it runs.
        dtype: of its weights.
        max_model_len: longest sequence, prompt and output together.
        vocab_size: number of token ids.
        eos_token_ids: tokens that end a sequence.
        num_parameters: shared ones counted once.
        grammars: compiles grammars for its tokenizer.
    """

    def __init__(
        self,
        spec: ModelSpec,
        model: PreTrainedModel,
        max_model_len: int,
        shapes: dict[int, LayerShape],
        block_size: int,
        max_num_seqs: int,
    ) -> None:
        """Use `load`; this takes a model whose attention is the paged one and the shapes of its layers."""
        self.name = spec.name
        self.architecture = type(model).__name__
        self.device = model.device
        self.dtype = model.dtype
        self.max_model_len = max_model_len
        self.vocab_size: int = model.config.vocab_size
        self.eos_token_ids = eos_token_ids(model)
        self.num_parameters: int = model.num_parameters()
        self._model = model
        self._shapes = shapes
        self._block_size = block_size
        self._kv_scales: dict[int, KVScales] | None = None
        """Of keys and values in float8."""
        self._caches: dict[int, LayerCache] = {}
        self._tables = BlockTables(max_num_seqs, -(-max_model_len // block_size), self.device)
        self._last: LastTokens | None = None
        self._graphs: DecodeGraphs | None = None
        self._sampler = Sampler(self.vocab_size, self.eos_token_ids, self.device)
        self.grammars = GrammarCompiler(spec.path, self.vocab_size, self.eos_token_ids)
        self._masks = MaskFiller(self.vocab_size, self.eos_token_ids, self.device)

    @classmethod
    def load(cls, spec: ModelSpec, config: EngineConfig, progress: Callable[[str, float], None]) -> "GenerationRunner":
        """Load, check and speed up the model of `spec`.

        Args:
            spec: which model and how.
            config: of the engine; its device and thread count are resolved here if they are still automatic.
            progress: gets the stage in words and the share of all stages that is done, 0 to 1.

        Raises:
            ModelLoadError: the folder cannot be loaded as asked.
            UnsupportedModelError: its architecture would give wrong answers.
        """
        config = devices.resolve(config)
        if config.device == "cuda" and not torch.cuda.is_available():
            raise ModelLoadError("device is cuda, but PyTorch sees no CUDA device: use device cpu")
        device = torch.device(config.device)
        model, max_model_len = load_decoder(
            spec, device, lambda done: progress("reading weights", done * _READING_SHARE)
        )
        return cls.prepare(spec, model, max_model_len, config, progress)

    @classmethod
    def prepare(
        cls,
        spec: ModelSpec,
        model: PreTrainedModel,
        max_model_len: int,
        config: EngineConfig,
        progress: Callable[[str, float], None],
    ) -> "GenerationRunner":
        """Check and speed up a model that is in memory.

        Args:
            spec: what it was loaded from; a model without a folder serves requests without grammars.
            model: with the paged attention, on the device where it is to run.
            max_model_len: its longest sequence.
            config: of the engine.
            progress: as for `load`.

        Raises:
            ModelLoadError: its code fails, or not every layer comes through the paged attention.
            UnsupportedModelError: it would give wrong answers.
        """
        proven = model.config.model_type in PROVEN
        with _model_code(spec.name):
            expected = None if proven else self_check.single_logits(model)
            runner = cls(spec, model, max_model_len, _probe_shapes(model), config.block_size, config.max_num_seqs)
            speed_up(model, lambda done: progress("packing weights", _READING_SHARE + done * (1 - _READING_SHARE)))
            # A little memory of its own to try the model out in; `use_kv_memory` follows when it is to serve.
            runner._use_blocks(self_check.NUM_BLOCKS)
            if expected is not None:
                self_check.check_packed(model, runner._caches, config.block_size, expected)
            quantize(model, spec)
            if spec.kv_cache_dtype == "fp8":
                runner._store_float8()
            devices.return_memory(runner.device.type)  # what packing and rounding have freed
            runner.warm_up()
            if runner.device.type == "cuda":
                runner.use_graphs(CudaCapture())
        return runner

    def use_graphs(self, capture: Capture) -> None:
        """Run steps of single tokens as graphs that `capture` makes."""
        self._graphs = DecodeGraphs(
            capture,
            self._forward,
            lambda logits, params: sample_rows(logits[:, : self.vocab_size], params),
            self._tables,
            block_size=self._block_size,
            vocab_size=self.vocab_size,
            dtype=self.dtype,
        )

    @property
    def kv_bytes_per_block(self) -> int:
        """Bytes of one KV block over all layers."""
        return bytes_per_block(self._shapes, self._block_size)

    def leave_kv_memory(self) -> None:
        """Hold on to it no more; `use_kv_memory` follows before the next step."""
        self._caches = {}
        if self._graphs:
            self._graphs.forget()

    def use_kv_memory(self, memory: torch.Tensor) -> None:
        """Keep keys and values in `memory` from now on, a flat tensor of bytes with room for at least one block."""
        self.leave_kv_memory()
        self._caches = view_caches(memory, self._shapes, self._block_size, self._kv_scales)

    def _use_blocks(self, num_blocks: int) -> None:
        """Take memory of this model's own for so many blocks."""
        num_bytes = num_blocks * self.kv_bytes_per_block
        self.use_kv_memory(torch.zeros(num_bytes, dtype=torch.uint8, device=self.device))

    def _store_float8(self) -> None:
        """Keep keys and values in float8 from now on, in half the memory."""
        self._use_blocks(max(1, min(NUM_TOKENS, self.max_model_len) // self._block_size))
        self._kv_scales = measure_scales(self._model, self._caches)
        self._shapes = {index: replace(shape, dtype=FP8) for index, shape in self._shapes.items()}
        self._use_blocks(1)

    def warm_up(self) -> None:
        """Run a small prompt and one decode step the way `execute` does; overwrites block 0.

        The first steps are slow: libraries prepare themselves, and a GPU's kernels are compiled.

        Raises:
            ModelLoadError: not every layer came through the paged attention exactly once.
        """
        request = self._trial_request()
        for start, num_tokens in ((0, 2), (2, 1)):
            rows = [ScheduledRow(request, start, num_tokens)]
            launched, layers_run = self._run(GenerationBatch(self.name, rows))
            (sampled,) = launched.collect()
            if sorted(layers_run) != sorted(self._shapes):
                raise ModelLoadError(
                    f"{self.name}: a step attended in layers {layers_run}, but the model has {sorted(self._shapes)}"
                )
            request.token_ids.append(sampled.token_id)

    def _trial_request(self, index: int = 0) -> Request:
        """Two tokens in block 0."""
        return Request(
            request_id=f"trial-{index}",
            model=self.name,
            prompt_token_ids=[0, 0],
            sampling=SamplingParams(max_tokens=2, seed=0, temperature=0.0),
            arrival_time=0.0,
            token_ids=[0, 0],
            block_ids=[BlockId(0)],
        )

    @property
    def is_native(self) -> bool:
        """Whether all layers run as one call of the CPU's native kernels."""
        base_model = self._model.base_model
        return isinstance(base_model, FusedDecoder) and base_model.is_native

    def try_decode(self, num_rows: int) -> None:
        """Run a decode step of so many rows, as `warm_up` does; overwrites block 0."""
        rows = [ScheduledRow(self._trial_request(index), 1, 1) for index in range(num_rows)]
        self.execute(GenerationBatch(self.name, rows))

    def launch(self, batch: GenerationBatch) -> LaunchedBatch:
        """Compute every row's tokens, write their keys and values, and sample one token for each row that samples.

        A GPU is only told to; this returns before it has. Of the tokens that a row computes, the newest may be one that
        the launch before has sampled and that nobody has collected yet.

        Returns:
            Gives the sampled tokens, `num_sampled` of each row, in row order.
        """
        try:
            if self._graphs and only_decodes(batch.rows) and self._graphs.takes(len(batch.rows)):
                return self._run_graph(self._graphs, batch)
            return self._run(batch)[0]
        except Exception:
            self._tables.forget()  # what the device holds of them is unknown
            raise

    def execute(self, batch: GenerationBatch) -> list[SampledToken]:
        """`launch`, and wait for the tokens."""
        return self.launch(batch).collect()

    def _run(self, batch: GenerationBatch) -> tuple[LaunchedBatch, list[int]]:
        inputs = build_inputs(batch, self._tables, self._block_size, self.device, self._last)
        masks = self._masks.start(inputs.sampling_requests)
        context = PagedContext(inputs.attention, self._caches)
        with torch.inference_mode(), forward_context(context):
            if inputs.logits_indices is None:
                # Chunks in the middle of prompts: nobody reads their logits, so the head is left out.
                self._model.base_model(input_ids=inputs.input_ids, position_ids=inputs.position_ids, use_cache=False)
                return LaunchedBatch(self.device), context.layers_run
            logits = self._model(
                input_ids=inputs.input_ids,
                position_ids=inputs.position_ids,
                use_cache=False,
                logits_to_keep=inputs.logits_indices,
            ).logits[0]  # [rows that sample and prompt tokens, V]
            requests = inputs.sampling_requests
            scored = self._sampler.score_prompts(logits[len(requests) :], inputs.prompt_spans)
            if not requests:
                return LaunchedBatch(self.device, None, inputs.prompt_spans, scored), context.layers_run
            sampled = self._sampler.sample(logits[: len(requests)], requests, masks, inputs.num_ahead)
            self._last = LastTokens(sampled.token_ids, {request: row for row, request in enumerate(requests)})
            return LaunchedBatch(self.device, sampled, inputs.prompt_spans, scored), context.layers_run

    def _run_graph(self, graphs: DecodeGraphs, batch: GenerationBatch) -> LaunchedBatch:
        requests = [row.request for row in batch.rows]
        packed = pack_rows(batch, self._tables, self._block_size, self._last)
        with torch.inference_mode():
            if any(map(wants_logits, requests)):
                masks = self._masks.start(requests)
                sampled = self._sampler.sample(graphs.logits(packed, self._last), requests, masks)
            else:
                params = row_params(requests, self.vocab_size)
                sampled = SampledRows(graphs.sample(packed, params, self._last), [], None)
        self._last = LastTokens(sampled.token_ids, {request: row for row, request in enumerate(requests)})
        return LaunchedBatch(self.device, sampled)

    def _forward(self, input_ids: torch.Tensor, position_ids: torch.Tensor, batch: AttentionBatch) -> torch.Tensor:
        """Logits [T, V] of all tokens; both arguments are [1, T]."""
        with forward_context(PagedContext(batch, self._caches)):
            logits: torch.Tensor = self._model(input_ids=input_ids, position_ids=position_ids, use_cache=False).logits[
                0
            ]
        return logits


def _probe_shapes(model: PreTrainedModel) -> dict[int, LayerShape]:
    """What each layer caches, by layer index, found by one forward pass of two tokens."""
    trial = Trial()
    tokens = torch.zeros(1, 2, dtype=torch.int64, device=model.device)
    positions = torch.arange(2, device=model.device).unsqueeze(0)
    with torch.inference_mode(), forward_context(trial):
        model(input_ids=tokens, position_ids=positions, use_cache=False)
    if not trial.calls:
        raise ModelLoadError(f"{type(model).__name__} never called the attention function it was given")
    return {call.layer_idx: call.shape for call in trial.calls}


@contextmanager
def _model_code(name: str) -> Iterator[None]:
    """Turns whatever a model's own code raises while it is tried out into a `ModelLoadError`."""
    try:
        yield
    except (PenstockError, torch.OutOfMemoryError):
        raise
    except Exception as error:  # the code is a stranger's: any error at all means that the model does not run here
        raise ModelLoadError(f"{name} fails in its first forward pass: {type(error).__name__}: {error}") from error
