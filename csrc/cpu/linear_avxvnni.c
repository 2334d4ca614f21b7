/* SPDX-License-Identifier: Apache-2.0
 * The integer product for AVX-VNNI: vpdpbusd on 256 bits, of CPUs without AVX-512. It takes the
 * panel's bytes (weight + 128, unsigned) and the activation's codes (signed), and wraps, so that
 * every sum is exact modulo 2^32 and the true one fits. The tile is 6 rows x 16 columns. */
#include "../kernels.h"

#if defined(__x86_64__)

#include "isa.h"

#include <immintrin.h>
#include <string.h>

#if defined(VGQ_MODELS)
ISA_BEGIN("avx2,fma,f16c")
#include VGQ_MODELS
#else
ISA_BEGIN("avx2,fma,f16c,avxvnni")
#define dot4(acc, w, x) _mm256_dpbusd_avx_epi32(acc, w, x)
#endif

#include "tiles_avx2.h"

#define STEP(r)                                       \
    {                                                 \
        const __m256i x = four_codes(q + (r)*ld + i); \
        a##r##0 = dot4(a##r##0, w0, x);               \
        a##r##1 = dot4(a##r##1, w1, x);               \
    }
#define TILE(rows, EACH)                                                                       \
    static void tile_i8_##rows##x16_avxvnni(size_t k, const int8_t *q, size_t ld,              \
                                            const uint8_t *bytes, int32_t *acc)                \
    {                                                                                          \
        EACH(ZERO)                                                                             \
        for (size_t i = 0; i < k; i += 4) {                                                    \
            const __m256i w0 = _mm256_loadu_si256((const void *)(bytes + i * VGQ_PANEL));      \
            const __m256i w1 = _mm256_loadu_si256((const void *)(bytes + i * VGQ_PANEL + 32)); \
            EACH(STEP)                                                                         \
        }                                                                                      \
        EACH(SAVE)                                                                             \
    }

EACH_HEIGHT(TILE)

#undef TILE
#undef STEP

static void tile_i8_avxvnni(size_t rows, const vgq_operand *w, const void *codes, size_t ld,
                            const int32_t *sums, int32_t *acc)
{
    static void (*const tiles[])(size_t, const int8_t *, size_t, const uint8_t *, int32_t *) = {
        NULL,
        tile_i8_1x16_avxvnni,
        tile_i8_2x16_avxvnni,
        tile_i8_3x16_avxvnni,
        tile_i8_4x16_avxvnni,
        tile_i8_5x16_avxvnni,
        tile_i8_6x16_avxvnni,
    };
    (void)sums;
    for (size_t column = 0; column < VGQ_PANEL; column += 16)
        tiles[rows](w->k, codes, ld, (const uint8_t *)w->data + 4 * column, acc + column);
}

ISA_END

static const vgq_product product_avxvnni = {
    .mr = 6,
    .code_nbytes = 1,
    .weight_nbytes = 1,
    .offset = 128,
    .tile = tile_i8_avxvnni,
};

static const vgq_product *const products_avxvnni[] = {&vgq_product_few_avx2, &product_avxvnni,
                                                      NULL};

const vgq_linear_kernels vgq_linear_avxvnni = {.products = products_avxvnni};

#endif
