/* SPDX-License-Identifier: Apache-2.0
 * The end of a product for 16 outputs in a register, operation by operation as the scalar table and
 * gelu.h. Include between ISA_BEGIN("avx512f,avx512bw,avx512dq,avx512vl...") and ISA_END. */
#ifndef VGQ_EPILOGUE_AVX512_H
#define VGQ_EPILOGUE_AVX512_H

#include "../gelu.h"
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

/* x[i] = GELU(x[i]), by the operations of gelu.h; parts, a constant, are as far as one chain of
 * operations would leave the processor waiting. */
static inline void vgq_gelu_avx512(size_t parts, __m512 *x)
{
    const __m512 end = _mm512_set1_ps(VGQ_GELU_END);
    __m512 z[4], u[4], p[4];
    for (size_t i = 0; i < parts; i++) {
        z[i] = _mm512_min_ps(_mm512_abs_ps(x[i]), end);
        u[i] = _mm512_fmadd_ps(z[i], _mm512_set1_ps(2.0f / VGQ_GELU_END), _mm512_set1_ps(-1.0f));
        p[i] = _mm512_set1_ps(VGQ_GELU_FIRST);
    }
#define TERM(c)                        \
    for (size_t i = 0; i < parts; i++) \
        p[i] = _mm512_fmadd_ps(p[i], u[i], _mm512_set1_ps(c));
    VGQ_GELU_TERMS(TERM)
#undef TERM
    /* of a NaN, and of two zeros, the maximum is the second one */
    for (size_t i = 0; i < parts; i++)
        x[i] = _mm512_fmadd_ps(_mm512_mul_ps(z[i], _mm512_sub_ps(z[i], end)), p[i],
                               _mm512_max_ps(_mm512_setzero_ps(), x[i]));
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
