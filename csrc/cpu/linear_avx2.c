/* SPDX-License-Identifier: Apache-2.0
 * Linear kernels for AVX2. vpmaddubsw would saturate, so the integer product is the exact one:
 * weights and activations as int16, vpmaddwd, sums in int32. */
#include "../kernels.h"

#if defined(__x86_64__)

#include "isa.h"
#include "../formats.h"
#include "../gelu.h"

#include <immintrin.h>

ISA_BEGIN("avx2,fma,f16c")

#include "gelu_avx2.h"
#include "tiles_avx2.h"

/* 8 columns a step: factor * nibble in 16-bit lanes, then + 128 - factor * (zero + 8) in bytes. */
static void expand4_avx2(size_t k, const uint8_t *nibbles, const uint8_t *factor,
                         const int8_t *zero, uint8_t *bytes)
{
    const __m256i low = _mm256_set1_epi8(15);
    for (size_t part = 0; part < 8; part++) {
        const __m256i f = _mm256_cvtepu8_epi32(_mm_loadl_epi64((const void *)(factor + 8 * part)));
        const __m256i z = _mm256_cvtepi8_epi32(_mm_loadl_epi64((const void *)(zero + 8 * part)));
        const __m256i shift =
            _mm256_sub_epi32(_mm256_set1_epi32(128),
                             _mm256_mullo_epi32(f, _mm256_add_epi32(z, _mm256_set1_epi32(8))));
        const __m256i f16 = _mm256_or_si256(f, _mm256_slli_epi32(f, 16));
        const __m256i s8 = _mm256_and_si256(shift, _mm256_set1_epi32(255));
        const __m256i s16 = _mm256_or_si256(s8, _mm256_slli_epi32(s8, 8));
        const __m256i s = _mm256_or_si256(s16, _mm256_slli_epi32(s16, 16));
        for (size_t step = 0; step < k / 8; step++) {
            const __m256i b =
                _mm256_loadu_si256((const void *)(nibbles + step * 4 * VGQ_PANEL + 32 * part));
            const __m256i halves[2] = {_mm256_and_si256(b, low),
                                       _mm256_and_si256(_mm256_srli_epi16(b, 4), low)};
            for (size_t half = 0; half < 2; half++) {
                const __m256i even = _mm256_and_si256(halves[half], _mm256_set1_epi16(255));
                const __m256i odd = _mm256_srli_epi16(halves[half], 8);
                const __m256i product =
                    _mm256_or_si256(_mm256_mullo_epi16(even, f16),
                                    _mm256_slli_epi16(_mm256_mullo_epi16(odd, f16), 8));
                _mm256_storeu_si256((void *)(bytes + (2 * step + half) * 4 * VGQ_PANEL + 32 * part),
                                    _mm256_add_epi8(product, s));
            }
        }
    }
}

static void decode_panel_avx2(size_t k, const uint8_t *bytes, const int32_t *offset,
                              const float *scale, void *out)
{
    float *const w = out;
    const __m256i low = _mm256_set1_epi32(255);
    for (size_t part = 0; part < 8; part++) {
        const __m256i o = _mm256_loadu_si256((const void *)(offset + 8 * part));
        const __m256 s = _mm256_loadu_ps(scale + 8 * part);
        for (size_t i = 0; i < k; i += 4) {
            __m256i b = _mm256_loadu_si256((const void *)(bytes + i * VGQ_PANEL + 32 * part));
            for (size_t j = 0; j < 4; j++) {
                const __m256i c = _mm256_sub_epi32(_mm256_and_si256(b, low), o);
                _mm256_storeu_ps(w + (i + j) * VGQ_PANEL + 8 * part,
                                 _mm256_mul_ps(_mm256_cvtepi32_ps(c), s));
                b = _mm256_srli_epi32(b, 8);
            }
        }
    }
}

/* 8 columns' inputs 0 and 2, and 1 and 3, of their bytes, as 16-bit pairs. */
static inline __m256i even_pair(__m256i bytes)
{
    return _mm256_and_si256(bytes, _mm256_set1_epi16(255));
}

static inline __m256i odd_pair(__m256i bytes) { return _mm256_srli_epi16(bytes, 8); }

/* operand[k / 2][64 columns][2 inputs], int16. */
static size_t operand_nbytes_avx2(size_t k) { return k * VGQ_PANEL * sizeof(int16_t); }

static void widen_avx2(const vgq_panel *panel, const uint8_t *bytes, void *operand,
                       int32_t over[VGQ_PANEL])
{
    (void)over;
    const __m256i offset = _mm256_set1_epi16(128);
    int16_t *const out = operand;
    for (size_t i = 0; i < panel->k; i += 4)
        for (size_t part = 0; part < 8; part++) {
            const __m256i b = _mm256_loadu_si256((const void *)(bytes + i * VGQ_PANEL + 32 * part));
            int16_t *const at = out + i * VGQ_PANEL + part * 16;
            _mm256_storeu_si256((void *)at, _mm256_sub_epi16(even_pair(b), offset));
            _mm256_storeu_si256((void *)(at + 2 * VGQ_PANEL),
                                _mm256_sub_epi16(odd_pair(b), offset));
        }
}

#define STEP(r)                                                        \
    {                                                                  \
        const __m256i x = four_codes(q + (r)*ld + i);                  \
        a##r##0 = _mm256_add_epi32(a##r##0, _mm256_madd_epi16(w0, x)); \
        a##r##1 = _mm256_add_epi32(a##r##1, _mm256_madd_epi16(w1, x)); \
    }
#define TILE(rows, EACH)                                                                           \
    static void tile_i16_##rows##x16_avx2(size_t k, const int16_t *q, size_t ld, const int16_t *w, \
                                          int32_t *acc)                                            \
    {                                                                                              \
        EACH(ZERO)                                                                                 \
        for (size_t i = 0; i < k; i += 2) {                                                        \
            const __m256i w0 = _mm256_loadu_si256((const void *)(w + i * VGQ_PANEL));              \
            const __m256i w1 = _mm256_loadu_si256((const void *)(w + i * VGQ_PANEL + 16));         \
            EACH(STEP)                                                                             \
        }                                                                                          \
        EACH(SAVE)                                                                                 \
    }

EACH_HEIGHT(TILE)

#undef TILE
#undef STEP

/* One row from the panel's bytes, all 64 columns at once: the panel is read straight on. */
#define ZERO_EIGHT(c) __m256i a##c = _mm256_setzero_si256();
#define STEP(c)                                                               \
    {                                                                         \
        const __m256i b = _mm256_loadu_si256((const void *)(w + 32 * (c)));   \
        a##c = _mm256_add_epi32(a##c, _mm256_madd_epi16(even_pair(b), even)); \
        a##c = _mm256_add_epi32(a##c, _mm256_madd_epi16(odd_pair(b), odd));   \
    }
#define SAVE_EIGHT(c) _mm256_storeu_si256((void *)(acc + 8 * (c)), a##c);

static void tile_bytes_1x64_avx2(size_t k, const int16_t *q, const uint8_t *w, int32_t *acc)
{
    EACH_8(ZERO_EIGHT)
    for (size_t i = 0; i < k; i += 4, w += 4 * VGQ_PANEL) {
        const __m256i even = four_codes(q + i), odd = four_codes(q + i + 2);
        EACH_8(STEP)
    }
    EACH_8(SAVE_EIGHT)
}

#undef SAVE_EIGHT
#undef STEP
#undef ZERO_EIGHT

/* Few rows: 8 inputs x 16 columns at a time, whole lines nearly in the order that they lie in,
 * widened once for all rows; the sums wait in acc, which stays in L1. */
static void tile_bytes_avx2(size_t rows, const vgq_operand *operand, const void *codes, size_t ld,
                            const int32_t *sums, int32_t *acc)
{
    enum { STEP_NBYTES = 4 * VGQ_PANEL };
    const void *const bytes = operand->data;
    const size_t k = operand->k;
    (void)sums;
    if (rows == 1) {
        tile_bytes_1x64_avx2(k, codes, bytes, acc);
        return;
    }
    memset(acc, 0, rows * VGQ_PANEL * sizeof(*acc));
    for (size_t i = 0; i < k; i += 8)
        for (size_t column = 0; column < VGQ_PANEL; column += 16) {
            const uint8_t *const w = (const uint8_t *)bytes + i * VGQ_PANEL + 4 * column;
            const __m256i b0 = _mm256_loadu_si256((const void *)w);
            const __m256i b1 = _mm256_loadu_si256((const void *)(w + 32));
            const __m256i c0 = _mm256_loadu_si256((const void *)(w + STEP_NBYTES));
            const __m256i c1 = _mm256_loadu_si256((const void *)(w + STEP_NBYTES + 32));
            const __m256i w00 = even_pair(b0), w01 = even_pair(b1);
            const __m256i w10 = odd_pair(b0), w11 = odd_pair(b1);
            const __m256i w20 = even_pair(c0), w21 = even_pair(c1);
            const __m256i w30 = odd_pair(c0), w31 = odd_pair(c1);
            const int16_t *q = (const int16_t *)codes + i;
            int32_t *to = acc + column;
            for (size_t r = 0; r < rows; r++, q += ld, to += VGQ_PANEL) {
                __m256i x = four_codes(q);
                __m256i s0 = _mm256_madd_epi16(w00, x), s1 = _mm256_madd_epi16(w01, x);
                x = four_codes(q + 2);
                s0 = _mm256_add_epi32(s0, _mm256_madd_epi16(w10, x));
                s1 = _mm256_add_epi32(s1, _mm256_madd_epi16(w11, x));
                x = four_codes(q + 4);
                s0 = _mm256_add_epi32(s0, _mm256_madd_epi16(w20, x));
                s1 = _mm256_add_epi32(s1, _mm256_madd_epi16(w21, x));
                x = four_codes(q + 6);
                s0 = _mm256_add_epi32(s0, _mm256_madd_epi16(w30, x));
                s1 = _mm256_add_epi32(s1, _mm256_madd_epi16(w31, x));
                s0 = _mm256_add_epi32(s0, _mm256_loadu_si256((const void *)to));
                s1 = _mm256_add_epi32(s1, _mm256_loadu_si256((const void *)(to + 8)));
                _mm256_storeu_si256((void *)to, s0);
                _mm256_storeu_si256((void *)(to + 8), s1);
            }
        }
}

static void tile_i16_avx2(size_t rows, const vgq_operand *w, const void *codes, size_t ld,
                          const int32_t *sums, int32_t *acc)
{
    (void)sums;
    static void (*const tiles[])(size_t, const int16_t *, size_t, const int16_t *, int32_t *) = {
        NULL,
        tile_i16_1x16_avx2,
        tile_i16_2x16_avx2,
        tile_i16_3x16_avx2,
        tile_i16_4x16_avx2,
        tile_i16_5x16_avx2,
        tile_i16_6x16_avx2,
    };
    for (size_t column = 0; column < VGQ_PANEL; column += 16)
        tiles[rows](w->k, codes, ld, (const int16_t *)w->data + 2 * column, acc + column);
}

#define LOAD_FLOATS(r)                                       \
    __m256 a##r##0 = _mm256_setzero_ps(), a##r##1 = a##r##0; \
    if (accumulate) {                                        \
        a##r##0 = _mm256_loadu_ps(acc + (r)*VGQ_PANEL);      \
        a##r##1 = _mm256_loadu_ps(acc + (r)*VGQ_PANEL + 8);  \
    }
#define STEP(r)                                          \
    {                                                    \
        const __m256 v = _mm256_set1_ps(x[(r)*ldx + i]); \
        a##r##0 = _mm256_fmadd_ps(v, w0, a##r##0);       \
        a##r##1 = _mm256_fmadd_ps(v, w1, a##r##1);       \
    }
#define SAVE_FLOATS(r)                              \
    _mm256_storeu_ps(acc + (r)*VGQ_PANEL, a##r##0); \
    _mm256_storeu_ps(acc + (r)*VGQ_PANEL + 8, a##r##1);
#define TILE(rows, EACH)                                                                          \
    static void float_tile_##rows##x16_avx2(size_t k, const float *x, size_t ldx, const float *w, \
                                            float *acc, int accumulate)                           \
    {                                                                                             \
        EACH(LOAD_FLOATS)                                                                         \
        for (size_t i = 0; i < k; i++) {                                                          \
            const __m256 w0 = _mm256_loadu_ps(w + i * VGQ_PANEL);                                 \
            const __m256 w1 = _mm256_loadu_ps(w + i * VGQ_PANEL + 8);                             \
            EACH(STEP)                                                                            \
        }                                                                                         \
        EACH(SAVE_FLOATS)                                                                         \
    }

EACH_HEIGHT(TILE)

#undef TILE
#undef SAVE_FLOATS
#undef STEP
#undef LOAD_FLOATS

static void float_tile_avx2(size_t rows, size_t k, const void *x, size_t ldx, const void *w,
                            float *acc, int accumulate)
{
    static void (*const tiles[])(size_t, const float *, size_t, const float *, float *, int) = {
        NULL,
        float_tile_1x16_avx2,
        float_tile_2x16_avx2,
        float_tile_3x16_avx2,
        float_tile_4x16_avx2,
        float_tile_5x16_avx2,
        float_tile_6x16_avx2,
    };
    for (size_t column = 0; column < VGQ_PANEL; column += 16)
        tiles[rows](k, x, ldx, (const float *)w + column, acc + column, accumulate);
}

/* 8 columns of the panel for each c: input j of four, decoded and multiplied. */
#define BEGIN_ROW(c)                                                               \
    const __m256i o##c = _mm256_loadu_si256((const void *)(offset + n + 8 * (c))); \
    const __m256 s##c = _mm256_loadu_ps(scale + n + 8 * (c));                      \
    __m256 a##c = accumulate ? _mm256_loadu_ps(acc + n + 8 * (c)) : _mm256_setzero_ps();
#define STEP_ROW(c)                                                                     \
    {                                                                                   \
        const __m256i b = _mm256_loadu_si256((const void *)(at + 32 * (c)));            \
        const __m256i code = _mm256_sub_epi32(_mm256_shuffle_epi8(b, order), o##c);     \
        a##c = _mm256_fmadd_ps(v, _mm256_mul_ps(_mm256_cvtepi32_ps(code), s##c), a##c); \
    }
#define SAVE_ROW(c) _mm256_storeu_ps(acc + n + 8 * (c), a##c);

static void float_row_avx2(size_t k, const float *x, const uint8_t *bytes, const int32_t *offset,
                           const float *scale, float *acc, int accumulate)
{
    const __m256i lowest = _mm256_add_epi32(_mm256_set1_epi32((int)0x80808000),
                                            _mm256_setr_epi32(0, 4, 8, 12, 0, 4, 8, 12));
    for (size_t n = 0; n < VGQ_PANEL; n += 32) {
        EACH_4(BEGIN_ROW)
        for (size_t i = 0; i < k; i++) {
            const uint8_t *const at = bytes + (i / 4 * VGQ_PANEL + n) * 4;
            const __m256i order = _mm256_add_epi8(lowest, _mm256_set1_epi32((int)(i % 4)));
            const __m256 v = _mm256_set1_ps(x[i]);
            EACH_4(STEP_ROW)
        }
        EACH_4(SAVE_ROW)
    }
}

#undef SAVE_ROW
#undef STEP_ROW
#undef BEGIN_ROW

static void finish_avx2(size_t rows, const int32_t *acc, const vgq_columns *columns,
                        const int32_t *sum, const float *x_scale, float *y, size_t ldy)
{
    for (size_t n = 0; n < VGQ_PANEL; n += 8) {
        const __m256i offset = _mm256_loadu_si256((const void *)(columns->offset + n));
        const __m256 scale = _mm256_loadu_ps(columns->scale + n);
        const __m256 bias = _mm256_loadu_ps(columns->bias + n);
        for (size_t r = 0; r < rows; r++) {
            const __m256i extra = _mm256_mullo_epi32(offset, _mm256_set1_epi32(sum[r]));
            const __m256i a = _mm256_loadu_si256((const void *)(acc + r * VGQ_PANEL + n));
            const __m256 v = _mm256_cvtepi32_ps(_mm256_sub_epi32(a, extra));
            const __m256 scaled =
                _mm256_mul_ps(_mm256_mul_ps(v, _mm256_set1_ps(x_scale[r])), scale);
            _mm256_storeu_ps(y + r * ldy + n, _mm256_add_ps(scaled, bias));
        }
    }
}

/* Four columns of one digit's sums. */
static inline __m256d digit_sums(const int32_t *acc, const int32_t *offset, int32_t sum)
{
    const __m128i extra =
        _mm_mullo_epi32(_mm_loadu_si128((const void *)offset), _mm_set1_epi32(sum));
    return _mm256_cvtepi32_pd(_mm_sub_epi32(_mm_loadu_si128((const void *)acc), extra));
}

static void finish16_avx2(size_t rows, const int32_t *acc, const vgq_columns *columns,
                          const int32_t *sum, const float *x_scale, float *y, size_t ldy)
{
    for (size_t r = 0; r < rows; r++) {
        const int32_t *const high = acc + 2 * r * VGQ_PANEL, *const low = high + VGQ_PANEL;
        const __m128 xs = _mm_set1_ps(x_scale[r]);
        for (size_t n = 0; n < VGQ_PANEL; n += 4) {
            const __m256d h = digit_sums(high + n, columns->offset + n, sum[2 * r]);
            const __m256d l = digit_sums(low + n, columns->offset + n, sum[2 * r + 1]);
            const __m128 v =
                _mm256_cvtpd_ps(_mm256_add_pd(_mm256_mul_pd(h, _mm256_set1_pd(255)), l));
            const __m128 scaled = _mm_mul_ps(_mm_mul_ps(v, xs), _mm_loadu_ps(columns->scale + n));
            _mm_storeu_ps(y + r * ldy + n, _mm_add_ps(scaled, _mm_loadu_ps(columns->bias + n)));
        }
    }
}

static void flush_avx2(const int32_t *acc, int32_t offset, int32_t sum, const float *scale,
                       float *total)
{
    const __m256i extra = _mm256_set1_epi32(offset * sum);
    for (size_t n = 0; n < VGQ_PANEL; n += 8) {
        const __m256i a = _mm256_loadu_si256((const void *)(acc + n));
        const __m256 v = _mm256_cvtepi32_ps(_mm256_sub_epi32(a, extra));
        const __m256 scaled = _mm256_mul_ps(v, _mm256_loadu_ps(scale + n));
        _mm256_storeu_ps(total + n, _mm256_add_ps(_mm256_loadu_ps(total + n), scaled));
    }
}

static void gelu_avx2(size_t n, float *x)
{
    size_t i = 0;
    for (; i + 8 <= n; i += 8)
        _mm256_storeu_ps(x + i, vgq_gelu_avx2(_mm256_loadu_ps(x + i)));
    for (; i < n; i++)
        x[i] = vgq_gelu(x[i]);
}

ISA_END

static const vgq_float_gemm float_gemm_avx2 = {
    .nbytes = sizeof(float),
    .decode = decode_panel_avx2,
    .tile = float_tile_avx2,
    .row = float_row_avx2,
};

static const vgq_product product_bytes_avx2 = {
    .applies = vgq_few_bytes,
    .mr = VGQ_FEW_LINES,
    .code_nbytes = 2,
    .code_row = vgq_code_row_i16_avx2,
    .offset = 128,
    .tile = tile_bytes_avx2,
};

static const vgq_product product_i16_avx2 = {
    .mr = 6,
    .code_nbytes = 2,
    .code_row = vgq_code_row_i16_avx2,
    .weight_nbytes = 2,
    .operand_nbytes = operand_nbytes_avx2,
    .prepare = widen_avx2,
    .tile = tile_i16_avx2,
};

static const vgq_product *const products_avx2[] = {&vgq_product_few_avx2, &vgq_product_int4_avx2,
                                                   &product_bytes_avx2, &product_i16_avx2, NULL};

const vgq_linear_kernels vgq_linear_avx2 = {
    .expand4 = expand4_avx2,
    .float_gemm = &float_gemm_avx2,
    .largest = vgq_largest_avx2,
    .code_row = vgq_code_row_i8_avx2,
    .products = products_avx2,
    .finish = finish_avx2,
    .finish16 = finish16_avx2,
    .flush = flush_avx2,
    .gelu = gelu_avx2,
};

#endif
