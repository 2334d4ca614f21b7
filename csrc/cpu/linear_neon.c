/* SPDX-License-Identifier: Apache-2.0
 * Linear kernels for every 64-bit Arm: W4 panels, the float product, epilogues. Each body does the
 * scalar definition's operations in its order, but for the float product's fused multiply-add. */
#include "../kernels.h"

#if defined(__aarch64__)

#include "../formats.h"

#include "tiles.h"

#include <arm_neon.h>

static void expand4_neon(size_t k, const uint8_t *nibbles, const uint8_t *factor,
                         const int8_t *zero, uint8_t *bytes)
{
    /* Four columns at a time: 16 bytes of a step. byte = factor * nibble + shift, modulo 256, with
     * shift = 128 - factor * (zero + 8). */
    for (size_t column = 0; column < VGQ_PANEL; column += 4) {
        uint8_t f[16], s[16];
        for (size_t i = 0; i < 16; i++) {
            const size_t c = column + i / 4;
            f[i] = factor[c];
            s[i] = (uint8_t)(128 - factor[c] * (zero[c] + 8));
        }
        const uint8x16_t times = vld1q_u8(f), shift = vld1q_u8(s);
        for (size_t step = 0; step < k / 8; step++) {
            const uint8x16_t b = vld1q_u8(nibbles + step * 4 * VGQ_PANEL + 4 * column);
            uint8_t *const at = bytes + 2 * step * 4 * VGQ_PANEL + 4 * column;
            vst1q_u8(at, vmlaq_u8(shift, vandq_u8(b, vdupq_n_u8(15)), times));
            vst1q_u8(at + 4 * VGQ_PANEL, vmlaq_u8(shift, vshrq_n_u8(b, 4), times));
        }
    }
}

static uint32_t largest_neon(size_t k, const float *x)
{
    const uint32x4_t no_sign = vdupq_n_u32(0x7fffffffu);
    uint32x4_t most = vdupq_n_u32(0);
    size_t i = 0;
    for (; i + 4 <= k; i += 4)
        most = vmaxq_u32(most, vandq_u32(vreinterpretq_u32_f32(vld1q_f32(x + i)), no_sign));
    uint32_t largest = vmaxvq_u32(most);
    for (; i < k; i++) {
        const uint32_t magnitude = vgq_bits_of_float(x[i]) & 0x7fffffffu;
        largest = magnitude > largest ? magnitude : largest;
    }
    return largest;
}

static int32_t code_row_neon(size_t k, size_t padded, const float *x, float inverse, void *codes)
{
    int8_t *const q = codes;
    int32x4_t total = vdupq_n_s32(0);
    size_t i = 0;
    for (; i + 8 <= k; i += 8) {
        /* vcvtn rounds ties to even, saturates, and gives 0 for NaN; |x * inverse| is at most 127
         * and a little, so that only the clamp of the scalar definition is left to do. */
        const int32x4_t a = vcvtnq_s32_f32(vmulq_n_f32(vld1q_f32(x + i), inverse));
        const int32x4_t b = vcvtnq_s32_f32(vmulq_n_f32(vld1q_f32(x + i + 4), inverse));
        const int16x8_t wide = vcombine_s16(vqmovn_s32(a), vqmovn_s32(b));
        const int8x8_t code = vmax_s8(vqmovn_s16(wide), vdup_n_s8(-127));
        total = vpadalq_s16(total, vmovl_s8(code));
        vst1_s8(q + i, code);
    }
    int32_t sum = vaddvq_s32(total);
    for (; i < padded; i++) {
        q[i] = i < k ? vgq_encode_token(x[i], inverse) : 0;
        sum += q[i];
    }
    return sum;
}

static void decode_panel_neon(size_t k, const uint8_t *bytes, const int32_t *offset,
                              const float *scale, void *out)
{
    float *const w = out;
    for (size_t column = 0; column < VGQ_PANEL; column += 4) {
        const int32x4_t o = vld1q_s32(offset + column);
        const float32x4_t s = vld1q_f32(scale + column);
        for (size_t i = 0; i < k; i += 4) {
            uint32x4_t b = vreinterpretq_u32_u8(vld1q_u8(bytes + i * VGQ_PANEL + 4 * column));
            for (size_t j = 0; j < 4; j++) {
                const uint32x4_t low = vandq_u32(b, vdupq_n_u32(255));
                const int32x4_t c = vsubq_s32(vreinterpretq_s32_u32(low), o);
                vst1q_f32(w + (i + j) * VGQ_PANEL + column, vmulq_f32(vcvtq_f32_s32(c), s));
                b = vshrq_n_u32(b, 8);
            }
        }
    }
}

#define LOAD(r)                                                                                    \
    float32x4_t a##r##0 = vdupq_n_f32(0), a##r##1 = a##r##0, a##r##2 = a##r##0, a##r##3 = a##r##0; \
    if (accumulate) {                                                                              \
        a##r##0 = vld1q_f32(acc + (r)*VGQ_PANEL);                                                  \
        a##r##1 = vld1q_f32(acc + (r)*VGQ_PANEL + 4);                                              \
        a##r##2 = vld1q_f32(acc + (r)*VGQ_PANEL + 8);                                              \
        a##r##3 = vld1q_f32(acc + (r)*VGQ_PANEL + 12);                                             \
    }
#define STEP(r)                                \
    {                                          \
        const float v = x[(r)*ldx + i];        \
        a##r##0 = vfmaq_n_f32(a##r##0, w0, v); \
        a##r##1 = vfmaq_n_f32(a##r##1, w1, v); \
        a##r##2 = vfmaq_n_f32(a##r##2, w2, v); \
        a##r##3 = vfmaq_n_f32(a##r##3, w3, v); \
    }
#define SAVE(r)                                  \
    vst1q_f32(acc + (r)*VGQ_PANEL, a##r##0);     \
    vst1q_f32(acc + (r)*VGQ_PANEL + 4, a##r##1); \
    vst1q_f32(acc + (r)*VGQ_PANEL + 8, a##r##2); \
    vst1q_f32(acc + (r)*VGQ_PANEL + 12, a##r##3);
#define TILE(rows, EACH)                                                                          \
    static void float_tile_##rows##x16_neon(size_t k, const float *x, size_t ldx, const float *w, \
                                            float *acc, int accumulate)                           \
    {                                                                                             \
        EACH(LOAD)                                                                                \
        for (size_t i = 0; i < k; i++) {                                                          \
            const float *const at = w + i * VGQ_PANEL;                                            \
            const float32x4_t w0 = vld1q_f32(at), w1 = vld1q_f32(at + 4);                         \
            const float32x4_t w2 = vld1q_f32(at + 8), w3 = vld1q_f32(at + 12);                    \
            EACH(STEP)                                                                            \
        }                                                                                         \
        EACH(SAVE)                                                                                \
    }

TILE(6, EACH_6)
TILE(1, EACH_1)

#undef TILE
#undef SAVE
#undef STEP
#undef LOAD

static void float_tile_neon(size_t rows, size_t k, const void *from, size_t ldx, const void *panel,
                            float *acc, int accumulate)
{
    const float *const x = from, *const w = panel;
    for (size_t column = 0; column < VGQ_PANEL; column += 16) {
        if (rows == VGQ_FLOAT_ROWS)
            float_tile_6x16_neon(k, x, ldx, w + column, acc + column, accumulate);
        else
            for (size_t r = 0; r < rows; r++)
                float_tile_1x16_neon(k, x + r * ldx, ldx, w + column, acc + r * VGQ_PANEL + column,
                                     accumulate);
    }
}

static void finish_neon(size_t rows, const int32_t *acc, const vgq_columns *columns,
                        const int32_t *sum, const float *x_scale, float *y, size_t ldy)
{
    for (size_t r = 0; r < rows; r++, acc += VGQ_PANEL, y += ldy)
        for (size_t n = 0; n < VGQ_PANEL; n += 4) {
            const int32x4_t a =
                vmlsq_n_s32(vld1q_s32(acc + n), vld1q_s32(columns->offset + n), sum[r]);
            const float32x4_t scaled =
                vmulq_f32(vmulq_n_f32(vcvtq_f32_s32(a), x_scale[r]), vld1q_f32(columns->scale + n));
            vst1q_f32(y + n, vaddq_f32(scaled, vld1q_f32(columns->bias + n)));
        }
}

static void flush_neon(const int32_t *acc, int32_t offset, int32_t sum, const float *scale,
                       float *total)
{
    const int32x4_t extra = vdupq_n_s32(offset * sum);
    for (size_t n = 0; n < VGQ_PANEL; n += 4) {
        const float32x4_t a = vcvtq_f32_s32(vsubq_s32(vld1q_s32(acc + n), extra));
        const float32x4_t scaled = vmulq_f32(a, vld1q_f32(scale + n));
        vst1q_f32(total + n, vaddq_f32(vld1q_f32(total + n), scaled));
    }
}

static const vgq_float_gemm float_gemm_neon = {
    .nbytes = sizeof(float),
    .decode = decode_panel_neon,
    .tile = float_tile_neon,
};

const vgq_linear_kernels vgq_linear_neon = {
    .expand4 = expand4_neon,
    .float_gemm = &float_gemm_neon,
    .largest = largest_neon,
    .code_row = code_row_neon,
    .finish = finish_neon,
    .flush = flush_neon,
};

#endif
