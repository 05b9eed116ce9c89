/* What both element types of attention_tile.h share: the tile, where its keys lie, and the softmax's bookkeeping. */

#ifndef PENSTOCK_ATTENTION_NATIVE_H
#define PENSTOCK_ATTENTION_NATIVE_H

#include "native.h"

#include <float.h>

#define ALWAYS_INLINE static inline __attribute__((always_inline))

enum {
    GROUP = 64,      /* keys whose scores are softmaxed together; groups begin at multiples of it */
    CHUNK = 1024,    /* keys after which a sum starts anew; chunks begin at multiples of it */
    ROW_BLOCK = 6,   /* rows x 4 vectors of sums, 4 of the panel and 1 of a row fit into the 32 registers */
    TILE_ROWS = 72,  /* rows over which a tile spreads the packing of its keys, where it can */
    MAX_ROWS = 96,
    MAX_HEAD_DIM = 256,
};

/* Keys and values of one kv head of one request; strides count elements. */
typedef struct {
    const void *keys, *values;
    int64_t key_block_stride, value_block_stride;
    int64_t key_stride, value_stride; /* between neighbours in a block */
    const int32_t *blocks;            /* block of the positions [i * block_size, (i + 1) * block_size) */
    int32_t block_size;               /* a multiple of 16 */
    int32_t length;
} Keys;

/* The query heads of a kv head for a few tokens of one request. Row r sees the keys [first[r], end[r]). */
typedef struct {
    int num_rows, head_dim, value_head_dim;
    const void *query[MAX_ROWS];
    void *output[MAX_ROWS];
    int32_t first[MAX_ROWS], end[MAX_ROWS]; /* neither falls from row to row */
    float sink[MAX_ROWS];                   /* times log2 e; -FLT_MAX: none */
    float scale;                            /* of a score, times log2 e unless it is capped */
    float softcap;                          /* 0: none */
} Tile;

/* Sums over some keys. The weight of a key is 2^(score - max); without a key, max is -FLT_MAX and the rest is zero. */
typedef struct {
    float *max, *sum; /* [rows] */
    float *values;    /* [rows, value_head_dim]: the sum of weight * value */
} State;

typedef struct {
    _Alignas(64) uint32_t keys[MAX_HEAD_DIM * GROUP];   /* panel [words of a key][GROUP] */
    _Alignas(64) uint32_t values[GROUP * MAX_HEAD_DIM]; /* panel [words of a group][value_head_dim] */
    _Alignas(64) float scores[ROW_BLOCK * GROUP];
    _Alignas(64) uint32_t weights[ROW_BLOCK * GROUP];
    _Alignas(64) float lane_sums[MAX_ROWS * 16]; /* of the weights, still apart by lane */
    _Alignas(64) float max[2][MAX_ROWS];
    _Alignas(64) float sum[2][MAX_ROWS];
    _Alignas(64) float states[2][MAX_ROWS * MAX_HEAD_DIM];
} Workspace;

static inline int32_t least(int32_t a, int32_t b) {
    return a < b ? a : b;
}

static inline int32_t greatest(int32_t a, int32_t b) {
    return a > b ? a : b;
}

/* 2^x for x <= 0 to 1e-7 of its value, 1 exactly for 0, 0 below -200; NaN stays. The polynomial is a Chebyshev fit of
 * (2^r - 1) / r on [-1/2, 1/2]. */
static inline __m512 exp2_ps(__m512 x) {
    x = _mm512_max_ps(_mm512_set1_ps(-200.0f), x); /* returns x where that is NaN */
    __m512 n = _mm512_roundscale_ps(x, _MM_FROUND_TO_NEAREST_INT);
    __m512 r = _mm512_sub_ps(x, n);
    __m512 p = _mm512_set1_ps(1.54614478e-4f);
    p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(1.33908668e-3f));
    p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(9.61805694e-3f));
    p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(5.55035695e-2f));
    p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(2.40226507e-1f));
    p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(6.93147182e-1f));
    p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(1.0f));
    return _mm512_scalef_ps(p, n);
}

static inline float exp2_one(float x) {
    return _mm512_cvtss_f32(exp2_ps(_mm512_set1_ps(x)));
}

/* cap * tanh(score / cap) * log2 e, where `scores` are already divided by the cap. */
static inline __m512 capped(__m512 scores, float softcap) {
    /* tanh(x) = sign(x) * (1 - e) / (1 + e) with e = 2^(-2 |x| log2 e) */
    __m512 e = exp2_ps(_mm512_mul_ps(_mm512_abs_ps(scores), _mm512_set1_ps(-2.88539008f)));
    __m512 one = _mm512_set1_ps(1.0f);
    __m512 tanh = _mm512_div_ps(_mm512_sub_ps(one, e), _mm512_add_ps(one, e));
    __m512 sign = _mm512_and_ps(scores, _mm512_set1_ps(-0.0f));
    return _mm512_mul_ps(_mm512_or_ps(tanh, sign), _mm512_set1_ps(softcap * 1.44269504f));
}

/* One bit for each of the GROUP keys from `group` on that row `row` sees. */
static inline uint64_t visible(const Tile *tile, int row, int32_t group) {
    int32_t first = greatest(tile->first[row] - group, 0), end = least(tile->end[row] - group, GROUP);
    return end <= first ? 0 : (~0ull >> (GROUP - end)) & (~0ull << first);
}

/* The 16 rows of 16 words in `rows`, transposed. */
static inline void transpose_16(__m512i rows[16]) {
    __m512i pairs[16];
#pragma GCC unroll 8
    for (int i = 0; i < 8; i++) {
        pairs[2 * i] = _mm512_unpacklo_epi32(rows[2 * i], rows[2 * i + 1]);
        pairs[2 * i + 1] = _mm512_unpackhi_epi32(rows[2 * i], rows[2 * i + 1]);
    }
    /* rows[4 * i + j]: column 4 * lane + j of the rows 4 * i .. 4 * i + 3, in each of 4 lanes of 128 bits */
#pragma GCC unroll 4
    for (int i = 0; i < 4; i++) {
        rows[4 * i] = _mm512_unpacklo_epi64(pairs[4 * i], pairs[4 * i + 2]);
        rows[4 * i + 1] = _mm512_unpackhi_epi64(pairs[4 * i], pairs[4 * i + 2]);
        rows[4 * i + 2] = _mm512_unpacklo_epi64(pairs[4 * i + 1], pairs[4 * i + 3]);
        rows[4 * i + 3] = _mm512_unpackhi_epi64(pairs[4 * i + 1], pairs[4 * i + 3]);
    }
    /* The lanes are then a matrix of 4 x 4 for each j, which is transposed too. */
#pragma GCC unroll 4
    for (int j = 0; j < 4; j++) {
        __m512i a = _mm512_shuffle_i32x4(rows[j], rows[4 + j], 0x44);
        __m512i b = _mm512_shuffle_i32x4(rows[j], rows[4 + j], 0xee);
        __m512i c = _mm512_shuffle_i32x4(rows[8 + j], rows[12 + j], 0x44);
        __m512i d = _mm512_shuffle_i32x4(rows[8 + j], rows[12 + j], 0xee);
        pairs[j] = _mm512_shuffle_i32x4(a, c, 0x88);
        pairs[4 + j] = _mm512_shuffle_i32x4(a, c, 0xdd);
        pairs[8 + j] = _mm512_shuffle_i32x4(b, d, 0x88);
        pairs[12 + j] = _mm512_shuffle_i32x4(b, d, 0xdd);
    }
#pragma GCC unroll 16
    for (int i = 0; i < 16; i++)
        rows[i] = pairs[i];
}

/* Add the keys of `more` to `total`. */
static inline void merge(State total, State more, int num_rows, int value_head_dim) {
    for (int row = 0; row < num_rows; row++) {
        float max = total.max[row] > more.max[row] ? total.max[row] : more.max[row];
        float kept = exp2_one(total.max[row] - max), added = exp2_one(more.max[row] - max);
        total.max[row] = max;
        total.sum[row] = total.sum[row] * kept + more.sum[row] * added;
        float *to = total.values + (int64_t)row * value_head_dim, *from = more.values + (int64_t)row * value_head_dim;
        for (int dim = 0; dim < value_head_dim; dim += 16) {
            __m512 sum = _mm512_mul_ps(_mm512_loadu_ps(from + dim), _mm512_set1_ps(added));
            sum = _mm512_fmadd_ps(_mm512_loadu_ps(to + dim), _mm512_set1_ps(kept), sum);
            _mm512_storeu_ps(to + dim, sum);
        }
    }
}

static inline void clear(State state, int num_rows, int value_head_dim) {
    for (int row = 0; row < num_rows; row++) {
        state.max[row] = -FLT_MAX;
        state.sum[row] = 0.0f;
    }
    for (int64_t i = 0; i < (int64_t)num_rows * value_head_dim; i += 16)
        _mm512_storeu_ps(state.values + i, _mm512_setzero_ps());
}

#endif
