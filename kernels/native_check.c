/* Calls of the helpers in native.h for their tests. */

#include "native.h"

/* output[i] = e^input[i]; both [count]. */
void penstock_exp(const float *input, float *output, int64_t count) {
    for (int64_t i = 0; i < count; i += 16) {
        __mmask16 mask = first_lanes(count - i);
        _mm512_mask_storeu_ps(output + i, mask, exp_ps(_mm512_maskz_loadu_ps(mask, input + i)));
    }
}

/* output[i] = the bfloat16 nearest to input[i]; both [count]. */
void penstock_narrow(const float *input, bf16 *output, int64_t count) {
    for (int64_t i = 0; i < count; i += 16) {
        __mmask16 mask = first_lanes(count - i);
        store_bf16_masked(output + i, _mm512_maskz_loadu_ps(mask, input + i), mask);
    }
}
