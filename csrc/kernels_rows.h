/* SPDX-License-Identifier: Apache-2.0
 * Private: the slots of what is done with one row of floats beside a product (included by
 * kernels.h). */
#ifndef VGQ_KERNELS_ROWS_H
#define VGQ_KERNELS_ROWS_H

/* y[k] = LayerNorm of x[k]; x and y may be the same. norm->weight is there. In float: lane i % 16
 * adds x[i] in the order of i, the lanes are added by the tree of vgq_lane_sum, and the sum is
 * divided by k: the mean. The squares of x[i] - mean are added in the same way, each by one fused
 * multiply-add; inverse = 1 / sqrt(their mean + eps). Then (x[i] - mean) * inverse, and with bias
 * one fused multiply-add by weight[i] and bias[i], else times weight[i]. */
typedef void vgq_norm_row_fn(size_t k, const float *x, const vgq_norm *norm, float *y);

/* y[k] = x[k] by vgq_affine; x and y may be the same. affine->weight is there. */
typedef void vgq_affine_row_fn(size_t k, const float *x, const vgq_affine *affine, float *y);

/* y[n] = v * scale + residual, of y's dtype, rounded once; scale NULL: v + residual. dtype: float32
 * or bfloat16; y may be the residual itself. v is overwritten. */
typedef void vgq_end_row_fn(size_t n, float *v, const float *scale, const void *residual,
                            vgq_dtype dtype, void *y);

typedef struct vgq_rows_kernels {
    vgq_norm_row_fn *norm_row;
    vgq_affine_row_fn *affine_row;
    vgq_end_row_fn *end_row;
} vgq_rows_kernels;

#endif
