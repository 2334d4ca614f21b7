/* SPDX-License-Identifier: Apache-2.0
 * docs/conventions.md in code: one value to its code and back, half and bfloat16 to float and back.
 * Scalar kernels, the tails of vector kernels and CUDA all use these, so there is one definition.
 */
#ifndef VGQ_FORMATS_H
#define VGQ_FORMATS_H

#include <math.h>
#include <stdint.h>
#include <string.h>

#if defined(__CUDACC__)
#define VGQ_INLINE static inline __host__ __device__
#else
#define VGQ_INLINE static inline
#endif

VGQ_INLINE float vgq_float_of_bits(uint32_t bits)
{
    float x;
    memcpy(&x, &bits, sizeof(x));
    return x;
}

VGQ_INLINE uint32_t vgq_bits_of_float(float x)
{
    uint32_t bits;
    memcpy(&bits, &x, sizeof(bits));
    return bits;
}

/* saturate(rint(x / scale) + zero), ties to even; NaN codes as 0.0 does. The clamp comes before the
 * addition, where it is exact for every quotient; the NaN test first, since fminf would swallow it.
 */
VGQ_INLINE int8_t vgq_encode(float x, float scale, int zero, int lowest, int highest)
{
    const float quotient = rintf(x / scale), r = quotient != quotient ? 0 : quotient;
    return (int8_t)((int)fminf(fmaxf(r, (float)(lowest - zero)), (float)(highest - zero)) + zero);
}

VGQ_INLINE float vgq_decode(int8_t code, float scale, int zero)
{
    return (float)(code - zero) * scale;
}

/* A token's scale for codes up to `highest`, from the largest magnitude of its row as an integer;
 * *inverse is what its values are multiplied by. A row that is so small that highest / absmax could
 * overflow counts as zeros. */
#define VGQ_INT8_HIGHEST 127.0f
#define VGQ_INT16_HIGHEST 32512.0f /* two digits of base 255, each -127..127 */
VGQ_INLINE float vgq_token_scale(uint32_t largest, float highest, float *inverse)
{
    *inverse = 0;
    if (largest >= 0x7f800000u)
        return vgq_float_of_bits(0x7fc00000u);
    const float absmax = vgq_float_of_bits(largest);
    if (absmax < (highest > VGQ_INT8_HIGHEST ? 0x1p-112f : 0x1p-120f))
        return 0;
    *inverse = highest / absmax;
    return absmax / highest;
}

/* rint(x * inverse), ties to even, at most 127; NaN codes as 0. An infinity times 0 is a NaN. */
VGQ_INLINE int8_t vgq_encode_token(float x, float inverse)
{
    const float r = rintf(x * inverse);
    return r != r ? 0 : (int8_t)fminf(fmaxf(r, -127.0f), 127.0f);
}

VGQ_INLINE float vgq_float_of_bf16(uint16_t h) { return vgq_float_of_bits((uint32_t)h << 16); }

/* Half to even; a NaN stays one. */
VGQ_INLINE uint16_t vgq_bf16_of_float(float x)
{
    const uint32_t b = vgq_bits_of_float(x);
    if ((b & 0x7fffffffu) > 0x7f800000u)
        return (uint16_t)(b >> 16 | 0x40);
    return (uint16_t)((b + 0x7fffu + (b >> 16 & 1)) >> 16);
}

VGQ_INLINE float vgq_float_of_f16(uint16_t h)
{
    const uint32_t sign = (uint32_t)(h & 0x8000u) << 16, magnitude = h & 0x7fffu;
    if (magnitude >= 0x7c00u) /* infinity or NaN, which becomes a quiet one */
        return vgq_float_of_bits(sign | 0x7f800000u | magnitude << 13 |
                                 (magnitude > 0x7c00u ? 0x400000u : 0));
    if (magnitude >= 0x400u)
        return vgq_float_of_bits(sign | ((magnitude << 13) + (112u << 23)));
    /* Subnormal: an integer times 2^-24. */
    return vgq_float_of_bits(sign | vgq_bits_of_float((float)magnitude * 0x1p-24f));
}

VGQ_INLINE uint16_t vgq_f16_of_float(float x)
{
    const uint32_t b = vgq_bits_of_float(x), sign = b >> 16 & 0x8000u, magnitude = b & 0x7fffffffu;
    if (magnitude > 0x7f800000u)
        return (uint16_t)(sign | 0x7e00u | (magnitude >> 13 & 0x3ffu));
    if (magnitude >= 0x477ff000u) /* from 65520 on: infinity */
        return (uint16_t)(sign | 0x7c00u);
    if (magnitude < 0x38800000u) /* below 2^-14: the sum with 0.5 rounds at 2^-24 */
        return (uint16_t)(sign | (vgq_bits_of_float(vgq_float_of_bits(magnitude) + 0.5f) -
                                  vgq_bits_of_float(0.5f)));
    return (uint16_t)(sign | ((magnitude - (112u << 23) + 0xfffu + (magnitude >> 13 & 1)) >> 13));
}

#endif
