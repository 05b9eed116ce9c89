"""Sampling in plain torch: the reference, and what a processor without native kernels runs.

Legend: R rows, V vocabulary, N candidates of a row, C chunks of a row.
"""

from typing import NamedTuple

import torch
from torch.nn import functional

_CHUNK = 256  # weights summed at once: the running sum is over V / 256 chunks, then over one chunk
# On a CPU a full sort of one row costs as much as the rest of sampling for four, and the kept tokens are nearly always
# among the first few hundred: look there first, then further.
_CPU_CANDIDATES = (256, 4096)


def sample_rows_torch(
    logits: torch.Tensor, params: torch.Tensor, candidates: tuple[int, ...] = _CPU_CANDIDATES
) -> torch.Tensor:
    """`sampling.sample_rows`; rows are treated in groups of one kind, so a batch costs what its dearest rows need.

    Args:
        logits: [R, V] of any float dtype.
        params: [R, 5] float64 on the same device.
        candidates: numbers of likeliest tokens among which a row's are looked for first; all of them in the end.
    """
    values = sanitize(logits)
    temperature, top_k, top_p, min_p, uniforms = params.unbind(1)
    vocab_size = logits.shape[1]
    greedy = temperature == 0.0
    filtered = ~greedy & ((top_k < vocab_size) | (top_p < 1.0))
    token_ids = torch.empty(len(values), dtype=torch.int64, device=values.device)
    for kind in (greedy, filtered, ~greedy & ~filtered):
        index = kind.nonzero().squeeze(1)
        if not len(index):
            continue
        part = values if len(index) == len(values) else values[index]
        if kind is greedy:
            token_ids[index] = argmax(part)
        elif kind is filtered:
            chosen = FilteredDraw(
                temperature[index].float(),
                uniforms[index],
                top_k[index].clamp(max=vocab_size).long(),
                top_p[index],
                min_p[index].float(),
            )
            token_ids[index] = _draw_settled(part, chosen, [n for n in candidates if n < vocab_size])
        else:
            floor = min_p[index].float() if bool((min_p[index] > 0).any()) else None
            token_ids[index] = draw(part, temperature[index].float(), uniforms[index], floor)
    return token_ids


def _draw_settled(logits: torch.Tensor, params: "FilteredDraw", candidates: list[int]) -> torch.Tensor:
    """[R] tokens, looked for among more and more candidates until all are settled."""
    vocab_size = logits.shape[1]
    first, *further = [*candidates, vocab_size]
    token_ids, settled = draw_filtered(logits, params, first)
    for num_candidates in further:
        rows = torch.nonzero(~settled).squeeze(1)
        if not len(rows):
            break
        token_ids[rows], settled[rows] = draw_filtered(logits[rows], params.rows(rows), num_candidates)
    return token_ids


def sanitize(logits: torch.Tensor) -> torch.Tensor:
    """A float32 copy of `logits` [R, V] in which NaN is -inf and +inf the largest number.

    A model that overflows for one request thus gives that request a poor but defined token, and the others theirs.
    """
    values = logits.to(torch.float32, copy=True)
    if values.device.type == "cpu" and bool(values.sum().isfinite()):
        return values  # the sum shows every NaN and infinity, at a fraction of the price of replacing them
    largest = torch.finfo(torch.float32).max
    return torch.nan_to_num_(values, nan=-torch.inf, posinf=largest, neginf=-torch.inf)


def argmax(logits: torch.Tensor) -> torch.Tensor:
    """Id of the first largest entry of each row of `logits` [R, V] float32, as [R] int64."""
    if logits.device.type == "cpu":
        # Measured at [32, 49152] on one thread: 0.1 ms, and torch.argmax 2.3 ms.
        return torch.from_numpy(logits.numpy().argmax(axis=-1))
    return logits.argmax(dim=-1)


def draw(
    logits: torch.Tensor, temperature: torch.Tensor, uniforms: torch.Tensor, min_p: torch.Tensor | None = None
) -> torch.Tensor:
    """Draw one token a row from the whole vocabulary.

    Args:
        logits: [R, V] float32 as `sanitize` makes them; kept.
        temperature: [R] float32, > 0.
        uniforms: [R] float64 in [0, 1).
        min_p: [R] float32; tokens less likely than this share of the likeliest are left out.

    Returns:
        [R] int64 ids; 0 for a row without any finite logit.
    """
    weights = _weights(logits, _row_max(logits), temperature)
    if min_p is not None:
        weights.masked_fill_(weights < min_p.unsqueeze(1), 0.0)  # the likeliest token's weight is 1
    return _pick(weights, uniforms)


class FilteredDraw(NamedTuple):
    """Parameters of `draw_filtered`, one entry a row."""

    temperature: torch.Tensor
    """[R] float32, > 0."""
    uniforms: torch.Tensor
    """[R] float64 in [0, 1)."""
    top_k: torch.Tensor
    """[R] int64, >= 1; V or more keeps all."""
    top_p: torch.Tensor
    """[R] float64 in (0, 1]: the smallest prefix of at least this share of what top_k keeps."""
    min_p: torch.Tensor
    """[R] float32 in [0, 1], relative to the likeliest token."""

    def rows(self, index: torch.Tensor) -> "FilteredDraw":
        """The parameters of the rows at `index`."""
        return FilteredDraw(*(values[index] for values in self))


def draw_filtered(logits: torch.Tensor, params: FilteredDraw, num_candidates: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Draw one token a row from its top-k, of those the top-p, of those the min-p tokens, as far as candidates reach.

    All three keep a prefix of the tokens in order of falling logits, equal ones by rising id, so the shortest prefix
    decides. Only the `num_candidates` likeliest tokens are put in order; a row whose prefix may be longer is not
    settled, and wants another call with more. With `num_candidates` = V every row is settled.

    Args:
        logits: [R, V] float32 as `sanitize` makes them; kept.
        params: how to draw from each row.
        num_candidates: between 1 and V.

    Returns:
        Token ids [R] int64 (of no use where not settled) and whether the row is settled, [R] bool.
    """
    temperature, uniforms, top_k, top_p, min_p = params
    vocab_size = logits.shape[1]
    maximum = _row_max(logits)
    if num_candidates == vocab_size:
        candidates, values = None, logits
    else:
        # topk breaks ties as it likes, so equal logits are put in order of their ids: by id first, then a stable sort.
        candidates = logits.topk(num_candidates, dim=1, sorted=False).indices.sort(dim=1).values  # [R, N]
        values = logits.gather(1, candidates)
    ranked, order = torch.sort(values, dim=1, descending=True, stable=True)  # [R, N]
    weights = _weights(ranked, maximum, temperature)  # [R, N], falling, the first is 1
    cumulative = weights.cumsum(dim=1, dtype=torch.float64)

    rank = torch.arange(num_candidates, device=logits.device)
    all_mass = _chunk_sums(_chunked(_weights(logits, maximum, temperature))).sum(dim=1)
    top_k_mass = cumulative.gather(1, (top_k.clamp(max=num_candidates) - 1).unsqueeze(1)).squeeze(1)
    mass = torch.where(top_k <= num_candidates, top_k_mass, all_mass)  # [R]
    before = functional.pad(cumulative, (1, -1))  # mass of the likelier tokens
    wanted = torch.where(top_p < 1.0, top_p * mass, torch.inf)
    kept = (rank < top_k.unsqueeze(1)) & (before < wanted.unsqueeze(1)) & (weights >= min_p.unsqueeze(1))
    kept[:, 0] = True

    if candidates is None:
        settled = torch.ones_like(top_k, dtype=torch.bool)
    else:
        # The prefix must end before the last candidate, and before its equals, of which some are no candidates.
        last_kept = ranked.gather(1, kept.sum(dim=1, keepdim=True) - 1).squeeze(1)
        mass_known = (top_k <= num_candidates) | (top_k >= vocab_size)
        settled = mass_known & (last_kept > ranked[:, -1])

    in_id_order = torch.zeros_like(weights).scatter_(1, order, weights * kept)
    picked = _pick(in_id_order, uniforms)  # [R]
    return (picked if candidates is None else candidates.gather(1, picked.unsqueeze(1)).squeeze(1)), settled


def _row_max(logits: torch.Tensor) -> torch.Tensor:
    """[R, 1]; finite, so that subtracting it from a row without a finite logit gives -inf and not NaN."""
    return logits.amax(dim=1, keepdim=True).clamp(min=torch.finfo(torch.float32).min)


def _weights(logits: torch.Tensor, maximum: torch.Tensor, temperature: torch.Tensor) -> torch.Tensor:
    """Unnormalised probabilities exp((logits - maximum) / temperature): the likeliest token's is 1.

    The maximum goes first: then no temperature, however small, makes the exponent overflow.
    """
    return (logits - maximum).div_(temperature.unsqueeze(1)).exp_()


def _pick(weights: torch.Tensor, uniforms: torch.Tensor) -> torch.Tensor:
    """The index in each row of `weights` [R, N] at which the running sum passes `uniforms` [R] of the total.

    Never an index of weight 0, unless all are; then 0. The running sums are float64 and in two levels: a float32 one
    over a large vocabulary loses the unlikely tokens of its far end, and a GPU's parallel one need not be monotone.
    """
    chunks = _chunked(weights)  # [R, C, 256]
    sums = _chunk_sums(chunks)  # [R, C]
    target = uniforms * sums.sum(dim=1)  # [R]
    chunk, before = _first_beyond(sums, target)
    inside = chunks[torch.arange(len(weights), device=weights.device), chunk].double()  # [R, 256]
    index, _ = _first_beyond(inside, target - before)
    return chunk * _CHUNK + index


def _chunked(weights: torch.Tensor) -> torch.Tensor:
    """[R, N] as [R, C, 256], zeros at the end."""
    missing = -weights.shape[1] % _CHUNK
    padded = functional.pad(weights, (0, missing)) if missing else weights
    return padded.view(len(weights), -1, _CHUNK)


def _chunk_sums(chunks: torch.Tensor) -> torch.Tensor:
    """[R, C, 256] float32 to [R, C] float64.

    One chunk is summed in float32, which is right to 1e-7 of the total: summing in float64 converts every weight first,
    and that takes as long as all the exponentials.
    """
    return chunks.sum(dim=2).double()


def _first_beyond(masses: torch.Tensor, target: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """First index [R] whose running sum of `masses` [R, N] exceeds `target` [R], and the sum before it, [R].

    An index of mass 0 never counts; where rounding leaves no index, the last one of any mass is it.
    """
    cumulative = masses.cumsum(dim=1)
    positive = masses > 0
    beyond = (cumulative > target.unsqueeze(1)) & positive
    rank = torch.arange(masses.shape[1], device=masses.device)
    last_positive = torch.where(positive, rank, 0).amax(dim=1)
    index = torch.where(beyond.any(dim=1), beyond.int().argmax(dim=1), last_positive)
    before = (cumulative - masses).gather(1, index.unsqueeze(1)).squeeze(1)
    return index, before
