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
    if (e->residual && e->dtype != VGQ_F16) {
        const size_t at = (m * e->n + column) * vgq_dtype_nbytes(e->dtype);
        e->kernels->rows.end_row(n, v, e->layer_scale ? e->layer_scale + column : NULL,
                                 (const char *)e->residual + at, e->dtype, vgq_y_at(e, m, p));
        return;
    }
    for (size_t c = 0; e->layer_scale && c < n; c++)
        v[c] *= e->layer_scale[column + c];
    if (e->residual) {
        const uint16_t *const r = (const uint16_t *)e->residual + m * e->n + column;
        for (size_t c = 0; c < n; c++)
            v[c] += vgq_float_of_f16(r[c]);
    }
    e->kernels->quantize.store[e->dtype](n, v, vgq_y_at(e, m, p));
}

void vgq_fetch_rows(const vgq_epilogue *e, size_t m, size_t rows, size_t p)
{
    const size_t nbytes = VGQ_PANEL * vgq_dtype_nbytes(e->dtype);
    for (size_t r = 0; r < rows; r++)
        for (size_t i = 0; i < nbytes; i += VGQ_ALIGN)
            __builtin_prefetch(vgq_y_at(e, m + r, p) + i, 1);
    if (!e->residual || e->residual == e->y)
        return;
    const char *const from = (const char *)e->residual + (vgq_y_at(e, m, p) - (char *)e->y);
    for (size_t r = 0; r < rows; r++)
        for (size_t i = 0; i < nbytes; i += VGQ_ALIGN)
            __builtin_prefetch(from + r * e->n * vgq_dtype_nbytes(e->dtype) + i);
}
