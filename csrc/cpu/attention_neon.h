/* SPDX-License-Identifier: Apache-2.0
 * What the attention tables of 64-bit Arm share. */
#ifndef VGQ_ATTENTION_NEON_H
#define VGQ_ATTENTION_NEON_H

#include "attention_rows.h"
#include "tiles.h"

#include <arm_neon.h>

enum { BLOCK = 16, TILE = 4, GROUP = 24 /* rows: whole tiles of 4 and of 6 */ };

/* ---- softmax ----------------------------------------------------------------------------------
 */

/* What comes before the p of a row: the block's peak, the row's top and the factors. */
static inline float begin_row(size_t n, float *s, float r, float *top, float *kept, float *added)
{
    float32x4_t most = vdupq_n_f32(-INFINITY);
    size_t j = 0;
    for (; j + 4 <= n; j += 4)
        most = vmaxq_f32(most, vld1q_f32(s + j));
    float max = vmaxvq_f32(most);
    for (; j < n; j++)
        max = s[j] > max ? s[j] : max;
    const float peak = vgq_row_peak(n, s, max, r);
    vgq_join_top(peak, top, kept, added);
    return peak;
}

/* 2^x = p * 2^whole of 4 exponents, 0 below 2^-126; a NaN stays one. p: of x - whole. */
static inline float32x4_t scaled(float32x4_t x, float32x4_t whole, float32x4_t p)
{
    const int32x4_t power = vshlq_n_s32(vaddq_s32(vcvtq_s32_f32(whole), vdupq_n_s32(127)), 23);
    const uint32x4_t lost = vcltq_f32(x, vdupq_n_f32(-126));
    const float32x4_t y = vmulq_f32(p, vreinterpretq_f32_s32(power));
    return vreinterpretq_f32_u32(vbicq_u32(vreinterpretq_u32_f32(y), lost));
}

#define TERM(t) p = vfmaq_f32(vdupq_n_f32(t), p, f);
/* 255 * 2^x */
static inline float32x4_t exp2_codes(float32x4_t x)
{
    const float32x4_t whole = vrndnq_f32(x), f = vsubq_f32(x, whole);
    float32x4_t p = vdupq_n_f32(VGQ_EXP2_CODES_FIRST);
    VGQ_EXP2_CODES(TERM)
    return scaled(x, whole, p);
}

/* 2^x */
static inline float32x4_t exp2_floats(float32x4_t x)
{
    const float32x4_t whole = vrndnq_f32(x), f = vsubq_f32(x, whole);
    float32x4_t p = vdupq_n_f32(VGQ_EXP2_FLOATS_FIRST);
    VGQ_EXP2_FLOATS(TERM)
    return scaled(x, whole, p);
}
#undef TERM

/* The exponents of scores j..j + 4 of n, behind them those of a p that is 0. */
static inline float32x4_t exponents(size_t n, size_t j, const float *s, float32x4_t r,
                                    float32x4_t below)
{
    static const uint32_t order[4] = {0, 1, 2, 3};
    const float32x4_t x = vfmaq_f32(below, vld1q_f32(s + j), r);
    if (j + 4 <= n)
        return x;
    const uint32x4_t counts =
        vcltq_u32(vld1q_u32(order), vdupq_n_u32(j < n ? (uint32_t)(n - j) : 0));
    return vbslq_f32(counts, x, vdupq_n_f32(-1000));
}

/* lanes = lanes * kept + sums * added */
static inline void gather_lanes(float *lanes, const float32x4_t sums[4], float kept, float added)
{
    for (size_t i = 0; i < 4; i++)
        vst1q_f32(lanes + 4 * i,
                  vfmaq_n_f32(vmulq_n_f32(vld1q_f32(lanes + 4 * i), kept), sums[i], added));
}

/* Codes of one byte. */
static inline void softmax_u8(size_t rows, size_t n, float *s, const float *r, vgq_gathered to,
                              float *kept, float *added, void *weights)
{
    for (size_t m = 0; m < rows; m++, s += VGQ_KEYS) {
        uint8_t *const codes = (uint8_t *)weights + m * VGQ_KEYS;
        const float peak = begin_row(n, s, r[m], &to.top[m], &kept[m], &added[m]);
        const float32x4_t factor = vdupq_n_f32(r[m]), below = vdupq_n_f32(-peak);
        float32x4_t sums[4] = {vdupq_n_f32(0), vdupq_n_f32(0), vdupq_n_f32(0), vdupq_n_f32(0)};
        for (size_t j = 0; j < vgq_round_up(n, VGQ_PANEL); j += 16) {
            uint16x4_t code[4];
            for (size_t i = 0; i < 4; i++) {
                const float32x4_t p = exp2_codes(exponents(n, j + 4 * i, s, factor, below));
                sums[i] = vaddq_f32(sums[i], p);
                code[i] = vqmovn_u32(vcvtnq_u32_f32(p)); /* a NaN becomes 0 */
            }
            vst1q_u8(codes + j, vcombine_u8(vqmovn_u16(vcombine_u16(code[0], code[1])),
                                            vqmovn_u16(vcombine_u16(code[2], code[3]))));
        }
        gather_lanes(to.lanes[m], sums, kept[m], added[m]);
    }
}

#endif
