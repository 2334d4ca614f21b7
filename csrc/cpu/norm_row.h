/* SPDX-License-Identifier: Apache-2.0
 * LayerNorm of a row, and an affine map, in plain C that a compiler makes vectors of. A table's
 * file includes this between ISA_BEGIN and ISA_END; fmaf is an instruction there, or a call of the
 * C library. */
#ifndef VGQ_NORM_ROW_H
#define VGQ_NORM_ROW_H

#include "../kernels.h"

#include <math.h>

/* The tree of vgq_lane_sum, in float. */
static inline float tree_sum(const float x[VGQ_LANES])
{
    float eight[8], four[4];
    for (size_t i = 0; i < 8; i++)
        eight[i] = x[i] + x[i + 8];
    for (size_t i = 0; i < 4; i++)
        four[i] = eight[i] + eight[i + 4];
    return (four[0] + four[2]) + (four[1] + four[3]);
}

static inline void norm_row(size_t k, const float *x, const vgq_norm *norm, float *y)
{
    const size_t whole = k - k % VGQ_LANES;
    float lanes[VGQ_LANES] = {0};
    for (size_t i = 0; i < whole; i += VGQ_LANES)
        for (size_t j = 0; j < VGQ_LANES; j++)
            lanes[j] += x[i + j];
    for (size_t j = 0; j < k - whole; j++)
        lanes[j] += x[whole + j];
    const float mean = tree_sum(lanes) / (float)k;
    for (size_t j = 0; j < VGQ_LANES; j++)
        lanes[j] = 0;
    for (size_t i = 0; i < whole; i += VGQ_LANES)
        for (size_t j = 0; j < VGQ_LANES; j++) {
            const float d = x[i + j] - mean;
            lanes[j] = fmaf(d, d, lanes[j]);
        }
    for (size_t j = 0; j < k - whole; j++) {
        const float d = x[whole + j] - mean;
        lanes[j] = fmaf(d, d, lanes[j]);
    }
    const float inverse = 1.0f / sqrtf(tree_sum(lanes) / (float)k + norm->eps);
    const float *const weight = norm->weight, *const bias = norm->bias;
    if (bias)
        for (size_t i = 0; i < k; i++)
            y[i] = fmaf((x[i] - mean) * inverse, weight[i], bias[i]);
    else
        for (size_t i = 0; i < k; i++)
            y[i] = (x[i] - mean) * inverse * weight[i];
}

static inline void affine_row(size_t k, const float *x, const vgq_affine *affine, float *y)
{
    const float *const weight = affine->weight, *const bias = affine->bias;
    if (bias)
        for (size_t i = 0; i < k; i++)
            y[i] = fmaf(x[i], weight[i], bias[i]);
    else
        for (size_t i = 0; i < k; i++)
            y[i] = x[i] * weight[i];
}

#endif
