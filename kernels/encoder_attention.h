/* Attention of one head of one text over itself, in float32 and in one thread.
 *
 * Keys are transposed once, so that scores of many keys are accumulated side by side; four queries share what is loaded.
 * For texts of some hundred tokens everything stays in the nearest caches. */

#ifndef PENSTOCK_ENCODER_ATTENTION_H
#define PENSTOCK_ENCODER_ATTENTION_H

#include <math.h>

#include "native.h"

#define QUERY_ROWS 4

/* One head of one text: rows are `stride` floats apart, of `head_dim` floats, and may be read up to 63 beyond. */
typedef struct {
    const float *query, *key, *value;
    int64_t stride;
    int64_t length;
    int64_t head_dim;
    float scale;
    const float *bias; /* added to the scores: [length] rows `bias_stride` apart, or NULL */
    int64_t bias_stride;
} head;

/* Floats that attention over a text of `length` needs beside its inputs and outputs. */
static inline int64_t attention_scratch(int64_t length, int64_t head_dim) {
    int64_t padded = (length + 63) / 64 * 64;
    return (head_dim + QUERY_ROWS) * padded;
}

static inline void transpose_16(__m512 rows[16]) {
    __m512i a[16], b[16];
    for (int i = 0; i < 16; i += 2) {
        a[i] = _mm512_unpacklo_epi32((__m512i)rows[i], (__m512i)rows[i + 1]);
        a[i + 1] = _mm512_unpackhi_epi32((__m512i)rows[i], (__m512i)rows[i + 1]);
    }
    for (int i = 0; i < 16; i += 4)
        for (int j = 0; j < 2; j++) {
            b[i + 2 * j] = _mm512_unpacklo_epi64(a[i + j], a[i + 2 + j]);
            b[i + 2 * j + 1] = _mm512_unpackhi_epi64(a[i + j], a[i + 2 + j]);
        }
    /* b[4 i + j] has in each quarter q the elements 4 q + j of the rows 4 i to 4 i + 3. */
    for (int j = 0; j < 4; j++) {
        __m512i low = _mm512_shuffle_i32x4(b[j], b[4 + j], 0x88), high = _mm512_shuffle_i32x4(b[j], b[4 + j], 0xdd);
        __m512i low2 = _mm512_shuffle_i32x4(b[8 + j], b[12 + j], 0x88);
        __m512i high2 = _mm512_shuffle_i32x4(b[8 + j], b[12 + j], 0xdd);
        rows[j] = (__m512)_mm512_shuffle_i32x4(low, low2, 0x88);
        rows[8 + j] = (__m512)_mm512_shuffle_i32x4(low, low2, 0xdd);
        rows[4 + j] = (__m512)_mm512_shuffle_i32x4(high, high2, 0x88);
        rows[12 + j] = (__m512)_mm512_shuffle_i32x4(high, high2, 0xdd);
    }
}

/* keys[head_dim][padded], zero beyond `length` up to a multiple of 32. */
static void transpose_keys(const head *of, float *keys, int64_t padded) {
    for (int64_t k = 0; k < (of->length + 31) / 32 * 32; k += 16)
        for (int64_t d = 0; d < of->head_dim; d += 16) {
            __m512 rows[16];
            for (int64_t i = 0; i < 16; i++)
                rows[i] = k + i < of->length ? _mm512_loadu_ps(of->key + (k + i) * of->stride + d) : _mm512_setzero_ps();
            transpose_16(rows);
            for (int64_t i = 0; i < 16 && d + i < of->head_dim; i++)
                _mm512_store_ps(keys + (d + i) * padded + k, rows[i]);
        }
}

/* scores[rows][padded] of `vectors` times 16 keys from number `k` on. */
static inline __attribute__((always_inline)) void score_keys(
    const int rows, const int vectors, const head *of, const float *query, const float *keys, int64_t k, int64_t padded,
    float *scores
) {
    __m512 sums[QUERY_ROWS][4];
    for (int r = 0; r < rows; r++)
        for (int v = 0; v < vectors; v++) sums[r][v] = _mm512_setzero_ps();
    for (int64_t d = 0; d < of->head_dim; d++)
        for (int r = 0; r < rows; r++)
            for (int v = 0; v < vectors; v++)
                sums[r][v] = _mm512_fmadd_ps(
                    _mm512_set1_ps(query[r * of->stride + d]), _mm512_load_ps(keys + d * padded + k + 16 * v), sums[r][v]
                );
    for (int r = 0; r < rows; r++)
        for (int v = 0; v < vectors; v++) _mm512_store_ps(scores + r * padded + k + 16 * v, sums[r][v]);
}

/* Turn scores [length] into e^(score - largest), zero beyond `length` up to a multiple of 16; returns their sum. */
static float exponentiate(const head *of, int64_t row, float *scores) {
    const __m512 infinite = _mm512_set1_ps(-INFINITY), scale = _mm512_set1_ps(of->scale);
    __m512 largest = infinite, total = _mm512_setzero_ps();
    for (int64_t k = 0; k < of->length; k += 16) {
        __mmask16 mask = first_lanes(of->length - k);
        __m512 score = _mm512_mul_ps(_mm512_load_ps(scores + k), scale);
        if (of->bias) score = _mm512_add_ps(score, _mm512_maskz_loadu_ps(mask, of->bias + row * of->bias_stride + k));
        score = _mm512_mask_mov_ps(infinite, mask, score);
        largest = _mm512_max_ps(largest, score);
        _mm512_store_ps(scores + k, score);
    }
    __m512 shift = _mm512_set1_ps(_mm512_reduce_max_ps(largest));
    for (int64_t k = 0; k < of->length; k += 16) {
        __m512 weight = exp_ps(_mm512_sub_ps(_mm512_load_ps(scores + k), shift));
        total = _mm512_add_ps(total, weight);
        _mm512_store_ps(scores + k, weight);
    }
    return _mm512_reduce_add_ps(total);
}

/* Weighted mean of the values for `rows` queries, `vectors` times 16 of its components from `d` on. */
static inline __attribute__((always_inline)) void average_values(
    const int rows, const int vectors, const head *of, const float *weights, const float *totals, int64_t d,
    int64_t padded, int64_t row, void *output, int64_t output_stride, int narrow
) {
    __m512 sums[QUERY_ROWS][4];
    for (int r = 0; r < rows; r++)
        for (int v = 0; v < vectors; v++) sums[r][v] = _mm512_setzero_ps();
    for (int64_t k = 0; k < of->length; k++)
        for (int r = 0; r < rows; r++)
            for (int v = 0; v < vectors; v++)
                sums[r][v] = _mm512_fmadd_ps(
                    _mm512_set1_ps(weights[r * padded + k]), _mm512_loadu_ps(of->value + k * of->stride + d + 16 * v),
                    sums[r][v]
                );
    for (int r = 0; r < rows; r++)
        for (int v = 0; v < vectors; v++) {
            int64_t column = d + 16 * v, offset = (row + r) * output_stride + column;
            if (column >= of->head_dim) break;
            __mmask16 mask = first_lanes(of->head_dim - column);
            __m512 mean = _mm512_mul_ps(sums[r][v], _mm512_set1_ps(1.0f / totals[r]));
            if (narrow)
                store_bf16_masked((bf16 *)output + offset, mean, mask);
            else
                _mm512_mask_storeu_ps((float *)output + offset, mask, mean);
        }
}

static inline __attribute__((always_inline)) void attend_rows(
    const int rows, const head *of, int64_t row, const float *keys, int64_t padded, float *scores, void *output,
    int64_t output_stride, int narrow
) {
    const float *query = of->query + row * of->stride;
    int64_t k = 0;
    for (; k + 64 <= padded && k + 32 < of->length; k += 64)
        score_keys(rows, 4, of, query, keys, k, padded, scores);
    for (; k < of->length; k += 32) score_keys(rows, 2, of, query, keys, k, padded, scores);
    float totals[QUERY_ROWS];
    for (int r = 0; r < rows; r++) totals[r] = exponentiate(of, row + r, scores + r * padded);
    for (int64_t d = 0; d < of->head_dim; d += 64) {
        int64_t rest = of->head_dim - d;
        if (rest > 32)
            average_values(rows, 4, of, scores, totals, d, padded, row, output, output_stride, narrow);
        else if (rest > 16)
            average_values(rows, 2, of, scores, totals, d, padded, row, output, output_stride, narrow);
        else
            average_values(rows, 1, of, scores, totals, d, padded, row, output, output_stride, narrow);
    }
}

/* output[length][head_dim], rows `output_stride` elements apart, float or bf16; `scratch` as large as said above. */
static void attend(const head *of, void *output, int64_t output_stride, int narrow, float *scratch) {
    int64_t padded = (of->length + 63) / 64 * 64;
    float *keys = scratch, *scores = scratch + of->head_dim * padded;
    transpose_keys(of, keys, padded);
    int64_t row = 0;
    for (; row + QUERY_ROWS <= of->length; row += QUERY_ROWS)
        attend_rows(QUERY_ROWS, of, row, keys, padded, scores, output, output_stride, narrow);
    for (; row < of->length; row++) attend_rows(1, of, row, keys, padded, scores, output, output_stride, narrow);
}

#endif
