/* SPDX-License-Identifier: Apache-2.0
 * The float product for AVX-512 BF16: vdpbf16ps adds two products of bfloat16 to a float, the odd
 * input's first, each by a fused multiply-add of its own; denormals count as zeros and become
 * zeros, whatever MXCSR says. The tile is 6 rows x 64 columns, as in linear_avx512vnni.c. */
#include "../kernels.h"

#if defined(__x86_64__)

#include "isa.h"

ISA_BEGIN("avx512f,avx512bw,avx512dq,avx512vl,avx512bf16,avx2,fma,f16c")
#include "tiles_avx512.h"

/* A finite float's bfloat16 in the upper half of its lane, ties to even; below it, rubbish. */
static inline __m512i rounded(__m512 x)
{
    const __m512i bits = _mm512_castps_si512(x);
    const __m512i odd = _mm512_and_si512(_mm512_srli_epi32(bits, 16), _mm512_set1_epi32(1));
    return _mm512_add_epi32(_mm512_add_epi32(bits, _mm512_set1_epi32(0x7fff)), odd);
}

static void decode_pairs_avx512bf16(size_t k, const uint8_t *bytes, const int32_t *offset,
                                    const float *scale, void *out)
{
    uint16_t *const w = out;
    const __m512i low = _mm512_set1_epi32(255);
    for (size_t part = 0; part < 4; part++) {
        const __m512i o = _mm512_loadu_si512(offset + 16 * part);
        const __m512 s = _mm512_loadu_ps(scale + 16 * part);
        for (size_t i = 0; i < k; i += 4) {
            __m512i b = _mm512_loadu_si512(bytes + i * VGQ_PANEL + 64 * part);
            for (size_t j = 0; j < 4; j += 2) {
                const __m512i even = _mm512_sub_epi32(_mm512_and_si512(b, low), o);
                b = _mm512_srli_epi32(b, 8);
                const __m512i odd = _mm512_sub_epi32(_mm512_and_si512(b, low), o);
                b = _mm512_srli_epi32(b, 8);
                const __m512i first = rounded(_mm512_mul_ps(_mm512_cvtepi32_ps(even), s));
                const __m512i second = rounded(_mm512_mul_ps(_mm512_cvtepi32_ps(odd), s));
                _mm512_storeu_si512(
                    w + (i + j) * VGQ_PANEL + 32 * part,
                    _mm512_mask_blend_epi16(0xaaaaaaaa, _mm512_srli_epi32(first, 16), second));
            }
        }
    }
}

/* Inputs i and i + 1, or i alone, in every lane. */
static inline __m512bh inputs(const uint16_t *x, size_t n)
{
    uint32_t bits = 0;
    memcpy(&bits, x, n * sizeof(*x));
    return (__m512bh)_mm512_set1_epi32((int)bits);
}

#define STEP(r, n)                                     \
    {                                                  \
        const __m512bh v = inputs(x + (r)*ldx + i, n); \
        a##r##0 = _mm512_dpbf16_ps(a##r##0, v, w0);    \
        a##r##1 = _mm512_dpbf16_ps(a##r##1, v, w1);    \
        a##r##2 = _mm512_dpbf16_ps(a##r##2, v, w2);    \
        a##r##3 = _mm512_dpbf16_ps(a##r##3, v, w3);    \
    }
#define BOTH(r) STEP(r, 2)
#define LAST(r) STEP(r, 1)
#define WEIGHTS                                                \
    const uint16_t *const at = w + i * VGQ_PANEL;              \
    const __m512bh w0 = (__m512bh)_mm512_loadu_si512(at);      \
    const __m512bh w1 = (__m512bh)_mm512_loadu_si512(at + 32); \
    const __m512bh w2 = (__m512bh)_mm512_loadu_si512(at + 64); \
    const __m512bh w3 = (__m512bh)_mm512_loadu_si512(at + 96);

#define TILE(rows, EACH)                                                                        \
    static void tile_bf16_##rows##x64_avx512bf16(size_t k, const uint16_t *x, size_t ldx,       \
                                                 const uint16_t *w, float *acc, int accumulate) \
    {                                                                                           \
        EACH(LOAD_FLOATS)                                                                       \
        size_t i = 0;                                                                           \
        for (; i + 2 <= k; i += 2) {                                                            \
            WEIGHTS EACH(BOTH)                                                                  \
        }                                                                                       \
        if (i < k) {                                                                            \
            WEIGHTS EACH(LAST)                                                                  \
        }                                                                                       \
        EACH(SAVE_FLOATS)                                                                       \
    }

EACH_HEIGHT(TILE)

#undef TILE
#undef WEIGHTS
#undef LAST
#undef BOTH
#undef STEP

static void tile_bf16_avx512bf16(size_t rows, size_t k, const void *x, size_t ldx, const void *w,
                                 float *acc, int accumulate)
{
    static void (*const tiles[])(size_t, const uint16_t *, size_t, const uint16_t *, float *,
                                 int) = {
        NULL,
        tile_bf16_1x64_avx512bf16,
        tile_bf16_2x64_avx512bf16,
        tile_bf16_3x64_avx512bf16,
        tile_bf16_4x64_avx512bf16,
        tile_bf16_5x64_avx512bf16,
        tile_bf16_6x64_avx512bf16,
    };
    tiles[rows](k, x, ldx, w, acc, accumulate);
}

ISA_END

static const vgq_float_gemm bf16_gemm_avx512bf16 = {
    .nbytes = sizeof(uint16_t),
    .decode = decode_pairs_avx512bf16,
    .tile = tile_bf16_avx512bf16,
};

const vgq_linear_kernels vgq_linear_avx512bf16 = {.bf16_gemm = &bf16_gemm_avx512bf16};

#endif
