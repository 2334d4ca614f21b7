/* SPDX-License-Identifier: Apache-2.0
 * The integer product for AVX-512 VNNI: vpdpbusd takes the panel's bytes (weight + 128, unsigned)
 * and the activation's codes (signed), and wraps, so that every sum is exact modulo 2^32 and the
 * true one fits. The tile is 6 rows x 64 columns: 24 accumulators, each a variable of its own,
 * because gcc keeps an array of them in memory. */
#include "../kernels.h"

#if defined(__x86_64__)

#include "isa.h"

#include <immintrin.h>
#include <string.h>

ISA_BEGIN("avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx2,fma,f16c")

static inline __m512i four_codes(const int8_t *q)
{
    int32_t bits;
    memcpy(&bits, q, sizeof(bits));
    return _mm512_set1_epi32(bits);
}

#define EACH_6(X) X(0) X(1) X(2) X(3) X(4) X(5)
#define EACH_3(X) X(0) X(1) X(2)
#define EACH_1(X) X(0)
#define ZERO(r)                                                                     \
    __m512i a##r##0 = _mm512_setzero_si512(), a##r##1 = a##r##0, a##r##2 = a##r##0, \
            a##r##3 = a##r##0;
#define STEP(r)                                        \
    {                                                  \
        const __m512i x = four_codes(q + (r)*ld + i);  \
        a##r##0 = _mm512_dpbusd_epi32(a##r##0, w0, x); \
        a##r##1 = _mm512_dpbusd_epi32(a##r##1, w1, x); \
        a##r##2 = _mm512_dpbusd_epi32(a##r##2, w2, x); \
        a##r##3 = _mm512_dpbusd_epi32(a##r##3, w3, x); \
    }
#define SAVE(r)                                             \
    _mm512_storeu_si512(acc + (r)*VGQ_PANEL, a##r##0);      \
    _mm512_storeu_si512(acc + (r)*VGQ_PANEL + 16, a##r##1); \
    _mm512_storeu_si512(acc + (r)*VGQ_PANEL + 32, a##r##2); \
    _mm512_storeu_si512(acc + (r)*VGQ_PANEL + 48, a##r##3);

#define TILE(rows, EACH)                                                                      \
    static void tile_i8_##rows##x64_avx512vnni(size_t k, const int8_t *q, size_t ld,          \
                                               const uint8_t *bytes, int32_t *acc)            \
    {                                                                                         \
        EACH(ZERO)                                                                            \
        for (size_t i = 0; i < k; i += 4) {                                                   \
            const uint8_t *const w = bytes + i * VGQ_PANEL;                                   \
            const __m512i w0 = _mm512_loadu_si512(w), w1 = _mm512_loadu_si512(w + 64);        \
            const __m512i w2 = _mm512_loadu_si512(w + 128), w3 = _mm512_loadu_si512(w + 192); \
            EACH(STEP)                                                                        \
        }                                                                                     \
        EACH(SAVE)                                                                            \
    }

TILE(6, EACH_6)
TILE(3, EACH_3)
TILE(1, EACH_1)

#undef TILE
#undef SAVE
#undef STEP
#undef ZERO
#undef EACH_1
#undef EACH_3
#undef EACH_6

static void tile_i8_avx512vnni(size_t rows, size_t k, const void *codes, size_t ld,
                               const void *operand, int32_t *acc)
{
    const int8_t *q = codes;
    if (rows == 6) {
        tile_i8_6x64_avx512vnni(k, q, ld, operand, acc);
        return;
    }
    size_t r = 0;
    for (; r + 3 <= rows; r += 3)
        tile_i8_3x64_avx512vnni(k, q + r * ld, ld, operand, acc + r * VGQ_PANEL);
    for (; r < rows; r++)
        tile_i8_1x64_avx512vnni(k, q + r * ld, ld, operand, acc + r * VGQ_PANEL);
}

ISA_END

static const vgq_int_gemm int_gemm_avx512vnni = {
    .mr = 6,
    .code_nbytes = 1,
    .weight_nbytes = 1,
    .tile = tile_i8_avx512vnni,
    .offset = 128,
};

const vgq_linear_kernels vgq_linear_avx512vnni = {.int_gemm = &int_gemm_avx512vnni};

#endif
