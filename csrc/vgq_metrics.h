/* ---- metrics (metrics.c) ----------------------------------------------------------------------
 */
/* Two arrays of the same shape: r the reference, c the candidate, each of its own dtype. The same
 * bits on every instruction set and with any number of threads. NaN and infinite elements are
 * counted by vgq_compare; every other result is unspecified where there are any. `parts` is scratch
 * of as many elements as the function named says; parts[0] becomes the result. */

/* What a pass over both arrays leaves, counts as doubles. lo, hi: of the finite reference, +Inf and
 * -Inf where nothing is finite. Then a sum for each SUM row of metrics.def. */
typedef struct vgq_moments {
    double n, nonfinite_r, nonfinite_c, lo, hi;
#define SUM(name, term) double name;
#include "metrics.def"
} vgq_moments;

/* Parts for n elements. */
size_t vgq_compare_parts(size_t n);
vgq_status vgq_compare(size_t n, vgq_dtype r_dtype, const void *r, vgq_dtype c_dtype, const void *c,
                       vgq_moments *parts);

/* Means over the rows of the softmax cross entropy and of the Kullback-Leibler divergence, in nats.
 */
typedef struct vgq_entropy {
    double cross_entropy, kl_divergence;
} vgq_entropy;

size_t vgq_cross_entropy_parts(size_t rows);
vgq_status vgq_cross_entropy(size_t rows, size_t cols, vgq_dtype r_dtype, const void *r,
                             vgq_dtype c_dtype, const void *c, vgq_entropy *parts);

/* images x height x width x channels; side: of the window; channels: at most VGQ_SSIM_CHANNELS
 * (more are more images, after a transpose by the caller). */
#define VGQ_SSIM_SIDE 11
#define VGQ_SSIM_CHANNELS 16
typedef struct vgq_images {
    size_t images, height, width, channels;
} vgq_images;

size_t vgq_ssim_parts(vgq_images shape);
/* Mean structural similarity. centre: any value near the data, best (lo + hi) / 2; it keeps small
 * variances around a large mean from cancelling.
 * VGQ_EINVAL: smaller than the window, or a data_range that is not positive. */
vgq_status vgq_ssim(vgq_images shape, vgq_dtype r_dtype, const void *r, vgq_dtype c_dtype,
                    const void *c, double data_range, double centre, double *parts);

/* The rows of metrics.def, the metrics first and then their companions. */
typedef struct vgq_metric {
    const char *name, *unit;
    int larger_is_better, is_companion;
} vgq_metric;

/* What formulas take beside the moments; NaN where it was not computed. */
typedef struct vgq_metric_parts {
    double data_range, cross_entropy, kl_divergence, ssim;
} vgq_metric_parts;

/* The index-th row; NULL past the last. */
const vgq_metric *vgq_metric_row(size_t index);
/* A value for each row; NaN where it is undefined. */
vgq_status vgq_metric_values(const vgq_moments *m, const vgq_metric_parts *p, double *values);

/* y[i] = e^x[i] and ln x[i], as the entropies use them: within 1 ulp for e^-708..e^709 and positive
 * normal x. e^x is 0 below, Inf above. x and y may be the same. */
vgq_status vgq_exp(size_t n, const double *x, double *y);
vgq_status vgq_log(size_t n, const double *x, double *y);
