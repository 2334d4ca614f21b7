/* SPDX-License-Identifier: Apache-2.0
 * Quantize kernels for AVX2. Every body does the scalar definition's operations in its order; tails
 * go through formats.h. */
#include "../kernels.h"

#if defined(__x86_64__)

#include "isa.h"
#include "../formats.h"

#include <immintrin.h>

ISA_BEGIN("avx2,fma,f16c")

static void load_f16_avx2(size_t n, const void *src, float *dst)
{
    const uint16_t *h = src;
    size_t i = 0;
    for (; i + 8 <= n; i += 8)
        _mm256_storeu_ps(dst + i, _mm256_cvtph_ps(_mm_loadu_si128((const void *)(h + i))));
    for (; i < n; i++)
        dst[i] = vgq_float_of_f16(h[i]);
}

static void load_bf16_avx2(size_t n, const void *src, float *dst)
{
    const uint16_t *h = src;
    size_t i = 0;
    for (; i + 8 <= n; i += 8) {
        const __m256i wide = _mm256_cvtepu16_epi32(_mm_loadu_si128((const void *)(h + i)));
        _mm256_storeu_ps(dst + i, _mm256_castsi256_ps(_mm256_slli_epi32(wide, 16)));
    }
    for (; i < n; i++)
        dst[i] = vgq_float_of_bf16(h[i]);
}

static void store_f16_avx2(size_t n, const float *src, void *dst)
{
    uint16_t *h = dst;
    size_t i = 0;
    for (; i + 8 <= n; i += 8)
        _mm_storeu_si128((void *)(h + i),
                         _mm256_cvtps_ph(_mm256_loadu_ps(src + i),
                                         _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC));
    for (; i < n; i++)
        h[i] = vgq_f16_of_float(src[i]);
}

static void store_bf16_avx2(size_t n, const float *src, void *dst)
{
    uint16_t *h = dst;
    size_t i = 0;
    for (; i + 8 <= n; i += 8) {
        const __m256 x = _mm256_loadu_ps(src + i);
        const __m256i b = _mm256_castps_si256(x);
        const __m256i odd = _mm256_and_si256(_mm256_srli_epi32(b, 16), _mm256_set1_epi32(1));
        __m256i r = _mm256_add_epi32(b, _mm256_add_epi32(odd, _mm256_set1_epi32(0x7fff)));
        const __m256i nan = _mm256_castps_si256(_mm256_cmp_ps(x, x, _CMP_UNORD_Q));
        r = _mm256_blendv_epi8(r, _mm256_or_si256(b, _mm256_set1_epi32(0x400000)), nan);
        r = _mm256_srli_epi32(r, 16);
        r = _mm256_permute4x64_epi64(_mm256_packus_epi32(r, r), 0x08);
        _mm_storeu_si128((void *)(h + i), _mm256_castsi256_si128(r));
    }
    for (; i < n; i++)
        h[i] = vgq_bf16_of_float(src[i]);
}

static size_t span_avx2(size_t n, const float *x, float *lo, float *hi)
{
    const __m256i exponent = _mm256_set1_epi32(0x7f800000);
    __m256 low = _mm256_set1_ps(*lo), high = _mm256_set1_ps(*hi);
    __m256i bad = _mm256_setzero_si256();
    size_t i = 0;
    for (; i + 8 <= n; i += 8) {
        const __m256 v = _mm256_loadu_ps(x + i);
        const __m256i e = _mm256_and_si256(_mm256_castps_si256(v), exponent);
        bad = _mm256_sub_epi32(bad, _mm256_cmpeq_epi32(e, exponent));
        low = _mm256_min_ps(v, low);
        high = _mm256_max_ps(v, high);
    }
    float lows[8], highs[8];
    uint32_t bads[8];
    _mm256_storeu_ps(lows, low);
    _mm256_storeu_ps(highs, high);
    _mm256_storeu_si256((void *)bads, bad);
    size_t nonfinite = 0;
    for (int lane = 0; lane < 8; lane++) {
        *lo = lows[lane] < *lo ? lows[lane] : *lo;
        *hi = highs[lane] > *hi ? highs[lane] : *hi;
        nonfinite += bads[lane];
    }
    for (; i < n; i++) {
        nonfinite += (vgq_bits_of_float(x[i]) & 0x7f800000u) == 0x7f800000u;
        *lo = x[i] < *lo ? x[i] : *lo;
        *hi = x[i] > *hi ? x[i] : *hi;
    }
    return nonfinite;
}

/* Codes less the zero point, as floats; NaN gives 0. */
static inline __m256 steps(__m256 x, __m256 scale, __m256 lowest, __m256 highest)
{
    __m256 r = _mm256_div_ps(x, scale);
    r = _mm256_and_ps(r, _mm256_cmp_ps(r, r, _CMP_ORD_Q));
    r = _mm256_round_ps(r, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
    return _mm256_min_ps(_mm256_max_ps(r, lowest), highest);
}

static void encode_avx2(size_t n, const float *x, vgq_map map, int8_t *codes)
{
    const __m256 scale = _mm256_set1_ps(map.scale);
    const __m256 lowest = _mm256_set1_ps((float)(map.lowest - map.zero));
    const __m256 highest = _mm256_set1_ps((float)(map.highest - map.zero));
    const __m256i zero = _mm256_set1_epi32(map.zero);
    const __m256i order = _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7);
    size_t i = 0;
    for (; i + 32 <= n; i += 32) {
        __m256i c[4];
        for (int j = 0; j < 4; j++) {
            const __m256 v = _mm256_loadu_ps(x + i + 8 * (size_t)j);
            c[j] = _mm256_add_epi32(_mm256_cvtps_epi32(steps(v, scale, lowest, highest)), zero);
        }
        const __m256i bytes =
            _mm256_packs_epi16(_mm256_packs_epi32(c[0], c[1]), _mm256_packs_epi32(c[2], c[3]));
        _mm256_storeu_si256((void *)(codes + i), _mm256_permutevar8x32_epi32(bytes, order));
    }
    for (; i < n; i++)
        codes[i] = vgq_encode(x[i], map.scale, map.zero, map.lowest, map.highest);
}

static void decode_avx2(size_t n, const int8_t *codes, vgq_map map, float *x)
{
    const __m256 scale = _mm256_set1_ps(map.scale);
    const __m256i zero = _mm256_set1_epi32(map.zero);
    size_t i = 0;
    for (; i + 8 <= n; i += 8) {
        const __m256i c = _mm256_cvtepi8_epi32(_mm_loadl_epi64((const void *)(codes + i)));
        const __m256 v = _mm256_mul_ps(_mm256_cvtepi32_ps(_mm256_sub_epi32(c, zero)), scale);
        _mm256_storeu_ps(x + i, v);
    }
    for (; i < n; i++)
        x[i] = vgq_decode(codes[i], map.scale, map.zero);
}

static inline __m256d add_square(__m256d sum, __m128 e)
{
    const __m256d d = _mm256_cvtps_pd(e);
    return _mm256_add_pd(sum, _mm256_mul_pd(d, d));
}

static void error_avx2(size_t n, const float *x, vgq_map map, double lanes[VGQ_LANES])
{
    const __m256 scale = _mm256_set1_ps(map.scale);
    const __m256 lowest = _mm256_set1_ps((float)(map.lowest - map.zero));
    const __m256 highest = _mm256_set1_ps((float)(map.highest - map.zero));
    __m256d s0 = _mm256_loadu_pd(lanes), s1 = _mm256_loadu_pd(lanes + 4);
    __m256d s2 = _mm256_loadu_pd(lanes + 8), s3 = _mm256_loadu_pd(lanes + 12);
    size_t i = 0;
    for (; i + 16 <= n; i += 16) {
        const __m256 a = _mm256_loadu_ps(x + i), b = _mm256_loadu_ps(x + i + 8);
        const __m256 ea = _mm256_sub_ps(a, _mm256_mul_ps(steps(a, scale, lowest, highest), scale));
        const __m256 eb = _mm256_sub_ps(b, _mm256_mul_ps(steps(b, scale, lowest, highest), scale));
        s0 = add_square(s0, _mm256_castps256_ps128(ea));
        s1 = add_square(s1, _mm256_extractf128_ps(ea, 1));
        s2 = add_square(s2, _mm256_castps256_ps128(eb));
        s3 = add_square(s3, _mm256_extractf128_ps(eb, 1));
    }
    _mm256_storeu_pd(lanes, s0);
    _mm256_storeu_pd(lanes + 4, s1);
    _mm256_storeu_pd(lanes + 8, s2);
    _mm256_storeu_pd(lanes + 12, s3);
    for (; i < n; i++) {
        const int8_t code = vgq_encode(x[i], map.scale, map.zero, map.lowest, map.highest);
        const double e = x[i] - vgq_decode(code, map.scale, map.zero);
        lanes[i % VGQ_LANES] += e * e;
    }
}

static void pack4_avx2(size_t n, const int8_t *codes, uint8_t *q)
{
    const __m256i low = _mm256_set1_epi8(15);
    const __m256i weights = _mm256_set1_epi16(0x1001); /* even code * 1 + odd code * 16 */
    size_t i = 0;
    for (; i + 64 <= n; i += 64) {
        const __m256i a = _mm256_loadu_si256((const void *)(codes + i));
        const __m256i b = _mm256_loadu_si256((const void *)(codes + i + 32));
        const __m256i pa = _mm256_maddubs_epi16(_mm256_and_si256(a, low), weights);
        const __m256i pb = _mm256_maddubs_epi16(_mm256_and_si256(b, low), weights);
        const __m256i bytes = _mm256_permute4x64_epi64(_mm256_packus_epi16(pa, pb), 0xd8);
        _mm256_storeu_si256((void *)(q + i / 2), bytes);
    }
    for (; i < n; i += 2) {
        const int high = i + 1 < n ? codes[i + 1] & 15 : 0;
        q[i / 2] = (uint8_t)((codes[i] & 15) | high << 4);
    }
}

static void unpack4_avx2(size_t n, const uint8_t *q, int8_t *codes)
{
    const __m128i low = _mm_set1_epi8(15), eight = _mm_set1_epi8(8);
    size_t i = 0;
    for (; i + 32 <= n; i += 32) {
        const __m128i b = _mm_loadu_si128((const void *)(q + i / 2));
        __m128i even = _mm_and_si128(b, low), odd = _mm_and_si128(_mm_srli_epi16(b, 4), low);
        even = _mm_sub_epi8(_mm_xor_si128(even, eight), eight);
        odd = _mm_sub_epi8(_mm_xor_si128(odd, eight), eight);
        _mm_storeu_si128((void *)(codes + i), _mm_unpacklo_epi8(even, odd));
        _mm_storeu_si128((void *)(codes + i + 16), _mm_unpackhi_epi8(even, odd));
    }
    for (; i < n; i++) {
        const int nibble = i % 2 ? q[i / 2] >> 4 : q[i / 2] & 15;
        codes[i] = (int8_t)((nibble ^ 8) - 8);
    }
}

ISA_END

const vgq_quantize_kernels vgq_quantize_avx2 = {
    .load = {[VGQ_F16] = load_f16_avx2, [VGQ_BF16] = load_bf16_avx2},
    .store = {[VGQ_F16] = store_f16_avx2, [VGQ_BF16] = store_bf16_avx2},
    .span = span_avx2,
    .encode = encode_avx2,
    .decode = decode_avx2,
    .error = error_avx2,
    .pack4 = pack4_avx2,
    .unpack4 = unpack4_avx2,
};

#endif
