/* The layers of a post-norm transformer encoder over texts of any lengths, packed one behind the other.
 *
 * Where there is more than one text for each thread, a thread takes a group of texts through all layers: no thread waits
 * for another before the end, and what a layer writes is still in the cache when the next one reads it. Otherwise all
 * threads work on all texts, and wait for each other after every operation. */

#include <math.h>
#include <omp.h>

#include "encoder_attention.h"
#include "encoder_product.h"

#define ROWS_TOGETHER 48 /* of one product, by a thread that shares it with others */

/* The weight is packed as encoder_product.h says. */
typedef struct {
    const float *weight;
    const float *bias;
} linear;

typedef struct {
    const float *weight;
    const float *bias;
} norm;

typedef struct {
    linear qkv, output, up, down;
    norm attention_norm, output_norm;
} layer;

typedef struct {
    const layer *layers;
    int64_t num_layers;
    int64_t hidden, heads, head_dim, inner; /* features */
    int64_t half;                           /* weights and the operands of products are bfloat16 */
    int64_t activation;
    float scale, epsilon;
} encoder;

/* Threads that work on the same texts, and one of them. */
typedef struct {
    int size, index;
} team;

/* Buffers of one team, but for `scores`, which are each thread's own. `hidden` is the input of products as bfloat16. */
typedef struct {
    float *qkv, *scores;
    void *hidden, *attended, *inner;
} workspace;

/* The texts of one call or group: their states are updated in place. */
typedef struct {
    float *states;         /* [rows, hidden] */
    const int64_t *starts; /* [num_texts + 1], rows */
    int64_t num_texts;
    const float *bias; /* of attention: [heads, bias_size, bias_size], or NULL */
    int64_t bias_size;
} texts;

static void wait_for(team members) {
    if (members.size > 1) {
#pragma omp barrier
    }
}

static void multiply(
    const encoder *model, const void *inputs, int64_t rows, int64_t features, linear by, int64_t columns,
    epilogue to, team members
) {
    int64_t num_panels = (columns + PANEL - 1) / PANEL;
    int64_t together = members.size > 1 ? ROWS_TOGETHER : rows, num_parts = (rows + together - 1) / together;
    int64_t num_units = num_panels * num_parts, steps = features >> model->half;
    int64_t begin = num_units * members.index / members.size, end = num_units * (members.index + 1) / members.size;
    to.bias = by.bias;
    to.stride = columns;
    for (int64_t unit = begin; unit < end; unit++) {
        int64_t first = unit % num_parts * together, last = first + together < rows ? first + together : rows;
        multiply_panel(inputs, first, last, steps, by.weight, unit / num_parts, columns, (int)model->half, &to);
    }
}

/* states = norm(states), and the same as bfloat16 where products want that. */
static void normalise(const encoder *model, float *states, bf16 *halves, int64_t rows, norm by, team members) {
    int64_t size = model->hidden;
    for (int64_t row = members.index; row < rows; row += members.size) {
        float *x = states + row * size;
        __m512 sum = _mm512_setzero_ps(), squares = _mm512_setzero_ps();
        for (int64_t i = 0; i < size; i += 16)
            sum = _mm512_add_ps(sum, _mm512_maskz_loadu_ps(first_lanes(size - i), x + i));
        __m512 mean = _mm512_set1_ps(_mm512_reduce_add_ps(sum) / (float)size);
        for (int64_t i = 0; i < size; i += 16) {
            __mmask16 mask = first_lanes(size - i);
            __m512 centred = _mm512_maskz_sub_ps(mask, _mm512_maskz_loadu_ps(mask, x + i), mean);
            squares = _mm512_fmadd_ps(centred, centred, squares);
        }
        float variance = _mm512_reduce_add_ps(squares) / (float)size;
        __m512 scale = _mm512_set1_ps(1.0f / sqrtf(variance + model->epsilon));
        for (int64_t i = 0; i < size; i += 16) {
            __mmask16 mask = first_lanes(size - i);
            __m512 unit = _mm512_mul_ps(_mm512_sub_ps(_mm512_maskz_loadu_ps(mask, x + i), mean), scale);
            unit = _mm512_fmadd_ps(
                unit, _mm512_maskz_loadu_ps(mask, by.weight + i), _mm512_maskz_loadu_ps(mask, by.bias + i)
            );
            _mm512_mask_storeu_ps(x + i, mask, unit);
            if (model->half) store_bf16_masked(halves + row * size + i, unit, mask);
        }
    }
}

static void attend_all(const encoder *model, const texts *of, workspace use, team members) {
    int64_t width = model->heads * model->head_dim;
    for (int64_t unit = members.index; unit < of->num_texts * model->heads; unit += members.size) {
        int64_t text = unit / model->heads, number = unit % model->heads;
        int64_t begin = of->starts[text] - of->starts[0], column = number * model->head_dim;
        const float *query = use.qkv + begin * 3 * width + column;
        head one = {
            .query = query,
            .key = query + width,
            .value = query + 2 * width,
            .stride = 3 * width,
            .length = of->starts[text + 1] - of->starts[text],
            .head_dim = model->head_dim,
            .scale = model->scale,
            .bias = of->bias ? of->bias + number * of->bias_size * of->bias_size : NULL,
            .bias_stride = of->bias_size,
        };
        char *output = (char *)use.attended + (begin * width + column) * (model->half ? 2 : 4);
        attend(&one, output, width, (int)model->half, use.scores);
    }
}

static void run_layers(const encoder *model, const texts *of, workspace use, team members) {
    int64_t rows = of->starts[of->num_texts] - of->starts[0], hidden = model->hidden;
    int64_t width = model->heads * model->head_dim;
    float *states = of->states + of->starts[0] * hidden;
    const void *inputs = states;
    if (model->half) {
        inputs = use.hidden;
        for (int64_t row = members.index; row < rows; row += members.size)
            for (int64_t i = 0; i < hidden; i += 16) {
                __mmask16 mask = first_lanes(hidden - i);
                __m512 x = _mm512_maskz_loadu_ps(mask, states + row * hidden + i);
                store_bf16_masked((bf16 *)use.hidden + row * hidden + i, x, mask);
            }
        wait_for(members);
    }
    epilogue to_qkv = {.output = use.qkv}, to_states = {.output = states, .residual = states};
    epilogue to_inner = {
        .output = use.inner, .narrow = (int)model->half, .activation = (enum activation)model->activation
    };
    for (const layer *at = model->layers; at < model->layers + model->num_layers; at++) {
        multiply(model, inputs, rows, hidden, at->qkv, 3 * width, to_qkv, members);
        wait_for(members);
        attend_all(model, of, use, members);
        wait_for(members);
        multiply(model, use.attended, rows, width, at->output, hidden, to_states, members);
        wait_for(members);
        normalise(model, states, use.hidden, rows, at->attention_norm, members);
        wait_for(members);
        multiply(model, inputs, rows, hidden, at->up, model->inner, to_inner, members);
        wait_for(members);
        multiply(model, use.inner, rows, model->inner, at->down, hidden, to_states, members);
        wait_for(members);
        normalise(model, states, use.hidden, rows, at->output_norm, members);
        wait_for(members);
    }
}

static int64_t aligned(int64_t floats) {
    return (floats + 15) / 16 * 16;
}

/* Floats that a workspace for `rows` rows takes, with texts of at most `longest`. */
int64_t penstock_encoder_workspace(const encoder *model, int64_t rows, int64_t longest) {
    int64_t width = model->heads * model->head_dim;
    return aligned(rows * 3 * width + PANEL) + aligned(rows * model->hidden) + aligned(rows * width) +
           aligned(rows * model->inner) + aligned(attention_scratch(longest, model->head_dim));
}

static workspace divide(const encoder *model, float *memory, int64_t rows) {
    int64_t width = model->heads * model->head_dim;
    workspace made = {.qkv = memory};
    made.hidden = memory += aligned(rows * 3 * width + PANEL);
    made.attended = memory += aligned(rows * model->hidden);
    made.inner = memory += aligned(rows * width);
    made.scores = memory + aligned(rows * model->inner);
    return made;
}

/* Take `states` [starts[num_texts], hidden] through all layers.
 *
 * Group g are the texts groups[g] to groups[g + 1]. With one group all threads share it, and the workspace of the first
 * thread. `memory` has for each thread a workspace of `workspace_size` floats, for groups of `group_rows` rows. */
void penstock_encode(
    const encoder *model, float *states, const int64_t *starts, const int64_t *groups, int64_t num_groups,
    const float *bias, int64_t bias_size, float *memory, int64_t workspace_size, int64_t group_rows, int num_threads
) {
#pragma omp parallel num_threads(num_threads)
    {
        int index = omp_get_thread_num();
        workspace own = divide(model, memory + index * workspace_size, group_rows);
        if (num_groups == 1) {
            workspace shared = divide(model, memory, group_rows);
            shared.scores = own.scores;
            texts all = {states, starts, groups[1], bias, bias_size};
            run_layers(model, &all, shared, (team){omp_get_num_threads(), index});
        } else {
#pragma omp for schedule(dynamic, 1)
            for (int64_t group = 0; group < num_groups; group++) {
                const int64_t *first = starts + groups[group];
                texts some = {states, first, groups[group + 1] - groups[group], bias, bias_size};
                run_layers(model, &some, own, (team){1, 0});
            }
        }
    }
}
