/* SPDX-License-Identifier: Apache-2.0
 * The end of a product, for one row and one panel at a time. */
#include "epilogue.h"

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
    const size_t n = vgq_min(VGQ_PANEL, e->n - p * VGQ_PANEL);
    const float *const scale = vgq_layer_scale_at(e, p);
    const void *const residual = vgq_residual_at(e, m, p);
    if (e->gelu)
        e->kernels->linear.gelu(n, v);
    if (residual && e->dtype != VGQ_F16) {
        e->kernels->rows.end_row(n, v, scale, residual, e->dtype, vgq_y_at(e, m, p));
        return;
    }
    for (size_t c = 0; scale && c < n; c++)
        v[c] *= scale[c];
    for (size_t c = 0; residual && c < n; c++)
        v[c] += vgq_float_of_f16(((const uint16_t *)residual)[c]);
    e->kernels->quantize.store[e->dtype](n, v, vgq_y_at(e, m, p));
}

void vgq_fetch_rows(const vgq_epilogue *e, size_t m, size_t rows, size_t p)
{
    const size_t element = vgq_dtype_nbytes(e->dtype);
    vgq_fetch(vgq_y_at(e, m, p), rows, e->n * element, VGQ_PANEL * element);
    if (e->residual && e->residual != e->y)
        vgq_fetch(vgq_residual_at(e, m, p), rows, e->n * element, VGQ_PANEL * element);
}
