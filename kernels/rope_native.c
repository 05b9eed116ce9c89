/* Norm and rotation of queries and keys, and the write of keys and values into the paged cache, in bfloat16. */

#include <math.h>
#include <string.h>

#include "row_ops.h"

/* Fewer rows are done before a second thread has begun. */
enum { MIN_PARALLEL_ROWS = 8 };

/* 1 / sqrt(mean(head^2) + eps). */
static inline __m512 norm_scale(const bf16 *head, int64_t head_dim, float eps) {
    __m512 sum = _mm512_setzero_ps();
    for (int64_t i = 0; i < head_dim; i += 16) {
        __m512 values = load_bf16(head + i);
        sum = _mm512_fmadd_ps(values, values, sum);
    }
    return _mm512_set1_ps(1.0f / sqrtf(_mm512_reduce_add_ps(sum) / (float)head_dim + eps));
}

/* The halves of D are the two coordinates (arXiv 2104.09864): (x1, x2) becomes (x1 cos - x2 sin, x2 cos + x1 sin). */
static inline void rotate_head(const bf16 *head, const bf16 *cos, const bf16 *sin, const bf16 *norm_weight, float eps,
                               int64_t head_dim, bf16 *output) {
    int64_t half = head_dim / 2;
    __m512 scale = norm_weight ? norm_scale(head, head_dim, eps) : _mm512_set1_ps(1.0f);
    for (int64_t i = 0; i < half; i += 16) {
        __m512 first = load_bf16(head + i), second = load_bf16(head + half + i);
        if (norm_weight) {
            first = _mm512_mul_ps(_mm512_mul_ps(first, scale), load_bf16(norm_weight + i));
            second = _mm512_mul_ps(_mm512_mul_ps(second, scale), load_bf16(norm_weight + half + i));
        }
        __m512 turned = _mm512_mul_ps(second, load_bf16(sin + i));
        store_bf16(output + i, _mm512_fmsub_ps(first, load_bf16(cos + i), turned));
        turned = _mm512_mul_ps(first, load_bf16(sin + half + i));
        store_bf16(output + half + i, _mm512_fmadd_ps(second, load_bf16(cos + half + i), turned));
    }
}

void rope_cache_write_row(const bf16 *qkv, const bf16 *cos, const bf16 *sin, const Heads *heads, const KVCache *cache,
                          int64_t slot, bf16 *query) {
    int64_t dim = heads->head_dim, kv_heads = heads->num_kv_heads;
    for (int64_t head = 0; head < heads->num_heads; head++)
        rotate_head(qkv + head * dim, cos, sin, heads->q_norm_weight, heads->eps, dim, query + head * dim);
    if (slot < 0) return;
    const bf16 *key = qkv + heads->num_heads * dim, *value = key + kv_heads * dim;
    int64_t block = slot / cache->block_size, page = cache->block_size * dim; /* page: of one head in one block */
    int64_t inside = slot % cache->block_size * dim;
    bf16 *key_slot = cache->keys + block * cache->key_block_stride + inside;
    bf16 *value_slot = cache->values + block * cache->value_block_stride + inside;
    for (int64_t head = 0; head < kv_heads; head++) {
        rotate_head(key + head * dim, cos, sin, heads->k_norm_weight, heads->eps, dim, key_slot + head * page);
        memcpy(value_slot + head * page, value + head * dim, (size_t)dim * sizeof(bf16));
    }
}

/* qkv: [rows, H + 2K, D]; cos, sin: [rows, D]; slots: [rows]; query: [rows, H, D]; the norms' weights may be NULL. */
void penstock_rope_cache_write(const bf16 *qkv, const bf16 *cos, const bf16 *sin, bf16 *keys, int64_t key_block_stride,
                               bf16 *values, int64_t value_block_stride, int64_t block_size, const int64_t *slots,
                               int64_t num_heads, int64_t num_kv_heads, int64_t head_dim, const bf16 *q_norm_weight,
                               const bf16 *k_norm_weight, float eps, int64_t rows, bf16 *query) {
    const Heads heads = {num_heads, num_kv_heads, head_dim, q_norm_weight, k_norm_weight, eps};
    const KVCache cache = {keys, values, key_block_stride, value_block_stride, block_size};
    int64_t query_size = num_heads * head_dim, row_size = query_size + 2 * num_kv_heads * head_dim;
#pragma omp parallel for schedule(static) if (rows >= MIN_PARALLEL_ROWS)
    for (int64_t row = 0; row < rows; row++)
        rope_cache_write_row(qkv + row * row_size, cos + row * head_dim, sin + row * head_dim, &heads, &cache,
                             slots[row], query + row * query_size);
}
