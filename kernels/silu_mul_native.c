/* The gate of a gated MLP, `silu(gate) * up`, on rows of bfloat16. */

#include "row_ops.h"

/* Fewer rows are done before a second thread has begun. */
enum { MIN_PARALLEL_ROWS = 4 };

void silu_mul_row(const bf16 *gate_up, int64_t size, bf16 *output) {
    const __m512 one = _mm512_set1_ps(1.0f), zero = _mm512_setzero_ps();
    for (int64_t i = 0; i < size; i += 16) {
        __mmask16 mask = first_lanes(size - i);
        __m512 gate = load_bf16_masked(gate_up + i, mask), up = load_bf16_masked(gate_up + size + i, mask);
        __m512 divisor = _mm512_add_ps(one, exp_ps(_mm512_sub_ps(zero, gate)));
        store_bf16_masked(output + i, _mm512_mul_ps(_mm512_div_ps(gate, divisor), up), mask);
    }
}

/* gate_up: [rows, 2 * size]; output: [rows, size]. */
void penstock_silu_mul(const bf16 *gate_up, int64_t rows, int64_t size, bf16 *output) {
#pragma omp parallel for schedule(static) if (rows >= MIN_PARALLEL_ROWS)
    for (int64_t row = 0; row < rows; row++) silu_mul_row(gate_up + 2 * row * size, size, output + row * size);
}
