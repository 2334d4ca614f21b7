/* SPDX-License-Identifier: Apache-2.0
 * Codes of activations for AVX2, in the three forms that its products read. */
#include "../kernels.h"

#if defined(__x86_64__)

#include "isa.h"
#include "../formats.h"

#include <immintrin.h>

ISA_BEGIN("avx2,fma,f16c")

uint32_t vgq_largest_avx2(size_t k, const float *x)
{
    const __m256i no_sign = _mm256_set1_epi32(0x7fffffff);
    __m256i most = _mm256_setzero_si256();
    size_t i = 0;
    for (; i + 8 <= k; i += 8)
        most = _mm256_max_epi32(
            most, _mm256_and_si256(_mm256_loadu_si256((const void *)(x + i)), no_sign));
    uint32_t lanes[8], largest = 0;
    _mm256_storeu_si256((void *)lanes, most);
    for (int lane = 0; lane < 8; lane++)
        largest = lanes[lane] > largest ? lanes[lane] : largest;
    for (; i < k; i++) {
        const uint32_t magnitude = vgq_bits_of_float(x[i]) & 0x7fffffffu;
        largest = magnitude > largest ? magnitude : largest;
    }
    return largest;
}

/* Codes of two bytes. */
static int32_t code_words(size_t k, size_t padded, const float *x, float inverse, int16_t *q)
{
    const __m256 times = _mm256_set1_ps(inverse);
    const __m256 low = _mm256_set1_ps(-127.0f), high = _mm256_set1_ps(127.0f);
    __m256i total = _mm256_setzero_si256();
    size_t i = 0;
    for (; i + 8 <= k; i += 8) {
        __m256 r = _mm256_mul_ps(_mm256_loadu_ps(x + i), times);
        r = _mm256_and_ps(r, _mm256_cmp_ps(r, r, _CMP_ORD_Q));
        r = _mm256_round_ps(r, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
        const __m256i c = _mm256_cvtps_epi32(_mm256_min_ps(_mm256_max_ps(r, low), high));
        total = _mm256_add_epi32(total, c);
        const __m256i words = _mm256_permute4x64_epi64(_mm256_packs_epi32(c, c), 0x08);
        _mm_storeu_si128((void *)(q + i), _mm256_castsi256_si128(words));
    }
    int32_t sums[8], sum = 0;
    _mm256_storeu_si256((void *)sums, total);
    for (int lane = 0; lane < 8; lane++)
        sum += sums[lane];
    for (; i < padded; i++) {
        q[i] = i < k ? vgq_encode_token(x[i], inverse) : 0;
        sum += q[i];
    }
    return sum;
}

/* Codes of two bytes, each four in the order 0, 2, 1, 3: as weights are widened with the least
 * work. */
int32_t vgq_code_row_i16_avx2(size_t k, size_t padded, const float *x, float inverse, void *codes)
{
    const __m128i order = _mm_setr_epi8(0, 1, 4, 5, 2, 3, 6, 7, 8, 9, 12, 13, 10, 11, 14, 15);
    int16_t *const q = codes;
    const int32_t sum = code_words(k, padded, x, inverse, q);
    for (size_t i = 0; i < padded; i += 8) { /* a multiple of 8 */
        __m128i *const eight = (__m128i *)(void *)(q + i);
        _mm_storeu_si128(eight, _mm_shuffle_epi8(_mm_loadu_si128(eight), order));
    }
    return sum;
}

/* Codes of one byte, each xor'ed with flip. */
static inline int32_t code_bytes(size_t k, size_t padded, const float *x, float inverse, char flip,
                                 uint8_t *q)
{
    int16_t wide[512];
    int32_t sum = 0;
    for (size_t i = 0; i < padded; i += 512) {
        const size_t n = padded - i < 512 ? padded - i : 512, here = i < k ? k - i : 0;
        sum += code_words(here < n ? here : n, n, x + i, inverse, wide);
        for (size_t j = 0; j < n; j += 16) { /* n is a multiple of 8; wide has room */
            const __m256i w = _mm256_loadu_si256((const void *)(wide + j));
            const __m256i b = _mm256_permute4x64_epi64(_mm256_packs_epi16(w, w), 0x08);
            const __m128i out = _mm_xor_si128(_mm256_castsi256_si128(b), _mm_set1_epi8(flip));
            if (j + 16 <= n)
                _mm_storeu_si128((void *)(q + i + j), out);
            else
                _mm_storel_epi64((void *)(q + i + j), out);
        }
    }
    return sum;
}

int32_t vgq_code_row_i8_avx2(size_t k, size_t padded, const float *x, float inverse, void *codes)
{
    return code_bytes(k, padded, x, inverse, 0, codes);
}

/* From 0 on: code + 128. */
int32_t vgq_code_row_u8_avx2(size_t k, size_t padded, const float *x, float inverse, void *codes)
{
    return code_bytes(k, padded, x, inverse, -128, codes);
}

ISA_END

#endif
