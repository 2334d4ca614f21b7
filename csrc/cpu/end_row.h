/* SPDX-License-Identifier: Apache-2.0
 * The end of a row of a product in plain C that a compiler makes vectors of. A table's file
 * includes this between ISA_BEGIN and ISA_END. */
#ifndef VGQ_END_ROW_H
#define VGQ_END_ROW_H

#include "../kernels.h"

static inline void end_row(size_t n, float *v, const float *scale, const void *residual,
                           vgq_dtype dtype, void *y)
{
    if (scale)
        for (size_t i = 0; i < n; i++)
            v[i] *= scale[i];
    if (dtype == VGQ_F32) {
        const float *const r = residual;
        float *const to = y;
        for (size_t i = 0; i < n; i++)
            to[i] = v[i] + r[i];
    } else {
        const uint16_t *const r = residual;
        uint16_t *const to = y;
        for (size_t i = 0; i < n; i++)
            to[i] = vgq_bf16_of_float(v[i] + vgq_float_of_bf16(r[i]));
    }
}

#endif
