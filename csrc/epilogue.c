/* SPDX-License-Identifier: Apache-2.0
 * The end of a product, for one row and one panel at a time. */
#include "epilogue.h"
#include "tasks.h"

#include <string.h>

void vgq_bias_of(const vgq_epilogue *e, size_t p, float bias[VGQ_PANEL])
{
    const size_t column = p * VGQ_PANEL, n = vgq_min(VGQ_PANEL, e->n - column);
    memset(bias, 0, VGQ_PANEL * sizeof(*bias));
    if (e->bias)
        memcpy(bias, e->bias + column, n * sizeof(*bias));
}

void vgq_store_row(const vgq_epilogue *e, size_t m, size_t p, float v[VGQ_PANEL])
{
    const size_t column = p * VGQ_PANEL, n = vgq_min(VGQ_PANEL, e->n - column);
    if (e->gelu)
        e->kernels->linear.gelu(n, v);
    for (size_t c = 0; e->layer_scale && c < n; c++)
        v[c] *= e->layer_scale[column + c];
    if (e->residual) {
        float buffer[VGQ_PANEL];
        const float *const r =
            vgq_floats(e->kernels, e->dtype, e->residual, m * e->n + column, n, buffer);
        for (size_t c = 0; c < n; c++)
            v[c] += r[c];
    }
    e->kernels->quantize.store[e->dtype](n, v, vgq_y_at(e, m, p));
}

void vgq_fetch_rows(const vgq_epilogue *e, size_t m, size_t rows, size_t p)
{
    const size_t nbytes = VGQ_PANEL * vgq_dtype_nbytes(e->dtype);
    for (size_t r = 0; r < rows; r++)
        for (size_t i = 0; i < nbytes; i += VGQ_ALIGN)
            __builtin_prefetch(vgq_y_at(e, m + r, p) + i, 1);
}
