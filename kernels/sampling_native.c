/* Sampling of one token a row: the argmax, or a draw from what top-k, top-p and min-p keep, without a sort.
 *
 * A row is read as the model wrote it. Its maximum takes one pass; a draw from the whole vocabulary a second one, which
 * sums the weights of every chunk, and then one chunk again. Filters are pivot searches: bisection for the logit that
 * ends the prefix, among the few candidates that a bound leaves.
 *
 * Legend: V vocabulary, C = ceil(V / 256) chunks, n candidates. One thread works on a row, in an order that depends on
 * nothing else in the batch. */

#include "native.h"

#include <float.h>
#include <math.h>
#include <omp.h>
#include <stdbool.h>

#define CHUNK 256   /* weights summed in float, as in the reference; the sums are then doubles */
#define SLACK 1e-3f /* of the exponents of bounds, far above their rounding errors */

enum dtype { FLOAT32, BFLOAT16, FLOAT16 };

/* Parameters of one row, in the order of sampling.PARAMS. */
struct params {
    double temperature, top_k, top_p, min_p, uniform;
};

struct row {
    const char *logits;
    enum dtype dtype;
    int64_t vocab_size;
    float maximum, temperature;
};

/* Memory of one thread for one row. */
struct scratch {
    float *values, *weights; /* [C * 256] */
    int32_t *ids;            /* [C * 256] */
    double *sums;            /* [C] */
};

/* Sixteen logits from `start` on: NaN is -inf, +inf the largest number, and what lies beyond the row is -inf. */
static inline __m512 load_logits(const struct row *row, int64_t start) {
    const __m512 nothing = _mm512_set1_ps(-INFINITY);
    __mmask16 inside = start < row->vocab_size ? first_lanes(row->vocab_size - start) : 0;
    __m512 x;
    if (row->dtype == FLOAT32)
        x = _mm512_maskz_loadu_ps(inside, (const float *)row->logits + start);
    else if (row->dtype == BFLOAT16)
        x = load_bf16_masked((const bf16 *)row->logits + start, inside);
    else
        x = _mm512_cvtph_ps(_mm256_maskz_loadu_epi16(inside, (const uint16_t *)row->logits + start));
    x = _mm512_min_ps(_mm512_set1_ps(FLT_MAX), x); /* of a NaN and a number, min and max return the second operand */
    return _mm512_mask_max_ps(nothing, inside, x, nothing);
}

/* exp((logits - maximum) / temperature); the maximum goes first, then no temperature makes the exponent overflow. */
static inline __m512 weigh(const struct row *row, __m512 logits) {
    __m512 below = _mm512_sub_ps(logits, _mm512_set1_ps(row->maximum));
    return exp_ps(_mm512_div_ps(below, _mm512_set1_ps(row->temperature)));
}

static inline double sum_pd(__m512d low, __m512d high) {
    return _mm512_reduce_add_pd(_mm512_add_pd(low, high));
}

static inline __m512d low_half(__m512 x) {
    return _mm512_cvtps_pd(_mm512_castps512_ps256(x));
}

static inline __m512d high_half(__m512 x) {
    return _mm512_cvtps_pd(_mm512_extractf32x8_ps(x, 1));
}

/* Sets the maximum of the row, and returns the id of the first logit that is it; -1 if none is finite.
 *
 * groups, if not NULL, gets the maxima [C * 16] of disjoint groups of logits that are the whole row together. */
static int64_t find_maximum(struct row *row, float *groups) {
    __m512 best = _mm512_set1_ps(-INFINITY);
    __m512i best_start = _mm512_setzero_si512();
    for (int64_t start = 0; start < row->vocab_size; start += CHUNK) {
        __m512 largest = load_logits(row, start);
        for (int64_t i = 16; i < CHUNK; i += 16)
            largest = _mm512_max_ps(largest, load_logits(row, start + i));
        if (groups)
            _mm512_storeu_ps(groups + start / 16, largest);
        __mmask16 larger = _mm512_cmp_ps_mask(largest, best, _CMP_GT_OQ);
        best = _mm512_mask_mov_ps(best, larger, largest);
        best_start = _mm512_mask_mov_epi32(best_start, larger, _mm512_set1_epi32((int32_t)start));
    }
    float maximum = _mm512_reduce_max_ps(best);
    row->maximum = fmaxf(maximum, -FLT_MAX);
    if (maximum == -INFINITY)
        return -1;
    __m512 wanted = _mm512_set1_ps(maximum);
    __mmask16 equal = _mm512_cmp_ps_mask(best, wanted, _CMP_EQ_OQ);
    for (int64_t i = _mm512_mask_reduce_min_epi32(equal, best_start);; i += 16) {
        equal = _mm512_cmp_ps_mask(load_logits(row, i), wanted, _CMP_EQ_OQ);
        if (equal)
            return i + __builtin_ctz(equal);
    }
}

/* The first index whose running sum of `masses` [count] exceeds *target, which is then less by the sum before it.
 *
 * An index of mass 0 never counts; where rounding leaves no index, the last one of any mass is it. */
static int64_t first_beyond(const double *masses, int64_t count, double *target) {
    double running = 0.0, before_last = 0.0;
    int64_t last = 0;
    for (int64_t i = 0; i < count; i++) {
        if (masses[i] > 0.0) {
            last = i;
            before_last = running;
            running += masses[i];
            if (running > *target)
                break;
        }
    }
    *target -= before_last;
    return last;
}

static double total(const double *sums, int64_t count) {
    double sum = 0.0;
    for (int64_t i = 0; i < count; i++)
        sum += sums[i];
    return sum;
}

static int64_t pick_in_chunk(const float *weights, double target) {
    double masses[CHUNK];
    for (int64_t i = 0; i < CHUNK; i++)
        masses[i] = weights[i];
    return first_beyond(masses, CHUNK, &target);
}

/* The weights of one chunk of the row, those below `floor` 0. */
static inline __m512 floored(const struct row *row, int64_t start, float floor) {
    __m512 weights = weigh(row, load_logits(row, start));
    return _mm512_maskz_mov_ps(_mm512_cmp_ps_mask(weights, _mm512_set1_ps(floor), _CMP_GE_OQ), weights);
}

/* Sums of the weights of every chunk of the row, without those below `floor`; returns their total. */
static double sum_chunks(const struct row *row, float floor, double *sums) {
    int64_t num_chunks = 0;
    for (int64_t start = 0; start < row->vocab_size; start += CHUNK, num_chunks++) {
        __m512 sum = floored(row, start, floor);
        for (int64_t i = 16; i < CHUNK; i += 16)
            sum = _mm512_add_ps(sum, floored(row, start + i, floor));
        sums[num_chunks] = sum_pd(low_half(sum), high_half(sum));
    }
    return total(sums, num_chunks);
}

static int64_t draw(const struct row *row, const struct params *params, struct scratch *scratch) {
    float weights[CHUNK], floor = (float)params->min_p;
    double target = params->uniform * sum_chunks(row, floor, scratch->sums);
    int64_t start = CHUNK * first_beyond(scratch->sums, (row->vocab_size + CHUNK - 1) / CHUNK, &target);
    for (int64_t i = 0; i < CHUNK; i += 16)
        _mm512_storeu_ps(weights + i, floored(row, start + i, floor));
    return start + pick_in_chunk(weights, target);
}

/* Mass of the values [n] above `pivot`: of their weights, or their number if `weights` is NULL.
 *
 * Also the largest value up to the pivot, -inf if there is none, and the smallest above it. n is a multiple of 16. */
static inline double mass_above(
    const float *values, const float *weights, int64_t n, float pivot, float *up_to, float *above) {
    __m512 bound = _mm512_set1_ps(pivot), below = _mm512_set1_ps(-INFINITY), beyond = _mm512_set1_ps(INFINITY);
    __m512d low = _mm512_setzero_pd(), high = _mm512_setzero_pd();
    int64_t number = 0;
    for (int64_t i = 0; i < n; i += 16) {
        __m512 x = _mm512_loadu_ps(values + i);
        __mmask16 larger = _mm512_cmp_ps_mask(x, bound, _CMP_GT_OQ);
        beyond = _mm512_mask_min_ps(beyond, larger, beyond, x);
        below = _mm512_mask_max_ps(below, _knot_mask16(larger), below, x);
        if (weights) {
            __m512 mass = _mm512_maskz_loadu_ps(larger, weights + i);
            low = _mm512_add_pd(low, low_half(mass));
            high = _mm512_add_pd(high, high_half(mass));
        } else {
            number += __builtin_popcount(larger);
        }
    }
    *up_to = _mm512_reduce_max_ps(below);
    *above = _mm512_reduce_min_ps(beyond);
    return weights ? sum_pd(low, high) : (double)number;
}

/* The smallest of the values [n] above which lies less mass than `wanted`, which is > 0; `lowest` if that holds for all.
 *
 * lowest is a number that no value which matters is below, and highest the largest value. *mass gets the mass above. */
static float find_pivot(
    const float *values, const float *weights, int64_t n, double wanted, float lowest, float highest, double *mass) {
    float low = lowest, high = highest, up_to, above;
    *mass = 0.0;
    while (low < high) {
        float middle = low * 0.5f + high * 0.5f;
        if (middle >= high)
            middle = low;
        double beyond = weights ? mass_above(values, weights, n, middle, &up_to, &above)
                                : mass_above(values, NULL, n, middle, &up_to, &above);
        if (beyond < wanted) {
            high = up_to >= low ? up_to : low; /* steps go from value to value, so there are few */
            *mass = beyond;
        } else {
            low = above;
        }
    }
    return high;
}

/* Writes the logits of at least `bound`, their weights and ids, and returns how many, and then zeros up to a chunk. */
static int64_t collect(const struct row *row, float bound, struct scratch *scratch) {
    int64_t n = 0;
    const __m512 bounds = _mm512_set1_ps(bound);
    const __m512i lanes = _mm512_set_epi32(15, 14, 13, 12, 11, 10, 9, 8, 7, 6, 5, 4, 3, 2, 1, 0);
    for (int64_t start = 0; start < row->vocab_size; start += 16) {
        __m512 x = load_logits(row, start);
        __mmask16 chosen = _mm512_cmp_ps_mask(x, bounds, _CMP_GE_OQ);
        if (!chosen)
            continue;
        __m512i ids = _mm512_add_epi32(lanes, _mm512_set1_epi32((int32_t)start));
        /* Compressed in a register: a compressing store is slow on some processors. */
        _mm512_storeu_ps(scratch->values + n, _mm512_maskz_compress_ps(chosen, x));
        _mm512_storeu_ps(scratch->weights + n, _mm512_maskz_compress_ps(chosen, weigh(row, x)));
        _mm512_storeu_si512(scratch->ids + n, _mm512_maskz_compress_epi32(chosen, ids));
        n += __builtin_popcount(chosen);
    }
    for (int64_t i = n; i % CHUNK != 0; i++) {
        scratch->values[i] = -INFINITY;
        scratch->weights[i] = 0.0f;
    }
    return n;
}

/* Makes all weights 0 but those of values above `pivot`, of the first `num_ties` equal to it, and of at least `floor`;
 * sets the sums of the chunks. */
static void keep(struct scratch *scratch, int64_t n, float pivot, int64_t num_ties, float floor) {
    const __m512 pivots = _mm512_set1_ps(pivot), floors = _mm512_set1_ps(floor);
    for (int64_t start = 0; start < n; start += CHUNK) {
        __m512 sum = _mm512_setzero_ps();
        for (int64_t i = start; i < start + CHUNK; i += 16) {
            __m512 x = _mm512_loadu_ps(scratch->values + i), weights = _mm512_loadu_ps(scratch->weights + i);
            __mmask16 kept = _mm512_cmp_ps_mask(x, pivots, _CMP_GT_OQ);
            __mmask16 ties = _mm512_cmp_ps_mask(x, pivots, _CMP_EQ_OQ);
            if (ties) {
                if (num_ties < 16)
                    ties = (__mmask16)_pdep_u32((1u << num_ties) - 1u, ties);
                num_ties -= __builtin_popcount(ties);
                kept |= ties;
            }
            kept &= _mm512_cmp_ps_mask(weights, floors, _CMP_GE_OQ);
            weights = _mm512_maskz_mov_ps(kept, weights);
            _mm512_storeu_ps(scratch->weights + i, weights);
            sum = _mm512_add_ps(sum, weights);
        }
        scratch->sums[start / CHUNK] = sum_pd(low_half(sum), high_half(sum));
    }
}

/* A logit that nothing of the row's kept tokens is below; *mass gets the mass of the whole row if top_p wants it. */
static float lower_bound(
    const struct row *row, const struct params *params, const float *groups, struct scratch *scratch, double *mass) {
    int64_t num_groups = (row->vocab_size + CHUNK - 1) / CHUNK * 16;
    if (params->top_k < (double)row->vocab_size) {
        double number;
        /* So many groups have a logit of at least this, each its own. */
        if (params->top_k <= (double)num_groups)
            return find_pivot(groups, NULL, num_groups, params->top_k, -FLT_MAX, row->maximum, &number);
        return -FLT_MAX;
    }
    double exponent = log(params->min_p);
    if (params->top_p < 1.0) {
        *mass = sum_chunks(row, 0.0f, scratch->sums);
        /* Tokens of less weight than this have, all together, less mass than top_p leaves out. */
        exponent = fmax(exponent, log((1.0 - params->top_p) * *mass / (double)row->vocab_size));
    }
    return fmaxf((float)(row->maximum + row->temperature * (exponent - SLACK)), -FLT_MAX);
}

/* The weight of the first of the values that equals `pivot`, 0 if none does. */
static float weight_of(const struct scratch *scratch, int64_t n, float pivot) {
    for (int64_t i = 0; i < n; i++)
        if (scratch->values[i] == pivot)
            return scratch->weights[i];
    return 0.0f;
}

static int64_t draw_filtered(
    const struct row *row, const struct params *params, const float *groups, struct scratch *scratch) {
    double mass = 0.0, above, ties = (double)row->vocab_size;
    float bound = lower_bound(row, params, groups, scratch, &mass);
    int64_t n = collect(row, bound, scratch), padded = (n + CHUNK - 1) / CHUNK * CHUNK;
    const float *values = scratch->values, *weights = scratch->weights;
    float pivot = bound, up_to, beyond;
    if (params->top_k < (double)row->vocab_size) {
        if (params->top_k < (double)n) {
            pivot = find_pivot(values, NULL, padded, params->top_k, bound, row->maximum, &above);
            ties = params->top_k - above;
            mass = mass_above(values, weights, padded, pivot, &up_to, &beyond);
            mass += ties * weight_of(scratch, n, pivot);
        } else { /* there are no more tokens than top_k keeps */
            mass = mass_above(values, weights, padded, -INFINITY, &up_to, &beyond);
        }
    }
    if (params->top_p < 1.0) {
        double wanted = params->top_p * mass;
        float last = find_pivot(values, weights, padded, wanted, pivot, row->maximum, &above);
        double needed = fmax(1.0, ceil((wanted - above) / weight_of(scratch, n, last)));
        ties = last > pivot ? needed : fmin(ties, needed);
        pivot = last;
    }
    keep(scratch, n, pivot, (int64_t)fmin(ties, (double)row->vocab_size), (float)params->min_p);
    double target = params->uniform * total(scratch->sums, padded / CHUNK);
    int64_t start = CHUNK * first_beyond(scratch->sums, padded / CHUNK, &target);
    return scratch->ids[start + pick_in_chunk(weights + start, target)];
}

static int64_t sample_row(struct row *row, const struct params *params, struct scratch *scratch) {
    bool filtered =
        params->temperature > 0.0 && (params->top_k < (double)row->vocab_size || params->top_p < 1.0);
    /* The groups lie where the ids will be: they are read before those are written. */
    float *groups = (float *)scratch->ids;
    int64_t best = find_maximum(row, filtered ? groups : NULL);
    if (best < 0)
        return 0;
    if (params->temperature == 0.0)
        return best;
    row->temperature = (float)params->temperature;
    return filtered ? draw_filtered(row, params, groups, scratch) : draw(row, params, scratch);
}

/* Bytes of scratch memory that one thread wants. */
static int64_t scratch_bytes(int64_t num_chunks) {
    /* A vector more each, since compressed vectors are stored whole. */
    return 3 * 4 * (num_chunks * CHUNK + 16) + 8 * num_chunks;
}

int64_t penstock_sample_scratch_bytes(int64_t vocab_size) {
    return omp_get_max_threads() * scratch_bytes((vocab_size + CHUNK - 1) / CHUNK);
}

/* token_ids[r] = the token of row r.
 *
 * logits: [num_rows, vocab_size], `row_bytes` from row to row; params: [num_rows]; scratch: see above. */
void penstock_sample_rows(
    const char *logits, int64_t dtype, int64_t row_bytes, int64_t num_rows, int64_t vocab_size,
    const struct params *params, char *scratch, int64_t *token_ids) {
    int64_t num_chunks = (vocab_size + CHUNK - 1) / CHUNK;
#pragma omp parallel for schedule(dynamic) if (num_rows > 1)
    for (int64_t r = 0; r < num_rows; r++) {
        char *memory = scratch + omp_get_thread_num() * scratch_bytes(num_chunks);
        int64_t length = num_chunks * CHUNK + 16;
        struct scratch own = {
            .sums = (double *)memory,
            .values = (float *)(memory + 8 * num_chunks),
            .weights = (float *)(memory + 8 * num_chunks) + length,
            .ids = (int32_t *)(memory + 8 * num_chunks) + 2 * length,
        };
        struct row row = {.logits = logits + r * row_bytes, .dtype = (enum dtype)dtype, .vocab_size = vocab_size};
        token_ids[r] = sample_row(&row, params + r, &own);
    }
}
