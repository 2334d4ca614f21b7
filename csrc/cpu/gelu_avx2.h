/* SPDX-License-Identifier: Apache-2.0
 * GELU for AVX2: the list of operations of gelu.h. Include between ISA_BEGIN("avx2,fma...") and
 * ISA_END. */
#ifndef VGQ_GELU_AVX2_H
#define VGQ_GELU_AVX2_H

#include "../gelu.h"

#include <immintrin.h>

#define MUL(a, b) _mm256_mul_ps(a, b)
#define ADD(a, b) _mm256_add_ps(a, b)
#define SUB(a, b) _mm256_sub_ps(a, b)
#define ALL(a) _mm256_set1_ps(a)

static inline __m256 vgq_gelu_avx2(__m256 x)
{
    const __m256 zero = _mm256_setzero_ps(), one = ALL(1.0f);
    const __m256 square = MUL(MUL(x, x), ALL(0.5f));
    const __m256 inner = _mm256_cmp_ps(square, ALL(87.0f), _CMP_LT_OQ);
    const __m256 above = _mm256_cmp_ps(x, zero, _CMP_GT_OQ);
    const __m256 n = _mm256_round_ps(MUL(square, ALL(1.44269504f)),
                                     _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
    const __m256 r = SUB(SUB(square, MUL(n, ALL(0.693145752f))), MUL(n, ALL(1.42860677e-6f)));
    __m256 power = ALL(1.0f / 720);
    power = SUB(ALL(1.0f / 120), MUL(power, r));
    power = SUB(ALL(1.0f / 24), MUL(power, r));
    power = SUB(ALL(1.0f / 6), MUL(power, r));
    power = SUB(ALL(0.5f), MUL(power, r));
    power = SUB(one, MUL(power, r));
    power = SUB(one, MUL(power, r));
    const __m256i exponent = _mm256_sub_epi32(_mm256_set1_epi32(127), _mm256_cvtps_epi32(n));
    power = MUL(power, _mm256_castsi256_ps(_mm256_slli_epi32(exponent, 23)));
    const __m256 z = MUL(_mm256_andnot_ps(ALL(-0.0f), x), ALL(0.707106781f));
    const __m256 t = _mm256_div_ps(one, ADD(one, MUL(ALL(0.3275911f), z)));
    __m256 tail = ALL(1.061405429f);
    tail = SUB(MUL(tail, t), ALL(1.453152027f));
    tail = ADD(MUL(tail, t), ALL(1.421413741f));
    tail = SUB(MUL(tail, t), ALL(0.284496736f));
    tail = ADD(MUL(tail, t), ALL(0.254829592f));
    tail = MUL(MUL(tail, t), power);
    const __m256 half = MUL(MUL(ALL(0.5f), x), tail);
    const __m256 near = _mm256_blendv_ps(half, SUB(x, half), above);
    const __m256 far = _mm256_blendv_ps(MUL(x, zero), x, above);
    return _mm256_blendv_ps(far, near, inner);
}

#undef MUL
#undef ADD
#undef SUB
#undef ALL

#endif
