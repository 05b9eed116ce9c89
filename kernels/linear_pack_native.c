/* Packing and rounding of the weights and inputs of linear layers. */

#include <math.h>
#include <string.h>

#include "linear_native.h"
#include "linear_pack_native.h"

#define UNROLL16 _Pragma("GCC unroll 16")

/* Sixteen words at `column` of a row of `bytes` bytes; what lies beyond its end is zero. */
INLINE __m512i load_words(const uint8_t *row, int64_t bytes, int64_t column) {
    int64_t left = bytes - column * 4;
    if (left >= 64)
        return _mm512_loadu_si512(row + column * 4);
    return _mm512_maskz_loadu_epi8(left <= 0 ? 0 : ((__mmask64)1 << left) - 1, row + column * 4);
}

/* rows[r][c] to rows[c][r]. */
INLINE void transpose(__m512i rows[16]) {
    __m512i pairs[16];
    UNROLL16 for (int i = 0; i < 16; i += 2) {
        pairs[i] = _mm512_unpacklo_epi32(rows[i], rows[i + 1]);
        pairs[i + 1] = _mm512_unpackhi_epi32(rows[i], rows[i + 1]);
    }
    UNROLL16 for (int i = 0; i < 16; i += 4) UNROLL16 for (int j = 0; j < 2; j++) {
        rows[i + 2 * j] = _mm512_unpacklo_epi64(pairs[i + j], pairs[i + j + 2]);
        rows[i + 2 * j + 1] = _mm512_unpackhi_epi64(pairs[i + j], pairs[i + j + 2]);
    }
    /* rows[4 q + c] has column 4 g + c of rows 4 q .. 4 q + 3 in its quarter g: transpose the quarters. */
    UNROLL16 for (int c = 0; c < 4; c++) {
        __m512i low_01 = _mm512_shuffle_i32x4(rows[c], rows[4 + c], 0x44);
        __m512i high_01 = _mm512_shuffle_i32x4(rows[c], rows[4 + c], 0xee);
        __m512i low_23 = _mm512_shuffle_i32x4(rows[8 + c], rows[12 + c], 0x44);
        __m512i high_23 = _mm512_shuffle_i32x4(rows[8 + c], rows[12 + c], 0xee);
        pairs[c] = _mm512_shuffle_i32x4(low_01, low_23, 0x88);
        pairs[4 + c] = _mm512_shuffle_i32x4(low_01, low_23, 0xdd);
        pairs[8 + c] = _mm512_shuffle_i32x4(high_01, high_23, 0x88);
        pairs[12 + c] = _mm512_shuffle_i32x4(high_01, high_23, 0xdd);
    }
    UNROLL16 for (int i = 0; i < 16; i++) rows[i] = pairs[i];
}

/* Writes up to 16 rows, `stride` bytes apart, word by word: packed[depth][packed_stride]. Missing rows become zero. */
static void pack_rows(const uint8_t *rows, int64_t stride, int64_t count, int64_t bytes, uint32_t *packed,
                      int64_t packed_stride) {
    int64_t depth = (bytes + 3) / 4;
    for (int64_t column = 0; column < depth; column += 16) {
        __m512i words[16];
        UNROLL16 for (int r = 0; r < 16; r++)
            words[r] = r < count ? load_words(rows + r * stride, bytes, column) : _mm512_setzero_si512();
        transpose(words);
        int64_t width = depth - column < 16 ? depth - column : 16;
        for (int64_t c = 0; c < width; c++)
            _mm512_storeu_si512(packed + (column + c) * packed_stride, words[c]);
    }
}

/* Packs a weight, [num_outputs, num_inputs] with rows `stride` elements apart, into panels of [depth][32] words. */
void penstock_linear_pack(const void *weight, int64_t stride, int64_t num_outputs, int64_t num_inputs, int dtype,
                          uint32_t *panels) {
    const uint8_t *rows = weight;
    int64_t bytes = linear_value_bytes(dtype), depth = linear_words(num_inputs, dtype);
#pragma omp parallel for schedule(static)
    for (int64_t half = 0; half < 2 * ((num_outputs + PANEL - 1) / PANEL); half++) {
        int64_t row = half * 16;
        pack_rows(rows + row * stride * bytes, stride * bytes, num_outputs - row, num_inputs * bytes,
                  panels + (half / 2) * depth * PANEL + (half % 2) * 16, PANEL);
    }
}

/* One row as bytes from -127 to 127, `flip` applied to each, into words[depth] that lie `step` apart.
 *
 * Returns the scale that gives the row back; NaN if it has NaN. `total` becomes the sum of the bytes before `flip`. */
static float quantize_row(int dtype, const void *row, int64_t size, uint32_t *words, int64_t step, uint8_t flip,
                          int32_t *total) {
    int64_t bytes = linear_value_bytes(dtype);
    const uint8_t *from = row;
    __m512 largest = _mm512_setzero_ps();
    __mmask16 is_nan = 0;
    for (int64_t i = 0; i < size; i += 16) {
        __m512 values = load_any(dtype, from + i * bytes, first_lanes(size - i));
        is_nan |= _mm512_cmp_ps_mask(values, values, _CMP_UNORD_Q);
        largest = _mm512_max_ps(largest, _mm512_abs_ps(values));
    }
    float limit = _mm512_reduce_max_ps(largest);
    __m512 inverse = _mm512_set1_ps(limit > 0.0f ? 127.0f / limit : 0.0f);
    __m512i sum = _mm512_setzero_si512();
    for (int64_t i = 0; i < size; i += 16) {
        __m512 values = load_any(dtype, from + i * bytes, first_lanes(size - i));
        __m512i rounded = _mm512_cvtps_epi32(_mm512_mul_ps(values, inverse));
        sum = _mm512_add_epi32(sum, rounded);
        uint32_t packed[4];
        _mm_storeu_si128((__m128i *)packed, _mm_xor_si128(_mm512_cvtepi32_epi8(rounded), _mm_set1_epi8((char)flip)));
        for (int64_t word = 0; word < 4 && i + word * 4 < size; word++)
            words[(i / 4 + word) * step] = packed[word];
    }
    *total = _mm512_reduce_add_epi32(sum);
    return is_nan ? NAN : limit / 127.0f;
}

/* Rounds a weight, as penstock_linear_pack gets it, to bytes with a scale for each output, and packs it.
 *
 * `dtype` is LINEAR_BF16 or LINEAR_FP32. Scales and offsets are [num_outputs]; an offset is what the unsigned inputs,
 * which stand 128 too high, add to a sum. */
void penstock_linear_quantize(const void *weight, int64_t stride, int64_t num_outputs, int64_t num_inputs, int dtype,
                              uint32_t *panels, float *scales, int32_t *offsets) {
    const uint8_t *rows = weight;
    int64_t depth = linear_words(num_inputs, LINEAR_INT8), row_bytes = stride * linear_value_bytes(dtype);
#pragma omp parallel for schedule(static)
    for (int64_t panel = 0; panel < (num_outputs + PANEL - 1) / PANEL; panel++) {
        uint32_t *words = panels + panel * depth * PANEL;
        int64_t count = num_outputs - panel * PANEL < PANEL ? num_outputs - panel * PANEL : PANEL;
        memset(words, 0, depth * PANEL * sizeof(uint32_t));
        for (int64_t r = 0; r < count; r++) {
            int64_t row = panel * PANEL + r;
            int32_t total;
            scales[row] = quantize_row(dtype, rows + row * row_bytes, num_inputs, words + r, PANEL, 0, &total);
            offsets[row] = 128 * total;
        }
    }
}

void linear_pack_tile(const struct linear_weight *weight, const uint8_t *rows, int64_t stride, int64_t count,
                      uint32_t *tile) {
    if (weight->dtype != LINEAR_INT8) {
        pack_rows(rows, stride, count, weight->num_inputs * linear_value_bytes(weight->dtype), tile, TILE_STRIDE);
        return;
    }
    float *scales = (float *)tile + linear_words(weight->num_inputs, weight->dtype) * TILE_STRIDE;
    for (int64_t r = 0; r < count; r++) {
        int32_t total;
        /* Flipping the sign bit adds 128: the instruction multiplies unsigned inputs with signed weights. */
        scales[r] = quantize_row(LINEAR_BF16, rows + r * stride, weight->num_inputs, tile + r, TILE_STRIDE, 0x80,
                                 &total);
    }
}
