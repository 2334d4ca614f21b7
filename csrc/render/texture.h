// SPDX-License-Identifier: Apache-2.0
// Private to the ray caster: vectors, and the colours of textures.
#ifndef VGQ_RENDER_TEXTURE_H
#define VGQ_RENDER_TEXTURE_H

#include "render.h"

#include <math.h>

typedef struct {
    float x, y, z;
} vec;

static inline vec add(vec a, vec b) { return (vec){a.x + b.x, a.y + b.y, a.z + b.z}; }
static inline vec mul(vec a, vec b) { return (vec){a.x * b.x, a.y * b.y, a.z * b.z}; }
static inline vec scaled(vec a, float s) { return (vec){a.x * s, a.y * s, a.z * s}; }
static inline float dot(vec a, vec b) { return a.x * b.x + a.y * b.y + a.z * b.z; }
static inline vec load(const float *p) { return (vec){p[0], p[1], p[2]}; }
static inline vec mix(vec a, vec b, float t) { return add(scaled(a, 1.0f - t), scaled(b, t)); }
static inline vec unit(vec a) { return scaled(a, 1.0f / sqrtf(dot(a, a))); }
static inline float absolute(float x) { return x < 0.0f ? -x : x; }
static inline float clamp01(float x) { return x > 0.0f ? x < 1.0f ? x : 1.0f : 0.0f; } // NaN: 0

// 0 for NaN and for what is far from every picture: neither the cast nor a neighbour overflows.
static inline int32_t floor_i32(float x)
{
    if (!(absolute(x) < 0x1p30f))
        return 0;
    const int32_t i = (int32_t)x;
    return i - (x < (float)i);
}

// The colour at (u, v) of a face, in units of length.
vec vgq_render_colour(const vgq_render_texture *texture, float u, float v, uint32_t face);

#endif
