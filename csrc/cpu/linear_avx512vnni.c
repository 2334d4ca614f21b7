/* SPDX-License-Identifier: Apache-2.0
 * The integer product for AVX-512 VNNI: vpdpbusd takes the panel's bytes (weight + 128, unsigned)
 * and the activation's codes (signed), and wraps, so that every sum is exact modulo 2^32 and the
 * true one fits. The tile is 6 rows x 64 columns: 24 accumulators. */
#include "../kernels.h"

#if defined(__x86_64__)

#include "isa.h"

ISA_BEGIN("avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx2,fma,f16c")

#include "epilogue_avx512.h"
#include "tiles_avx512.h"

#define STEP(r)                                        \
    {                                                  \
        const __m512i x = four_codes(q + (r)*ld + i);  \
        a##r##0 = _mm512_dpbusd_epi32(a##r##0, w0, x); \
        a##r##1 = _mm512_dpbusd_epi32(a##r##1, w1, x); \
        a##r##2 = _mm512_dpbusd_epi32(a##r##2, w2, x); \
        a##r##3 = _mm512_dpbusd_epi32(a##r##3, w3, x); \
    }
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

EACH_HEIGHT(TILE)

#undef TILE
#undef STEP

static void tile_i8_avx512vnni(size_t rows, const vgq_operand *w, const void *codes, size_t ld,
                               const int32_t *sums, int32_t *acc)
{
    (void)sums;
    static void (*const tiles[])(size_t, const int8_t *, size_t, const uint8_t *, int32_t *) = {
        NULL,
        tile_i8_1x64_avx512vnni,
        tile_i8_2x64_avx512vnni,
        tile_i8_3x64_avx512vnni,
        tile_i8_4x64_avx512vnni,
        tile_i8_5x64_avx512vnni,
        tile_i8_6x64_avx512vnni,
    };
    tiles[rows](w->k, codes, ld, w->data, acc);
}

static void strip_avx512vnni(const vgq_operand *w, const vgq_strip *strip)
{
    enum { ROWS = 6 };
    int32_t acc[ROWS * VGQ_PANEL];
    const size_t element = vgq_dtype_nbytes(strip->dtype), pitch = strip->ldy * element;
    for (size_t m = 0, rows; m < strip->rows; m += rows) {
        const size_t left = strip->rows - m, tiles = (left + ROWS - 1) / ROWS;
        rows = (left + tiles - 1) / tiles; /* as even as can be */
        if (strip->fetch_y)
            vgq_fetch((const char *)strip->y + m * pitch, rows, pitch, VGQ_PANEL * element);
        if (strip->residual)
            vgq_fetch((const char *)strip->residual + m * pitch, rows, pitch, VGQ_PANEL * element);
        tile_i8_avx512vnni(rows, w, (const int8_t *)strip->codes + m * strip->ld, strip->ld, NULL,
                           acc);
        vgq_fetch_next(strip, m, rows);
        for (size_t r = 0; r < rows; r++)
            vgq_finish_avx512(strip, m + r, 0, VGQ_PANEL / 16, acc + r * VGQ_PANEL);
    }
}

/* ---- few rows of W4, straight from the nibbles ------------------------------------------------
 */

/* A nibble is code + 8. A group's sums begin with what that and the zero point will have added too
 * much, and are multiplied by the factor at its end. Columns are taken 64 at a time for few rows,
 * so that there are sums enough to hide the latency, and 32 for more, so that they fit. */
#define COLUMNS_2(X, r) X(r, 0) X(r, 1)
#define COLUMNS_4(X, r) COLUMNS_2(X, r) X(r, 2) X(r, 3)
#define DECLARE(r, c) __m512i a##r##c = _mm512_setzero_si512(), g##r##c;
#define BEGIN(r, c) g##r##c = _mm512_mullo_epi32(over##c, sum);
#define DOT(r, c) g##r##c = _mm512_dpbusd_epi32(g##r##c, nibbles##c, x);
#define END(r, c) a##r##c = _mm512_add_epi32(a##r##c, _mm512_mullo_epi32(g##r##c, factor##c));
#define STORE(r, c) _mm512_storeu_si512(acc + (r)*VGQ_PANEL + 16 * (c), a##r##c);
#define OVER(r, c) \
    const __m512i over##c = over_codes(w->zero ? w->zero + g * VGQ_PANEL + 16 * (c) : NULL);
#define FACTOR(r, c)                                \
    const __m512i factor##c = _mm512_cvtepu8_epi32( \
        _mm_loadu_si128((const void *)(w->factor + g * VGQ_PANEL + 16 * (c))));
#define LOW(r, c)                                                                        \
    const __m512i both##c = _mm512_loadu_si512(w->codes + i / 2 * VGQ_PANEL + 64 * (c)); \
    __m512i nibbles##c = _mm512_and_si512(both##c, mask);
#define HIGH(r, c) nibbles##c = _mm512_and_si512(_mm512_srli_epi16(both##c, 4), mask);
#define ROW_DECLARE(r) COLUMNS(DECLARE, r)
#define ROW_BEGIN(r)                                                 \
    {                                                                \
        const __m512i sum = _mm512_set1_epi32(sums[(r)*groups + g]); \
        COLUMNS(BEGIN, r)                                            \
    }
#define ROW_LOW(r)                                    \
    {                                                 \
        const __m512i x = four_codes(q + (r)*ld + i); \
        COLUMNS(DOT, r)                               \
    }
#define ROW_HIGH(r)                                       \
    {                                                     \
        const __m512i x = four_codes(q + (r)*ld + i + 4); \
        COLUMNS(DOT, r)                                   \
    }
#define ROW_END(r) COLUMNS(END, r)
#define ROW_STORE(r) COLUMNS(STORE, r)

/* -(8 + zero point) of 16 columns. */
static inline __m512i over_codes(const int8_t *zero)
{
    const __m512i eight = _mm512_set1_epi32(-8);
    if (!zero)
        return eight;
    return _mm512_sub_epi32(eight, _mm512_cvtepi8_epi32(_mm_loadu_si128((const void *)zero)));
}

#define TILE(rows, EACH)                                                                         \
    static void tile_i4_##rows##_rows_avx512vnni(const vgq_panel *w, const int8_t *q, size_t ld, \
                                                 const int32_t *sums, int32_t *acc)              \
    {                                                                                            \
        const __m512i mask = _mm512_set1_epi8(15);                                               \
        const size_t groups = w->groups;                                                         \
        EACH(ROW_DECLARE)                                                                        \
        for (size_t i = 0, g = 0; g < groups; g++) {                                             \
            const size_t end = g + 1 < groups ? (g + 1) * w->group : w->k;                       \
            COLUMNS(OVER, 0)                                                                     \
            EACH(ROW_BEGIN)                                                                      \
            for (; i < end; i += 8) {                                                            \
                COLUMNS(LOW, 0)                                                                  \
                EACH(ROW_LOW)                                                                    \
                COLUMNS(HIGH, 0)                                                                 \
                EACH(ROW_HIGH)                                                                   \
            }                                                                                    \
            COLUMNS(FACTOR, 0)                                                                   \
            EACH(ROW_END)                                                                        \
        }                                                                                        \
        EACH(ROW_STORE)                                                                          \
    }

#define COLUMNS COLUMNS_4
TILE(1, EACH_1)
TILE(2, EACH_2)
#undef COLUMNS
#define COLUMNS COLUMNS_2
TILE(3, EACH_3)
TILE(4, EACH_4)
TILE(5, EACH_5)

static void tile_few_avx512vnni(size_t rows, const vgq_operand *operand, const void *codes,
                                size_t ld, const int32_t *sums, int32_t *acc)
{
    static void (*const tiles[])(const vgq_panel *, const int8_t *, size_t, const int32_t *,
                                 int32_t *) = {
        NULL,
        tile_i4_1_rows_avx512vnni,
        tile_i4_2_rows_avx512vnni,
        tile_i4_3_rows_avx512vnni,
        tile_i4_4_rows_avx512vnni,
        tile_i4_5_rows_avx512vnni,
    };
    vgq_panel w = *operand->panel;
    tiles[rows](&w, codes, ld, sums, acc);
    if (rows <= 2)
        return;
    w.codes += 4 * VGQ_PANEL / 2;
    w.factor += VGQ_PANEL / 2;
    w.zero = w.zero ? w.zero + VGQ_PANEL / 2 : NULL;
    tiles[rows](&w, codes, ld, sums, acc + VGQ_PANEL / 2);
}

ISA_END

const vgq_product vgq_product_few_avx512vnni = {
    .applies = vgq_few_nibbles,
    .mr = 5,
    .code_nbytes = 1,
    .group_sums = 1,
    .nibbles = 1,
    .tile = tile_few_avx512vnni,
};

const vgq_product vgq_product_avx512vnni = {
    .mr = 6,
    .code_nbytes = 1,
    .weight_nbytes = 1,
    .offset = 128,
    .tile = tile_i8_avx512vnni,
    .strip = strip_avx512vnni,
};

static const vgq_product *const products_avx512vnni[] = {&vgq_product_few_avx512vnni,
                                                         &vgq_product_avx512vnni, NULL};

const vgq_linear_kernels vgq_linear_avx512vnni = {.products = products_avx512vnni};

#endif
