/* SPDX-License-Identifier: Apache-2.0
 * INT8 attention for Arm's 8-bit matrix instructions: two rows by two columns, eight items each;
 * smmla for scores, usmmla for values, whose p is unsigned. Sums are exact. */
#include "../kernels.h"

#if defined(__aarch64__)

#pragma GCC target("arch=armv8.2-a+dotprod+i8mm")
#include "attention_neon.h"

enum { ITEMS = 8, ABOVE = 0 };

/* Sums of a pair of rows and of two pairs of columns to both rows' four columns. */
static inline void save(int32x4_t left, int32x4_t right, int32_t *first)
{
    vst1q_s32(first, vcombine_s32(vget_low_s32(left), vget_low_s32(right)));
    vst1q_s32(first + BLOCK, vcombine_s32(vget_high_s32(left), vget_high_s32(right)));
}

#define ZERO(c) int32x4_t a##c = vdupq_n_s32(0), b##c = a##c;
#define STEP(c)                                        \
    {                                                  \
        const int8x16_t pair = vld1q_s8(w + 16 * (c)); \
        a##c = multiply(a##c, x01, pair);              \
        b##c = multiply(b##c, x23, pair);              \
    }
#define SAVE(c, d)                    \
    save(a##c, a##d, sums + 2 * (c)); \
    save(b##c, b##d, sums + 2 * BLOCK + 2 * (c));
#define SUMS(name, item, codes, load, combine)                                                \
    static void name(size_t n, const void *rows, size_t ld, const void *block, int32_t *sums) \
    {                                                                                         \
        const item *x = rows;                                                                 \
        const int8_t *w = block;                                                              \
        EACH_8(ZERO)                                                                          \
        for (size_t i = 0; i < n; i += 8, x += 8, w += 8 * BLOCK) {                           \
            const codes x01 = combine(load(x), load(x + ld));                                 \
            const codes x23 = combine(load(x + 2 * ld), load(x + 3 * ld));                    \
            EACH_8(STEP)                                                                      \
        }                                                                                     \
        SAVE(0, 1) SAVE(2, 3) SAVE(4, 5) SAVE(6, 7)                                           \
    }

#define multiply vmmlaq_s32
SUMS(sums_of_scores, int8_t, int8x16_t, vld1_s8, vcombine_s8)
#undef multiply
#define multiply vusmmlaq_s32
SUMS(sums_of_values, uint8_t, uint8x16_t, vld1_u8, vcombine_u8)
#undef multiply
#undef SUMS
#undef SAVE
#undef STEP
#undef ZERO

#include "attention_neon_i8.h"

const vgq_attention_kernels vgq_attention_neoni8mm = {
    .scores = {[VGQ_INT8_ACTIVATIONS] = &scores_gemm_i8},
    .values = {[VGQ_INT8_ACTIVATIONS] = &values_gemm_i8},
};

#endif
