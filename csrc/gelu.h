/* SPDX-License-Identifier: Apache-2.0
 * GELU as one list of float operations, for the CPU and the GPU alike. */
#ifndef VGQ_GELU_H
#define VGQ_GELU_H

#include "formats.h"

/* x * (1 + erf(x / sqrt 2)) / 2, within 3e-7 max(1, |x|) of exact. With z = |x| / sqrt 2,
 * erfc(z) = (a1 t + ... + a5 t^5) e^-z^2, t = 1 / (1 + p z): Abramowitz and Stegun, 7.1.26. */
VGQ_INLINE float vgq_gelu(float x)
{
    const float square = x * x * 0.5f;
    if (!(square < 87.0f)) /* erfc is 0 there, and x may be no number */
        return x > 0 ? x : x * 0.0f;
    /* e^-square = 2^-n e^-r, |r| <= ln 2 / 2; ln 2 in two parts, the first of 15 bits */
    const float n = rintf(square * 1.44269504f);
    const float r = (square - n * 0.693145752f) - n * 1.42860677e-6f;
    float power = 1.0f / 720;
    power = 1.0f / 120 - power * r;
    power = 1.0f / 24 - power * r;
    power = 1.0f / 6 - power * r;
    power = 0.5f - power * r;
    power = 1.0f - power * r;
    power = 1.0f - power * r;
    power = power * vgq_float_of_bits((uint32_t)(127 - (int)n) << 23);
    const float t = 1.0f / (1.0f + 0.3275911f * (fabsf(x) * 0.707106781f));
    float tail = 1.061405429f;
    tail = tail * t - 1.453152027f;
    tail = tail * t + 1.421413741f;
    tail = tail * t - 0.284496736f;
    tail = tail * t + 0.254829592f;
    tail = tail * t * power;
    const float half = 0.5f * x * tail;
    return x > 0 ? x - half : half;
}

#endif
