/* Paged attention: what other kernels may call.
 *
 * Legend: T packed tokens, R rows (requests), H query heads, K kv heads, D head dim (Dv of the values), B blocks, S block
 * size. */

#ifndef PENSTOCK_ATTENTION_CALL_H
#define PENSTOCK_ATTENTION_CALL_H

#include "native.h"

/* Mirrored by attention_native.py; strides count elements. */
typedef struct {
    const void *query;                    /* [T, H, D] */
    const void *key_cache, *value_cache;  /* [B, K, S, D], [B, K, S, Dv]: each [K, S, D] contiguous */
    void *output;                         /* [T, H, Dv] contiguous */
    const float *sinks;                   /* [H] or NULL */
    const int32_t *block_table;           /* [R, any] */
    const int32_t *seq_lens;              /* [R] */
    const int32_t *query_start_loc;       /* [R + 1] */
    int64_t query_token_stride, query_head_stride;
    int64_t key_block_stride, value_block_stride;
    int64_t block_table_stride;
    int32_t num_rows, num_heads, num_kv_heads, head_dim, value_head_dim, block_size;
    int32_t window; /* newest keys a token sees, 0: all */
    int32_t is_float32;
    float scale, softcap;
} Attention;

/* How a step's attention is dealt out to threads: the same for all layers that differ only in pointers, scale, softcap
 * and sinks. */
typedef struct attention_plan AttentionPlan;

/* NULL if there is no memory. */
AttentionPlan *attention_plan(const Attention *call, int num_threads);

void attention_plan_free(AttentionPlan *plan);

/* One layer's attention as a part of a parallel region, all of whose threads call it and wait for each other at its end.
 * Another barrier must come before the plan's next use. */
void attention_in_team(const Attention *call, AttentionPlan *plan);

#endif
