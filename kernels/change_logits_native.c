/* Everything that changes logits before sampling, in one pass: bias, penalties, forbidden tokens, a grammar's mask.
 *
 * Legend: R rows, V vocabulary. One thread works on a row. */

#include "native.h"

#include <float.h>
#include <math.h>

enum dtype { FLOAT32, BFLOAT16, FLOAT16 };

/* As change_logits.LogitChanges describes them. */
struct changes {
    const int32_t *entry_starts, *entry_ids;
    const float *entry_values;
    const int32_t *count_rows;
    const float *penalties;
    const int32_t *counts, *mask_rows;
    const char *bits;
    int64_t bits_stride; /* bytes */
};

/* NaN is -inf, and +inf the largest number. */
static inline __m512 load_logits(const char *logits, enum dtype dtype, int64_t start, __mmask16 inside) {
    __m512 x;
    if (dtype == FLOAT32)
        x = _mm512_maskz_loadu_ps(inside, (const float *)logits + start);
    else if (dtype == BFLOAT16)
        x = load_bf16_masked((const bf16 *)logits + start, inside);
    else
        x = _mm512_cvtph_ps(_mm256_maskz_loadu_epi16(inside, (const uint16_t *)logits + start));
    x = _mm512_min_ps(_mm512_set1_ps(FLT_MAX), x); /* of a NaN and a number, min and max return the second operand */
    return _mm512_max_ps(x, _mm512_set1_ps(-INFINITY));
}

/* `x` [16] with the penalties for tokens whose counts are `count`. */
static inline __m512 penalize(__m512 x, __m512i count, const float *penalties) {
    const __mmask16 seen = _mm512_test_epi32_mask(count, count);
    if (!seen)
        return x;
    const __m512 repetition = _mm512_set1_ps(penalties[0]);
    const __mmask16 positive = _mm512_cmp_ps_mask(x, _mm512_setzero_ps(), _CMP_GT_OQ);
    __m512 y = _mm512_mask_div_ps(_mm512_mul_ps(x, repetition), positive, x, repetition);
    const __m512i num_output = _mm512_srli_epi32(count, 1); /* the lowest bit is the prompt's */
    const __mmask16 in_output = _mm512_test_epi32_mask(num_output, num_output);
    __m512 lost = _mm512_maskz_mov_ps(in_output, _mm512_set1_ps(penalties[1]));
    lost = _mm512_fmadd_ps(_mm512_set1_ps(penalties[2]), _mm512_cvtepi32_ps(num_output), lost);
    return _mm512_mask_sub_ps(x, seen, y, lost);
}

static void change_row(
    const char *logits, enum dtype dtype, int64_t row, int64_t vocab_size, const struct changes *changes, float *values) {
    int64_t entry = changes->entry_starts[row];
    const int64_t end = changes->entry_starts[row + 1];
    const int32_t *counts = NULL;
    const uint16_t *allowed = NULL;
    if (changes->count_rows[row] >= 0)
        counts = changes->counts + changes->count_rows[row] * vocab_size;
    if (changes->mask_rows[row] >= 0)
        allowed = (const uint16_t *)(changes->bits + changes->mask_rows[row] * changes->bits_stride);
    for (int64_t start = 0; start < vocab_size; start += 16) {
        const __mmask16 inside = first_lanes(vocab_size - start);
        __m512 x = load_logits(logits, dtype, start, inside);
        if (entry < end && changes->entry_ids[entry] < start + 16) {
            float some[16];
            _mm512_storeu_ps(some, x);
            for (; entry < end && changes->entry_ids[entry] < start + 16; entry++)
                some[changes->entry_ids[entry] - start] += changes->entry_values[entry];
            x = _mm512_loadu_ps(some);
        }
        if (counts)
            x = penalize(x, _mm512_maskz_loadu_epi32(inside, counts + start), changes->penalties + 3 * row);
        if (allowed)
            x = _mm512_mask_mov_ps(_mm512_set1_ps(-INFINITY), allowed[start / 16], x);
        _mm512_mask_storeu_ps(values + start, inside, x);
    }
}

/* logits [R, V] with rows `stride` bytes apart; values [R, V]. */
void penstock_change_logits(
    const char *logits, int64_t dtype, int64_t stride, int64_t num_rows, int64_t vocab_size,
    const int32_t *entry_starts, const int32_t *entry_ids, const float *entry_values, const int32_t *count_rows,
    const float *penalties, const int32_t *counts, const int32_t *mask_rows, const char *bits, int64_t bits_stride,
    float *values) {
    const struct changes changes = {
        entry_starts, entry_ids, entry_values, count_rows, penalties, counts, mask_rows, bits, bits_stride};
#pragma omp parallel for schedule(dynamic, 1) if (num_rows > 1)
    for (int64_t row = 0; row < num_rows; row++)
        change_row(logits + row * stride, (enum dtype)dtype, row, vocab_size, &changes, values + row * vocab_size);
}
