/* SPDX-License-Identifier: Apache-2.0
 * The integer product for Arm's 8-bit matrix instructions: smmla multiplies two rows by two
 * columns, eight inputs each, signed, and sums in 32 bits, exactly. The tile is 4 rows x 16
 * columns. */
#include "../kernels.h"

#if defined(__aarch64__)

#pragma GCC target("arch=armv8.2-a+dotprod+i8mm")
#include "tiles.h"

#include <arm_neon.h>

/* Bytes to signed weights, eight inputs of a column together: [k / 8][64 columns][8]. */
static size_t operand_nbytes_neoni8mm(size_t k) { return k * VGQ_PANEL; }

static void widen_neoni8mm(const vgq_panel *panel, const uint8_t *bytes, void *operand,
                           int32_t offset[VGQ_PANEL])
{
    const size_t k = panel->k;
    (void)offset;
    const uint32x4_t flip = vdupq_n_u32(0x80808080u);
    uint32_t *out = operand;
    for (size_t i = 0; i < k; i += 8)
        for (size_t column = 0; column < VGQ_PANEL; column += 4, out += 8) {
            const uint8_t *const at = bytes + i * VGQ_PANEL + 4 * column;
            const uint32x4_t a = veorq_u32(vreinterpretq_u32_u8(vld1q_u8(at)), flip);
            const uint32x4_t b =
                veorq_u32(vreinterpretq_u32_u8(vld1q_u8(at + 4 * VGQ_PANEL)), flip);
            vst1q_u32(out, vzip1q_u32(a, b));
            vst1q_u32(out + 4, vzip2q_u32(a, b));
        }
}

/* Rows r and s. */
static inline int8x16_t two_rows(const int8_t *q, size_t ld, size_t r, size_t s)
{
    return vcombine_s8(vld1_s8(q + r * ld), vld1_s8(q + s * ld));
}

/* Sums of a pair of rows and of two pairs of columns to both rows' four columns. */
static inline void save(int32x4_t left, int32x4_t right, int32_t *first, int32_t *second)
{
    vst1q_s32(first, vcombine_s32(vget_low_s32(left), vget_low_s32(right)));
    vst1q_s32(second, vcombine_s32(vget_high_s32(left), vget_high_s32(right)));
}

#define ZERO(c) int32x4_t a##c = vdupq_n_s32(0), b##c = a##c;
#define STEP(c)                                         \
    {                                                   \
        const int8x16_t pair = vld1q_s8(at + 16 * (c)); \
        a##c = vmmlaq_s32(a##c, x, pair);               \
        b##c = vmmlaq_s32(b##c, y, pair);               \
    }
#define SAVE(c, d)                                              \
    save(a##c, a##d, acc + 2 * (c), acc + VGQ_PANEL + 2 * (c)); \
    save(b##c, b##d, acc + 2 * VGQ_PANEL + 2 * (c), acc + 3 * VGQ_PANEL + 2 * (c));

static void tile_i8_4x16_neoni8mm(size_t k, const int8_t *q, size_t ld, const int8_t *w,
                                  int32_t *acc)
{
    EACH_8(ZERO)
    for (size_t i = 0; i < k; i += 8) {
        const int8_t *const at = w + i * VGQ_PANEL;
        const int8x16_t x = two_rows(q + i, ld, 0, 1), y = two_rows(q + i, ld, 2, 3);
        EACH_8(STEP)
    }
    SAVE(0, 1) SAVE(2, 3) SAVE(4, 5) SAVE(6, 7)
}

#undef SAVE
#undef STEP
#undef ZERO

/* Two rows, or one twice; second is then the first. */
static void tile_i8_2x4_neoni8mm(size_t k, const int8_t *q, size_t ld, size_t second,
                                 const int8_t *w, int32_t *acc)
{
    int32x4_t left = vdupq_n_s32(0), right = left;
    for (size_t i = 0; i < k; i += 8) {
        const int8x16_t x = two_rows(q + i, ld, 0, second);
        left = vmmlaq_s32(left, x, vld1q_s8(w + i * VGQ_PANEL));
        right = vmmlaq_s32(right, x, vld1q_s8(w + i * VGQ_PANEL + 16));
    }
    save(left, right, acc, acc + second * VGQ_PANEL);
}

static void tile_i8_neoni8mm(size_t rows, const vgq_operand *operand, const void *codes, size_t ld,
                             const int32_t *sums, int32_t *acc)
{
    const size_t k = operand->k;
    (void)sums;
    const int8_t *const q = codes, *const w = operand->data;
    if (rows == 4) {
        for (size_t column = 0; column < VGQ_PANEL; column += 16)
            tile_i8_4x16_neoni8mm(k, q, ld, w + 8 * column, acc + column);
        return;
    }
    for (size_t r = 0; r < rows; r += 2)
        for (size_t column = 0; column < VGQ_PANEL; column += 4)
            tile_i8_2x4_neoni8mm(k, q + r * ld, ld, r + 1 < rows, w + 8 * column,
                                 acc + r * VGQ_PANEL + column);
}

static const vgq_product product_neoni8mm = {
    .mr = 4,
    .code_nbytes = 1,
    .weight_nbytes = 1,
    .operand_nbytes = operand_nbytes_neoni8mm,
    .prepare = widen_neoni8mm,
    .tile = tile_i8_neoni8mm,
};

static const vgq_product *const products_neoni8mm[] = {&product_neoni8mm, NULL};

const vgq_linear_kernels vgq_linear_neoni8mm = {.products = products_neoni8mm};

#endif
