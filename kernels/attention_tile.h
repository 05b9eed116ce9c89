/* Attention of one tile over one chunk of keys; included once with FLOAT32 defined as 0, for bfloat16, and once as 1.
 *
 * Group by group, keys and values are packed into panels of 32-bit words, a float or a pair of bfloat16, so that scores
 * and outputs are products of the same form: broadcast words of a row times vectors of the panel. A key's word is a
 * pair of its numbers and a vector holds 16 keys; a value's word is a pair of keys and a vector holds 16 numbers.
 *
 * Every number is summed in an order that depends on positions alone: words upwards within a group, groups upwards
 * within a chunk. A key that a row does not see has weight zero, which changes no sum. So it does not matter which
 * tile, batch or thread computes a row.
 */

#if FLOAT32
typedef float element_f32;
#define ELEMENT element_f32
#define NAMED(name) name##_f32
#define WORD_ELEMENTS 1
#else
typedef bf16 element_bf16;
#define ELEMENT element_bf16
#define NAMED(name) name##_bf16
#define WORD_ELEMENTS 2
#endif

ALWAYS_INLINE __m512 NAMED(multiply_add)(__m512 sum, __m512i a, __m512i b) {
#if FLOAT32
    return _mm512_fmadd_ps(_mm512_castsi512_ps(a), _mm512_castsi512_ps(b), sum);
#else
    return _mm512_dpbf16_ps(sum, (__m512bh)a, (__m512bh)b);
#endif
}

/* output[r][16 * v ..] = output * kept[r] + sum over w of rows[r][w] * panel[w][16 * v ..]; kept NULL: without output */
ALWAYS_INLINE void NAMED(multiply_fixed)(
    const int num_rows, const int num_vectors, const uint32_t *const *rows, const uint32_t *panel, int panel_stride,
    int num_words, const float *kept, float *output, int output_stride) {
    __m512 sums[ROW_BLOCK][4];
#pragma GCC unroll 6
    for (int r = 0; r < num_rows; r++)
#pragma GCC unroll 4
        for (int v = 0; v < num_vectors; v++)
            sums[r][v] = kept == NULL ? _mm512_setzero_ps()
                                      : _mm512_mul_ps(_mm512_set1_ps(kept[r]),
                                                      _mm512_loadu_ps(output + r * output_stride + 16 * v));
    for (int w = 0; w < num_words; w++) {
        __m512i vectors[4];
#pragma GCC unroll 4
        for (int v = 0; v < num_vectors; v++)
            vectors[v] = _mm512_loadu_si512(panel + w * panel_stride + 16 * v);
#pragma GCC unroll 6
        for (int r = 0; r < num_rows; r++) {
            __m512i word = _mm512_set1_epi32((int32_t)rows[r][w]);
#pragma GCC unroll 4
            for (int v = 0; v < num_vectors; v++)
                sums[r][v] = NAMED(multiply_add)(sums[r][v], word, vectors[v]);
        }
    }
#pragma GCC unroll 6
    for (int r = 0; r < num_rows; r++)
#pragma GCC unroll 4
        for (int v = 0; v < num_vectors; v++)
            _mm512_storeu_ps(output + r * output_stride + 16 * v, sums[r][v]);
}

#define MULTIPLY_CASE(r, v)                                                                                     \
    case (r) * 4 + (v) - 1:                                                                                     \
        if (kept == NULL)                                                                                       \
            NAMED(multiply_fixed)(r, v, rows, panel, panel_stride, num_words, NULL, output, output_stride);     \
        else                                                                                                    \
            NAMED(multiply_fixed)(r, v, rows, panel, panel_stride, num_words, kept, output, output_stride);     \
        break;
#define MULTIPLY_CASES(r) MULTIPLY_CASE(r, 1) MULTIPLY_CASE(r, 2) MULTIPLY_CASE(r, 3) MULTIPLY_CASE(r, 4)

static void NAMED(multiply)(
    int num_rows, int num_vectors, const uint32_t *const *rows, const uint32_t *panel, int panel_stride, int num_words,
    const float *kept, float *output, int output_stride) {
    switch (num_rows * 4 + num_vectors - 1) {
        MULTIPLY_CASES(1)
        MULTIPLY_CASES(2)
        MULTIPLY_CASES(3)
        MULTIPLY_CASES(4)
        MULTIPLY_CASES(5)
        MULTIPLY_CASES(6)
    }
}

#undef MULTIPLY_CASES
#undef MULTIPLY_CASE

/* Up to 16 words of a row of `count` elements. */
ALWAYS_INLINE __m512i NAMED(load_words)(const ELEMENT *from, int count) {
#if FLOAT32
    return _mm512_castps_si512(_mm512_maskz_loadu_ps(first_lanes(count), from));
#else
    return count >= 32 ? _mm512_loadu_si512(from) : _mm512_maskz_loadu_epi16((1u << count) - 1u, from);
#endif
}

ALWAYS_INLINE const ELEMENT *NAMED(key_at)(const Keys *keys, int32_t position) {
    return (const ELEMENT *)keys->keys + keys->blocks[position / keys->block_size] * keys->key_block_stride +
           position % keys->block_size * keys->key_stride;
}

ALWAYS_INLINE const ELEMENT *NAMED(value_at)(const Keys *keys, int32_t position) {
    return (const ELEMENT *)keys->values + keys->blocks[position / keys->block_size] * keys->value_block_stride +
           position % keys->block_size * keys->value_stride;
}

/* The blocks of a cache lie too far apart for the processor to see which comes next. So with each load goes a prefetch of
 * what lies at its place in `later`, a group ahead: one by one, since only about 24 lines can be on their way to a core,
 * and into the second cache, since a group fills much of the first. */
ALWAYS_INLINE void NAMED(pack_words)(
    const ELEMENT *first, const ELEMENT *later, int64_t stride, const int last, int count, uint32_t *panel) {
    __m512i rows[16];
#pragma GCC unroll 16
    for (int key = 0; key < 16; key++) {
        rows[key] = NAMED(load_words)(first + least(key, last) * stride, count);
        _mm_prefetch(later + key * stride, _MM_HINT_T1);
    }
    transpose_16(rows);
    if (count == 16 * WORD_ELEMENTS) {
#pragma GCC unroll 16
        for (int word = 0; word < 16; word++)
            _mm512_store_si512(panel + word * GROUP, rows[word]);
    } else {
        for (int word = 0; word < count / WORD_ELEMENTS; word++)
            _mm512_store_si512(panel + word * GROUP, rows[word]);
    }
}

/* 16 keys from `position` on become the vectors panel[w][0 .. 15]. A position behind the last key repeats that.
 * Those from `later` on are brought near. */
static void NAMED(pack_keys)(
    const Keys *keys, int32_t position, const ELEMENT *later, int head_dim, uint32_t *panel) {
    const ELEMENT *first = NAMED(key_at)(keys, position);
    const int last = least(keys->length - position, 16) - 1;
    for (int dim = 0; dim < head_dim; dim += 16 * WORD_ELEMENTS, panel += 16 * GROUP) {
        const int count = least(head_dim - dim, 16 * WORD_ELEMENTS);
        if (last == 15)
            NAMED(pack_words)(first + dim, later + dim, keys->key_stride, 15, count, panel);
        else
            NAMED(pack_words)(first + dim, later + dim, keys->key_stride, last, count, panel);
    }
}

/* 16 values from `position` on become panel[w][dim]. Those behind the last key are zero, whatever lies there: their
 * weight is zero, but NaN times zero is not. */
static void NAMED(pack_values)(
    const Keys *keys, int32_t position, const ELEMENT *later, int head_dim, uint32_t *panel) {
    const ELEMENT *first = NAMED(value_at)(keys, position);
    const int num_keys = least(keys->length - position, 16);
#if FLOAT32
    for (int key = 0; key < 16; key++)
        for (int dim = 0; dim < head_dim; dim += 16) {
            __m512 value = _mm512_setzero_ps();
            if (key < num_keys)
                value = _mm512_loadu_ps(first + key * keys->value_stride + dim);
            _mm_prefetch(later + key * keys->value_stride + dim, _MM_HINT_T1);
            _mm512_storeu_ps((float *)panel + key * head_dim + dim, value);
        }
#else
    /* Words 0 to 15 and 16 to 31 of two rows of 32 elements, an element of the first row in each lower half. */
    const __m512i step = _mm512_set_epi32(15, 14, 13, 12, 11, 10, 9, 8, 7, 6, 5, 4, 3, 2, 1, 0);
    const __m512i low = _mm512_add_epi32(step, _mm512_set1_epi32(32 << 16));
    const __m512i low_index = _mm512_or_si512(low, _mm512_slli_epi32(step, 16));
    const __m512i high_index = _mm512_add_epi16(low_index, _mm512_set1_epi16(16));
    for (int key = 0; key < 16; key += 2) {
        const ELEMENT *even = first + key * keys->value_stride, *odd = even + keys->value_stride;
        uint32_t *to = panel + key / 2 * head_dim;
        for (int dim = 0; dim < head_dim; dim += 32) {
            const int count = least(head_dim - dim, 32);
            __m512i a = _mm512_setzero_si512(), b = a;
            if (key < num_keys)
                a = NAMED(load_words)(even + dim, count);
            if (key + 1 < num_keys)
                b = NAMED(load_words)(odd + dim, count);
            _mm_prefetch(later + key * keys->value_stride + dim, _MM_HINT_T1);
            _mm_prefetch(later + (key + 1) * keys->value_stride + dim, _MM_HINT_T1);
            _mm512_storeu_si512(to + dim, _mm512_permutex2var_epi16(a, low_index, b));
            if (count > 16)
                _mm512_storeu_si512(to + dim + 16, _mm512_permutex2var_epi16(a, high_index, b));
        }
    }
#endif
}

ALWAYS_INLINE void NAMED(store_weights)(uint32_t *row, int vector, __m512 weights) {
#if FLOAT32
    _mm512_store_ps((float *)row + 16 * vector, weights);
#else
    store_bf16((bf16 *)row + 16 * vector, weights);
#endif
}

/* Scores of `num_rows` rows from row `row` on become weights; `kept` gets what their sums so far are to be multiplied
 * by. */
static void NAMED(weigh)(
    const Tile *tile, int row, int num_rows, int num_vectors, int32_t group, float *max, Workspace *work, float *kept) {
    float before[16] = {0}, after[16] = {0};
    for (int r = 0; r < num_rows; r++) {
        const uint64_t seen = visible(tile, row + r, group);
        float *scores = work->scores + r * GROUP;
        __m512 top = _mm512_set1_ps(-FLT_MAX);
        for (int v = 0; v < num_vectors; v++) {
            __m512 score = _mm512_mul_ps(_mm512_load_ps(scores + 16 * v), _mm512_set1_ps(tile->scale));
            if (tile->softcap != 0.0f)
                score = capped(score, tile->softcap);
            _mm512_store_ps(scores + 16 * v, score);
            top = _mm512_mask_max_ps(top, (__mmask16)(seen >> (16 * v)), top, score);
        }
        const float highest = _mm512_reduce_max_ps(top);
        before[r] = max[r];
        after[r] = max[r] = highest > max[r] ? highest : max[r];
    }
    _mm512_storeu_ps(kept, exp2_ps(_mm512_sub_ps(_mm512_loadu_ps(before), _mm512_loadu_ps(after))));
    for (int r = 0; r < num_rows; r++) {
        const uint64_t seen = visible(tile, row + r, group);
        float *lane_sums = work->lane_sums + (row + r) * 16;
        __m512 sum = _mm512_mul_ps(_mm512_load_ps(lane_sums), _mm512_set1_ps(kept[r]));
        for (int v = 0; v < num_vectors; v++) {
            __m512 score = _mm512_load_ps(work->scores + r * GROUP + 16 * v);
            __m512 weight = exp2_ps(_mm512_sub_ps(score, _mm512_set1_ps(after[r])));
            weight = _mm512_maskz_mov_ps((__mmask16)(seen >> (16 * v)), weight);
            sum = _mm512_add_ps(sum, weight);
            NAMED(store_weights)(work->weights + r * (GROUP / WORD_ELEMENTS), v, weight);
        }
        _mm512_store_ps(lane_sums, sum);
    }
}

/* Add the group of `num_keys` keys, packed in `work`, to the sums of all rows. */
static void NAMED(attend_group)(const Tile *tile, int32_t group, int num_keys, State state, Workspace *work) {
    const uint32_t *weights[ROW_BLOCK];
    for (int r = 0; r < ROW_BLOCK; r++)
        weights[r] = work->weights + r * (GROUP / WORD_ELEMENTS);
    for (int row = 0; row < tile->num_rows; row += ROW_BLOCK) {
        const int num_rows = least(tile->num_rows - row, ROW_BLOCK), last = row + num_rows - 1;
        if (tile->end[last] <= group || tile->first[row] >= group + num_keys)
            continue;
        const int num_vectors = (least(tile->end[last] - group, num_keys) + 15) / 16;
        float kept[16];
        NAMED(multiply)(num_rows, num_vectors, (const uint32_t *const *)tile->query + row, work->keys, GROUP,
                        tile->head_dim / WORD_ELEMENTS, NULL, work->scores, GROUP);
        NAMED(weigh)(tile, row, num_rows, num_vectors, group, state.max + row, work, kept);
        for (int dim = 0; dim < tile->value_head_dim; dim += 64)
            NAMED(multiply)(num_rows, least(tile->value_head_dim - dim, 64) / 16, weights, work->values + dim,
                            tile->value_head_dim, num_vectors * (16 / WORD_ELEMENTS), kept,
                            state.values + row * tile->value_head_dim + dim, tile->value_head_dim);
    }
}

/* The sums over those keys in [begin, end) that any row sees; they lie in one chunk. Meanwhile the keys that come
 * next are brought near, at last those of `next` from `then` on. */
static void NAMED(attend_chunk)(
    const Tile *tile, const Keys *keys, int32_t begin, int32_t end, const Keys *next, int32_t then, State state,
    Workspace *work) {
    clear(state, tile->num_rows, tile->value_head_dim);
    for (int i = 0; i < tile->num_rows * 16; i += 16)
        _mm512_store_ps(work->lane_sums + i, _mm512_setzero_ps());
    begin = greatest(begin, tile->first[0] / GROUP * GROUP);
    end = least(end, tile->end[tile->num_rows - 1]);
    for (int32_t group = begin; group < end; group += GROUP) {
        const int num_keys = least(end - group, GROUP), is_last = group + GROUP >= end;
        const Keys *later = is_last ? next : keys;
        const int32_t from = is_last ? then : group + GROUP;
        for (int key = 0; key < num_keys; key += 16) {
            const int32_t position = least(from + key, later->length - 1) / 16 * 16;
            NAMED(pack_keys)(keys, group + key, NAMED(key_at)(later, position), tile->head_dim, work->keys + key);
            NAMED(pack_values)(keys, group + key, NAMED(value_at)(later, position), tile->value_head_dim,
                               work->values + key / WORD_ELEMENTS * tile->value_head_dim);
        }
        NAMED(attend_group)(tile, group, num_keys, state, work);
    }
    for (int row = 0; row < tile->num_rows; row++)
        state.sum[row] = _mm512_reduce_add_ps(_mm512_load_ps(work->lane_sums + row * 16));
}

/* Weighted means of the values, as elements. A row without keys gets zeros. */
static void NAMED(finish)(const Tile *tile, State state) {
    for (int row = 0; row < tile->num_rows; row++) {
        const float max = state.max[row] > tile->sink[row] ? state.max[row] : tile->sink[row];
        const float kept = exp2_one(state.max[row] - max);
        float sum = state.sum[row] * kept;
        if (tile->sink[row] != -FLT_MAX)
            sum += exp2_one(tile->sink[row] - max);
        const __m512 factor = _mm512_set1_ps(sum == 0.0f ? 0.0f : kept / sum);
        for (int dim = 0; dim < tile->value_head_dim; dim += 16) {
            __m512 mean = _mm512_mul_ps(_mm512_loadu_ps(state.values + row * tile->value_head_dim + dim), factor);
#if FLOAT32
            _mm512_storeu_ps((float *)tile->output[row] + dim, mean);
#else
            store_bf16((bf16 *)tile->output[row] + dim, mean);
#endif
        }
    }
}

#undef ELEMENT
#undef NAMED
#undef WORD_ELEMENTS
#undef FLOAT32
