/* Root-mean-square norm of rows of bfloat16, alone or with the addition of the residual stream before it. */

#include <math.h>

#include "row_ops.h"

/* Fewer rows are done before a second thread has begun. */
enum { MIN_PARALLEL_ROWS = 8 };

static inline __m512 load_weight(const void *weight, bool wide, int64_t at, __mmask16 mask) {
    return wide ? _mm512_maskz_loadu_ps(mask, (const float *)weight + at)
                : load_bf16_masked((const bf16 *)weight + at, mask);
}

static inline void scale_row(const bf16 *x, float square_sum, const void *weight, bool wide, float eps, int64_t size,
                             bf16 *output) {
    __m512 scale = _mm512_set1_ps(1.0f / sqrtf(square_sum / (float)size + eps));
    for (int64_t i = 0; i < size; i += 16) {
        __mmask16 mask = first_lanes(size - i);
        __m512 scaled = _mm512_mul_ps(load_bf16_masked(x + i, mask), scale);
        store_bf16_masked(output + i, _mm512_mul_ps(scaled, load_weight(weight, wide, i, mask)), mask);
    }
}

void rms_norm_row(const bf16 *x, const void *weight, bool wide_weight, float eps, int64_t size, bf16 *output) {
    __m512 sums[2] = {_mm512_setzero_ps(), _mm512_setzero_ps()}; /* two, so that an addition waits for none */
    for (int64_t i = 0; i < size; i += 32) {
        __m512 first = load_bf16_masked(x + i, first_lanes(size - i));
        sums[0] = _mm512_fmadd_ps(first, first, sums[0]);
        if (size - i > 16) {
            __m512 second = load_bf16_masked(x + i + 16, first_lanes(size - i - 16));
            sums[1] = _mm512_fmadd_ps(second, second, sums[1]);
        }
    }
    float square_sum = _mm512_reduce_add_ps(_mm512_add_ps(sums[0], sums[1]));
    scale_row(x, square_sum, weight, wide_weight, eps, size, output);
}

void add_rms_norm_row(const bf16 *x, const bf16 *residual, const void *weight, bool wide_weight, float eps,
                      int64_t size, bf16 *sum, bf16 *output) {
    for (int64_t i = 0; i < size; i += 16) {
        __mmask16 mask = first_lanes(size - i);
        store_bf16_masked(sum + i, _mm512_add_ps(load_bf16_masked(x + i, mask), load_bf16_masked(residual + i, mask)),
                          mask);
    }
    rms_norm_row(sum, weight, wide_weight, eps, size, output);
}

/* output: [rows, size]; x likewise, `x_stride` elements from row to row. */
void penstock_rms_norm(const bf16 *x, int64_t x_stride, const void *weight, int wide_weight, float eps, int64_t rows,
                       int64_t size, bf16 *output) {
#pragma omp parallel for schedule(static) if (rows >= MIN_PARALLEL_ROWS)
    for (int64_t row = 0; row < rows; row++)
        rms_norm_row(x + row * x_stride, weight, wide_weight, eps, size, output + row * size);
}

/* sum, output: [rows, size]; x, residual likewise, with strides from row to row. */
void penstock_add_rms_norm(const bf16 *x, int64_t x_stride, const bf16 *residual, int64_t residual_stride,
                           const void *weight, int wide_weight, float eps, int64_t rows, int64_t size, bf16 *sum,
                           bf16 *output) {
#pragma omp parallel for schedule(static) if (rows >= MIN_PARALLEL_ROWS)
    for (int64_t row = 0; row < rows; row++)
        add_rms_norm_row(x + row * x_stride, residual + row * residual_stride, weight, wide_weight, eps, size,
                         sum + row * size, output + row * size);
}
