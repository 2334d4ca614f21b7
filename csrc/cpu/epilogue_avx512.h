/* SPDX-License-Identifier: Apache-2.0
 * The end of a product for 16 outputs in a register, operation by operation as the scalar table and
 * gelu.h. Include between ISA_BEGIN("avx512f,avx512bw,avx512dq,avx512vl...") and ISA_END. */
#ifndef VGQ_EPILOGUE_AVX512_H
#define VGQ_EPILOGUE_AVX512_H

#include "../kernels.h"

#include <immintrin.h>

/* ((float)(acc - offset * sum) * x_scale) * scale + bias */
static inline __m512 vgq_finished_avx512(__m512i acc, __m512i offset, int32_t sum, float x_scale,
                                         __m512 scale, __m512 bias)
{
    const __m512i extra = _mm512_mullo_epi32(offset, _mm512_set1_epi32(sum));
    const __m512 v = _mm512_cvtepi32_ps(_mm512_sub_epi32(acc, extra));
    return _mm512_add_ps(_mm512_mul_ps(_mm512_mul_ps(v, _mm512_set1_ps(x_scale)), scale), bias);
}

/* bfloat16, ties to even; a NaN stays one. */
static inline __m256i vgq_bf16_avx512(__m512 x)
{
    const __m512i b = _mm512_castps_si512(x);
    const __m512i odd = _mm512_and_si512(_mm512_srli_epi32(b, 16), _mm512_set1_epi32(1));
    const __m512i r = _mm512_add_epi32(b, _mm512_add_epi32(odd, _mm512_set1_epi32(0x7fff)));
    const __mmask16 nan = _mm512_cmp_ps_mask(x, x, _CMP_UNORD_Q);
    return _mm512_cvtepi32_epi16(
        _mm512_srli_epi32(_mm512_mask_or_epi32(r, nan, b, _mm512_set1_epi32(0x400000)), 16));
}

static inline __m512 vgq_load_avx512(const void *x, size_t i, vgq_dtype dtype)
{
    if (dtype == VGQ_F32)
        return _mm512_loadu_ps((const float *)x + i);
    const __m256i bits = _mm256_loadu_si256((const void *)((const uint16_t *)x + i));
    return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(bits), 16));
}

static inline void vgq_store_avx512(__m512 v, void *y, size_t i, vgq_dtype dtype)
{
    if (dtype == VGQ_F32)
        _mm512_storeu_ps((float *)y + i, v);
    else
        _mm256_storeu_si256((void *)((uint16_t *)y + i), vgq_bf16_avx512(v));
}

/* 1 / d for d in 1..8, correctly rounded, where division would take four times as long. The start
 * is good to 2^-14. The first step, rounded up, leaves at most one unit of the last place; then
 * the second one rounds as division does. Shown for every float d, and for starts all over that
 * range. */
static inline __m512 vgq_reciprocal_avx512(__m512 d)
{
    const __m512 one = _mm512_set1_ps(1.0f), start = _mm512_rcp14_ps(d);
    const __m512 y = _mm512_fmadd_round_ps(start, _mm512_fnmadd_ps(d, start, one), start,
                                           _MM_FROUND_TO_POS_INF | _MM_FROUND_NO_EXC);
    return _mm512_fmadd_ps(y, _mm512_fnmadd_ps(d, y, one), y);
}

/* x[i] = GELU(x[i]), by the operations of gelu.h; parts, a constant, are as far as one chain of
 * operations would leave the processor waiting. */
static inline void vgq_gelu_avx512(size_t parts, __m512 *x)
{
    __m512 square[4], n[4], r[4], power[4], t[4], tail[4];
    __mmask16 inside[4], outside = 0;
#define SET(a, value)                    \
    for (size_t i = 0; i < parts; i++) { \
        (a)[i] = value;                  \
    }
#define ONE(c) _mm512_set1_ps(c)
#define LESS(c) SET(power, _mm512_sub_ps(ONE(c), _mm512_mul_ps(power[i], r[i])))
#define PLUS(c) SET(tail, _mm512_add_ps(_mm512_mul_ps(tail[i], t[i]), ONE(c)))
    SET(square, _mm512_mul_ps(_mm512_mul_ps(x[i], x[i]), ONE(0.5f)))
    /* A float far below 2^22 that is added to 1.5 * 2^23 is rounded to a whole number, which
     * stands in the last bits. */
    SET(power, _mm512_add_ps(_mm512_mul_ps(square[i], ONE(1.44269504f)), ONE(0x1.8p23f)))
    SET(n, _mm512_sub_ps(power[i], ONE(0x1.8p23f)))
    SET(tail, _mm512_castsi512_ps(_mm512_slli_epi32(
                  _mm512_sub_epi32(_mm512_set1_epi32(127), _mm512_castps_si512(power[i])), 23)))
    SET(r, _mm512_sub_ps(square[i], _mm512_mul_ps(n[i], ONE(0.693145752f))))
    SET(r, _mm512_sub_ps(r[i], _mm512_mul_ps(n[i], ONE(1.42860677e-6f))))
    SET(power, ONE(1.0f / 720))
    LESS(1.0f / 120)
    LESS(1.0f / 24)
    LESS(1.0f / 6)
    LESS(0.5f)
    LESS(1.0f)
    LESS(1.0f)
    SET(power, _mm512_mul_ps(power[i], tail[i]))
    SET(t, _mm512_mul_ps(_mm512_abs_ps(x[i]), ONE(0.707106781f)))
    SET(t, vgq_reciprocal_avx512(_mm512_add_ps(ONE(1.0f), _mm512_mul_ps(ONE(0.3275911f), t[i]))))
    SET(tail, ONE(1.061405429f))
    PLUS(-1.453152027f)
    PLUS(1.421413741f)
    PLUS(-0.284496736f)
    PLUS(0.254829592f)
    SET(tail, _mm512_mul_ps(_mm512_mul_ps(tail[i], t[i]), power[i]))
    for (size_t i = 0; i < parts; i++) {
        const __m512 half = _mm512_mul_ps(_mm512_mul_ps(ONE(0.5f), x[i]), tail[i]);
        const __mmask16 above = _mm512_cmp_ps_mask(x[i], _mm512_setzero_ps(), _CMP_GT_OQ);
        inside[i] = _mm512_cmp_ps_mask(square[i], ONE(87.0f), _CMP_LT_OQ);
        outside |= (__mmask16)~inside[i];
        tail[i] = _mm512_mask_sub_ps(half, above, x[i], half);
    }
    for (size_t i = 0; i < parts && outside; i++) {
        const __mmask16 above = _mm512_cmp_ps_mask(x[i], _mm512_setzero_ps(), _CMP_GT_OQ);
        const __m512 far =
            _mm512_mask_mov_ps(_mm512_mul_ps(x[i], _mm512_setzero_ps()), above, x[i]);
        tail[i] = _mm512_mask_mov_ps(far, inside[i], tail[i]);
    }
    SET(x, tail[i])
#undef PLUS
#undef LESS
#undef ONE
#undef SET
}

/* 16 * parts columns of row r of a strip, from `column` of the panel on, from their sums to y. */
static inline void vgq_finish_avx512(const vgq_strip *strip, size_t r, size_t column, size_t parts,
                                     const int32_t *acc)
{
    const vgq_columns *const columns = strip->columns;
    const size_t at = r * strip->ldy + column;
    __m512 v[4];
    for (size_t i = 0; i < parts; i++) {
        const size_t c = column + 16 * i;
        v[i] = vgq_finished_avx512(_mm512_loadu_si512(acc + 16 * i),
                                   _mm512_loadu_si512(columns->offset + c), strip->sum[r],
                                   strip->x_scale[r], _mm512_loadu_ps(columns->scale + c),
                                   _mm512_loadu_ps(columns->bias + c));
    }
    if (strip->gelu)
        vgq_gelu_avx512(parts, v);
    for (size_t i = 0; i < parts && strip->layer_scale; i++)
        v[i] = _mm512_mul_ps(v[i], _mm512_loadu_ps(strip->layer_scale + column + 16 * i));
    for (size_t i = 0; i < parts && strip->residual; i++)
        v[i] = _mm512_add_ps(v[i], vgq_load_avx512(strip->residual, at + 16 * i, strip->dtype));
    for (size_t i = 0; i < parts; i++)
        vgq_store_avx512(v[i], strip->y, at + 16 * i, strip->dtype);
}

#endif
