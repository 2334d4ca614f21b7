/* SPDX-License-Identifier: Apache-2.0
 * Rows beside a product, for AVX2. */
#include "../kernels.h"

#if defined(__x86_64__)

#include "isa.h"

ISA_BEGIN("avx2,fma,f16c")

#include "end_row.h"
#include "norm_row.h"

static void norm_row_avx2(size_t k, const float *x, const vgq_norm *norm, float *y)
{
    norm_row(k, x, norm, y);
}

static void affine_row_avx2(size_t k, const float *x, const vgq_affine *affine, float *y)
{
    affine_row(k, x, affine, y);
}

static void end_row_avx2(size_t n, float *v, const float *scale, const void *residual,
                         vgq_dtype dtype, void *y)
{
    end_row(n, v, scale, residual, dtype, y);
}

const vgq_rows_kernels vgq_rows_avx2 = {
    .norm_row = norm_row_avx2, .affine_row = affine_row_avx2, .end_row = end_row_avx2};

ISA_END

#endif
