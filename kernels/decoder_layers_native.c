/* All layers of a decoder in bfloat16, in one call and one parallel region.
 *
 * At one token a layer computes for a quarter of a millisecond, so that calls from Python and threads that begin and end
 * would take longer than the norms, the rotation and the gates together.
 *
 * Legend: T packed tokens, E hidden size, F feed-forward size, H query heads, K kv heads, D head dim. */

#include <omp.h>
#include <stdlib.h>

#include "attention_call.h"
#include "linear_native.h"
#include "row_ops.h"

/* Mirrored by decoder_layers_native.py, like Step. */
typedef struct {
    const bf16 *input_norm, *post_attention_norm; /* [E] */
    const bf16 *q_norm, *k_norm;                  /* [D] or NULL */
    const struct linear_weight *qkv;              /* E to (H + 2K) D */
    const struct linear_weight *output;           /* H D to E */
    const struct linear_weight *gate_up;          /* E to 2F */
    const struct linear_weight *down;             /* F to E */
    bf16 *keys, *values;                          /* the layer's cache */
    float input_eps, post_attention_eps, head_eps;
    float scale, softcap; /* of attention; softcap 0: none */
    int32_t window;       /* newest keys a token sees; 0: all */
    int32_t kind;         /* layers of one kind have the same window: their attention is dealt out alike */
} Layer;

typedef struct {
    Attention attention; /* what it has in common in all layers */
    bf16 *states;        /* [T, E]: what the first layer gets, then what the last one gives */
    const bf16 *cos, *sin; /* [T, D] */
    const int64_t *slots;  /* [T] */
    int64_t num_tokens, hidden_size, feed_forward_size;
    int32_t num_layers, num_kinds;
} Step;

/* Parts of one piece of memory. */
typedef struct {
    bf16 *normed;  /* [T, E] */
    bf16 *qkv;     /* [T, H + 2K, D] */
    bf16 *query;   /* [T, H, D] */
    bf16 *context; /* [T, H, D] */
    bf16 *gate_up; /* [T, 2F] */
    bf16 *gated;   /* [T, F] */
    void *linear;  /* what linear_in_team needs */
} Scratch;

static void *carve(char **at, int64_t bytes) {
    void *part = *at;
    *at += (bytes + 63) / 64 * 64;
    return part;
}

/* Returns the bytes in use; `memory` may be NULL to find out how many that are. */
static int64_t carve_scratch(const Layer *layer, const Step *step, char *memory, Scratch *scratch) {
    int64_t row = step->num_tokens * (int64_t)sizeof(bf16);
    int64_t query_size = (int64_t)step->attention.num_heads * step->attention.head_dim;
    char *at = memory;
    scratch->normed = carve(&at, row * step->hidden_size);
    scratch->qkv = carve(&at, row * layer->qkv->num_outputs);
    scratch->query = carve(&at, row * query_size);
    scratch->context = carve(&at, row * query_size);
    scratch->gate_up = carve(&at, row * 2 * step->feed_forward_size);
    scratch->gated = carve(&at, row * step->feed_forward_size);
    int64_t linear_bytes = 0;
    const struct linear_weight *weights[] = {layer->qkv, layer->output, layer->gate_up, layer->down};
    for (int i = 0; i < 4; i++) {
        int64_t bytes = linear_scratch_bytes(weights[i], step->num_tokens, omp_get_max_threads());
        linear_bytes = bytes > linear_bytes ? bytes : linear_bytes;
    }
    scratch->linear = carve(&at, linear_bytes);
    return at - memory;
}

static void norm_rows(const Step *step, const bf16 *weight, float eps, bf16 *normed) {
    int64_t size = step->hidden_size;
#pragma omp for schedule(static)
    for (int64_t row = 0; row < step->num_tokens; row++)
        rms_norm_row(step->states + row * size, weight, false, eps, size, normed + row * size);
}

static void multiply(const struct linear_weight *weight, const bf16 *input, const bf16 *residual, bf16 *output,
                     const Step *step, const Scratch *scratch) {
    int64_t width = weight->num_outputs;
    linear_in_team(weight, input, weight->num_inputs, residual, width, output, width, step->num_tokens, LINEAR_PLAIN,
                   scratch->linear);
#pragma omp barrier
}

static void rotate_and_store(const Layer *layer, const Step *step, const Scratch *scratch) {
    const Attention *attention = &step->attention;
    int64_t head_dim = attention->head_dim, query_size = attention->num_heads * head_dim;
    const Heads heads = {attention->num_heads, attention->num_kv_heads, head_dim,
                         layer->q_norm, layer->k_norm, layer->head_eps};
    const KVCache cache = {layer->keys, layer->values, attention->key_block_stride, attention->value_block_stride,
                           attention->block_size};
#pragma omp for schedule(static)
    for (int64_t row = 0; row < step->num_tokens; row++)
        rope_cache_write_row(scratch->qkv + row * layer->qkv->num_outputs, step->cos + row * head_dim,
                             step->sin + row * head_dim, &heads, &cache, step->slots[row],
                             scratch->query + row * query_size);
}

static void attend(const Layer *layer, const Step *step, const Scratch *scratch, AttentionPlan *const *plans) {
    Attention call = step->attention;
    call.query = scratch->query;
    call.output = scratch->context;
    call.key_cache = layer->keys;
    call.value_cache = layer->values;
    call.window = layer->window;
    call.scale = layer->scale;
    call.softcap = layer->softcap;
    attention_in_team(&call, plans[layer->kind]);
}

static void gate_rows(const Step *step, const Scratch *scratch) {
    int64_t size = step->feed_forward_size;
#pragma omp for schedule(static)
    for (int64_t row = 0; row < step->num_tokens; row++)
        silu_mul_row(scratch->gate_up + row * 2 * size, size, scratch->gated + row * size);
}

static void run_layer(const Layer *layer, const Step *step, const Scratch *scratch, AttentionPlan *const *plans) {
    norm_rows(step, layer->input_norm, layer->input_eps, scratch->normed);
    multiply(layer->qkv, scratch->normed, NULL, scratch->qkv, step, scratch);
    rotate_and_store(layer, step, scratch);
    attend(layer, step, scratch, plans);
    multiply(layer->output, scratch->context, step->states, step->states, step, scratch);
    norm_rows(step, layer->post_attention_norm, layer->post_attention_eps, scratch->normed);
    multiply(layer->gate_up, scratch->normed, NULL, scratch->gate_up, step, scratch);
    gate_rows(step, scratch);
    multiply(layer->down, scratch->gated, step->states, step->states, step, scratch);
}

/* Bytes of memory, aligned to 64, that penstock_decoder_layers needs. */
int64_t penstock_decoder_scratch_bytes(const Layer *layers, const Step *step) {
    Scratch scratch;
    return carve_scratch(layers, step, NULL, &scratch);
}

/* Replaces step->states by what the layers make of them; 0, or -1 if there is no memory. */
int penstock_decoder_layers(const Layer *layers, const Step *step, char *memory) {
    Scratch scratch;
    carve_scratch(layers, step, memory, &scratch);
    AttentionPlan **plans = calloc((size_t)step->num_kinds, sizeof(*plans));
    int failed = plans == NULL;
    for (int32_t i = 0; i < step->num_layers && !failed; i++) {
        if (plans[layers[i].kind] != NULL)
            continue;
        Attention call = step->attention;
        call.window = layers[i].window;
        plans[layers[i].kind] = attention_plan(&call, omp_get_max_threads());
        failed = plans[layers[i].kind] == NULL;
    }
    if (!failed) {
#pragma omp parallel
        for (int32_t i = 0; i < step->num_layers; i++)
            run_layer(layers + i, step, &scratch, plans);
    }
    for (int32_t i = 0; plans != NULL && i < step->num_kinds; i++)
        attention_plan_free(plans[i]);
    free(plans);
    return failed ? -1 : 0;
}
