/* SPDX-License-Identifier: Apache-2.0
 * Rows beside a product, in plain C: the definition of right for every other table. */
#include "norm_row.h"

static void norm_row_scalar(size_t k, const float *x, const vgq_norm *norm, float *y)
{
    norm_row(k, x, norm, y);
}

static void affine_row_scalar(size_t k, const float *x, const vgq_affine *affine, float *y)
{
    affine_row(k, x, affine, y);
}

const vgq_rows_kernels vgq_rows_scalar = {.norm_row = norm_row_scalar,
                                          .affine_row = affine_row_scalar};
