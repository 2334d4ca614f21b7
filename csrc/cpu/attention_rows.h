/* SPDX-License-Identifier: Apache-2.0
 * Rows of q, k and v before they are multiplied, in plain C that a compiler makes vectors of. A
 * table's file includes this between ISA_BEGIN and ISA_END, so each has the same operations in its
 * own instructions; fmaf is one of them, or a call of the C library. */
#ifndef VGQ_ATTENTION_ROWS_H
#define VGQ_ATTENTION_ROWS_H

#include "norm_row.h"

/* Turn x by a token's angles. */
static inline void rotate(const vgq_rows *rows, size_t token, float *x)
{
    const size_t at = token % rows->rope_tokens * rows->dim, half = rows->rope_width / 2;
    const float *const cosine = rows->cos + at, *const sine = rows->sin + at;
    for (size_t start = 0; start < rows->dim; start += 2 * half) {
        float turned[VGQ_WIDEST];
        for (size_t i = 0; i < half; i++) {
            const float a = x[start + i], b = x[start + half + i];
            turned[i] = fmaf(-b, sine[start + i], a * cosine[start + i]);
            turned[half + i] = fmaf(a, sine[start + half + i], b * cosine[start + half + i]);
        }
        memcpy(x + start, turned, 2 * half * sizeof(*x));
    }
}

/* Ask for the row that stands some rows behind `from`: in qkv each has a page of its own. */
static inline void fetch_ahead(const vgq_rows *rows, const char *from)
{
    enum { AHEAD = 8 };
    const size_t nbytes = vgq_dtype_nbytes(rows->dtype);
    for (size_t i = 0; i < rows->dim * nbytes; i += 64)
        __builtin_prefetch(from + AHEAD * rows->stride * nbytes + i);
}

static inline void prepare_rows(const vgq_rows *rows, size_t first, size_t n, float *to)
{
    for (size_t t = first; t < first + n; t++, to += rows->depth) {
        const char *const from =
            (const char *)rows->x + t * rows->stride * vgq_dtype_nbytes(rows->dtype);
        fetch_ahead(rows, from); /* behind the last row too: it asks, and does not read */
        const uint16_t *const half = (const uint16_t *)(const void *)from;
        if (rows->dtype == VGQ_F32)
            memcpy(to, from, rows->dim * sizeof(*to));
        else if (rows->dtype == VGQ_BF16)
            for (size_t i = 0; i < rows->dim; i++)
                to[i] = vgq_float_of_bf16(half[i]);
        else
            for (size_t i = 0; i < rows->dim; i++)
                to[i] = vgq_float_of_f16(half[i]);
        memset(to + rows->dim, 0, (rows->depth - rows->dim) * sizeof(*to));
        if (rows->norm.weight)
            norm_row(rows->dim, to, &rows->norm, to);
        if (rows->cos)
            rotate(rows, t, to);
    }
}

/* The largest magnitude, as the integer that its bits are. */
static inline uint32_t largest_bits(size_t n, const float *x)
{
    uint32_t largest = 0;
    for (size_t i = 0; i < n; i++) {
        const uint32_t bits = vgq_bits_of_float(x[i]) & 0x7fffffffu;
        largest = bits > largest ? bits : largest;
    }
    return largest;
}

/* Whether one of n values is NaN or infinite. */
static inline int not_finite(size_t n, const float *x) { return largest_bits(n, x) >= 0x7f800000u; }

/* rint(x * inverse) of magnitudes up to 127: x within `largest`, of which inverse is 127 / largest,
 * cannot leave them. A float far below 2^22 that is added to 1.5 * 2^23 loses what stands behind
 * the point, ties to even. Of what is not finite: any number, which is not looked at. */
static inline int32_t code_value(float x, float inverse)
{
    return (int32_t)vgq_bits_of_float(x * inverse + 0x1.8p23f) - 0x4b400000;
}

static inline void code_values(size_t n, const float *x, float inverse, int32_t *codes)
{
    for (size_t i = 0; i < n; i++)
        codes[i] = code_value(x[i], inverse);
}

/* The codes of a row, its scale, and whether it is finite: zeros and NaN where it is not. */
static inline float code_row(size_t depth, const float *x, int32_t *codes)
{
    float inverse;
    const float scale = vgq_token_scale(largest_bits(depth, x), VGQ_INT8_HIGHEST, &inverse);
    if (inverse > 0)
        code_values(depth, x, inverse, codes);
    else
        memset(codes, 0, depth * sizeof(*codes));
    return scale;
}

/* A scale of keys without its lowest two bits: 1.5 * 2^23 times it is a float then, which lets a
 * product with integers that stand that much too high lose it exactly. So that this is finite, keys
 * beyond 2^100 count as infinite. */
static inline float key_scale(float scale)
{
    return scale < 0x1p93f ? vgq_float_of_bits(vgq_bits_of_float(scale) & ~3u) : NAN;
}

/* largest[depth] of n rows, one a channel. */
static inline void largest_columns(size_t n, size_t depth, const float *x, uint32_t *largest)
{
    memset(largest, 0, depth * sizeof(*largest));
    for (size_t i = 0; i < n; i++)
        for (size_t c = 0; c < depth; c++) {
            const uint32_t bits = vgq_bits_of_float(x[i * depth + c]) & 0x7fffffffu;
            largest[c] = bits > largest[c] ? bits : largest[c];
        }
}

/* A block's scales of v, one a channel, and what its values are multiplied by; whether all are
 * finite. */
static inline int column_scales(size_t n, size_t depth, const float *x, float *scale,
                                float *inverse)
{
    uint32_t largest[VGQ_WIDEST];
    int finite = 1;
    largest_columns(n, depth, x, largest);
    for (size_t c = 0; c < depth; c++) {
        finite &= largest[c] < 0x7f800000u;
        scale[c] = vgq_token_scale(largest[c], VGQ_INT8_HIGHEST, &inverse[c]);
    }
    return finite;
}

/* ---- float32 ----------------------------------------------------------------------------------
 */

static inline void code_queries_f32(size_t n, size_t depth, const float *x, float factor, void *q,
                                    float *r, int32_t *first)
{
    memcpy(q, x, n * depth * sizeof(*x));
    for (size_t i = 0; i < n; i++) {
        r[i] = not_finite(depth, x + i * depth) ? NAN : factor;
        first[i] = 0;
    }
}

/* v as it is: [key][channel] */
static inline int pack_values_f32(size_t n, size_t depth, const float *x, void *block, float *scale)
{
    const size_t padded = vgq_round_up(n, VGQ_PANEL);
    memcpy(block, x, n * depth * sizeof(*x));
    memset((float *)block + n * depth, 0, (padded - n) * depth * sizeof(*x));
    for (size_t c = 0; c < depth; c++)
        scale[c] = 1;
    return not_finite(n * depth, x);
}

/* v: [channel / 16][key][16] */
static inline int pack_blocks_f32(size_t n, size_t depth, const float *x, void *block, float *scale)
{
    enum { WIDE = 16 };
    const size_t padded = vgq_round_up(n, VGQ_PANEL);
    float *v = block;
    for (size_t c = 0; c < depth; c += WIDE, v += padded * WIDE) {
        for (size_t j = 0; j < n; j++)
            memcpy(v + j * WIDE, x + j * depth + c, WIDE * sizeof(*v));
        memset(v + n * WIDE, 0, (padded - n) * WIDE * sizeof(*v));
    }
    for (size_t c = 0; c < depth; c++)
        scale[c] = 1;
    return not_finite(n * depth, x);
}

/* ---- INT8 -------------------------------------------------------------------------------------
 */

static inline void code_queries_i8(size_t n, size_t depth, const float *x, float factor, void *q,
                                   float *r, int32_t *first)
{
    int32_t codes[VGQ_WIDEST];
    int8_t *to = q;
    for (size_t m = 0; m < n; m++, to += depth) {
        r[m] = code_row(depth, x + m * depth, codes) * factor;
        first[m] = 0;
        for (size_t i = 0; i < depth; i++)
            to[i] = (int8_t)codes[i];
    }
}

#endif
