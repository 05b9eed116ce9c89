/* Linear layers: matrix products whose weights are packed into panels, for bfloat16, float32 and 8-bit weights.
 *
 * A tile of up to 12 input rows times a panel stays in registers: for every word of depth, two vectors of weights meet
 * one broadcast word of each row. linear_pack_native.c says what words, panels and tiles are.
 *
 * Each output is one sum over the depth in order, whatever the number of rows and threads: a row's result never depends
 * on what is computed beside it. */

#include <stdlib.h>

#include <omp.h>

#include "linear_native.h"
#include "linear_pack_native.h"

enum {
    MAX_TILE = 12,    /* rows of a tile; twelve times two sums leave eight of 32 registers for operands */
    MAX_ABREAST = 4,  /* panels that go side by side at few rows, whose own sums could not hide the latency */
    DEPTH_BLOCK = 2048, /* words of a panel that stay in the second-level cache while tiles pass: 256 KB */
    ROW_BLOCK = 384,  /* rows that pass a panel before the next one is fetched */
    PREFETCH_ROWS = 5, /* rows of a tile at which computing would leave the memory idle without prefetching */
    AHEAD = 2048,      /* words: 8 KB */
};

/* ---- register tiles ---- */

#define UNROLL _Pragma("GCC unroll 12")

INLINE __m512 dot(const int dtype, __m512 sum, __m512i weights, __m512i inputs) {
    if (dtype == LINEAR_BF16)
        return _mm512_dpbf16_ps(sum, (__m512bh)inputs, (__m512bh)weights);
    if (dtype == LINEAR_INT8) /* its sums are integers in the same registers */
        return (__m512)_mm512_dpbusd_epi32((__m512i)sum, inputs, weights);
    return _mm512_fmadd_ps((__m512)inputs, (__m512)weights, sum);
}

/* Adds a tile of `rows` times `panels` panels to sums[panel][row][32]; the constants are known when this is inlined.
 *
 * `input_step` is the words from one depth to the next in the tile; weights are fetched `ahead` words early. */
INLINE void multiply(const int dtype, const int rows, const int panels, const uint32_t *input, int64_t input_step,
                     const uint32_t *weight, int64_t panel_words, int64_t depth, int64_t ahead, float *sums,
                     int first) {
    __m512 sum[MAX_ABREAST][MAX_TILE][2];
    UNROLL for (int p = 0; p < panels; p++) UNROLL for (int r = 0; r < rows; r++) UNROLL for (int v = 0; v < 2; v++)
        sum[p][r][v] = first ? _mm512_setzero_ps() : _mm512_loadu_ps(sums + ((p * rows + r) * 2 + v) * 16);
    for (int64_t k = 0; k < depth; k++) {
        UNROLL for (int p = 0; p < panels; p++) {
            const uint32_t *line = weight + p * panel_words + k * PANEL;
            __m512i low = _mm512_loadu_si512(line), high = _mm512_loadu_si512(line + 16);
            /* With fewer rows the processor's own prefetching keeps up: there is nothing to do but to load. */
            if (rows >= PREFETCH_ROWS) {
                _mm_prefetch(line + ahead, _MM_HINT_T1);
                _mm_prefetch(line + ahead + 16, _MM_HINT_T1);
            }
            UNROLL for (int r = 0; r < rows; r++) {
                __m512i word = _mm512_set1_epi32((int32_t)input[r]);
                sum[p][r][0] = dot(dtype, sum[p][r][0], low, word);
                sum[p][r][1] = dot(dtype, sum[p][r][1], high, word);
            }
        }
        input += input_step;
    }
    UNROLL for (int p = 0; p < panels; p++) UNROLL for (int r = 0; r < rows; r++) UNROLL for (int v = 0; v < 2; v++)
        _mm512_storeu_ps(sums + ((p * rows + r) * 2 + v) * 16, sum[p][r][v]);
}

typedef void multiply_function(const uint32_t *input, int64_t input_step, const uint32_t *weight, int64_t panel_words,
                               int64_t depth, int64_t ahead, float *sums, int first);

#define MULTIPLY(dtype, rows, panels)                                                                                \
    static void multiply_##dtype##_##rows##_##panels(const uint32_t *input, int64_t input_step,                        \
                                                     const uint32_t *weight, int64_t panel_words, int64_t depth,       \
                                                     int64_t ahead, float *sums, int first) {                          \
        multiply(dtype, rows, panels, input, input_step, weight, panel_words, depth, ahead, sums, first);              \
    }
#define MULTIPLY_ALL(dtype)                                                                                          \
    MULTIPLY(dtype, 1, 1) MULTIPLY(dtype, 1, 2) MULTIPLY(dtype, 1, 3) MULTIPLY(dtype, 1, 4)                            \
    MULTIPLY(dtype, 2, 1) MULTIPLY(dtype, 2, 2) MULTIPLY(dtype, 2, 3) MULTIPLY(dtype, 2, 4)                            \
    MULTIPLY(dtype, 3, 1) MULTIPLY(dtype, 3, 2) MULTIPLY(dtype, 4, 1) MULTIPLY(dtype, 5, 1) MULTIPLY(dtype, 6, 1)      \
    MULTIPLY(dtype, 7, 1) MULTIPLY(dtype, 8, 1) MULTIPLY(dtype, 9, 1) MULTIPLY(dtype, 10, 1) MULTIPLY(dtype, 11, 1)    \
    MULTIPLY(dtype, 12, 1)
MULTIPLY_ALL(LINEAR_BF16)
MULTIPLY_ALL(LINEAR_FP32)
MULTIPLY_ALL(LINEAR_INT8)

#define ROW(dtype, rows, ...) [rows] = {NULL, __VA_ARGS__}
#define TABLE(dtype)                                                                                                 \
    {                                                                                                                \
        ROW(dtype, 1, multiply_##dtype##_1_1, multiply_##dtype##_1_2, multiply_##dtype##_1_3, multiply_##dtype##_1_4), \
        ROW(dtype, 2, multiply_##dtype##_2_1, multiply_##dtype##_2_2, multiply_##dtype##_2_3, multiply_##dtype##_2_4), \
        ROW(dtype, 3, multiply_##dtype##_3_1, multiply_##dtype##_3_2), ROW(dtype, 4, multiply_##dtype##_4_1),          \
        ROW(dtype, 5, multiply_##dtype##_5_1), ROW(dtype, 6, multiply_##dtype##_6_1),                                  \
        ROW(dtype, 7, multiply_##dtype##_7_1), ROW(dtype, 8, multiply_##dtype##_8_1),                                  \
        ROW(dtype, 9, multiply_##dtype##_9_1), ROW(dtype, 10, multiply_##dtype##_10_1),                                \
        ROW(dtype, 11, multiply_##dtype##_11_1), ROW(dtype, 12, multiply_##dtype##_12_1),                              \
    }
static multiply_function *const multiply_functions[3][MAX_TILE + 1][MAX_ABREAST + 1] = {
    [LINEAR_BF16] = TABLE(LINEAR_BF16),
    [LINEAR_FP32] = TABLE(LINEAR_FP32),
    [LINEAR_INT8] = TABLE(LINEAR_INT8),
};

static int64_t panels_abreast(int64_t rows) {
    return rows <= 2 ? 4 : rows == 3 ? 2 : 1;
}

/* ---- what follows the product ---- */

/* The error function to 2e-7: Abramowitz and Stegun, 7.1.26. */
INLINE __m512 erf_ps(__m512 x) {
    const __m512 one = _mm512_set1_ps(1.0f);
    __m512 size = _mm512_abs_ps(x);
    __m512 t = _mm512_div_ps(one, _mm512_fmadd_ps(size, _mm512_set1_ps(0.3275911f), one));
    __m512 p = _mm512_set1_ps(1.061405429f);
    p = _mm512_fmadd_ps(p, t, _mm512_set1_ps(-1.453152027f));
    p = _mm512_fmadd_ps(p, t, _mm512_set1_ps(1.421413741f));
    p = _mm512_fmadd_ps(p, t, _mm512_set1_ps(-0.284496736f));
    p = _mm512_fmadd_ps(p, t, _mm512_set1_ps(0.254829592f));
    __m512 decay = exp_ps(_mm512_sub_ps(_mm512_setzero_ps(), _mm512_mul_ps(size, size)));
    __m512 result = _mm512_fnmadd_ps(_mm512_mul_ps(p, t), decay, one);
    __m512i sign = _mm512_and_si512((__m512i)x, _mm512_set1_epi32((int32_t)0x80000000));
    return (__m512)_mm512_or_si512((__m512i)result, sign);
}

INLINE __m512 gelu_ps(__m512 x) {
    __m512 half = _mm512_mul_ps(x, _mm512_set1_ps(0.5f));
    return _mm512_fmadd_ps(half, erf_ps(_mm512_mul_ps(x, _mm512_set1_ps(0.70710678f))), half);
}

/* One call, as its threads see it. */
struct product {
    const struct linear_weight *weight;
    const uint32_t *tiles;
    const uint8_t *residual;
    uint8_t *output;
    int64_t residual_stride, output_stride; /* bytes */
    int64_t depth, num_rows, num_tiles, tile_words;
    int input_step; /* words from one depth to the next in a tile */
    int activation;
};

static int64_t tile_start(const struct product *product, int64_t tile) {
    return tile * product->num_rows / product->num_tiles;
}

/* Bias, activation, residual: 16 sums of one row become outputs, which start at `column`.
 *
 * `input_scale` is the row's, for sums of bytes. */
INLINE void finish(const struct product *product, const float *sums, const float *input_scale, int64_t row,
                   int64_t column) {
    const struct linear_weight *weight = product->weight;
    __mmask16 mask = first_lanes(weight->num_outputs - column);
    int64_t offset = column * linear_value_bytes(weight->dtype);
    __m512 value = _mm512_loadu_ps(sums);
    if (weight->dtype == LINEAR_INT8) {
        __m512i sum = _mm512_sub_epi32((__m512i)value, _mm512_maskz_loadu_epi32(mask, weight->offsets + column));
        __m512 scale = _mm512_mul_ps(_mm512_maskz_loadu_ps(mask, weight->scales + column),
                                     _mm512_set1_ps(*input_scale));
        value = _mm512_mul_ps(_mm512_cvtepi32_ps(sum), scale);
    }
    if (weight->bias)
        value = _mm512_add_ps(value, _mm512_maskz_loadu_ps(mask, weight->bias + column));
    if (product->activation == LINEAR_GELU)
        value = gelu_ps(value);
    if (product->residual)
        value = _mm512_add_ps(
            value, load_any(weight->dtype, product->residual + row * product->residual_stride + offset, mask));
    uint8_t *to = product->output + row * product->output_stride + offset;
    if (weight->dtype == LINEAR_FP32)
        _mm512_mask_storeu_ps(to, mask, value);
    else
        store_bf16_masked((bf16 *)to, value, mask);
}

/* ---- the product ---- */

/* `abreast` panels times the tiles from `first` to `last`. */
static void multiply_panels(const struct product *product, int64_t panel, int abreast, int64_t first, int64_t last) {
    const struct linear_weight *weight = product->weight;
    int64_t panel_words = product->depth * PANEL;
    const uint32_t *panels = weight->panels + panel * panel_words;
    float sums[ROW_BLOCK / MAX_TILE][MAX_TILE * PANEL];
    for (int64_t k = 0; k < product->depth; k += DEPTH_BLOCK) {
        int64_t depth = product->depth - k < DEPTH_BLOCK ? product->depth - k : DEPTH_BLOCK;
        for (int64_t tile = first; tile < last; tile++) {
            int64_t row = tile_start(product, tile), rows = tile_start(product, tile + 1) - row;
            const uint32_t *words = product->tiles + tile * product->tile_words;
            const float *input_scales = (const float *)words + product->depth * TILE_STRIDE;
            float *tile_sums = sums[tile - first];
            /* Of several tiles the last one fetches for the first one's next turn; the others find the panel near. */
            int64_t ahead = last - first == 1 ? AHEAD : tile == last - 1 ? depth * PANEL : 0;
            multiply_functions[weight->dtype][rows][abreast](words + k * product->input_step, product->input_step,
                                                             panels + k * PANEL, panel_words, depth, ahead, tile_sums,
                                                             k == 0);
            if (k + depth < product->depth)
                continue;
            for (int p = 0; p < abreast; p++)
                for (int64_t r = 0; r < rows; r++)
                    for (int v = 0; v < 2; v++)
                        if ((panel + p) * PANEL + v * 16 < weight->num_outputs)
                            finish(product, tile_sums + ((p * rows + r) * 2 + v) * 16, input_scales + r, row + r,
                                   (panel + p) * PANEL + v * 16);
        }
    }
}

/* One tile of rows: each thread takes its share of the panels. */
static void multiply_one_tile(const struct product *product, int64_t num_panels) {
    int64_t threads = omp_get_num_threads(), thread = omp_get_thread_num(), abreast = panels_abreast(product->num_rows);
    int64_t panel = num_panels * thread / threads, end = num_panels * (thread + 1) / threads;
    while (panel < end) {
        /* As even as possible: of five, three and two rather than four and one. */
        int64_t groups = (end - panel + abreast - 1) / abreast, count = (end - panel + groups - 1) / groups;
        multiply_panels(product, panel, (int)count, 0, 1);
        panel += count;
    }
}

/* Many tiles: threads fetch panels as they get through them; all tiles of a block pass a panel while it is near. */
static void multiply_tiles(const struct product *product, int64_t num_panels) {
    const int64_t block = ROW_BLOCK / MAX_TILE;
    int64_t num_blocks = (product->num_tiles + block - 1) / block;
    int64_t chunk = num_blocks * num_panels / (16 * omp_get_num_threads()) + 1; /* a thread's panels lie in a row */
#pragma omp for schedule(dynamic, chunk) nowait
    for (int64_t item = 0; item < num_blocks * num_panels; item++) {
        int64_t first = item / num_panels * block, last = first + block;
        multiply_panels(product, item % num_panels, 1, first, last < product->num_tiles ? last : product->num_tiles);
    }
}

/* Whether the one row can serve as its tile where it lies. */
static int is_own_tile(const struct linear_weight *weight, int64_t num_rows) {
    int64_t bytes = weight->num_inputs * linear_value_bytes(weight->dtype);
    return num_rows == 1 && weight->dtype != LINEAR_INT8 && bytes % 4 == 0;
}

/* A tile in scratch memory: its words, then the scales of its rows. */
static int64_t scratch_words(const struct linear_weight *weight) {
    return (linear_words(weight->num_inputs, weight->dtype) + 1) * TILE_STRIDE;
}

int64_t linear_scratch_bytes(const struct linear_weight *weight, int64_t num_rows, int64_t num_threads) {
    int64_t num_tiles = (num_rows + MAX_TILE - 1) / MAX_TILE;
    if (is_own_tile(weight, num_rows))
        return 0;
    return (num_tiles == 1 ? num_threads : num_tiles) * scratch_words(weight) * (int64_t)sizeof(uint32_t);
}

void linear_in_team(const struct linear_weight *weight, const void *input, int64_t input_stride, const void *residual,
                    int64_t residual_stride, void *output, int64_t output_stride, int64_t num_rows, int activation,
                    void *scratch) {
    int64_t bytes = linear_value_bytes(weight->dtype), num_panels = (weight->num_outputs + PANEL - 1) / PANEL;
    int64_t stride = input_stride * bytes;
    struct product product = {
        .weight = weight,
        .tiles = scratch,
        .residual = residual,
        .output = output,
        .residual_stride = residual_stride * bytes,
        .output_stride = output_stride * bytes,
        .depth = linear_words(weight->num_inputs, weight->dtype),
        .num_rows = num_rows,
        .num_tiles = (num_rows + MAX_TILE - 1) / MAX_TILE,
        .tile_words = scratch_words(weight),
        .input_step = TILE_STRIDE,
        .activation = activation,
    };
    if (product.num_tiles > 1) {
#pragma omp for schedule(static)
        for (int64_t tile = 0; tile < product.num_tiles; tile++) {
            int64_t row = tile_start(&product, tile), rows = tile_start(&product, tile + 1) - row;
            linear_pack_tile(weight, (const uint8_t *)input + row * stride, stride, rows,
                             (uint32_t *)scratch + tile * product.tile_words);
        }
        multiply_tiles(&product, num_panels);
    } else if (product.num_tiles == 1) {
        if (is_own_tile(weight, num_rows)) {
            product.tiles = input;
            product.input_step = 1;
        } else { /* A copy for each thread costs less than waiting for one of all. */
            uint32_t *tile = (uint32_t *)scratch + omp_get_thread_num() * product.tile_words;
            linear_pack_tile(weight, input, stride, num_rows, tile);
            product.tiles = tile;
        }
        multiply_one_tile(&product, num_panels);
    }
}

void penstock_linear(const struct linear_weight *weight, const void *input, int64_t input_stride, const void *residual,
                     int64_t residual_stride, void *output, int64_t output_stride, int64_t num_rows, int activation) {
    void *scratch = aligned_alloc(64, linear_scratch_bytes(weight, num_rows, omp_get_max_threads()));
#pragma omp parallel
    linear_in_team(weight, input, input_stride, residual, residual_stride, output, output_stride, num_rows, activation,
                   scratch);
    free(scratch);
}
