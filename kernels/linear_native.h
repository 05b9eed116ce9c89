/* Matrix products with packed weights: what other kernels may call. */

#ifndef PENSTOCK_LINEAR_NATIVE_H
#define PENSTOCK_LINEAR_NATIVE_H

#include "native.h"

/* Weights of LINEAR_INT8 are 8-bit, with one scale for each output; everything else of them is bfloat16. */
enum linear_dtype { LINEAR_BF16 = 0, LINEAR_FP32 = 1, LINEAR_INT8 = 2 };
enum linear_activation { LINEAR_PLAIN = 0, LINEAR_GELU = 1 };

/* One layer's weight. `panels` is what penstock_linear_pack has written, or penstock_linear_quantize together with
 * `scales` and `offsets`, which other dtypes do not have. `bias` has num_outputs floats or is NULL. */
struct linear_weight {
    const uint32_t *panels;
    const float *bias;
    const float *scales;
    const int32_t *offsets;
    int64_t num_outputs, num_inputs;
    int32_t dtype; /* of inputs, weights, residual and outputs */
};

/* output[t] = activation(input[t] W^T + bias) + residual[t] for num_rows rows t.
 *
 * Rows of input, residual and output lie `*_stride` elements apart; residual may be NULL, or the output itself. */
void penstock_linear(const struct linear_weight *weight, const void *input, int64_t input_stride, const void *residual,
                     int64_t residual_stride, void *output, int64_t output_stride, int64_t num_rows, int activation);

/* The same as a part of a parallel region, all of whose threads call it. It does not wait for the others at its end.
 *
 * `scratch` is aligned to 64 bytes, has linear_scratch_bytes(), and is the same for all threads. */
void linear_in_team(const struct linear_weight *weight, const void *input, int64_t input_stride, const void *residual,
                    int64_t residual_stride, void *output, int64_t output_stride, int64_t num_rows, int activation,
                    void *scratch);

int64_t linear_scratch_bytes(const struct linear_weight *weight, int64_t num_rows, int64_t num_threads);

#endif
