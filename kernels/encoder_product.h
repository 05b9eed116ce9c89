/* Matrix product of a few rows with packed weights, in one thread, for the layers of an encoder.
 *
 * A weight [N, K] is packed as panels [N / 64][K][64] of float32, or [N / 64][K / 2][64][2] of bfloat16, so that in both
 * a step along K takes 64 dwords of the panel and one dword of each row: a float, or two neighbouring bfloat16. Six rows
 * and 64 columns are accumulated in 24 registers (2 cores with avx512_bf16: 115 of 117 GFLOP/s a core in float32, 225 of
 * 235 in bfloat16). An element is one chain of additions along K whatever rows are beside it: results do not depend on
 * how rows are put together. */

#ifndef PENSTOCK_ENCODER_PRODUCT_H
#define PENSTOCK_ENCODER_PRODUCT_H

#include "native.h"

#define PANEL 64
#define VECTORS (PANEL / 16)
#define TILE_ROWS 6

enum activation { ACTIVATION_NONE, ACTIVATION_GELU, ACTIVATION_GELU_TANH, ACTIVATION_RELU };

/* What becomes of the sums: activation(sum + bias) + residual, as float32 or bfloat16. */
typedef struct {
    const float *bias;     /* [N] */
    const float *residual; /* rows of `stride`, or NULL */
    void *output;          /* rows of `stride`, float or bf16; may be `residual` */
    int64_t stride;        /* elements */
    enum activation activation;
    int narrow; /* output is bf16 */
} epilogue;

/* x Phi(x). The tail of the normal distribution by the formula 7.1.26 of Abramowitz and Stegun for erfc, whose absolute
 * error is below 1.5e-7. */
static inline __m512 gelu(__m512 x) {
    const __m512 one = _mm512_set1_ps(1.0f);
    __m512 z = _mm512_mul_ps(_mm512_abs_ps(x), _mm512_set1_ps(0.70710678f));
    __m512 base = _mm512_fmadd_ps(z, _mm512_set1_ps(0.3275911f), one);
    __m512 t = _mm512_rcp14_ps(base); /* and one step of Newton's iteration */
    t = _mm512_mul_ps(t, _mm512_fnmadd_ps(base, t, _mm512_set1_ps(2.0f)));
    __m512 p = _mm512_set1_ps(0.5f * 1.061405429f);
    p = _mm512_fmadd_ps(p, t, _mm512_set1_ps(0.5f * -1.453152027f));
    p = _mm512_fmadd_ps(p, t, _mm512_set1_ps(0.5f * 1.421413741f));
    p = _mm512_fmadd_ps(p, t, _mm512_set1_ps(0.5f * -0.284496736f));
    p = _mm512_fmadd_ps(p, t, _mm512_set1_ps(0.5f * 0.254829592f));
    __m512 minus_square = _mm512_mul_ps(_mm512_mul_ps(x, x), _mm512_set1_ps(-0.5f));
    __m512 tail = _mm512_mul_ps(_mm512_mul_ps(p, t), exp_ps(minus_square));
    __mmask16 positive = _mm512_cmp_ps_mask(x, _mm512_setzero_ps(), _CMP_GT_OQ);
    return _mm512_mul_ps(x, _mm512_mask_sub_ps(tail, positive, one, tail));
}

/* x / (1 + e^(-2 sqrt(2 / pi) (x + 0.044715 x^3))), which is x (1 + tanh(...)) / 2. */
static inline __m512 gelu_tanh(__m512 x) {
    __m512 cubic = _mm512_fmadd_ps(_mm512_mul_ps(x, x), _mm512_set1_ps(0.044715f), _mm512_set1_ps(1.0f));
    __m512 exponent = _mm512_mul_ps(_mm512_mul_ps(x, cubic), _mm512_set1_ps(-1.59576912f));
    return _mm512_div_ps(x, _mm512_add_ps(_mm512_set1_ps(1.0f), exp_ps(exponent)));
}

static inline __m512 activate(__m512 x, enum activation activation) {
    switch (activation) {
    case ACTIVATION_GELU:
        return gelu(x);
    case ACTIVATION_GELU_TANH:
        return gelu_tanh(x);
    case ACTIVATION_RELU:
        return _mm512_max_ps(_mm512_setzero_ps(), x); /* the second operand is the answer where it is NaN */
    default:
        return x;
    }
}

/* tile[rows][PANEL] = the sums of `rows` rows, `stride` dwords apart, with one panel of `steps` dwords along K. */
static inline __attribute__((always_inline)) void sum_tile(
    const int rows, const int half, const float *inputs, int64_t stride, const float *panel, int64_t steps, float *tile
) {
    __m512 sums[TILE_ROWS][VECTORS];
    for (int r = 0; r < rows; r++)
        for (int v = 0; v < VECTORS; v++) sums[r][v] = _mm512_setzero_ps();
    for (int64_t k = 0; k < steps; k++, panel += PANEL) {
        __m512 weights[VECTORS];
        for (int v = 0; v < VECTORS; v++) weights[v] = _mm512_loadu_ps(panel + 16 * v);
#pragma GCC unroll 6
        for (int r = 0; r < rows; r++) {
            __m512 input = _mm512_set1_ps(inputs[r * stride + k]);
#pragma GCC unroll 4
            for (int v = 0; v < VECTORS; v++)
                sums[r][v] = half ? _mm512_dpbf16_ps(sums[r][v], (__m512bh)input, (__m512bh)weights[v])
                                  : _mm512_fmadd_ps(input, weights[v], sums[r][v]);
        }
    }
    for (int r = 0; r < rows; r++)
        for (int v = 0; v < VECTORS; v++) _mm512_store_ps(tile + r * PANEL + 16 * v, sums[r][v]);
}

typedef void sum_function(const float *inputs, int64_t stride, const float *panel, int64_t steps, float *tile);

#define DEFINE_SUMS(name, rows, half)                                                                                  \
    static void name(const float *inputs, int64_t stride, const float *panel, int64_t steps, float *tile) {            \
        sum_tile(rows, half, inputs, stride, panel, steps, tile);                                                      \
    }
DEFINE_SUMS(sum_float_1, 1, 0)
DEFINE_SUMS(sum_float_2, 2, 0)
DEFINE_SUMS(sum_float_3, 3, 0)
DEFINE_SUMS(sum_float_4, 4, 0)
DEFINE_SUMS(sum_float_5, 5, 0)
DEFINE_SUMS(sum_float_6, 6, 0)
DEFINE_SUMS(sum_half_1, 1, 1)
DEFINE_SUMS(sum_half_2, 2, 1)
DEFINE_SUMS(sum_half_3, 3, 1)
DEFINE_SUMS(sum_half_4, 4, 1)
DEFINE_SUMS(sum_half_5, 5, 1)
DEFINE_SUMS(sum_half_6, 6, 1)

static sum_function *const SUMS[2][TILE_ROWS] = {
    {sum_float_1, sum_float_2, sum_float_3, sum_float_4, sum_float_5, sum_float_6},
    {sum_half_1, sum_half_2, sum_half_3, sum_half_4, sum_half_5, sum_half_6},
};

/* Rows `row` to `row + rows`, columns `column` to `column + columns`, of the output. */
static void finish_tile(
    const float *tile, int64_t row, int64_t rows, int64_t column, int64_t columns, const epilogue *to
) {
    for (int64_t r = 0; r < rows; r++) {
        int64_t offset = (row + r) * to->stride + column;
        for (int64_t c = 0; c < columns; c += 16) {
            __mmask16 mask = first_lanes(columns - c);
            __m512 x = _mm512_load_ps(tile + r * PANEL + c);
            x = _mm512_add_ps(x, _mm512_maskz_loadu_ps(mask, to->bias + column + c));
            x = activate(x, to->activation);
            if (to->residual) x = _mm512_add_ps(x, _mm512_maskz_loadu_ps(mask, to->residual + offset + c));
            if (to->narrow)
                store_bf16_masked((bf16 *)to->output + offset + c, x, mask);
            else
                _mm512_mask_storeu_ps((float *)to->output + offset + c, mask, x);
        }
    }
}

/* Rows `first` to `last` of `inputs`, [rows, steps] dwords, with panel number `panel` of `weight`, whose valid columns
 * are the first `columns` of all. */
static void multiply_panel(
    const float *inputs, int64_t first, int64_t last, int64_t steps, const float *weight, int64_t panel,
    int64_t columns, int half, const epilogue *to
) {
    float tile[TILE_ROWS * PANEL] __attribute__((aligned(64)));
    int64_t column = panel * PANEL;
    int64_t width = columns - column < PANEL ? columns - column : PANEL;
    for (int64_t row = first; row < last; row += TILE_ROWS) {
        int64_t rows = last - row < TILE_ROWS ? last - row : TILE_ROWS;
        SUMS[half][rows - 1](inputs + row * steps, steps, weight + panel * steps * PANEL, steps, tile);
        finish_tile(tile, row, rows, column, width, to);
    }
}

#endif
