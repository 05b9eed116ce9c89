"""Triton attention of rows with few tokens over the paged cache, all programs with an equal share of the keys.

At decode the keys are read once and hardly computed with, so speed is memory bandwidth. The query heads of one kv
head, and the few tokens of a row that verifies guesses, share each key as the rows of one matrix product. The keys of
all rows and kv heads, cut into tiles, are one long line that is dealt out evenly: a program takes a run of tiles,
whether that is a piece of one long row or many short ones.

    tiles     | row 0, head 0   | row 0, head 1   | row 1, 0 | row 1, 1 | ...      a segment: one row and kv head
    programs  | 0        | 1        | 2        | 3        | 4        |             the share of each

A segment that one program has alone is written at once. Of one that several share, each leaves its part in memory and
counts what it has done; whoever finds the segment complete puts the parts together.

The grid depends on the device alone, and every program works out its share from the lengths, which it reads on the
device: a captured graph serves whatever lengths it is replayed with. How a segment is cut, and so the last bits of its
output, depends on the other rows of the batch.

Legend: T packed tokens, R rows, H query heads, K kv heads, G = H / K, D head dim (Dv of the values), B blocks, S block
size, P programs.
"""

# Arguments of Triton kernels are device pointers and numbers, for which Python has no types.
# mypy: disable-error-code="no-untyped-def, untyped-decorator"

import triton
import triton.language as tl


@triton.jit
def softcapped(scores, softcap, LOG2_E: tl.constexpr):
    """Cap the scores: softcap * tanh(scores / softcap), with tanh(x) = 1 - 2 / (1 + exp(2x))."""
    return softcap * (1.0 - 2.0 / (1.0 + tl.exp2(scores / softcap * (2.0 * LOG2_E))))


@triton.jit
def _write_output(
    output,
    sinks,
    value_scale,
    first_token,
    query_len,
    kv_head,
    peak,
    total,
    accumulator,
    GROUP: tl.constexpr,
    NUM_KV_HEADS: tl.constexpr,
    VALUE_HEAD_DIM: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK_DV: tl.constexpr,
    SINKS: tl.constexpr,
    SCALED: tl.constexpr,
    LOG2_E: tl.constexpr,
):
    """Divide by the softmax's denominator and store one segment; `accumulator` is [ROWS, BLOCK_DV]."""
    member = tl.arange(0, ROWS)
    value_dim = tl.arange(0, BLOCK_DV)
    head = kv_head * GROUP + member % GROUP
    inside = member < GROUP * query_len
    if SINKS:
        sink = tl.load(sinks + head, mask=inside, other=0.0).to(tl.float32) * LOG2_E
        new_peak = tl.maximum(peak, sink)
        shrink = tl.exp2(peak - new_peak)
        total = total * shrink + tl.exp2(sink - new_peak)
        accumulator = accumulator * shrink[:, None]
    result = accumulator / tl.where(total == 0.0, 1.0, total)[:, None]
    if SCALED:
        result = result * tl.load(value_scale + kv_head)
    place = ((first_token + member // GROUP) * (NUM_KV_HEADS * GROUP) + head) * VALUE_HEAD_DIM
    tl.store(
        output + place[:, None] + value_dim[None, :],
        result,
        mask=inside[:, None] & (value_dim < VALUE_HEAD_DIM)[None, :],
    )


@triton.jit
def _combine(
    part_outputs,
    part_lse,
    segment,
    segment_end,
    share,
    MEMBERS: tl.constexpr,
    VALUE_HEAD_DIM: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK_DV: tl.constexpr,
    PARTS: tl.constexpr,
):
    """Put the parts of a segment together: peak and total [ROWS] and accumulator [ROWS, BLOCK_DV]."""
    member = tl.arange(0, ROWS)
    value_dim = tl.arange(0, BLOCK_DV)
    peak = tl.full([ROWS], float("-inf"), tl.float32)
    total = tl.zeros([ROWS], tl.float32)
    accumulator = tl.zeros([ROWS, BLOCK_DV], tl.float32)
    last = (segment_end - 1) // share
    for first in range(segment // share, last + 1, PARTS):
        program = first + tl.arange(0, PARTS)
        # Only the first of a segment's programs may have begun with another one.
        slot = program * 2 + (segment > program * share).to(tl.int32)
        place = slot[:, None] * MEMBERS + member[None, :]  # [PARTS, ROWS]
        mask = (program <= last)[:, None] & (member < MEMBERS)[None, :]
        # Not through the processor's own cache, which knows nothing of what other processors have written.
        lse = tl.load(part_lse + place, mask=mask, other=float("-inf"), cache_modifier=".cg")
        part = tl.load(
            part_outputs + place[:, :, None] * VALUE_HEAD_DIM + value_dim[None, None, :],
            mask=mask[:, :, None] & (value_dim < VALUE_HEAD_DIM)[None, None, :],
            other=0.0,
            cache_modifier=".cg",
        )  # [PARTS, ROWS, BLOCK_DV]
        new_peak = tl.maximum(peak, tl.max(lse, 0))
        base = tl.where(new_peak == float("-inf"), 0.0, new_peak)  # what only pads ROWS has none
        shrink = tl.exp2(peak - base)
        weight = tl.exp2(lse - base[None, :])
        total = total * shrink + tl.sum(weight, 0)
        accumulator = accumulator * shrink[:, None] + tl.sum(part * weight[:, :, None], 0)
        peak = new_peak
    return peak, total, accumulator


@triton.jit(
    do_not_specialize=["num_rows", "block_table_stride"],
    do_not_specialize_on_alignment=["block_table", "seq_lens", "query_start_loc"],
)
def decode_kernel(
    query,
    key_cache,
    value_cache,
    block_table,
    seq_lens,
    query_start_loc,
    sinks,
    key_scale,
    value_scale,
    part_outputs,
    part_lse,
    counters,
    output,
    num_rows,
    scale,
    softcap,
    query_stride_t,
    query_stride_h,
    key_stride_b,
    key_stride_k,
    key_stride_s,
    value_stride_b,
    value_stride_k,
    value_stride_s,
    block_table_stride,
    TOKENS: tl.constexpr,
    GROUP: tl.constexpr,
    NUM_KV_HEADS: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    VALUE_HEAD_DIM: tl.constexpr,
    BLOCK_R: tl.constexpr,
    BLOCK_G: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_DV: tl.constexpr,
    BLOCK_SIZE: tl.constexpr,
    TILE: tl.constexpr,
    MIN_TILES: tl.constexpr,
    ROWS: tl.constexpr,
    PARTS: tl.constexpr,
    WINDOW: tl.constexpr,
    SOFTCAP: tl.constexpr,
    SINKS: tl.constexpr,
    SCALED: tl.constexpr,
    LOG2_E: tl.constexpr,
):
    """Program p of P: its share of the tiles of all rows and kv heads. Writes output [T, H, Dv], contiguous."""
    index = tl.arange(0, BLOCK_R)
    lens = tl.load(seq_lens + index, mask=index < num_rows, other=0)
    if WINDOW > 0:
        lens = tl.minimum(lens, WINDOW + TOKENS - 1)
    # A padding row has one tile, without keys: somebody has to write its zeros.
    tiles = tl.where(index < num_rows, tl.maximum(tl.cdiv(lens, TILE), 1), 0)
    row_ends = tl.cumsum(tiles, 0) * NUM_KV_HEADS
    num_tiles = tl.sum(tiles, 0) * NUM_KV_HEADS
    share = tl.maximum(tl.cdiv(num_tiles, tl.num_programs(0)), MIN_TILES)
    program = tl.program_id(0)
    tile = program * share
    program_end = tl.minimum(tile + share, num_tiles)

    MEMBERS: tl.constexpr = TOKENS * GROUP
    member = tl.arange(0, BLOCK_G)  # row of the matrix: token, then head
    dim = tl.arange(0, BLOCK_D)
    value_dim = tl.arange(0, BLOCK_DV)
    while tile < program_end:
        row = tl.sum((row_ends <= tile).to(tl.int32), 0)
        row_start = tl.max(tl.where(row_ends <= tile, row_ends, 0), 0)
        row_tiles = tl.sum(tl.where(index == row, tiles, 0), 0)
        kv_head = (tile - row_start) // row_tiles
        segment = row_start + kv_head * row_tiles
        segment_end = segment + row_tiles
        stop = tl.minimum(program_end, segment_end)
        seq_len = tl.load(seq_lens + row)
        origin = 0  # position of the segment's first key
        if WINDOW > 0:
            origin = tl.maximum(seq_len - (WINDOW + TOKENS - 1), 0)
        first_token = row.to(tl.int64)
        query_len = 1
        if TOKENS > 1:
            first_token = tl.load(query_start_loc + row).to(tl.int64)
            query_len = (tl.load(query_start_loc + row + 1) - first_token).to(tl.int32)
        query_position = seq_len - query_len + member // GROUP  # [BLOCK_G]
        q = tl.load(
            query
            + ((first_token + member // GROUP) * query_stride_t)[:, None]
            + ((kv_head * GROUP + member % GROUP) * query_stride_h)[:, None]
            + dim[None, :],
            mask=(member < GROUP * query_len)[:, None] & (dim < HEAD_DIM)[None, :],
            other=0.0,
        )  # [BLOCK_G, BLOCK_D]
        keys = key_cache + kv_head.to(tl.int64) * key_stride_k
        values = value_cache + kv_head.to(tl.int64) * value_stride_k
        blocks = block_table + row.to(tl.int64) * block_table_stride
        segment_scale = scale
        if SCALED:
            segment_scale = scale * tl.load(key_scale + kv_head)
        peak = tl.full([BLOCK_G], float("-inf"), tl.float32)
        total = tl.zeros([BLOCK_G], tl.float32)
        accumulator = tl.zeros([BLOCK_G, BLOCK_DV], tl.float32)
        # Keys that all of the row's tokens see; with a window each has an edge of its own.
        full_tiles = (seq_len - query_len + 1 - origin) // TILE
        if TOKENS > 1 and WINDOW > 0:
            full_tiles = 0
        full_stop = tl.maximum(tl.minimum(stop, segment + full_tiles), tile)
        for masked in tl.static_range(2):  # tiles that are full, then the row's last ones that are not
            for current in tl.range(
                full_stop if masked else tile, stop if masked else full_stop, num_stages=1 if masked else None
            ):
                position = origin + (current - segment) * TILE + tl.arange(0, TILE)
                key_mask = (dim < HEAD_DIM)[:, None]
                value_mask = (value_dim < VALUE_HEAD_DIM)[None, :]
                inside = position < seq_len
                if masked:
                    key_mask = key_mask & inside[None, :]
                    value_mask = value_mask & inside[:, None]
                block = tl.load(blocks + position // BLOCK_SIZE, mask=inside if masked else None).to(tl.int64)
                offset = position % BLOCK_SIZE
                place = block * key_stride_b + offset * key_stride_s
                k = tl.load(keys + place[None, :] + dim[:, None], mask=key_mask, other=0.0)  # [BLOCK_D, TILE]
                place = block * value_stride_b + offset * value_stride_s
                v = tl.load(
                    values + place[:, None] + value_dim[None, :], mask=value_mask, other=0.0
                )  # [TILE, BLOCK_DV]
                scores = tl.dot(q, k.to(q.dtype), input_precision="ieee") * segment_scale  # [BLOCK_G, TILE]
                if SOFTCAP:
                    scores = softcapped(scores, softcap, LOG2_E)
                scores = scores * LOG2_E
                if masked:
                    visible = inside[None, :]
                    if TOKENS > 1:
                        visible = visible & (position[None, :] <= query_position[:, None])
                        if WINDOW > 0:
                            visible = visible & (position[None, :] > query_position[:, None] - WINDOW)
                    scores = tl.where(visible, scores, float("-inf"))
                new_peak = tl.maximum(peak, tl.max(scores, 1))
                # A padding row has no keys, and a tile perhaps none for some tokens: -inf - -inf would be NaN.
                base = tl.where(new_peak == float("-inf"), 0.0, new_peak)
                weights = tl.exp2(scores - base[:, None])
                shrink = tl.exp2(peak - base)
                total = total * shrink + tl.sum(weights, 1)
                accumulator *= shrink[:, None]
                accumulator += tl.dot(weights.to(q.dtype), v.to(q.dtype), input_precision="ieee")
                peak = new_peak
        done = stop - tile
        if done == row_tiles:
            _write_output(
                output,
                sinks,
                value_scale,
                first_token,
                query_len,
                kv_head,
                peak,
                total,
                accumulator,
                GROUP,
                NUM_KV_HEADS,
                VALUE_HEAD_DIM,
                BLOCK_G,
                BLOCK_DV,
                SINKS,
                SCALED,
                LOG2_E,
            )
        else:
            slot = program * 2 + (segment > program * share).to(tl.int32)
            place = slot * MEMBERS + member
            tl.store(part_lse + place, peak + tl.log2(total), mask=member < MEMBERS)
            tl.store(
                part_outputs + place[:, None] * VALUE_HEAD_DIM + value_dim[None, :],
                accumulator / tl.where(total == 0.0, 1.0, total)[:, None],
                mask=(member < MEMBERS)[:, None] & (value_dim < VALUE_HEAD_DIM)[None, :],
            )
            # One thread counts for all of them: what each has stored must come before.
            tl.debug_barrier()
            counter = counters + row * NUM_KV_HEADS + kv_head
            if tl.atomic_add(counter, done, sem="acq_rel", scope="gpu") + done == row_tiles:
                tl.store(counter, 0)  # for the next layer
                whole_peak, whole_total, whole = _combine(
                    part_outputs,
                    part_lse,
                    segment,
                    segment_end,
                    share,
                    MEMBERS,
                    VALUE_HEAD_DIM,
                    ROWS,
                    BLOCK_DV,
                    PARTS,
                )
                _write_output(
                    output,
                    sinks,
                    value_scale,
                    first_token,
                    query_len,
                    kv_head,
                    whole_peak,
                    whole_total,
                    whole,
                    GROUP,
                    NUM_KV_HEADS,
                    VALUE_HEAD_DIM,
                    ROWS,
                    BLOCK_DV,
                    SINKS,
                    SCALED,
                    LOG2_E,
                )
        tile = stop
