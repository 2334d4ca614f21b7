// SPDX-License-Identifier: Apache-2.0
// Textures of the ray caster's faces.
#include "texture.h"

// ---- noise: integer hashes of cell coordinates, so that no table and no libm is needed

static uint32_t hash(int32_t x, int32_t y, uint32_t seed)
{
    uint32_t h = (uint32_t)x * 0x8da6b343u ^ (uint32_t)y * 0xd8163841u ^ seed * 0xcb1ab31fu;
    h ^= h >> 16;
    h *= 0x85ebca6bu;
    h ^= h >> 13;
    h *= 0xc2b2ae35u;
    return h ^ h >> 16;
}

// 24 bits of a hash as a float in [0, 1).
static float fraction(uint32_t h) { return (float)(h >> 8) * 0x1p-24f; }

static float noise(float u, float v, uint32_t seed)
{
    const int32_t x = floor_i32(u), y = floor_i32(v);
    const float a = u - (float)x, b = v - (float)y;
    const float s = a * a * (3.0f - 2.0f * a), t = b * b * (3.0f - 2.0f * b);
    const float top = fraction(hash(x, y, seed)) * (1.0f - s) + fraction(hash(x + 1, y, seed)) * s;
    const float low =
        fraction(hash(x, y + 1, seed)) * (1.0f - s) + fraction(hash(x + 1, y + 1, seed)) * s;
    return top * (1.0f - t) + low * t;
}

static float soft(float u, float v, uint32_t seed)
{
    return 0.625f * noise(u, v, seed) + 0.375f * noise(2.0f * u, 2.0f * v, seed + 1);
}

// ---- textures: colour at (u, v) of a face, in units of length

static vec pattern(const vgq_render_texture *t, float u, float v, uint32_t seed)
{
    const vec c0 = load(t->colour), c1 = load(t->colour + 3), c2 = load(t->colour + 6);
    const int32_t x = floor_i32(u), y = floor_i32(v);
    const float a = u - (float)x, b = v - (float)y;

    switch ((vgq_render_texture_kind)t->kind) { // uncovered: vgq_render_check refuses other kinds
    case VGQ_CLOUD: {
        const float s = clamp01(2.0f * soft(u, v, seed) - 0.5f);
        return s < 0.5f ? mix(c0, c1, 2.0f * s) : mix(c1, c2, 2.0f * s - 1.0f);
    }
    case VGQ_MARBLE: {
        const float w = u + 2.0f * soft(0.5f * u, 0.5f * v, seed);
        const float saw = w - (float)floor_i32(w);
        return mix(c0, c1, saw < 0.5f ? 2.0f * saw : 2.0f - 2.0f * saw);
    }
    case VGQ_CHECKER:
        return mix((x + y) & 1 ? c0 : c1, c2, 0.5f * fraction(hash(x, y, seed)));
    case VGQ_STRIPES: {
        const uint32_t h = hash(x, 0, seed);
        const vec left = h & 1 ? c0 : c1;
        return a < 0.25f + 0.5f * fraction(h) ? left : c2;
    }
    case VGQ_BRICKS: {
        const float shifted = u + (y & 1 ? 0.5f : 0.0f);
        const int32_t brick = floor_i32(shifted);
        const float along = shifted - (float)brick;
        if (along < 0.06f || b < 0.12f)
            return c2;
        return mix(c0, c1, fraction(hash(brick, y, seed)));
    }
    case VGQ_CELLS: {
        float nearest = 9.0f;
        uint32_t owner = 0;
        for (int32_t j = -1; j <= 1; j++)
            for (int32_t i = -1; i <= 1; i++) {
                const uint32_t h = hash(x + i, y + j, seed);
                const float p = (float)i + 0.25f + (float)(h & 0xffff) * 0x1p-17f - a;
                const float q = (float)j + 0.25f + (float)(h >> 16) * 0x1p-17f - b;
                const float d = p * p + q * q;
                if (d < nearest) {
                    nearest = d;
                    owner = h;
                }
            }
        owner *= 0x9e3779b1u;
        return mix(owner & 1 ? c0 : c1, c2, fraction(owner));
    }
    case VGQ_DOTS: {
        const uint32_t h = hash(x, y, seed);
        const float p = a - 0.35f - 0.3f * (float)(h & 0xff) * 0x1p-8f;
        const float q = b - 0.35f - 0.3f * (float)(h >> 8 & 0xff) * 0x1p-8f;
        const float radius = 0.12f + 0.2f * (float)(h >> 16 & 0xff) * 0x1p-8f;
        return p * p + q * q < radius * radius ? (h >> 24 & 1 ? c1 : c2) : c0;
    }
    case VGQ_GLYPHS: {
        const int32_t i = floor_i32(6.0f * a), j = floor_i32(6.0f * b);
        const uint32_t h = hash(x, y, seed);
        const vec paper = h >> 16 & 1 ? c0 : c2;
        if (i < 1 || i > 4 || j < 1 || j > 4)
            return paper;
        return h >> (4 * (j - 1) + i - 1) & 1 ? c1 : paper;
    }
    case VGQ_FLAT:
    case VGQ_RENDER_TEXTURE_KINDS:
        break;
    }
    return c0;
}

vec vgq_render_colour(const vgq_render_texture *t, float u, float v, uint32_t face)
{
    const uint32_t seed = (uint32_t)t->seed + face * 7919u;
    const float p = t->frame[0] * u - t->frame[1] * v, q = t->frame[1] * u + t->frame[0] * v;
    const vec colour = pattern(t, p * t->rate[0], q * t->rate[1], seed);
    const float grain = 1.0f + t->grain * (2.0f * noise(5.0f * u, 5.0f * v, seed + 77u) - 1.0f);
    return scaled(colour, grain);
}
