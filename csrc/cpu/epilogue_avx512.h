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

static inline void vgq_store_avx512(__m512 v, void *y, size_t i, vgq_dtype dtype)
{
    if (dtype == VGQ_F32)
        _mm512_storeu_ps((float *)y + i, v);
    else
        _mm256_storeu_si256((void *)((uint16_t *)y + i), vgq_bf16_avx512(v));
}

/* x[i] = GELU(x[i]), by the operations of gelu.h; parts, a constant, are as far as one chain of
 * operations would leave the processor waiting. */
static inline void vgq_gelu_avx512(size_t parts, __m512 *x)
{
    __m512 square[4], n[4], r[4], power[4], t[4], tail[4];
#define SET(a, value)                    \
    for (size_t i = 0; i < parts; i++) { \
        (a)[i] = value;                  \
    }
#define ONE(c) _mm512_set1_ps(c)
#define LESS(c) SET(power, _mm512_sub_ps(ONE(c), _mm512_mul_ps(power[i], r[i])))
#define PLUS(c) SET(tail, _mm512_add_ps(_mm512_mul_ps(tail[i], t[i]), ONE(c)))
    SET(square, _mm512_mul_ps(_mm512_mul_ps(x[i], x[i]), ONE(0.5f)))
    SET(n, _mm512_roundscale_ps(_mm512_mul_ps(square[i], ONE(1.44269504f)),
                                _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC))
    SET(r, _mm512_sub_ps(square[i], _mm512_mul_ps(n[i], ONE(0.693145752f))))
    SET(r, _mm512_sub_ps(r[i], _mm512_mul_ps(n[i], ONE(1.42860677e-6f))))
    SET(power, ONE(1.0f / 720))
    LESS(1.0f / 120)
    LESS(1.0f / 24)
    LESS(1.0f / 6)
    LESS(0.5f)
    LESS(1.0f)
    LESS(1.0f)
    SET(power,
        _mm512_mul_ps(power[i],
                      _mm512_castsi512_ps(_mm512_slli_epi32(
                          _mm512_sub_epi32(_mm512_set1_epi32(127), _mm512_cvtps_epi32(n[i])), 23))))
    SET(t, _mm512_mul_ps(_mm512_abs_ps(x[i]), ONE(0.707106781f)))
    SET(t, _mm512_div_ps(ONE(1.0f), _mm512_add_ps(ONE(1.0f), _mm512_mul_ps(ONE(0.3275911f), t[i]))))
    SET(tail, ONE(1.061405429f))
    PLUS(-1.453152027f)
    PLUS(1.421413741f)
    PLUS(-0.284496736f)
    PLUS(0.254829592f)
    SET(tail, _mm512_mul_ps(_mm512_mul_ps(tail[i], t[i]), power[i]))
    for (size_t i = 0; i < parts; i++) {
        const __m512 half = _mm512_mul_ps(_mm512_mul_ps(ONE(0.5f), x[i]), tail[i]);
        const __mmask16 inside = _mm512_cmp_ps_mask(square[i], ONE(87.0f), _CMP_LT_OQ);
        const __mmask16 above = _mm512_cmp_ps_mask(x[i], _mm512_setzero_ps(), _CMP_GT_OQ);
        const __m512 near = _mm512_mask_sub_ps(half, above, x[i], half);
        const __m512 far =
            _mm512_mask_mov_ps(_mm512_mul_ps(x[i], _mm512_setzero_ps()), above, x[i]);
        x[i] = _mm512_mask_mov_ps(far, inside, near);
    }
#undef PLUS
#undef LESS
#undef ONE
#undef SET
}

#endif
