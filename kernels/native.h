/* What the native kernels share: vectors of 16 floats, loads and stores of bfloat16, and an exponential. */

#ifndef PENSTOCK_NATIVE_H
#define PENSTOCK_NATIVE_H

#ifndef __AVX512BF16__
#error "these kernels need a processor with avx512_bf16"
#endif

#include <immintrin.h>
#include <stddef.h>
#include <stdint.h>

typedef uint16_t bf16; /* the upper half of a float's bits */

/* The first `count` of 16 lanes; `count` may be larger. */
static inline __mmask16 first_lanes(int64_t count) {
    return count >= 16 ? (__mmask16)0xffff : (__mmask16)((1u << count) - 1u);
}

static inline __m512 widen(__m256i halves) {
    return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(halves), 16));
}

/* Rounds to nearest even and keeps NaN. */
static inline __m256i narrow(__m512 wide) {
    return (__m256i)_mm512_cvtneps_pbh(wide);
}

static inline __m512 load_bf16(const bf16 *from) {
    return widen(_mm256_loadu_si256((const __m256i *)from));
}

static inline void store_bf16(bf16 *to, __m512 wide) {
    _mm256_storeu_si256((__m256i *)to, narrow(wide));
}

/* Lanes outside of the mask are zero, and their memory is not touched. */
static inline __m512 load_bf16_masked(const bf16 *from, __mmask16 mask) {
    return widen(_mm256_maskz_loadu_epi16(mask, from));
}

static inline void store_bf16_masked(bf16 *to, __m512 wide, __mmask16 mask) {
    _mm256_mask_storeu_epi16(to, mask, narrow(wide));
}

/* 32 bfloat16 in memory as the operand of _mm512_dpbf16_ps. */
static inline __m512bh load_pairs(const void *from) {
    return (__m512bh)_mm512_loadu_si512(from);
}

/* Two neighbouring bfloat16 in every lane. */
static inline __m512bh broadcast_pair(const bf16 *from) {
    return (__m512bh)_mm512_set1_epi32(*(const int32_t *)from);
}

/* e^x to about one unit in the last place; 0 below -104, infinity above 89, NaN stays.
 *
 * x = n ln 2 + r with |r| <= ln 2 / 2, and a Taylor polynomial of degree 7 for e^r. */
static inline __m512 exp_ps(__m512 x) {
    const __m512 low = _mm512_set1_ps(-104.0f), high = _mm512_set1_ps(89.0f);
    /* The bound is the first operand: min and max return the second one, x, where that is NaN. */
    x = _mm512_min_ps(high, _mm512_max_ps(low, x));
    __m512 n = _mm512_roundscale_ps(_mm512_mul_ps(x, _mm512_set1_ps(1.44269504f)), _MM_FROUND_TO_NEAREST_INT);
    __m512 r = _mm512_fnmadd_ps(n, _mm512_set1_ps(0.693359375f), x); /* ln 2 in two parts, the first one short */
    r = _mm512_fnmadd_ps(n, _mm512_set1_ps(-2.12194440e-4f), r);
    __m512 p = _mm512_set1_ps(1.0f / 5040.0f);
    p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(1.0f / 720.0f));
    p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(1.0f / 120.0f));
    p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(1.0f / 24.0f));
    p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(1.0f / 6.0f));
    p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(0.5f));
    p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(1.0f));
    p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(1.0f));
    return _mm512_scalef_ps(p, n);
}

#endif
