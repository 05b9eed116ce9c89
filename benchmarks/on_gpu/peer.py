"""transformers' continuous batching as a peer: as it comes, and as well configured as it can be.

As it comes, on a machine without the flash-attn package, it gathers the keys of all requests into one dense attention:
beating that proves little. As well configured as it can be, it gets what such a machine lacks: PyTorch's own flash
attention for prompts, our paged decode kernel for decoding, CUDA graphs, asynchronous batching and compilation. The
second is the one to compare with: what differs then is the engine, not its attention.
"""

import time
from dataclasses import dataclass
from typing import Any

import torch
import transformers
import transformers.modeling_flash_attention_utils as flash_utils
from transformers import GenerationConfig, PreTrainedModel
from transformers.generation import ContinuousBatchingConfig

from penstock.kernels.attention_batch import AttentionBatch
from penstock.kernels.attention_decode import attend_decode
from penstock.kernels.cache_write_triton import cache_write_triton

from .workloads import Workload

PAGE_SIZE = 256


def varlen(
    q: torch.Tensor,  # [T, H, D]
    k: torch.Tensor,  # [C, K, D]
    v: torch.Tensor,  # [C, K, D]
    cu_seqlens_q: torch.Tensor,
    cu_seqlens_k: torch.Tensor,
    max_seqlen_q: int,
    max_seqlen_k: int,
    softmax_scale: float | None = None,
    causal: bool = False,
    window_size: tuple[int, int] = (-1, -1),
    **others: Any,
) -> torch.Tensor:
    """flash-attn's function of this name by the copy of it inside PyTorch; rows of queries end where their keys end."""
    if q.is_cuda:
        attended: torch.Tensor = torch.ops.aten._flash_attention_forward(
            q, k, v, cu_seqlens_q, cu_seqlens_k, max_seqlen_q, max_seqlen_k, 0.0, causal, False, scale=softmax_scale
        )[0]
        return attended
    output = torch.zeros_like(q)
    starts_q, starts_k = cu_seqlens_q.tolist(), cu_seqlens_k.tolist()
    for row in range(len(starts_q) - 1):
        queries = q[starts_q[row] : starts_q[row + 1]].transpose(0, 1)
        keys = k[starts_k[row] : starts_k[row + 1]].transpose(0, 1)
        values = v[starts_k[row] : starts_k[row + 1]].transpose(0, 1)
        num_queries, num_keys = queries.shape[1], keys.shape[1]
        if num_queries:
            mask = torch.ones(num_queries, num_keys, dtype=torch.bool).tril(num_keys - num_queries)
            part = torch.nn.functional.scaled_dot_product_attention(
                queries[None], keys[None], values[None], attn_mask=mask, scale=softmax_scale, enable_gqa=True
            )
            output[starts_q[row] : starts_q[row + 1]] = part[0].transpose(0, 1)
    return output


def with_kvcache(
    q: torch.Tensor,  # [B, 1, H, D]
    k_cache: torch.Tensor,  # [blocks, page, K, D]
    v_cache: torch.Tensor,
    k: torch.Tensor,  # [B, 1, K, D]
    v: torch.Tensor,
    cache_seqlens: torch.Tensor,  # [B] int32: tokens before this one; padding rows are negative
    softmax_scale: float | None = None,
    causal: bool = False,
    window_size: tuple[int, int] = (-1, -1),
    block_table: torch.Tensor | None = None,  # [B, max_blocks] int32, padded with -1
    **others: Any,
) -> torch.Tensor:
    """flash-attn's function of this name by our kernels: store the new keys and values, then attend to all."""
    assert block_table is not None
    num_rows, page = q.shape[0], k_cache.shape[1]
    position = cache_seqlens.long().clamp(min=0)
    block = block_table.gather(1, (position // page).unsqueeze(1)).squeeze(1).long()
    slots = torch.where((cache_seqlens >= 0) & (block >= 0), block * page + position % page, -1)
    key_cache, value_cache = k_cache.transpose(1, 2), v_cache.transpose(1, 2)  # [blocks, K, page, D]
    batch = AttentionBatch(
        block_table=block_table,
        seq_lens=torch.where(slots >= 0, position + 1, 0).int(),
        query_start_loc=torch.arange(num_rows + 1, dtype=torch.int32, device=q.device),
        slot_mapping=slots,
        num_decodes=num_rows,
        max_query_len=1,
        block_size=page,
        host=None,  # type: ignore[arg-type]  # only planning on a CPU reads it
    )
    cache_write_triton(k[:, 0], v[:, 0], key_cache, value_cache, batch)
    output = torch.empty_like(q[:, 0])
    attend_decode(
        q[:, 0], key_cache, value_cache, batch, output, softmax_scale or q.shape[-1] ** -0.5, None, None, None
    )
    return output.unsqueeze(1)


def lend_flash_attention(model: PreTrainedModel) -> None:
    """Let transformers take the two functions above for the flash-attn package."""

    def functions(*arguments: object, **options: object) -> tuple[Any, ...]:
        return None, varlen, with_kvcache, flash_utils._pad_input, flash_utils._unpad_input

    flash_utils._lazy_imports = functions
    before_5_22 = tuple(map(int, transformers.__version__.split(".")[:2])) < (5, 22)
    name = "paged|flash_attention_2" if before_5_22 else "flash_attention_2"
    model.config._attn_implementation = name  # the setter does not look for the package


@dataclass(frozen=True)
class Run:
    """Seconds from the first request to the last token, and what came out, by request."""

    seconds: float
    outputs: list[list[int]]

    @property
    def tokens_per_second(self) -> float:
        """Output tokens of all requests together."""
        return sum(map(len, self.outputs)) / self.seconds


def run(model: PreTrainedModel, workload: Workload, *, best: bool) -> Run:
    """Generate the workload greedily, after a warm-up that is not timed.

    Args:
        model: with sdpa attention.
        workload: what to generate.
        best: configured as well as it can be, else as it comes.
    """
    generation = GenerationConfig(do_sample=False, eos_token_id=-1, pad_token_id=0)
    options: dict[str, Any] = {"max_requests_per_batch": len(workload.prompts)}
    if best:
        lend_flash_attention(model)
        longest = max(map(sum, zip(map(len, workload.prompts), workload.output_lens, strict=True)))
        options["max_blocks_per_request"] = -(-longest // PAGE_SIZE) + 1
        if model.device.type == "cuda":
            options |= {"use_cuda_graph": True, "use_async_batching": True, "default_compile_level": 1}
    if model.device.type != "cuda":
        options |= {"num_blocks": 64, "max_batch_tokens": 512}
    manager_options: dict[str, Any] = {
        "generation_config": generation,
        "continuous_batching_config": ContinuousBatchingConfig(**options),
    }
    with model.continuous_batching_context_manager(block=True, timeout=5, warmup=best, **manager_options) as manager:
        started = time.perf_counter()
        request_ids = [
            manager.add_request(prompt, max_new_tokens=output_len, eos_token_id=-1)
            for prompt, output_len in zip(workload.prompts, workload.output_lens, strict=True)
        ]
        outputs: dict[str, list[int]] = {}
        while len(outputs) < len(request_ids):
            result = manager.get_result(timeout=1)
            if result is None:
                if not manager.is_running():
                    raise RuntimeError("transformers' generation thread ended")
                continue
            if result.error:
                raise RuntimeError(f"a request failed in transformers: {result.error}")
            if result.is_finished():
                outputs[result.request_id] = result.generated_tokens
        elapsed = time.perf_counter() - started
    return Run(elapsed, [outputs[request_id] for request_id in request_ids])
