"""Triton kernels that sample one token a row, without a sort: the argmax, or a draw from what the filters keep.

The first kernel goes once over all logits, many programs a row, and leaves of each chunk the maximum and the mass. The
second one, one program a row, needs no more for the argmax, and one chunk again for a draw from the whole vocabulary.
Filters are pivot searches: bisection for the logit that ends the prefix, among the few candidates that a bound leaves.

Legend: R rows, V vocabulary, C chunks of a row, G groups of a row's logits, n candidates.
"""

# Arguments of Triton kernels are device pointers and numbers, for which Python has no types.
# mypy: disable-error-code="no-untyped-def, no-untyped-call, untyped-decorator"

import torch
import triton
import triton.language as tl

CHUNK, TILE = 2048, 4096
MAX_CANDIDATES = 8192  # kept aside for the search; a row with more is searched as a whole
GROUP = 32
_LARGEST = tl.constexpr(3.4028234663852886e38)
_SLACK = tl.constexpr(1e-3)  # of the exponents of bounds, far above their rounding errors


@triton.jit
def _load(values, index, count):
    """Logits at `index`: NaN is -inf, +inf the largest number, and what lies beyond `count` is -inf."""
    x = tl.load(values + index, mask=index < count, other=float("-inf")).to(tl.float32)
    return tl.where(x != x, float("-inf"), tl.minimum(x, _LARGEST))


@triton.jit
def _first_beyond(mass, index, target):
    """First of the indices [N] at which the running sum of `mass` [N] exceeds `target`; the last of any if none does.

    An index of mass 0 never counts.
    """
    nowhere: tl.constexpr = 2147483647
    positive = mass > 0
    first = tl.min(tl.where(positive & (tl.cumsum(mass, 0) > target), index, nowhere), 0)
    last = tl.max(tl.where(positive, index, 0), 0)
    return tl.where(first == nowhere, last, first)


@triton.jit
def _mass_above(values, count, pivot, maximum, temperature, WEIGHTED: tl.constexpr, TILE: tl.constexpr):
    """Mass of the `values` above `pivot`, of their weights or of 1 each; the nearest value up to it, and above it."""
    mass = tl.zeros([TILE], tl.float64)
    up_to = tl.full([TILE], float("-inf"), tl.float32)
    above = tl.full([TILE], float("inf"), tl.float32)
    for start in range(0, count, TILE):
        x = _load(values, start + tl.arange(0, TILE), count)
        larger = x > pivot
        up_to = tl.maximum(up_to, tl.where(larger, float("-inf"), x))
        above = tl.minimum(above, tl.where(larger, x, float("inf")))
        if WEIGHTED:
            mass += tl.where(larger, tl.exp((x - maximum) / temperature), 0.0).to(tl.float64)
        else:
            mass += larger.to(tl.float64)
    return tl.sum(mass, 0), tl.max(up_to, 0), tl.min(above, 0)


@triton.jit
def _find_pivot(values, count, wanted, lowest, maximum, temperature, WEIGHTED: tl.constexpr, TILE: tl.constexpr):
    """The smallest of the `values` above which lies less mass than `wanted`, and that mass; `lowest` if all are such.

    `maximum` is the largest value, and none that matters is below `lowest`.
    """
    low, high, mass = lowest, maximum, tl.full([], 0.0, tl.float64)
    while low < high:
        middle = low * 0.5 + high * 0.5
        middle = tl.where(middle < high, middle, low)
        beyond, up_to, above = _mass_above(values, count, middle, maximum, temperature, WEIGHTED, TILE)
        enough = beyond < wanted
        # Steps go from value to value, so there are few.
        high = tl.where(enough, tl.maximum(up_to, low), high)
        mass = tl.where(enough, beyond, mass)
        low = tl.where(enough, low, above)
    return high, mass


@triton.jit
def _scan(values, count, pivot, num_ties, floor, maximum, temperature, target, TILE: tl.constexpr):
    """Mass of the kept values, and the first index at which their running mass exceeds `target`, else the last one.

    Kept are those above `pivot` and the first `num_ties` equal to it, of weight `floor` or more.
    """
    nowhere: tl.constexpr = 2147483647
    running, seen = tl.full([], 0.0, tl.float64), tl.full([], 0, tl.int32)
    first = tl.full([], nowhere, tl.int32)
    last = tl.full([], 0, tl.int32)
    for start in range(0, count, TILE):
        index = start + tl.arange(0, TILE)
        x = _load(values, index, count)
        weight = tl.exp((x - maximum) / temperature)
        ties = (x == pivot).to(tl.int32)
        early = (tl.cumsum(ties, 0) + seen) <= num_ties
        kept = ((x > pivot) | ((x == pivot) & early)) & (weight >= floor) & (weight > 0)
        mass = tl.where(kept, weight, 0.0).to(tl.float64)
        beyond = kept & (running + tl.cumsum(mass, 0) > target)
        first = tl.minimum(first, tl.min(tl.where(beyond, index, nowhere), 0))
        last = tl.maximum(last, tl.max(tl.where(kept, index, 0), 0))
        running += tl.sum(mass, 0)
        seen += tl.sum(ties, 0)
    return running, tl.where(first == nowhere, last, first)


@triton.jit
def _draw_kept(
    values, count, whole_mass, bound, maximum, temperature, top_k, top_p, min_p, uniform, vocab_size, TILE: tl.constexpr
):
    """Index of the drawn one of the `values`, which hold all that the filters may keep.

    `whole_mass` is that of the vocabulary, for a row without top-k.
    """
    pivot, mass, num_ties = bound, whole_mass, vocab_size
    if top_k < vocab_size:
        pivot, above_k = _find_pivot(values, count, top_k.to(tl.float64), bound, maximum, temperature, False, TILE)
        num_ties = top_k - above_k.to(tl.int32)
        mass, _ = _scan(values, count, pivot, num_ties, 0.0, maximum, temperature, float("inf") + top_p, TILE)
    if top_p < 1.0:
        wanted = top_p * mass
        last, above = _find_pivot(values, count, wanted, pivot, maximum, temperature, True, TILE)
        weight = tl.exp((last - maximum) / temperature).to(tl.float64)
        # Never more than V, also where the weight is 0.
        needed = tl.minimum(tl.maximum(tl.ceil((wanted - above) / weight), 1.0), vocab_size.to(tl.float64))
        num_ties = tl.where(last > pivot, needed.to(tl.int32), tl.minimum(num_ties, needed.to(tl.int32)))
        pivot = last
    kept_mass, _ = _scan(values, count, pivot, num_ties, min_p, maximum, temperature, float("inf") + top_p, TILE)
    _, index = _scan(values, count, pivot, num_ties, min_p, maximum, temperature, uniform * kept_mass, TILE)
    return index


@triton.jit
def sampling_chunks_kernel(
    logits,
    params,
    chunk_maxima,
    chunk_argmaxes,
    chunk_masses,
    group_maxima,
    vocab_size,
    num_chunks,
    logits_stride_r,
    CHUNK: tl.constexpr,
    GROUP: tl.constexpr,
):
    """One program for one chunk of one row: its maximum and where, its mass relative to that, and maxima of groups."""
    row, chunk = tl.program_id(0).to(tl.int64), tl.program_id(1)
    index = chunk * CHUNK + tl.arange(0, CHUNK)
    x = _load(logits + row * logits_stride_r, index, vocab_size)
    largest = tl.max(x, 0)
    place = row * num_chunks + chunk
    tl.store(chunk_maxima + place, largest)
    tl.store(chunk_argmaxes + place, tl.min(tl.where(x == largest, index, 2147483647), 0))
    temperature = tl.load(params + row * 5).to(tl.float32)
    if temperature > 0.0:
        below = x - tl.maximum(largest, -_LARGEST)
        tl.store(chunk_masses + place, tl.sum(tl.exp(below / temperature).to(tl.float64), 0))
        groups: tl.constexpr = CHUNK // GROUP
        group = tl.max(tl.reshape(x, [groups, GROUP]), 1)
        tl.store(group_maxima + place * groups + tl.arange(0, groups), group)


@triton.jit
def sampling_choice_kernel(
    logits,
    params,
    chunk_maxima,
    chunk_argmaxes,
    chunk_masses,
    group_maxima,
    candidate_values,
    candidate_ids,
    token_ids,
    vocab_size,
    num_chunks,
    logits_stride_r,
    CHUNK: tl.constexpr,
    GROUP: tl.constexpr,
    PADDED_CHUNKS: tl.constexpr,
    TILE: tl.constexpr,
    MAX_CANDIDATES: tl.constexpr,
):
    """One program for one row: its token."""
    row = tl.program_id(0).to(tl.int64)
    logits += row * logits_stride_r
    params += row * 5
    temperature = tl.load(params).to(tl.float32)
    top_k = tl.minimum(tl.load(params + 1), vocab_size.to(tl.float64)).to(tl.int32)
    top_p = tl.load(params + 2)
    min_p = tl.load(params + 3).to(tl.float32)
    uniform = tl.load(params + 4)

    chunk = tl.arange(0, PADDED_CHUNKS)
    place = row * num_chunks + chunk
    maxima = tl.load(chunk_maxima + place, mask=chunk < num_chunks, other=float("-inf"))
    largest = tl.max(maxima, 0)
    maximum = tl.maximum(largest, -_LARGEST)  # finite, so that the difference to it is never NaN
    best = tl.min(tl.where(maxima == largest, chunk, 2147483647), 0)
    token = tl.load(chunk_argmaxes + row * num_chunks + best)
    if (temperature > 0.0) & (largest > float("-inf")):
        share = tl.exp((maxima - maximum) / temperature).to(tl.float64)
        mass = tl.load(chunk_masses + place, mask=chunk < num_chunks, other=0.0) * share
        whole_mass = tl.sum(mass, 0)
        if (top_k < vocab_size) | (top_p < 1.0) | (min_p > 0.0):
            bound = -_LARGEST + maximum * 0.0
            num_groups = num_chunks * (CHUNK // GROUP)
            if top_k < vocab_size:
                if top_k <= num_groups:
                    # So many groups have a logit of at least this, each its own.
                    groups = group_maxima + row * num_groups
                    wanted = top_k.to(tl.float64)
                    bound, _ = _find_pivot(groups, num_groups, wanted, bound, maximum, temperature, False, TILE)
            else:
                # Tokens of less weight have, all together, less mass than top_p leaves out.
                spared = tl.maximum((1.0 - top_p) * whole_mass / vocab_size, min_p.to(tl.float64)).to(tl.float32)
                bound = tl.maximum(maximum + temperature * (tl.log(spared) - _SLACK), bound)
            candidate_values += row * MAX_CANDIDATES
            candidate_ids += row * MAX_CANDIDATES
            count = tl.full([], 0, tl.int32)
            for start in range(0, vocab_size, TILE):
                index = start + tl.arange(0, TILE)
                x = _load(logits, index, vocab_size)
                chosen = x >= bound
                slot = count + tl.cumsum(chosen.to(tl.int32), 0) - 1
                fits = chosen & (slot < MAX_CANDIDATES)
                tl.store(candidate_values + slot, x, mask=fits)
                tl.store(candidate_ids + slot, index, mask=fits)
                count += tl.sum(chosen.to(tl.int32), 0)
            tl.debug_barrier()  # other threads of the program read them
            if count <= MAX_CANDIDATES:
                index = _draw_kept(
                    candidate_values, count, whole_mass, bound, maximum, temperature,
                    top_k, top_p, min_p, uniform, vocab_size, TILE,
                )  # fmt: skip
                token = tl.load(candidate_ids + index)
            else:
                token = _draw_kept(
                    logits, vocab_size, whole_mass, bound, maximum, temperature,
                    top_k, top_p, min_p, uniform, vocab_size, TILE,
                )  # fmt: skip
        else:
            target = uniform * whole_mass
            drawn = _first_beyond(mass, chunk, target)
            target -= tl.sum(tl.where(chunk < drawn, mass, 0.0), 0)
            index = drawn * CHUNK + tl.arange(0, CHUNK)
            weight = tl.exp((_load(logits, index, vocab_size) - maximum) / temperature)
            token = _first_beyond(weight.to(tl.float64), index, target)
    tl.store(token_ids + row, tl.where(largest > float("-inf"), token, 0).to(tl.int64))


def sample_rows_triton(
    logits: torch.Tensor,
    params: torch.Tensor,
    chunk: int = CHUNK,
    tile: int = TILE,
    max_candidates: int = MAX_CANDIDATES,
) -> torch.Tensor:
    """`sampling.sample_rows`.

    Args:
        logits: [R, V] of any float dtype, contiguous in V.
        params: [R, 5] float64.
        chunk: logits of one program of the first kernel, a power of 2 and of at least `GROUP`.
        tile: logits that the second kernel looks at together, a power of 2.
        max_candidates: kept aside for the search in each row.
    """
    num_rows, vocab_size = logits.shape
    token_ids = torch.empty(num_rows, dtype=torch.int64, device=logits.device)
    if not num_rows:
        return token_ids
    num_chunks = triton.cdiv(vocab_size, chunk)
    empty = token_ids.new_empty
    chunk_maxima = empty(num_rows, num_chunks, dtype=torch.float32)
    chunk_argmaxes = empty(num_rows, num_chunks, dtype=torch.int32)
    chunk_masses = empty(num_rows, num_chunks, dtype=torch.float64)
    group_maxima = empty(num_rows, num_chunks * (chunk // GROUP), dtype=torch.float32)
    candidate_values = empty(num_rows, max_candidates, dtype=torch.float32)
    candidate_ids = empty(num_rows, max_candidates, dtype=torch.int32)
    params = params.contiguous()
    left = (chunk_maxima, chunk_argmaxes, chunk_masses, group_maxima)
    sizes = (vocab_size, num_chunks, logits.stride(0))
    sampling_chunks_kernel[(num_rows, num_chunks)](logits, params, *left, *sizes, CHUNK=chunk, GROUP=GROUP)
    sampling_choice_kernel[(num_rows,)](
        *(logits, params, *left, candidate_values, candidate_ids, token_ids, *sizes),
        CHUNK=chunk,
        GROUP=GROUP,
        PADDED_CHUNKS=triton.next_power_of_2(num_chunks),
        TILE=tile,
        MAX_CANDIDATES=max_candidates,
        num_warps=8,
    )
    return token_ids
