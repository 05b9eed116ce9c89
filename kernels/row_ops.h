/* Operations on one token's activations, by the kernels of single operations and of whole layers. */

#ifndef PENSTOCK_ROW_OPS_H
#define PENSTOCK_ROW_OPS_H

#include <stdbool.h>

#include "native.h"

/* Where tokens' keys and values lie in one layer's paged cache; strides in elements. */
typedef struct {
    bf16 *keys;   /* [B, K, S, D], each [K, S, D] contiguous */
    bf16 *values; /* likewise */
    int64_t key_block_stride;
    int64_t value_block_stride;
    int64_t block_size;
} KVCache;

/* The heads of one token, and the norms of its queries and keys if the model has them. */
typedef struct {
    int64_t num_heads;
    int64_t num_kv_heads;
    int64_t head_dim; /* a multiple of 32 */
    const bf16 *q_norm_weight; /* [head_dim]; NULL: no norm */
    const bf16 *k_norm_weight;
    float eps;
} Heads;

/* output = x / sqrt(mean(x^2) + eps) * weight; all [size], `weight` of floats if `wide_weight`, else bfloat16. */
void rms_norm_row(const bf16 *x, const void *weight, bool wide_weight, float eps, int64_t size, bf16 *output);

/* sum = x + residual, rounded, then its norm; `sum` may be `x` or `residual`. */
void add_rms_norm_row(const bf16 *x, const bf16 *residual, const void *weight, bool wide_weight, float eps,
                      int64_t size, bf16 *sum, bf16 *output);

/* output[i] = silu(gate_up[i]) * gate_up[size + i] for i < size. */
void silu_mul_row(const bf16 *gate_up, int64_t size, bf16 *output);

/* Norm and rotate the heads of one token, `qkv` [H + 2K, D], to `query` [H, D] and the cache's slot; no slot if
 * negative. `cos` and `sin` are [D]. */
void rope_cache_write_row(const bf16 *qkv, const bf16 *cos, const bf16 *sin, const Heads *heads, const KVCache *cache,
                          int64_t slot, bf16 *query);

#endif
