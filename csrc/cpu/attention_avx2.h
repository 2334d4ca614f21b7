/* SPDX-License-Identifier: Apache-2.0
 * What the attention tables of AVX2 and AVX-VNNI share. Included between ISA_BEGIN and ISA_END. */
#ifndef VGQ_ATTENTION_AVX2_H
#define VGQ_ATTENTION_AVX2_H

#include "attention_rows.h"
#include "tiles.h"

#include <immintrin.h>

/* A group is several tiles' rows, so that a block of k or v that is in L1 serves all of them. */
/* Behind a loop, so that gcc keeps a tile's sums in registers in it. */
#define PIN(r) __asm__("" : "+x"(a##r##0), "+x"(a##r##1));

enum { ROWS = 6, GROUP = 4 * ROWS, BLOCK = 16 };

/* The first n of 8 lanes. */
static inline __m256 first_lanes(size_t n)
{
    static const int32_t lanes[16] = {-1, -1, -1, -1, -1, -1, -1, -1};
    return _mm256_loadu_ps((const float *)(const void *)(lanes + (n < 8 ? 8 - n : 0)));
}

/* to[width][BLOCK] of 32-bit items = from[BLOCK][width], for each block of a panel. */
static void transpose_panel(const void *rows, size_t width, void *panel)
{
    const uint32_t *from = rows;
    uint32_t *to = panel;
    for (size_t b = 0; b < VGQ_PANEL; b += BLOCK, from += BLOCK * width, to += BLOCK * width)
        for (size_t i = 0; i < width; i++)
            for (size_t j = 0; j < BLOCK; j++)
                to[i * BLOCK + j] = from[j * width + i];
}

/* ---- softmax ----------------------------------------------------------------------------------
 */

static inline float largest_score(size_t n, const float *s)
{
    const __m256 least = _mm256_set1_ps(-INFINITY);
    __m256 a = least, b = least;
    size_t j = 0;
    for (; j + 16 <= n; j += 16) {
        a = _mm256_max_ps(a, _mm256_loadu_ps(s + j));
        b = _mm256_max_ps(b, _mm256_loadu_ps(s + j + 8));
    }
    for (; j < n; j += 8)
        a = _mm256_max_ps(a, _mm256_blendv_ps(least, _mm256_loadu_ps(s + j), first_lanes(n - j)));
    a = _mm256_max_ps(a, b);
    __m128 four = _mm_max_ps(_mm256_castps256_ps128(a), _mm256_extractf128_ps(a, 1));
    four = _mm_max_ps(four, _mm_movehl_ps(four, four));
    return _mm_cvtss_f32(_mm_max_ss(four, _mm_movehdup_ps(four)));
}

/* A row whose scores leave the range: seldom, so it stands apart. */
__attribute__((noinline, cold)) static float far_row_peak(size_t n, float *s, float max, float r)
{
    return vgq_row_peak(n, s, max, r);
}

/* The exponents of 8 scores, not below -127, split into integers, which stand in the low bits of
 * *whole, and what is left. A NaN stays one. */
static inline __m256 split(__m256 s, __m256 r, __m256 peak, __m256i *whole)
{
    const __m256 above = _mm256_set1_ps(0x1.8p23f);
    const __m256 x = _mm256_max_ps(_mm256_set1_ps(-127.0f), _mm256_fmsub_ps(s, r, peak));
    const __m256 high = _mm256_add_ps(x, above);
    *whole = _mm256_castps_si256(high);
    return _mm256_sub_ps(x, _mm256_sub_ps(high, above));
}

/* 255 * 2^(s r - peak). Below 2^-126 it is anything that small: the codes are 0, and beside the
 * lane of the largest, which is above 127, it is lost. */
static inline __m256 exp2_codes(__m256 s, __m256 r, __m256 peak)
{
    __m256i whole;
    const __m256 f = split(s, r, peak, &whole);
    __m256 p = _mm256_set1_ps(VGQ_EXP2_CODES_FIRST);
#define TERM(t) p = _mm256_fmadd_ps(p, f, _mm256_set1_ps(t));
    VGQ_EXP2_CODES(TERM)
#undef TERM
    return _mm256_castsi256_ps(
        _mm256_add_epi32(_mm256_castps_si256(p), _mm256_slli_epi32(whole, 23)));
}

/* 2^(s r - peak), 0 below 2^-126.5. */
static inline __m256 exp2_floats(__m256 s, __m256 r, __m256 peak)
{
    __m256i whole;
    const __m256 f = split(s, r, peak, &whole);
    __m256 p = _mm256_set1_ps(VGQ_EXP2_FLOATS_FIRST);
#define TERM(t) p = _mm256_fmadd_ps(p, f, _mm256_set1_ps(t));
    VGQ_EXP2_FLOATS(TERM)
#undef TERM
    const __m256i power =
        _mm256_add_epi32(_mm256_slli_epi32(whole, 23), _mm256_set1_epi32(127 << 23));
    return _mm256_mul_ps(p, _mm256_castsi256_ps(power));
}

/* 2^e, 0 below 2^-126: of integers e <= 0, exact. */
static inline __m256 powers(__m256 e)
{
    const __m256 counts = _mm256_cmp_ps(e, _mm256_set1_ps(-126.0f), _CMP_GE_OQ);
    const __m256i bits =
        _mm256_slli_epi32(_mm256_add_epi32(_mm256_cvtps_epi32(e), _mm256_set1_epi32(127)), 23);
    return _mm256_and_ps(counts, _mm256_castsi256_ps(bits));
}

/* What comes before the p of the rows: the peaks of their blocks, their tops and the factors,
 * vgq_row_peak and vgq_join_top of 8 rows at a time. */
static inline void begin_rows(size_t rows, size_t n, float *s, const float *r, float *top,
                              float *peak, float *kept, float *added)
{
    const __m256 most = _mm256_set1_ps(VGQ_SCORE_MOST), sign = _mm256_set1_ps(-0.0f);
    const __m256 one = _mm256_set1_ps(1);
    for (size_t m = 0; m < rows; m++)
        peak[m] = largest_score(n, s + m * VGQ_KEYS);
    for (size_t m = 0; m < rows; m += 8) {
        const __m256i lanes = _mm256_castps_si256(first_lanes(rows - m));
        const __m256 max = _mm256_loadu_ps(peak + m), factor = _mm256_maskload_ps(r + m, lanes);
        const __m256 high = _mm256_mul_ps(max, factor);
        const __m256 beyond = _mm256_cmp_ps(_mm256_andnot_ps(sign, high), most, _CMP_NLE_UQ);
        unsigned far =
            (unsigned)_mm256_movemask_ps(_mm256_and_ps(beyond, _mm256_castsi256_ps(lanes)));
        float max_of[8];
        _mm256_storeu_ps(max_of, max);
        _mm256_storeu_ps(peak + m, high);
        for (; far; far &= far - 1) {
            const size_t i = m + (size_t)__builtin_ctz(far);
            peak[i] = far_row_peak(n, s + i * VGQ_KEYS, max_of[i - m], r[i]);
        }
        const __m256 now = _mm256_loadu_ps(peak + m), before = _mm256_maskload_ps(top + m, lanes);
        const __m256 both = _mm256_max_ps(_mm256_ceil_ps(now), before);
        _mm256_maskstore_ps(top + m, lanes, both);
        _mm256_maskstore_ps(kept + m, lanes, powers(_mm256_sub_ps(before, both)));
        const __m256 counts =
            _mm256_cmp_ps(_mm256_sub_ps(now, both), _mm256_set1_ps(-126.0f), _CMP_NLT_UQ);
        _mm256_maskstore_ps(added + m, lanes, _mm256_and_ps(counts, exp2_floats(now, one, both)));
    }
}

/* to[8] = to * kept + x * added */
static inline void join(float *to, __m256 x, float kept, __m256 added)
{
    const __m256 before = _mm256_mul_ps(_mm256_loadu_ps(to), _mm256_set1_ps(kept));
    _mm256_storeu_ps(to, _mm256_fmadd_ps(x, added, before));
}

/* The same of a row's sums. */
static inline void gather_lanes(float *lanes, __m256 low, __m256 high, float kept, float added)
{
    join(lanes, low, kept, _mm256_set1_ps(added));
    join(lanes + 8, high, kept, _mm256_set1_ps(added));
}

/* s[16] = (float)sums * (k0, k1): scores of a row. */
static inline void store_scores(float *s, __m256i low, __m256i high, __m256 k0, __m256 k1)
{
    _mm256_storeu_ps(s, _mm256_mul_ps(_mm256_cvtepi32_ps(low), k0));
    _mm256_storeu_ps(s + 8, _mm256_mul_ps(_mm256_cvtepi32_ps(high), k1));
}

/* o[16] = o * kept + (float)sums * (scale * added) */
static inline void join_sums(float *o, __m256i low, __m256i high, const float *scale, float kept,
                             float added)
{
    const __m256 now = _mm256_set1_ps(added);
    join(o, _mm256_cvtepi32_ps(low), kept, _mm256_mul_ps(_mm256_loadu_ps(scale), now));
    join(o + 8, _mm256_cvtepi32_ps(high), kept, _mm256_mul_ps(_mm256_loadu_ps(scale + 8), now));
}

#endif
