/* Paged attention: cuts a step into tiles, gives them to the threads, largest first, and joins tiles that were split.
 *
 * Legend: T packed tokens, R rows (requests), H query heads, K kv heads, D head dim (Dv of the values), S block size. */

#include "attention_call.h"
#include "attention_native.h"

#include <omp.h>
#include <stdlib.h>

#define FLOAT32 0
#include "attention_tile.h"
#define FLOAT32 1
#include "attention_tile.h"

/* Some tokens of a row and the query heads of one kv head, over some chunks of keys. */
typedef struct {
    int32_t row, kv_head;
    int32_t token, num_tokens; /* the first of them, counted in the row */
    int32_t begin, end;        /* keys, from a multiple of CHUNK on */
    int32_t state;             /* where a part leaves its sums; -1: the item is no part and writes the output */
    int64_t cost;
} Item;

/* A tile whose chunks are items of their own; the states of its chunks follow each other. */
typedef struct {
    Item item;
    int32_t num_states;
} Split;

typedef AttentionPlan Plan;

struct attention_plan {
    Item *items;    /* largest first */
    Item *unsorted; /* as they are found */
    Split *splits;
    float *states; /* of the parts, `state_floats` each */
    int32_t num_items, num_splits, num_states;
    int64_t cost;
    int32_t taken; /* items that some thread has begun, or will do next */
};

enum { MAX_SPLITS = 64 };

/* A few microseconds of work: below it, other threads cost more than they bring. */
static const int64_t MIN_SHARED_COST = 20000;

static int32_t row_tokens(const Attention *call, int32_t row) {
    return call->query_start_loc[row + 1] - call->query_start_loc[row];
}

static int32_t tile_tokens(const Attention *call) {
    return greatest(TILE_ROWS / (call->num_heads / call->num_kv_heads), 1);
}

/* About the cycles that an item takes: packing keys once, then each row's products and softmax. */
static int64_t estimate(const Attention *call, const Item *item) {
    const int64_t dims = call->head_dim + call->value_head_dim;
    const int64_t rows = (int64_t)item->num_tokens * (call->num_heads / call->num_kv_heads);
    return (item->end - item->begin + GROUP - 1) / GROUP * (dims * 10 + rows * (dims * 2 + 60));
}

/* Tokens [token, token + num_tokens) of a row and all keys that they see. */
static Item whole_tile(const Attention *call, int32_t row, int32_t kv_head, int32_t token) {
    const int32_t num_tokens = least(tile_tokens(call), row_tokens(call, row) - token);
    const int32_t position = call->seq_lens[row] - row_tokens(call, row) + token;
    const int32_t oldest = call->window ? greatest(position - call->window + 1, 0) : 0;
    Item item = {row, kv_head, token, num_tokens, oldest / CHUNK * CHUNK, position + num_tokens, -1, 0};
    item.cost = estimate(call, &item);
    return item;
}

static void add_split(const Attention *call, Plan *plan, Item whole) {
    Split *split = &plan->splits[plan->num_splits++];
    split->item = whole;
    split->item.state = plan->num_states;
    split->num_states = (whole.end - whole.begin + CHUNK - 1) / CHUNK;
    for (int32_t i = 0; i < split->num_states; i++) {
        Item part = whole;
        part.begin = whole.begin + i * CHUNK;
        part.end = least(part.begin + CHUNK, whole.end);
        part.state = plan->num_states++;
        part.cost = estimate(call, &part);
        plan->unsorted[plan->num_items++] = part;
    }
}

/* Into order of falling cost, to the nearest power of two. */
static void sort_items(Plan *plan) {
    int32_t starts[65] = {0};
    for (int32_t i = 0; i < plan->num_items; i++)
        starts[1 + __builtin_clzll((uint64_t)plan->unsorted[i].cost | 1)]++;
    for (int i = 0; i < 64; i++)
        starts[i + 1] += starts[i];
    for (int32_t i = 0; i < plan->num_items; i++)
        plan->items[starts[__builtin_clzll((uint64_t)plan->unsorted[i].cost | 1)]++] = plan->unsorted[i];
}

static int64_t state_floats(const Attention *call) {
    return (int64_t)MAX_ROWS * (call->value_head_dim + 2);
}

static State state_at(const Attention *call, const Plan *plan, int32_t index) {
    float *memory = plan->states + index * state_floats(call);
    return (State){memory, memory + MAX_ROWS, memory + 2 * MAX_ROWS};
}

static void free_plan(Plan *plan) {
    free(plan->items);
    free(plan->unsorted);
    free(plan->splits);
    free(plan->states);
}

/* Tiles of all rows; those that would keep one thread busy when the others have nothing left are split by chunks.
 * Returns 0, or -1 if there is no memory. */
static int make_plan(const Attention *call, int num_threads, Plan *plan) {
    int64_t num_tiles = 0, max_chunks = 0;
    for (int32_t row = 0; row < call->num_rows; row++) {
        max_chunks = greatest(max_chunks, call->seq_lens[row] / CHUNK + 1);
        for (int32_t token = 0; token < row_tokens(call, row); token += tile_tokens(call), num_tiles++)
            plan->cost += whole_tile(call, row, 0, token).cost * call->num_kv_heads;
    }
    const int64_t room = num_tiles * call->num_kv_heads + MAX_SPLITS * max_chunks;
    plan->items = malloc(room * sizeof(Item));
    plan->unsorted = malloc(room * sizeof(Item));
    plan->splits = malloc(MAX_SPLITS * sizeof(Split));
    if (plan->items == NULL || plan->unsorted == NULL || plan->splits == NULL)
        return -1;
    const int64_t large = num_threads > 1 ? plan->cost / (4 * num_threads) : INT64_MAX;
    for (int32_t row = 0; row < call->num_rows; row++)
        for (int32_t kv_head = 0; kv_head < call->num_kv_heads; kv_head++)
            for (int32_t token = 0; token < row_tokens(call, row); token += tile_tokens(call)) {
                const Item item = whole_tile(call, row, kv_head, token);
                if (item.cost > large && item.end - item.begin > CHUNK && plan->num_splits < MAX_SPLITS)
                    add_split(call, plan, item);
                else
                    plan->unsorted[plan->num_items++] = item;
            }
    sort_items(plan);
    if (plan->num_states == 0)
        return 0;
    plan->states = malloc(plan->num_states * state_floats(call) * sizeof(float));
    return plan->states == NULL ? -1 : 0;
}

static size_t element_size(const Attention *call) {
    return call->is_float32 ? sizeof(float) : sizeof(bf16);
}

static void describe_tile(const Attention *call, const Item *item, Tile *tile) {
    const float log2_e = 1.44269504f;
    const int32_t group = call->num_heads / call->num_kv_heads;
    const int32_t position = call->seq_lens[item->row] - row_tokens(call, item->row) + item->token;
    tile->num_rows = item->num_tokens * group;
    tile->head_dim = call->head_dim;
    tile->value_head_dim = call->value_head_dim;
    tile->softcap = call->softcap;
    tile->scale = call->softcap != 0.0f ? call->scale / call->softcap : call->scale * log2_e;
    for (int32_t row = 0; row < tile->num_rows; row++) {
        const int32_t token = row / group, head = item->kv_head * group + row % group;
        const int64_t packed = call->query_start_loc[item->row] + item->token + token;
        const int64_t from = packed * call->query_token_stride + head * call->query_head_stride;
        const int64_t to = (packed * call->num_heads + head) * call->value_head_dim;
        tile->query[row] = (const char *)call->query + from * element_size(call);
        tile->output[row] = (char *)call->output + to * element_size(call);
        tile->end[row] = position + token + 1;
        tile->first[row] = call->window ? greatest(tile->end[row] - call->window, 0) : 0;
        tile->sink[row] = call->sinks == NULL ? -FLT_MAX : call->sinks[head] * log2_e;
    }
}

static Keys keys_of(const Attention *call, const Item *item) {
    const int64_t key_offset = (int64_t)item->kv_head * call->block_size * call->head_dim;
    const int64_t value_offset = (int64_t)item->kv_head * call->block_size * call->value_head_dim;
    return (Keys){
        .keys = (const char *)call->key_cache + key_offset * element_size(call),
        .values = (const char *)call->value_cache + value_offset * element_size(call),
        .key_block_stride = call->key_block_stride,
        .value_block_stride = call->value_block_stride,
        .key_stride = call->head_dim,
        .value_stride = call->value_head_dim,
        .blocks = call->block_table + item->row * call->block_table_stride,
        .block_size = call->block_size,
        .length = call->seq_lens[item->row],
    };
}

static State state_in(Workspace *work, int index) {
    return (State){work->max[index], work->sum[index], work->states[index]};
}

static void finish_tile(const Attention *call, const Tile *tile, State state) {
    if (call->is_float32)
        finish_f32(tile, state);
    else
        finish_bf16(tile, state);
}

/* `next` is what the thread does afterwards; NULL: nothing. */
static void attend_item(
    const Attention *call, const Plan *plan, const Item *item, const Item *next, Workspace *work) {
    Tile tile;
    describe_tile(call, item, &tile);
    const Keys keys = keys_of(call, item), next_keys = next == NULL ? keys : keys_of(call, next);
    State total = state_in(work, 0), more = state_in(work, 1);
    State first = item->state < 0 ? total : state_at(call, plan, item->state);
    int32_t begin = item->begin;
    do { /* once too for an item without keys, to clear its state */
        const int32_t end = begin + CHUNK;
        const int is_last = end >= item->end && next != NULL;
        const Keys *then = is_last ? &next_keys : &keys;
        const int32_t position = is_last ? next->begin : end;
        State state = begin == item->begin ? first : more;
        if (call->is_float32)
            attend_chunk_f32(&tile, &keys, begin, end, then, position, state, work);
        else
            attend_chunk_bf16(&tile, &keys, begin, end, then, position, state, work);
        if (begin != item->begin)
            merge(total, more, tile.num_rows, tile.value_head_dim);
        begin = end;
    } while (begin < item->end);
    if (item->state < 0)
        finish_tile(call, &tile, total);
}

static void join_parts(const Attention *call, const Plan *plan, const Split *split) {
    Tile tile;
    describe_tile(call, &split->item, &tile);
    State total = state_at(call, plan, split->item.state);
    for (int32_t i = 1; i < split->num_states; i++)
        merge(total, state_at(call, plan, split->item.state + i), tile.num_rows, tile.value_head_dim);
    finish_tile(call, &tile, total);
}

/* The next item for a thread, NULL if there is none. */
static const Item *take_item(Plan *plan) {
    int32_t index;
#pragma omp atomic capture
    index = plan->taken++;
    return index < plan->num_items ? &plan->items[index] : NULL;
}

AttentionPlan *attention_plan(const Attention *call, int num_threads) {
    Plan *plan = calloc(1, sizeof(*plan));
    if (plan != NULL && make_plan(call, num_threads, plan)) {
        attention_plan_free(plan);
        return NULL;
    }
    return plan;
}

void attention_plan_free(AttentionPlan *plan) {
    if (plan == NULL)
        return;
    free_plan(plan);
    free(plan);
}

void attention_in_team(const Attention *call, AttentionPlan *plan) {
    Workspace work;
    const Item *item = take_item(plan);
    while (item != NULL) {
        const Item *next = take_item(plan);
        attend_item(call, plan, item, next, &work);
        item = next;
    }
#pragma omp barrier
    /* Any use of the plan for another layer comes behind another barrier. */
#pragma omp master
    plan->taken = 0;
    if (plan->num_splits) {
#pragma omp for schedule(dynamic, 1)
        for (int32_t i = 0; i < plan->num_splits; i++)
            join_parts(call, plan, &plan->splits[i]);
    }
}

/* Returns 0, or -1 if there is no memory. */
int penstock_attention(const Attention *call) {
    Plan *plan = attention_plan(call, omp_get_max_threads());
    if (plan == NULL)
        return -1;
#pragma omp parallel if (plan->cost > MIN_SHARED_COST)
    attention_in_team(call, plan);
    attention_plan_free(plan);
    return 0;
}
