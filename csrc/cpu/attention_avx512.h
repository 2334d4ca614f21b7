/* SPDX-License-Identifier: Apache-2.0
 * What the attention tables of AVX-512 share. Included between ISA_BEGIN and ISA_END. */
#ifndef VGQ_ATTENTION_AVX512_H
#define VGQ_ATTENTION_AVX512_H

#include "attention_rows.h"
#include "tiles.h"

#include <immintrin.h>

/* Rows of the tiles: 6 x 64 sums fill the registers. */
enum { ROWS = 6 };
/* 1.5 * 2^23: the bits of a float that is an integer above it end in that integer. */
#define ABOVE 0x1.8p23f
enum { ABOVE_BITS = 0x4b400000 };

/* The first n of 16 lanes. */
static inline __mmask16 first_lanes(size_t n)
{
    return (__mmask16)(n < 16 ? (1u << n) - 1 : 0xffffu);
}

/* to[i][16] of 32-bit items, lines to_ld apart = from[16][i], lines from_ld apart. */
static inline void transpose_16x16(const uint32_t *from, size_t from_ld, uint32_t *to, size_t to_ld)
{
    __m512i a[16], b[16];
    for (int i = 0; i < 16; i++)
        a[i] = _mm512_loadu_si512(from + (size_t)i * from_ld);
    for (int i = 0; i < 16; i += 2) {
        b[i] = _mm512_unpacklo_epi32(a[i], a[i + 1]);
        b[i + 1] = _mm512_unpackhi_epi32(a[i], a[i + 1]);
    }
    for (int i = 0; i < 16; i += 4) { /* a[i + j]: item j of each four, of rows i..i + 3 */
        a[i] = _mm512_unpacklo_epi64(b[i], b[i + 2]);
        a[i + 1] = _mm512_unpackhi_epi64(b[i], b[i + 2]);
        a[i + 2] = _mm512_unpacklo_epi64(b[i + 1], b[i + 3]);
        a[i + 3] = _mm512_unpackhi_epi64(b[i + 1], b[i + 3]);
    }
    for (int j = 0; j < 4; j++) {
        const __m512i low0 = _mm512_shuffle_i32x4(a[j], a[4 + j], 0x88);
        const __m512i low1 = _mm512_shuffle_i32x4(a[8 + j], a[12 + j], 0x88);
        const __m512i high0 = _mm512_shuffle_i32x4(a[j], a[4 + j], 0xdd);
        const __m512i high1 = _mm512_shuffle_i32x4(a[8 + j], a[12 + j], 0xdd);
        _mm512_storeu_si512(to + (size_t)j * to_ld, _mm512_shuffle_i32x4(low0, low1, 0x88));
        _mm512_storeu_si512(to + (size_t)(8 + j) * to_ld, _mm512_shuffle_i32x4(low0, low1, 0xdd));
        _mm512_storeu_si512(to + (size_t)(4 + j) * to_ld, _mm512_shuffle_i32x4(high0, high1, 0x88));
        _mm512_storeu_si512(to + (size_t)(12 + j) * to_ld,
                            _mm512_shuffle_i32x4(high0, high1, 0xdd));
    }
}

/* panel[width][VGQ_PANEL] of 32-bit items = rows[VGQ_PANEL][width]. width: a multiple of 16. */
static inline void transpose_panel(const void *rows, size_t width, void *panel)
{
    for (size_t j = 0; j < VGQ_PANEL; j += 16)
        for (size_t i = 0; i < width; i += 16)
            transpose_16x16((const uint32_t *)rows + j * width + i, width,
                            (uint32_t *)panel + i * VGQ_PANEL + j, VGQ_PANEL);
}

/* The largest of a row's n scores. */
static inline float largest_score(size_t n, const float *s)
{
    __m512 a = _mm512_set1_ps(-INFINITY), b = a;
    size_t j = 0;
    for (; j + 32 <= n; j += 32) {
        a = _mm512_max_ps(a, _mm512_loadu_ps(s + j));
        b = _mm512_max_ps(b, _mm512_loadu_ps(s + j + 16));
    }
    for (; j < n; j += 16)
        a = _mm512_mask_max_ps(a, first_lanes(n - j), a, _mm512_loadu_ps(s + j));
    return _mm512_reduce_max_ps(_mm512_max_ps(a, b));
}

/* 2^(s r - peak) of 16 scores, times 255 where codes are made of it: a polynomial of what the
 * exponent stands beside an integer. Lanes outside of the mask are 0. */
static inline __m512 exp2_codes(__m512 s, __m512 r, __m512 peak, __mmask16 mask)
{
    const __m512 x = _mm512_fmsub_ps(s, r, peak);
    const __m512 f = _mm512_reduce_ps(x, 0x08), whole = _mm512_sub_ps(x, f);
    __m512 p = _mm512_set1_ps(VGQ_EXP2_CODES_FIRST);
#define TERM(t) p = _mm512_fmadd_ps(p, f, _mm512_set1_ps(t));
    VGQ_EXP2_CODES(TERM)
#undef TERM
    return _mm512_maskz_scalef_ps(mask, p, whole);
}

static inline __m512 exp2_floats(__m512 s, __m512 r, __m512 peak, __mmask16 mask)
{
    const __m512 x = _mm512_fmsub_ps(s, r, peak);
    const __m512 f = _mm512_reduce_ps(x, 0x08), whole = _mm512_sub_ps(x, f);
    __m512 p = _mm512_set1_ps(VGQ_EXP2_FLOATS_FIRST);
#define TERM(t) p = _mm512_fmadd_ps(p, f, _mm512_set1_ps(t));
    VGQ_EXP2_FLOATS(TERM)
#undef TERM
    /* below 2^-126: 0, since products with such numbers take a hundred times as long */
    mask = _mm512_mask_cmp_ps_mask(mask, x, _mm512_set1_ps(-126.0f), _CMP_NLT_UQ);
    return _mm512_maskz_scalef_ps(mask, p, whole);
}

/* lanes = lanes * kept + sum * added */
static inline void gather_lanes(float *lanes, __m512 sum, float kept, float added)
{
    const __m512 before = _mm512_mul_ps(_mm512_loadu_ps(lanes), _mm512_set1_ps(kept));
    _mm512_storeu_ps(lanes, _mm512_fmadd_ps(sum, _mm512_set1_ps(added), before));
}

/* A row whose scores leave the range: seldom, so it stands apart. */
__attribute__((noinline, cold)) static float far_row_peak(size_t n, float *s, float max, float r)
{
    return vgq_row_peak(n, s, max, r);
}

/* What comes before the p of the rows: the peaks of their blocks, their tops and the factors,
 * vgq_row_peak and vgq_join_top of 16 rows at a time. */
static inline void begin_rows(size_t rows, size_t n, float *s, const float *r, float *top,
                              float *peak, float *kept, float *added)
{
    const __m512 most = _mm512_set1_ps(VGQ_SCORE_MOST), one = _mm512_set1_ps(1);
    const __m512 zero = _mm512_setzero_ps(), least = _mm512_set1_ps(-126);
    for (size_t m = 0; m < rows; m++)
        peak[m] = largest_score(n, s + m * VGQ_KEYS);
    for (size_t m = 0; m < rows; m += 16) {
        const __mmask16 lanes = first_lanes(rows - m);
        const __m512 max = _mm512_maskz_loadu_ps(lanes, peak + m);
        const __m512 high = _mm512_mul_ps(max, _mm512_maskz_loadu_ps(lanes, r + m));
        unsigned far = _mm512_mask_cmp_ps_mask(lanes, _mm512_abs_ps(high), most, _CMP_NLE_UQ);
        float max_of[16];
        _mm512_storeu_ps(max_of, max);
        _mm512_mask_storeu_ps(peak + m, lanes, high);
        for (; far; far &= far - 1) {
            const size_t i = m + (size_t)__builtin_ctz(far);
            peak[i] = far_row_peak(n, s + i * VGQ_KEYS, max_of[i - m], r[i]);
        }
        const __m512 now = _mm512_maskz_loadu_ps(lanes, peak + m);
        const __m512 before = _mm512_maskz_loadu_ps(lanes, top + m);
        const __m512 both = _mm512_max_ps(_mm512_roundscale_ps(now, 0x0a), before);
        const __m512 past = _mm512_sub_ps(before, both);
        const __mmask16 counts = _mm512_mask_cmp_ps_mask(lanes, past, least, _CMP_GE_OQ);
        _mm512_mask_storeu_ps(top + m, lanes, both);
        _mm512_mask_storeu_ps(kept + m, lanes, _mm512_maskz_scalef_ps(counts, one, past));
        _mm512_mask_storeu_ps(added + m, lanes,
                              exp2_floats(_mm512_sub_ps(now, both), one, zero, lanes));
    }
}

/* o[64] = o * kept + sum * added, the sums of a tile one after the other in memory: with them in
 * registers gcc stores each of them in the loop before. */
static inline void join_floats(size_t rows, size_t depth, const float *sum, const float *kept,
                               const float *added, float *o)
{
    for (size_t m = 0; m < rows; m++, o += depth) {
        const __m512 before = _mm512_set1_ps(kept[m]), now = _mm512_set1_ps(added[m]);
        for (size_t c = 0; c < 64; c += 16, sum += 16)
            _mm512_storeu_ps(o + c, _mm512_fmadd_ps(_mm512_loadu_ps(sum), now,
                                                    _mm512_mul_ps(_mm512_loadu_ps(o + c), before)));
    }
}

/* o[64] = o * kept + (float)sum * (scale * added), the sums of a tile in memory: see join_floats.
 */
static inline void join_sums(size_t rows, size_t depth, const int32_t *sum, const float *scale,
                             const float *kept, const float *added, float *o)
{
    for (size_t m = 0; m < rows; m++, o += depth) {
        const __m512 before = _mm512_set1_ps(kept[m]), now = _mm512_set1_ps(added[m]);
        for (size_t c = 0; c < 64; c += 16, sum += 16)
            _mm512_storeu_ps(o + c, _mm512_fmadd_ps(_mm512_cvtepi32_ps(_mm512_loadu_si512(sum)),
                                                    _mm512_mul_ps(_mm512_loadu_ps(scale + c), now),
                                                    _mm512_mul_ps(_mm512_loadu_ps(o + c), before)));
    }
}

#endif
