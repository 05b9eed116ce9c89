/* The layout of packed weights and inputs.
 *
 * A word is 32 bits: four neighbouring bytes of a row, two bfloat16, or one float. A panel holds 32 rows of the weight
 * (outputs), word by word: [depth][32], depth being the words of a row. Inputs are packed into tiles of up to 12
 * rows in the same way, [depth][16]. Missing rows and inputs are zero in a weight. */

#ifndef PENSTOCK_LINEAR_PACK_NATIVE_H
#define PENSTOCK_LINEAR_PACK_NATIVE_H

#include "linear_native.h"

enum {
    PANEL = 32,       /* outputs of a panel: two vectors */
    TILE_STRIDE = 16, /* words from one depth to the next in a tile */
};

#define INLINE static inline __attribute__((always_inline))

/* Of one input or output. */
INLINE int64_t linear_value_bytes(int dtype) {
    return dtype == LINEAR_FP32 ? 4 : 2;
}

/* The depth of a weight. */
INLINE int64_t linear_words(int64_t num_inputs, int dtype) {
    return dtype == LINEAR_INT8 ? (num_inputs + 3) / 4 : (num_inputs * linear_value_bytes(dtype) + 3) / 4;
}

INLINE __m512 load_any(int dtype, const void *from, __mmask16 mask) {
    return dtype == LINEAR_FP32 ? _mm512_maskz_loadu_ps(mask, from) : load_bf16_masked(from, mask);
}

/* Packs `count` rows, `stride` bytes apart, into a tile. If the weight is of bytes, rows are rounded to bytes as well,
 * and their scales stand behind the words. */
void linear_pack_tile(const struct linear_weight *weight, const uint8_t *rows, int64_t stride, int64_t count,
                      uint32_t *tile);

#endif
