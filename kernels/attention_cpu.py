"""Paged attention on the CPU: a few large torch operations for all requests of a step, none of them per request.

For each bucket of the step's plan: gather the keys' pages, multiply, softmax, gather the values' pages, multiply. The
query heads that share a kv head are the rows of one matrix product, so that the keys are read once for all of them:
torch's own attention took ten times as long at 32 requests. The softmax is computed in float32; scores and weights are
of the query's dtype, as in transformers' eager attention.

Legend: T packed tokens, U units of a bucket, q tokens of a unit, C keys of a unit, H query heads, K kv heads,
G = H / K, D head dim (Dv of the values), B blocks, S block size.
"""

import torch

from .attention_batch import AttentionBatch
from .attention_cpu_plan import Bucket, LayerKind, Plan, make_plan
from .cache_write_cpu import as_pages, clear_rows, pages_per_block
from .checks import check_attention


def attend(
    query: torch.Tensor,
    key_cache: torch.Tensor,
    value_cache: torch.Tensor,
    batch: AttentionBatch,
    scale: float,
    sliding_window: int | None = None,
    softcap: float | None = None,
    sinks: torch.Tensor | None = None,
) -> torch.Tensor:
    """`cached_attention` for CPU tensors; same arguments, same result."""
    num_tokens, num_heads, head_dim = query.shape
    _, num_kv_heads, _, value_head_dim = value_cache.shape
    kind = LayerKind(
        num_heads,
        num_kv_heads,
        head_dim,
        value_head_dim,
        key_cache.dtype,
        sliding_window,
        pages_per_block(key_cache),
        pages_per_block(value_cache),
    )
    plan: Plan | None = batch.plans.get(kind)
    if plan is None:
        check_attention(query, key_cache, value_cache, len(batch.host.slot_mapping), batch.block_size, sinks)
        plan = batch.plans[kind] = make_plan(batch, kind)

    key_pages, value_pages = as_pages(key_cache), as_pages(value_cache)  # [pages, S * D]
    # One decode step in S clears slots; 4 microseconds a cache, 34 if 32 rows begin a block at once.
    if plan.cleared_keys is not None and plan.cleared_values is not None:
        clear_rows(key_pages, head_dim, plan.cleared_keys)
        clear_rows(value_pages, value_head_dim, plan.cleared_values)

    scaled = query * scale
    output = query.new_empty(num_tokens, num_heads, value_head_dim)
    for bucket in plan.buckets:
        _attend_bucket(scaled, key_pages, value_pages, bucket, output, num_kv_heads, softcap, sinks)
    return output


def _attend_bucket(
    query: torch.Tensor,
    key_pages: torch.Tensor,
    value_pages: torch.Tensor,
    bucket: Bucket,
    output: torch.Tensor,
    num_kv_heads: int,
    softcap: float | None,
    sinks: torch.Tensor | None,
) -> None:
    """Write the attention of the bucket's tokens into `output` [T, H, Dv]; `query` [T, H, D] is scaled."""
    _, num_heads, head_dim = query.shape
    value_head_dim = output.shape[2]
    units, length, tokens = bucket.num_units, bucket.unit_len, bucket.tokens
    group = num_heads // num_kv_heads
    matrices = (units * num_kv_heads, group * length)

    rows = query[tokens] if isinstance(tokens, slice) else query.index_select(0, tokens)  # [U * q, H, D]
    if length > 1:
        rows = rows.view(units, length, num_kv_heads, group, head_dim).permute(0, 2, 3, 1, 4)  # [U, K, G, q, D]
    torch.index_select(key_pages, 0, bucket.key_index, out=bucket.key_pages)
    scores = torch.bmm(rows.reshape(*matrices, head_dim), bucket.keys_t)  # [U * K, G * q, C]
    if softcap is not None:
        scores.div_(softcap).tanh_().mul_(softcap)
    if bucket.mask is not None:
        masked_keys = bucket.mask.shape[3]
        scores.view(units, num_heads, length, -1)[..., -masked_keys:].add_(bucket.mask)
    weights = torch.softmax(scores, dim=-1)
    torch.index_select(value_pages, 0, bucket.value_index, out=bucket.value_pages)

    if length == 1 and sinks is None and isinstance(tokens, slice):
        torch.bmm(weights, bucket.values, out=output[tokens].view(*matrices, value_head_dim))
        return
    result = torch.bmm(weights, bucket.values).view(units, num_heads, length, value_head_dim)
    if sinks is not None:
        # A sink takes its share of the softmax and gives nothing: what is left is sigmoid(logsumexp(scores) - sink).
        total = scores.float().logsumexp(dim=-1).view(units, num_heads, length, 1)
        result = result.mul_(torch.sigmoid(total - sinks.float().view(num_heads, 1, 1)))
    packed = result.transpose(1, 2)  # [U, q, H, Dv]
    if isinstance(tokens, slice):
        output[tokens].view(packed.shape).copy_(packed)
    else:
        output.index_copy_(0, tokens, packed.reshape(-1, num_heads, value_head_dim))
