/* SPDX-License-Identifier: Apache-2.0
 * INT8 attention for Arm's dot-product instructions: sdot for scores; udot for values, whose codes
 * of v stand 128 too high, which the sum of the codes of p takes off. Sums are exact. */
#include "../kernels.h"

#if defined(__aarch64__)

#pragma GCC target("arch=armv8.2-a+dotprod")
#include "attention_neon.h"

enum { ITEMS = 4, ABOVE = 128 };

/* Four rows, 16 items of each, against 16 columns. */
#define ZERO(r) sums_t a##r##0 = zero, a##r##1 = zero, a##r##2 = zero, a##r##3 = zero;
#define CODES(r) const codes_t x##r = load(x + (r)*ld + i);
#define DOT(r, lane)                        \
    a##r##0 = dot(a##r##0, w0, x##r, lane); \
    a##r##1 = dot(a##r##1, w1, x##r, lane); \
    a##r##2 = dot(a##r##2, w2, x##r, lane); \
    a##r##3 = dot(a##r##3, w3, x##r, lane);
#define STEP(lane)                                             \
    {                                                          \
        const item_t *const at = w + (i + 4 * (lane)) * BLOCK; \
        const codes_t w0 = load(at), w1 = load(at + 16);       \
        const codes_t w2 = load(at + 32), w3 = load(at + 48);  \
        DOT(0, lane) DOT(1, lane) DOT(2, lane) DOT(3, lane)    \
    }
#define SAVE(r)                             \
    save(sums + (r)*BLOCK, a##r##0, r);     \
    save(sums + (r)*BLOCK + 4, a##r##1, r); \
    save(sums + (r)*BLOCK + 8, a##r##2, r); \
    save(sums + (r)*BLOCK + 12, a##r##3, r);

#define item_t int8_t
#define codes_t int8x16_t
#define sums_t int32x4_t
#define load vld1q_s8
#define dot vdotq_laneq_s32
#define save(to, sum, r) vst1q_s32(to, sum)
static void sums_of_scores(size_t n, const void *rows, size_t ld, const void *block, int32_t *sums)
{
    const int8_t *const x = rows, *const w = block;
    const int32x4_t zero = vdupq_n_s32(0);
    EACH_4(ZERO)
    for (size_t i = 0; i < n; i += 16) {
        EACH_4(CODES)
        STEP(0) STEP(1) STEP(2) STEP(3)
    }
    EACH_4(SAVE)
}
#undef save
#undef dot
#undef load
#undef sums_t
#undef codes_t
#undef item_t

#define item_t uint8_t
#define codes_t uint8x16_t
#define sums_t uint32x4_t
#define load vld1q_u8
#define dot vdotq_laneq_u32
#define save(to, sum, r) vst1q_s32(to, vsubq_s32(vreinterpretq_s32_u32(sum), extra##r))
#define BEGIN(r) uint32x4_t all##r = zero;
#define ADD(r) all##r = vdotq_u32(all##r, x##r, ones);
#define EXTRA(r) const int32x4_t extra##r = vdupq_n_s32(128 * (int32_t)vaddvq_u32(all##r));
static void sums_of_values(size_t n, const void *rows, size_t ld, const void *block, int32_t *sums)
{
    const uint8_t *const x = rows, *const w = block;
    const uint8x16_t ones = vdupq_n_u8(1);
    const uint32x4_t zero = vdupq_n_u32(0);
    EACH_4(ZERO)
    EACH_4(BEGIN)
    for (size_t i = 0; i < n; i += 16) {
        EACH_4(CODES)
        EACH_4(ADD)
        STEP(0) STEP(1) STEP(2) STEP(3)
    }
    EACH_4(EXTRA)
    EACH_4(SAVE)
}
#undef EXTRA
#undef ADD
#undef BEGIN
#undef save
#undef dot
#undef load
#undef sums_t
#undef codes_t
#undef item_t
#undef SAVE
#undef STEP
#undef DOT
#undef CODES
#undef ZERO

#include "attention_neon_i8.h"

const vgq_attention_kernels vgq_attention_neondot = {
    .scores = {[VGQ_INT8_ACTIVATIONS] = &scores_gemm_i8},
    .values = {[VGQ_INT8_ACTIVATIONS] = &values_gemm_i8},
};

#endif
