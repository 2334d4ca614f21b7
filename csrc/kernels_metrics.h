/* SPDX-License-Identifier: Apache-2.0
 * Private: the slots of the metrics kernels (included by kernels.h).
 * Every sum has 16 lanes: element i of a block or row goes to lane i % 16, in index order; only d *
 * d, exact products and correctly rounded operations, no fused ones where that changes a bit. */
#ifndef VGQ_KERNELS_METRICS_H
#define VGQ_KERNELS_METRICS_H

/* The moments of one block; m is overwritten. lo and hi may have either sign of zero. */
typedef void vgq_moments_fn(size_t n, const float *r, const float *c, vgq_moments *m);

/* The largest element; -Inf for none. */
typedef float vgq_peak_fn(size_t n, const float *x);

/* Rows whose entropies are added one after the other to one part. */
enum { VGQ_ENTROPY_ROWS = 256 };

/* Sums over a row, with a = r - r_peak, b = c - c_peak: e^a, e^b, e^a * -b, e^a * (a - b). */
enum { VGQ_SOFTMAX_R, VGQ_SOFTMAX_C, VGQ_SOFTMAX_CROSS, VGQ_SOFTMAX_KL, VGQ_SOFTMAX_SUMS };
typedef void vgq_softmax_fn(size_t n, const float *r, float r_peak, const float *c, float c_peak,
                            double lanes[VGQ_SOFTMAX_SUMS][VGQ_LANES]);

/* SSIM works on s = r + c - 2 * centre and d = r - c: four filtered maps instead of five. */
#define VGQ_SSIM_TILE 256
#define VGQ_SSIM_MARGIN ((VGQ_SSIM_SIDE - 1) * VGQ_SSIM_CHANNELS)
enum { VGQ_SSIM_S, VGQ_SSIM_D, VGQ_SSIM_SS, VGQ_SSIM_DD, VGQ_SSIM_MAPS };
/* s, d, s^2, d^2; the 8 keeps equal places of neighbouring rows off the same cache set */
typedef struct vgq_ssim_row {
    double maps[VGQ_SSIM_MAPS][VGQ_SSIM_TILE + 8];
} vgq_ssim_row;

/* One row, filtered along it: output i from the inputs i, i + channels, ... i + 10 * channels. */
typedef void vgq_ssim_across_fn(size_t n, size_t channels, const float *r, const float *c,
                                double twice_centre, vgq_ssim_row *row);
/* Eleven such rows, filtered down; the sum of the similarities of n pixels. */
typedef double vgq_ssim_down_fn(size_t n, const vgq_ssim_row *const rows[VGQ_SSIM_SIDE],
                                double twice_centre, double c1, double c2);

typedef void vgq_exp_fn(size_t n, const double *x, double *y);

typedef struct vgq_metrics_kernels {
    vgq_moments_fn *moments;
    vgq_peak_fn *peak;
    vgq_softmax_fn *softmax;
    vgq_ssim_across_fn *ssim_across;
    vgq_ssim_down_fn *ssim_down;
    vgq_exp_fn *exp;
} vgq_metrics_kernels;

#endif
