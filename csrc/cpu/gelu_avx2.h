/* SPDX-License-Identifier: Apache-2.0
 * GELU for AVX2: the list of operations of gelu.h. Include between ISA_BEGIN("avx2,fma...") and
 * ISA_END. */
#ifndef VGQ_GELU_AVX2_H
#define VGQ_GELU_AVX2_H

#include "../gelu.h"

#include <immintrin.h>

static inline __m256 vgq_gelu_avx2(__m256 x)
{
    const __m256 end = _mm256_set1_ps(VGQ_GELU_END);
    const __m256 z = _mm256_min_ps(_mm256_andnot_ps(_mm256_set1_ps(-0.0f), x), end);
    const __m256 u = _mm256_fmadd_ps(z, _mm256_set1_ps(2.0f / VGQ_GELU_END), _mm256_set1_ps(-1.0f));
    __m256 p = _mm256_set1_ps(VGQ_GELU_FIRST);
#define TERM(c) p = _mm256_fmadd_ps(p, u, _mm256_set1_ps(c));
    VGQ_GELU_TERMS(TERM)
#undef TERM
    /* of a NaN, and of two zeros, the maximum is the second one */
    return _mm256_fmadd_ps(_mm256_mul_ps(z, _mm256_sub_ps(z, end)), p,
                           _mm256_max_ps(_mm256_setzero_ps(), x));
}

#endif
