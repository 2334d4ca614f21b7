/* SPDX-License-Identifier: Apache-2.0
 * Linear kernels for AVX-512 without VNNI: activations, panels, the float product, epilogues. */
#include "../kernels.h"

#if defined(__x86_64__)

#include "isa.h"
#include "../formats.h"

#include <immintrin.h>

ISA_BEGIN("avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,f16c")
#include "epilogue_avx512.h"
#include "tiles_avx512.h"

static inline __mmask16 first(size_t n)
{
    return n < 16 ? (__mmask16)((1u << n) - 1) : (__mmask16)0xffff;
}

static void gelu_avx512(size_t n, float *x)
{
    enum { PARTS = 4 };
    for (size_t i = 0; i < n; i += 16 * PARTS) {
        __m512 part[PARTS];
        for (size_t j = 0; j < PARTS; j++) {
            const size_t at = i + 16 * j;
            part[j] = _mm512_maskz_loadu_ps(first(at < n ? n - at : 0), x + at);
        }
        vgq_gelu_avx512(PARTS, part);
        for (size_t j = 0; j < PARTS; j++) {
            const size_t at = i + 16 * j;
            _mm512_mask_storeu_ps(x + at, first(at < n ? n - at : 0), part[j]);
        }
    }
}

static uint32_t largest_avx512(size_t k, const float *x)
{
    const __m512i no_sign = _mm512_set1_epi32(0x7fffffff);
    __m512i most0 = _mm512_setzero_si512(), most1 = most0;
    size_t i = 0;
    for (; i + 32 <= k; i += 32) {
        const __m512i a = _mm512_loadu_si512(x + i), b = _mm512_loadu_si512(x + i + 16);
        most0 = _mm512_max_epi32(most0, _mm512_and_si512(a, no_sign));
        most1 = _mm512_max_epi32(most1, _mm512_and_si512(b, no_sign));
    }
    for (; i < k; i += 16) {
        const __m512i a = _mm512_maskz_loadu_epi32(first(k - i), x + i);
        most0 = _mm512_max_epi32(most0, _mm512_and_si512(a, no_sign));
    }
    return (uint32_t)_mm512_reduce_max_epi32(_mm512_max_epi32(most0, most1));
}

/* Codes up to 127, rounded; NaN gives 0. Where packing saturates they still may be below -127. */
static inline __m512i codes_of(__m512 x, __m512 times)
{
    const __m512 r = _mm512_mul_ps(x, times);
    const __mmask16 number = _mm512_cmp_ps_mask(r, r, _CMP_ORD_Q);
    return _mm512_maskz_cvtps_epi32(number, _mm512_min_ps(r, _mm512_set1_ps(127.0f)));
}

static int32_t code_row_avx512(size_t k, size_t padded, const float *x, float inverse, void *codes)
{
    int8_t *const q = codes;
    const __m512 times = _mm512_set1_ps(inverse);
    const __m512i ones8 = _mm512_set1_epi8(1), ones16 = _mm512_set1_epi16(1);
    const __m512i low8 = _mm512_set1_epi8(-127);
    /* what packing within 128 bits leaves: four codes of each vector in turn */
    const __m512i order = _mm512_setr_epi32(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15);
    __m512i total = _mm512_setzero_si512();
    size_t i = 0;
    for (; i + 64 <= k; i += 64) {
        const __m512i c0 = codes_of(_mm512_loadu_ps(x + i), times);
        const __m512i c1 = codes_of(_mm512_loadu_ps(x + i + 16), times);
        const __m512i c2 = codes_of(_mm512_loadu_ps(x + i + 32), times);
        const __m512i c3 = codes_of(_mm512_loadu_ps(x + i + 48), times);
        const __m512i bytes = _mm512_max_epi8(
            _mm512_packs_epi16(_mm512_packs_epi32(c0, c1), _mm512_packs_epi32(c2, c3)), low8);
        _mm512_storeu_si512(q + i, _mm512_permutexvar_epi32(order, bytes));
        total =
            _mm512_add_epi32(total, _mm512_madd_epi16(_mm512_maddubs_epi16(ones8, bytes), ones16));
    }
    for (; i < padded; i += 16) {
        const __m512 v = i < k ? _mm512_maskz_loadu_ps(first(k - i), x + i) : _mm512_setzero_ps();
        const __m512i c = _mm512_max_epi32(codes_of(v, times), _mm512_set1_epi32(-127));
        total = _mm512_add_epi32(total, c);
        _mm_mask_storeu_epi8(q + i, first(padded - i), _mm512_cvtepi32_epi8(c));
    }
    return _mm512_reduce_add_epi32(total);
}

/* Each group of four bytes is one column; its factor, and 128 - factor * zero, stand in all four.
 */
static void expand4_avx512(size_t k, const uint8_t *nibbles, const uint8_t *factor,
                           const int8_t *zero, uint8_t *bytes)
{
    const __m512i low = _mm512_set1_epi8(15);
    for (size_t part = 0; part < 4; part++) {
        /* 16 columns: as 16-bit lanes, two of the four bytes at a time. factor * nibble <= 225. */
        const __m512i f = _mm512_cvtepu8_epi32(_mm_loadu_si128((const void *)(factor + 16 * part)));
        const __m512i z = _mm512_cvtepi8_epi32(_mm_loadu_si128((const void *)(zero + 16 * part)));
        const __m512i shift =
            _mm512_sub_epi32(_mm512_set1_epi32(128),
                             _mm512_mullo_epi32(f, _mm512_add_epi32(z, _mm512_set1_epi32(8))));
        const __m512i f16 = _mm512_or_si512(f, _mm512_slli_epi32(f, 16));
        const __m512i s8 = _mm512_and_si512(shift, _mm512_set1_epi32(255));
        const __m512i s16 = _mm512_or_si512(s8, _mm512_slli_epi32(s8, 8));
        const __m512i s = _mm512_or_si512(s16, _mm512_slli_epi32(s16, 16));
        for (size_t step = 0; step < k / 8; step++) {
            const __m512i b = _mm512_loadu_si512(nibbles + step * 4 * VGQ_PANEL + 64 * part);
            const __m512i halves[2] = {_mm512_and_si512(b, low),
                                       _mm512_and_si512(_mm512_srli_epi16(b, 4), low)};
            for (size_t half = 0; half < 2; half++) {
                const __m512i even = _mm512_and_si512(halves[half], _mm512_set1_epi16(255));
                const __m512i odd = _mm512_srli_epi16(halves[half], 8);
                const __m512i product =
                    _mm512_or_si512(_mm512_mullo_epi16(even, f16),
                                    _mm512_slli_epi16(_mm512_mullo_epi16(odd, f16), 8));
                _mm512_storeu_si512(bytes + (2 * step + half) * 4 * VGQ_PANEL + 64 * part,
                                    _mm512_add_epi8(product, s));
            }
        }
    }
}

static void decode_panel_avx512(size_t k, const uint8_t *bytes, const int32_t *offset,
                                const float *scale, void *out)
{
    float *const w = out;
    const __m512i low = _mm512_set1_epi32(255);
    for (size_t part = 0; part < 4; part++) {
        const __m512i o = _mm512_loadu_si512(offset + 16 * part);
        const __m512 s = _mm512_loadu_ps(scale + 16 * part);
        for (size_t i = 0; i < k; i += 4) {
            __m512i b = _mm512_loadu_si512(bytes + i * VGQ_PANEL + 64 * part);
            for (size_t j = 0; j < 4; j++) {
                const __m512i c = _mm512_sub_epi32(_mm512_and_si512(b, low), o);
                _mm512_storeu_ps(w + (i + j) * VGQ_PANEL + 16 * part,
                                 _mm512_mul_ps(_mm512_cvtepi32_ps(c), s));
                b = _mm512_srli_epi32(b, 8);
            }
        }
    }
}

#define STEP(r)                                          \
    {                                                    \
        const __m512 v = _mm512_set1_ps(x[(r)*ldx + i]); \
        a##r##0 = _mm512_fmadd_ps(v, w0, a##r##0);       \
        a##r##1 = _mm512_fmadd_ps(v, w1, a##r##1);       \
        a##r##2 = _mm512_fmadd_ps(v, w2, a##r##2);       \
        a##r##3 = _mm512_fmadd_ps(v, w3, a##r##3);       \
    }
#define TILE(rows, EACH)                                                                  \
    static void float_tile_##rows##x64_avx512(size_t k, const float *x, size_t ldx,       \
                                              const float *w, float *acc, int accumulate) \
    {                                                                                     \
        EACH(LOAD_FLOATS)                                                                 \
        for (size_t i = 0; i < k; i++) {                                                  \
            const float *const at = w + i * VGQ_PANEL;                                    \
            const __m512 w0 = _mm512_loadu_ps(at), w1 = _mm512_loadu_ps(at + 16);         \
            const __m512 w2 = _mm512_loadu_ps(at + 32), w3 = _mm512_loadu_ps(at + 48);    \
            EACH(STEP)                                                                    \
        }                                                                                 \
        EACH(SAVE_FLOATS)                                                                 \
    }

EACH_HEIGHT(TILE)

#undef TILE
#undef STEP

static void float_tile_avx512(size_t rows, size_t k, const void *x, size_t ldx, const void *w,
                              float *acc, int accumulate)
{
    static void (*const tiles[])(size_t, const float *, size_t, const float *, float *, int) = {
        NULL,
        float_tile_1x64_avx512,
        float_tile_2x64_avx512,
        float_tile_3x64_avx512,
        float_tile_4x64_avx512,
        float_tile_5x64_avx512,
        float_tile_6x64_avx512,
    };
    tiles[rows](k, x, ldx, w, acc, accumulate);
}

/* 16 columns of the panel for each c: input j of four, decoded and multiplied. */
#define BEGIN_ROW(c)                                            \
    const __m512i o##c = _mm512_loadu_si512(offset + 16 * (c)); \
    const __m512 s##c = _mm512_loadu_ps(scale + 16 * (c));      \
    __m512 a##c = accumulate ? _mm512_loadu_ps(acc + 16 * (c)) : _mm512_setzero_ps();
#define STEP_ROW(c)                                                                      \
    {                                                                                    \
        const __m512i b = _mm512_shuffle_epi8(_mm512_loadu_si512(at + 64 * (c)), order); \
        const __m512 code = _mm512_cvtepi32_ps(_mm512_sub_epi32(b, o##c));               \
        a##c = _mm512_fmadd_ps(v, _mm512_mul_ps(code, s##c), a##c);                      \
    }
#define SAVE_ROW(c) _mm512_storeu_ps(acc + 16 * (c), a##c);

static void float_row_avx512(size_t k, const float *x, const uint8_t *bytes, const int32_t *offset,
                             const float *scale, float *acc, int accumulate)
{
    const __m512i lowest = _mm512_add_epi32(_mm512_set1_epi32((int)0x80808000),
                                            _mm512_broadcast_i32x4(_mm_setr_epi32(0, 4, 8, 12)));
    EACH_4(BEGIN_ROW)
    for (size_t i = 0; i < k; i++) {
        const uint8_t *const at = bytes + i / 4 * 4 * VGQ_PANEL;
        const __m512i order = _mm512_add_epi8(lowest, _mm512_set1_epi32((int)(i % 4)));
        const __m512 v = _mm512_set1_ps(x[i]);
        EACH_4(STEP_ROW)
    }
    EACH_4(SAVE_ROW)
}

#undef SAVE_ROW
#undef STEP_ROW
#undef BEGIN_ROW

static void finish_avx512(size_t rows, const int32_t *acc, const vgq_columns *columns,
                          const int32_t *sum, const float *x_scale, float *y, size_t ldy)
{
    for (size_t n = 0; n < VGQ_PANEL; n += 16) {
        const __m512i offset = _mm512_loadu_si512(columns->offset + n);
        const __m512 scale = _mm512_loadu_ps(columns->scale + n);
        const __m512 bias = _mm512_loadu_ps(columns->bias + n);
        for (size_t r = 0; r < rows; r++) {
            const __m512i extra = _mm512_mullo_epi32(offset, _mm512_set1_epi32(sum[r]));
            const __m512i a = _mm512_loadu_si512(acc + r * VGQ_PANEL + n);
            const __m512 v = _mm512_cvtepi32_ps(_mm512_sub_epi32(a, extra));
            const __m512 scaled =
                _mm512_mul_ps(_mm512_mul_ps(v, _mm512_set1_ps(x_scale[r])), scale);
            _mm512_storeu_ps(y + r * ldy + n, _mm512_add_ps(scaled, bias));
        }
    }
}

/* Eight columns of one digit's sums. */
static inline __m512d digit_sums(const int32_t *acc, const int32_t *offset, int32_t sum)
{
    const __m256i extra =
        _mm256_mullo_epi32(_mm256_loadu_si256((const void *)offset), _mm256_set1_epi32(sum));
    return _mm512_cvtepi32_pd(_mm256_sub_epi32(_mm256_loadu_si256((const void *)acc), extra));
}

static void finish16_avx512(size_t rows, const int32_t *acc, const vgq_columns *columns,
                            const int32_t *sum, const float *x_scale, float *y, size_t ldy)
{
    for (size_t r = 0; r < rows; r++) {
        const int32_t *const high = acc + 2 * r * VGQ_PANEL, *const low = high + VGQ_PANEL;
        const __m256 xs = _mm256_set1_ps(x_scale[r]);
        for (size_t n = 0; n < VGQ_PANEL; n += 8) {
            const __m512d h = digit_sums(high + n, columns->offset + n, sum[2 * r]);
            const __m512d l = digit_sums(low + n, columns->offset + n, sum[2 * r + 1]);
            const __m256 v =
                _mm512_cvtpd_ps(_mm512_add_pd(_mm512_mul_pd(h, _mm512_set1_pd(255)), l));
            const __m256 scale = _mm256_loadu_ps(columns->scale + n);
            const __m256 scaled = _mm256_mul_ps(_mm256_mul_ps(v, xs), scale);
            _mm256_storeu_ps(y + r * ldy + n,
                             _mm256_add_ps(scaled, _mm256_loadu_ps(columns->bias + n)));
        }
    }
}

static void flush_avx512(const int32_t *acc, int32_t offset, int32_t sum, const float *scale,
                         float *total)
{
    const __m512i extra = _mm512_set1_epi32(offset * sum);
    for (size_t n = 0; n < VGQ_PANEL; n += 16) {
        const __m512 v = _mm512_cvtepi32_ps(_mm512_sub_epi32(_mm512_loadu_si512(acc + n), extra));
        const __m512 scaled = _mm512_mul_ps(v, _mm512_loadu_ps(scale + n));
        _mm512_storeu_ps(total + n, _mm512_add_ps(_mm512_loadu_ps(total + n), scaled));
    }
}

ISA_END

static const vgq_float_gemm float_gemm_avx512 = {
    .nbytes = sizeof(float),
    .decode = decode_panel_avx512,
    .tile = float_tile_avx512,
    .row = float_row_avx512,
};

const vgq_linear_kernels vgq_linear_avx512 = {
    .expand4 = expand4_avx512,
    .float_gemm = &float_gemm_avx512,
    .largest = largest_avx512,
    .code_row = code_row_avx512,
    .finish = finish_avx512,
    .finish16 = finish16_avx512,
    .flush = flush_avx512,
    .gelu = gelu_avx512,
};

#endif
