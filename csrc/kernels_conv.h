/* SPDX-License-Identifier: Apache-2.0
 * Private: the slots of the convolution kernels (included by kernels.h). The products themselves
 * are the Linear's tiles (kernels_linear.h); these are the passes before and after a tile. Each is
 * one loop over neighbouring channels, written once in cpu/conv_loops.h. */
#ifndef VGQ_KERNELS_CONV_H
#define VGQ_KERNELS_CONV_H

/* What a tile's epilogue adds up and does. */
typedef struct vgq_conv_columns {
    int32_t
        correction[VGQ_PANEL]; /* of a column: what unsigned codes lack, 127 times its weights */
    int32_t offset;            /* what the operand's elements stand above the weights */
    float scale[VGQ_PANEL], bias[VGQ_PANEL];
} vgq_conv_columns;

/* out = a + weight * (b - a) */
typedef void vgq_lerp_fn(size_t n, const float *a, const float *b, float weight, float *out);
/* x += added */
typedef void vgq_add_fn(size_t n, const float *added, float *x);
/* codes = min(rint(relu(x * inverse)), 254) - 127, as floats; a NaN counts as 0. */
typedef void vgq_unsigned_fn(size_t n, const float *x, float inverse, float *codes);
/* y[r][64] = (float)(sum of acc[s][r] over segments - offset * sums[r] + correction) * x_scale *
 * scale + bias. Segments of acc lie `apart` elements from each other, rows 64; those of y ldy. */
typedef void vgq_conv_finish_fn(size_t rows, size_t segments, size_t apart, const int32_t *acc,
                                const vgq_conv_columns *columns, const int32_t *sums, float x_scale,
                                float *y, size_t ldy);
/* The largest magnitudes of the outputs of a panel's columns, and of those that are not negative,
 * as the integers that their bits are. */
typedef struct vgq_conv_most {
    int32_t magnitude[VGQ_PANEL], positive[VGQ_PANEL];
} vgq_conv_most;
/* The last step of n outputs of some pixels, ldy elements from each other: y = relu(y) where
 * `relu`, plus residual (likewise; NULL: none), relu of that where `relu_sum`; `most` grows. */
typedef void vgq_conv_last_fn(size_t pixels, size_t n, float *y, size_t ldy, int relu,
                              const float *residual, int relu_sum, vgq_conv_most *most);
/* The products of y (n, padded with zeros to 64) with `outputs` rows of 64 weights, plus bias:
 * 16 lanes, lane i + 16 j in the order of j, added by a fixed tree. */
typedef void vgq_conv_project_fn(size_t outputs, const float *y, const float *weight,
                                 const float *bias, float *out);

typedef struct vgq_conv_kernels {
    vgq_lerp_fn *lerp;
    vgq_add_fn *add;
    vgq_unsigned_fn *code_unsigned;
    vgq_conv_finish_fn *finish;
    vgq_conv_last_fn *last;
    vgq_conv_project_fn *project;
} vgq_conv_kernels;

#endif
