/* SPDX-License-Identifier: Apache-2.0
 * The integer product for Arm's dot-product instructions: sdot takes signed weights and codes and
 * sums in 32 bits, exactly. The tile is 4 rows x 16 columns, four steps of the panel at a time. */
#include "../kernels.h"

#if defined(__aarch64__)

#pragma GCC target("arch=armv8.2-a+dotprod")
#include "tiles.h"

#include <arm_neon.h>

/* Bytes to signed weights. */
static size_t operand_nbytes_neondot(size_t k) { return k * VGQ_PANEL; }

static void widen_neondot(const vgq_panel *panel, const uint8_t *bytes, void *operand,
                          int32_t offset[VGQ_PANEL])
{
    const size_t k = panel->k;
    (void)offset;
    uint8_t *const out = operand;
    for (size_t i = 0; i < k * VGQ_PANEL; i += 16)
        vst1q_u8(out + i, veorq_u8(vld1q_u8(bytes + i), vdupq_n_u8(128)));
}

#define ZERO(r) \
    int32x4_t a##r##0 = vdupq_n_s32(0), a##r##1 = a##r##0, a##r##2 = a##r##0, a##r##3 = a##r##0;
#define CODES(r) const int8x16_t x##r = vld1q_s8(q + (r)*ld + i);
#define DOT(r, lane)                                    \
    a##r##0 = vdotq_laneq_s32(a##r##0, w0, x##r, lane); \
    a##r##1 = vdotq_laneq_s32(a##r##1, w1, x##r, lane); \
    a##r##2 = vdotq_laneq_s32(a##r##2, w2, x##r, lane); \
    a##r##3 = vdotq_laneq_s32(a##r##3, w3, x##r, lane);
#define DOT_0(r) DOT(r, 0)
#define DOT_1(r) DOT(r, 1)
#define DOT_2(r) DOT(r, 2)
#define DOT_3(r) DOT(r, 3)
#define LAST(r)                                                                                   \
    {                                                                                             \
        const int8x16_t x##r =                                                                    \
            vreinterpretq_s8_s32(vld1q_dup_s32((const int32_t *)(const void *)(q + (r)*ld + i))); \
        DOT(r, 0)                                                                                 \
    }
#define SAVE(r)                                  \
    vst1q_s32(acc + (r)*VGQ_PANEL, a##r##0);     \
    vst1q_s32(acc + (r)*VGQ_PANEL + 4, a##r##1); \
    vst1q_s32(acc + (r)*VGQ_PANEL + 8, a##r##2); \
    vst1q_s32(acc + (r)*VGQ_PANEL + 12, a##r##3);
#define WEIGHTS(step)                                          \
    const int8_t *const at = w + (i + 4 * (step)) * VGQ_PANEL; \
    const int8x16_t w0 = vld1q_s8(at), w1 = vld1q_s8(at + 16); \
    const int8x16_t w2 = vld1q_s8(at + 32), w3 = vld1q_s8(at + 48);
#define TILE(rows, EACH)                                                                           \
    static void tile_i8_##rows##x16_neondot(size_t k, const int8_t *q, size_t ld, const int8_t *w, \
                                            int32_t *acc)                                          \
    {                                                                                              \
        EACH(ZERO)                                                                                 \
        size_t i = 0;                                                                              \
        for (; i + 16 <= k; i += 16) {                                                             \
            EACH(CODES){WEIGHTS(0) EACH(DOT_0)} {WEIGHTS(1) EACH(DOT_1)} {WEIGHTS(2) EACH(DOT_2)}  \
            {                                                                                      \
                WEIGHTS(3)                                                                         \
                EACH(DOT_3)                                                                        \
            }                                                                                      \
        }                                                                                          \
        for (; i < k; i += 4) {                                                                    \
            WEIGHTS(0)                                                                             \
            EACH(LAST)                                                                             \
        }                                                                                          \
        EACH(SAVE)                                                                                 \
    }

TILE(1, EACH_1)
TILE(2, EACH_2)
TILE(3, EACH_3)
TILE(4, EACH_4)

#undef TILE
#undef WEIGHTS
#undef SAVE
#undef LAST
#undef DOT_3
#undef DOT_2
#undef DOT_1
#undef DOT_0
#undef DOT
#undef CODES
#undef ZERO

static void tile_i8_neondot(size_t rows, const vgq_operand *operand, const void *codes, size_t ld,
                            const int32_t *sums, int32_t *acc)
{
    const size_t k = operand->k;
    (void)sums;
    static void (*const tiles[])(size_t, const int8_t *, size_t, const int8_t *,
                                 int32_t *) = {NULL, tile_i8_1x16_neondot, tile_i8_2x16_neondot,
                                               tile_i8_3x16_neondot, tile_i8_4x16_neondot};
    for (size_t column = 0; column < VGQ_PANEL; column += 16)
        tiles[rows](k, codes, ld, (const int8_t *)operand->data + 4 * column, acc + column);
}

static const vgq_product product_neondot = {
    .mr = 4,
    .code_nbytes = 1,
    .weight_nbytes = 1,
    .operand_nbytes = operand_nbytes_neondot,
    .prepare = widen_neondot,
    .tile = tile_i8_neondot,
};

static const vgq_product *const products_neondot[] = {&product_neondot, NULL};

const vgq_linear_kernels vgq_linear_neondot = {.products = products_neondot};

#endif
