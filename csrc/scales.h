/* SPDX-License-Identifier: Apache-2.0
 * docs/conventions.md in code, continued: a group's scale and zero point from its range, and the
 * scales of the two-level search. Shared by the CPU's front and CUDA's kernels. */
#ifndef VGQ_SCALES_H
#define VGQ_SCALES_H

#include "formats.h"
#include "vgq.h"

#include <float.h>

#ifdef __cplusplus
extern "C" {
#endif

/* The rows of formats.def. */
typedef struct vgq_range_of_codes {
    int bits, lowest, highest;
} vgq_range_of_codes;
extern const vgq_range_of_codes vgq_formats[VGQ_FORMATS];

/* A dtype or a shape that no quantize front takes. */
int vgq_bad_shape(vgq_dtype dtype, vgq_shape shape);

#ifdef __cplusplus
}
#endif

/* Linear map of one group: code = saturate(rint(x / scale) + zero), x = (code - zero) * scale. */
typedef struct vgq_map {
    float scale;
    int zero, lowest, highest;
} vgq_map;

/* A scale is a normal number, so that division by it and denormal-flushing callers are harmless. */
VGQ_INLINE float vgq_normal_scale(double scale) { return fmaxf((float)scale, FLT_MIN); }

/* The zero point for a scale: the code of 0.0, saturated. */
VGQ_INLINE int vgq_zero_for(vgq_range_of_codes format, float lo, float scale)
{
    const double z = rint(format.lowest - (double)lo / scale);
    return (int)fmin(fmax(z, (double)format.lowest), (double)format.highest);
}

/* The map of a range that holds 0. */
VGQ_INLINE vgq_map vgq_map_of(vgq_range_of_codes format, float lo, float hi, int asymmetric)
{
    vgq_map map = {0, 0, format.lowest, format.highest};
    if (!asymmetric) {
        map.scale = vgq_normal_scale(fmaxf(-lo, hi) / (float)format.highest);
        return map;
    }
    map.scale = vgq_normal_scale(((double)hi - (double)lo) / (format.highest - format.lowest));
    map.zero = vgq_zero_for(format, lo, map.scale);
    return map;
}

/* ---- two-level scales -------------------------------------------------------------------------
 * The factor that just covers a group's range is not the best one: clipping the few largest weights
 * makes all other steps finer. So a group tries that factor, the next, and VGQ_CLIPPED below it,
 * and keeps the one with the smallest squared error (the smallest factor of equals). */

enum { VGQ_CLIPPED = 4, VGQ_CANDIDATES = VGQ_CLIPPED + 2 };

VGQ_INLINE int vgq_largest_factor(int asymmetric) { return asymmetric ? 8 : 15; }

/* Nearest float with 17 significant bits, ties to even: times a factor (4 bits) times a code less
 * its zero point (5 bits; with 5 the factor has 3) it still fits the 24 bits of a float. */
VGQ_INLINE float vgq_round17(float x)
{
    int exponent;
    const double mantissa = frexp((double)x, &exponent);
    return (float)ldexp(rint(ldexp(mantissa, 17)), exponent - 17);
}

/* A row's scale, from the largest of its groups' covering scales. */
VGQ_INLINE float vgq_channel_scale(float widest, int largest)
{
    return fmaxf(vgq_round17(widest / (float)largest), FLT_MIN);
}

/* The factor that just covers a group whose own scale would be `scale`. */
VGQ_INLINE int vgq_covering_factor(float scale, float channel, int largest)
{
    return (int)fminf(floorf(scale / channel), (float)largest);
}

#endif
