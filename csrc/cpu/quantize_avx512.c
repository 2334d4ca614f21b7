/* SPDX-License-Identifier: Apache-2.0
 * Quantize kernels for AVX-512: those that compute. What only moves bytes stays with AVX2. */
#include "../kernels.h"

#if defined(__x86_64__)

#include "isa.h"
#include "../formats.h"

#include <immintrin.h>

ISA_BEGIN("avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,f16c")

/* Codes less the zero point, as floats; NaN gives 0. */
static inline __m512 steps(__m512 x, __m512 scale, __m512 lowest, __m512 highest)
{
    __m512 r = _mm512_div_ps(x, scale);
    r = _mm512_maskz_roundscale_ps(_mm512_cmp_ps_mask(r, r, _CMP_ORD_Q), r,
                                   _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
    return _mm512_min_ps(_mm512_max_ps(r, lowest), highest);
}

static void encode_avx512(size_t n, const float *x, vgq_map map, int8_t *codes)
{
    const __m512 scale = _mm512_set1_ps(map.scale);
    const __m512 lowest = _mm512_set1_ps((float)(map.lowest - map.zero));
    const __m512 highest = _mm512_set1_ps((float)(map.highest - map.zero));
    const __m512i zero = _mm512_set1_epi32(map.zero);
    for (size_t i = 0; i < n; i += 16) {
        const __mmask16 here = n - i < 16 ? (__mmask16)((1u << (n - i)) - 1) : (__mmask16)0xffff;
        const __m512 v = _mm512_maskz_loadu_ps(here, x + i);
        const __m512i c = _mm512_cvtps_epi32(steps(v, scale, lowest, highest));
        _mm_mask_storeu_epi8(codes + i, here, _mm512_cvtepi32_epi8(_mm512_add_epi32(c, zero)));
    }
}

/* Lanes beyond n hold 0, whose error is 0, and adding 0 changes no sum. */
static void error_avx512(size_t n, const float *x, vgq_map map, double lanes[VGQ_LANES])
{
    const __m512 scale = _mm512_set1_ps(map.scale);
    const __m512 lowest = _mm512_set1_ps((float)(map.lowest - map.zero));
    const __m512 highest = _mm512_set1_ps((float)(map.highest - map.zero));
    __m512d s0 = _mm512_loadu_pd(lanes), s1 = _mm512_loadu_pd(lanes + 8);
    for (size_t i = 0; i < n; i += 16) {
        const __mmask16 here = n - i < 16 ? (__mmask16)((1u << (n - i)) - 1) : (__mmask16)0xffff;
        const __m512 v = _mm512_maskz_loadu_ps(here, x + i);
        const __m512 e = _mm512_sub_ps(v, _mm512_mul_ps(steps(v, scale, lowest, highest), scale));
        const __m512d e0 = _mm512_cvtps_pd(_mm512_castps512_ps256(e));
        const __m512d e1 = _mm512_cvtps_pd(_mm512_extractf32x8_ps(e, 1));
        s0 = _mm512_add_pd(s0, _mm512_mul_pd(e0, e0));
        s1 = _mm512_add_pd(s1, _mm512_mul_pd(e1, e1));
    }
    _mm512_storeu_pd(lanes, s0);
    _mm512_storeu_pd(lanes + 8, s1);
}

ISA_END

const vgq_quantize_kernels vgq_quantize_avx512 = {
    .encode = encode_avx512,
    .error = error_avx512,
};

#endif
