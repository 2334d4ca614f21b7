/* SPDX-License-Identifier: Apache-2.0
 * Rows beside a product, in plain C: the definition of right for every other table. */
#include "end_row.h"
#include "norm_row.h"

static void norm_row_scalar(size_t k, const float *x, const vgq_norm *norm, float *y)
{
    norm_row(k, x, norm, y);
}

static void affine_row_scalar(size_t k, const float *x, const vgq_affine *affine, float *y)
{
    affine_row(k, x, affine, y);
}

static void end_row_scalar(size_t n, float *v, const float *scale, const void *residual,
                           vgq_dtype dtype, void *y)
{
    end_row(n, v, scale, residual, dtype, y);
}

const vgq_rows_kernels vgq_rows_scalar = {
    .norm_row = norm_row_scalar, .affine_row = affine_row_scalar, .end_row = end_row_scalar};
