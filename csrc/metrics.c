/* SPDX-License-Identifier: Apache-2.0
 * Front of the metrics: checks, splits into blocks that do not depend on the threads, adds the
 * blocks' results by a fixed tree. The definitions are docs/conventions.md's. */
#include "metrics_lanes.h"

/* One of a call's two arrays, with the call's kernels. */
typedef struct array {
    vgq_dtype dtype;
    const void *x;
    const vgq_kernels *kernels;
} array;

static int bad_array(array a, size_t n) { return (unsigned)a.dtype >= VGQ_DTYPES || (n && !a.x); }

static const float *floats(array a, size_t offset, size_t n, float *buffer)
{
    return vgq_floats(a.kernels, a.dtype, a.x, offset, n, buffer);
}

/* parts[0] = the sum of all parts of `width` numbers each, added in pairs, then pairs of pairs. */
static void add_parts(size_t count, size_t width, double *parts)
{
    for (size_t step = 1; step < count; step *= 2)
        for (size_t i = 0; i + step < count; i += 2 * step)
            for (size_t k = 0; k < width; k++)
                parts[i * width + k] += parts[(i + step) * width + k];
}

/* ---- moments ------------------------------------------------------------------------------------
 */

vgq_status vgq_compare(size_t n, vgq_dtype r_dtype, const void *r_x, vgq_dtype c_dtype,
                       const void *c_x, vgq_moments *parts)
{
    const vgq_context now = vgq_context_now();
    const array r = {r_dtype, r_x, now.kernels}, c = {c_dtype, c_x, now.kernels};
    const size_t count = vgq_compare_parts(n);
    if (bad_array(r, n) || bad_array(c, n) || !parts)
        return VGQ_EINVAL;
#pragma omp parallel num_threads(vgq_team(now.threads, n))
    {
        float r_block[VGQ_BLOCK], c_block[VGQ_BLOCK];
        int stop = 0;
        vgq_float_mode mode;
        vgq_float_enter(&mode);
#pragma omp for schedule(static) nowait
        for (size_t b = 0; b < count; b++) {
            const size_t at = b * VGQ_BLOCK, size = vgq_min(VGQ_BLOCK, n - at);
            if ((stop = stop || vgq_stopped_at(b)))
                continue;
            now.kernels->metrics.moments(size, floats(r, at, size, r_block),
                                         floats(c, at, size, c_block), &parts[b]);
        }
        vgq_float_leave(&mode);
    }
    if (vgq_stopped())
        return VGQ_ESTOPPED;
    double lo = INFINITY, hi = -INFINITY;
    for (size_t b = 0; b < count; b++) {
        lo = parts[b].lo < lo ? parts[b].lo : lo;
        hi = parts[b].hi > hi ? parts[b].hi : hi;
    }
    add_parts(count, sizeof(*parts) / sizeof(double), (double *)parts);
    parts[0].lo = lo + 0.0; /* -0.0 becomes 0.0: which zero came first depends on the kernel */
    parts[0].hi = hi + 0.0;
    return VGQ_OK;
}

/* ---- cross entropy ------------------------------------------------------------------------------
 */

static float peak_of(array a, size_t offset, size_t n)
{
    float buffer[VGQ_BLOCK], peak = -INFINITY;
    for (size_t i = 0; i < n && !(i && vgq_stopped_at(i / VGQ_BLOCK)); i += VGQ_BLOCK) {
        const size_t size = vgq_min(VGQ_BLOCK, n - i);
        const float x = a.kernels->metrics.peak(size, floats(a, offset + i, size, buffer));
        peak = x > peak ? x : peak;
    }
    return peak;
}

static void row_sums(array r, array c, size_t offset, size_t n, double sums[VGQ_SOFTMAX_SUMS])
{
    const float r_peak = peak_of(r, offset, n), c_peak = peak_of(c, offset, n);
    float r_block[VGQ_BLOCK], c_block[VGQ_BLOCK];
    double lanes[VGQ_SOFTMAX_SUMS][VGQ_LANES] = {{0}};
    for (size_t i = 0; i < n && !(i && vgq_stopped_at(i / VGQ_BLOCK)); i += VGQ_BLOCK) {
        const size_t size = vgq_min(VGQ_BLOCK, n - i);
        r.kernels->metrics.softmax(size, floats(r, offset + i, size, r_block), r_peak,
                                   floats(c, offset + i, size, c_block), c_peak, lanes);
    }
    for (int k = 0; k < VGQ_SOFTMAX_SUMS; k++)
        sums[k] = vgq_lane_sum(lanes[k]);
}

vgq_status vgq_cross_entropy(size_t rows, size_t cols, vgq_dtype r_dtype, const void *r_x,
                             vgq_dtype c_dtype, const void *c_x, vgq_entropy *parts)
{
    const vgq_context now = vgq_context_now();
    const array r = {r_dtype, r_x, now.kernels}, c = {c_dtype, c_x, now.kernels};
    const size_t count = vgq_cross_entropy_parts(rows);
    size_t n;
    if (__builtin_mul_overflow(rows, cols, &n) || !n || bad_array(r, n) || bad_array(c, n) ||
        !parts)
        return VGQ_EINVAL;
#pragma omp parallel num_threads(vgq_team(now.threads, n))
    {
        vgq_float_mode mode;
        vgq_float_enter(&mode);
#pragma omp for schedule(static) nowait
        for (size_t part = 0; part < count; part++) {
            const size_t first = part * VGQ_ENTROPY_ROWS,
                         own = vgq_min(VGQ_ENTROPY_ROWS, rows - first);
            double sums[VGQ_ENTROPY_ROWS][VGQ_SOFTMAX_SUMS] = {{0}};
            parts[part] = (vgq_entropy){0};
            for (size_t k = 0; k < own && !vgq_stopped(); k++)
                row_sums(r, c, (first + k) * cols, cols, sums[k]);
            for (size_t k = 0; k < own; k++) /* apart, so that the logarithms overlap */
                vgq_add_entropy(sums[k], &parts[part]);
        }
        vgq_float_leave(&mode);
    }
    if (vgq_stopped())
        return VGQ_ESTOPPED;
    add_parts(count, sizeof(*parts) / sizeof(double), (double *)parts);
    parts[0].cross_entropy /= (double)rows;
    parts[0].kl_divergence /= (double)rows;
    return VGQ_OK;
}

/* ---- structural similarity ----------------------------------------------------------------------
 */

/* A part is a row of a tile (metrics_sizes.h). Walking down a tile, eleven filtered rows are kept,
 * and each further part filters one more. */
vgq_status vgq_ssim(vgq_images shape, vgq_dtype r_dtype, const void *r_x, vgq_dtype c_dtype,
                    const void *c_x, double data_range, double centre, double *parts)
{
    const vgq_context now = vgq_context_now();
    const array r = {r_dtype, r_x, now.kernels}, c = {c_dtype, c_x, now.kernels};
    if (vgq_bad_images(shape) || bad_array(r, 1) || bad_array(c, 1) || !(data_range > 0) || !parts)
        return VGQ_EINVAL;
    const vgq_tiling t = vgq_tiling_of(shape);
    const size_t margin = (VGQ_SSIM_SIDE - 1) * shape.channels;
    const double c1 = 0.01 * data_range, c2 = 0.03 * data_range;
#pragma omp parallel num_threads(vgq_team(now.threads, t.parts *VGQ_SSIM_TILE))
    {
        float r_line[VGQ_SSIM_TILE + VGQ_SSIM_MARGIN], c_line[VGQ_SSIM_TILE + VGQ_SSIM_MARGIN];
        vgq_ssim_row ring[VGQ_SSIM_SIDE];
        int stop = 0;
        size_t next = t.parts; /* the part that the ring is ready for, but for one row */
        vgq_float_mode mode;
        vgq_float_enter(&mode);
#pragma omp for schedule(static) nowait
        for (size_t part = 0; part < t.parts; part++) {
            if ((stop = stop || vgq_stopped_at(part)))
                continue;
            const size_t y = part % t.map_height, tile = part / t.map_height % t.tiles;
            const size_t image = part / t.map_height / t.tiles, left = tile * VGQ_SSIM_TILE;
            const size_t n = vgq_min(VGQ_SSIM_TILE, t.map_line - left);
            const vgq_ssim_row *rows[VGQ_SSIM_SIDE];
            /* uncovered: one thread has the parts in order, and gcov counts no team's */
            const size_t ready = y && part == next ? VGQ_SSIM_SIDE - 1 : 0;
            for (size_t k = ready; k < VGQ_SSIM_SIDE; k++) {
                const size_t at = (image * t.height + y + k) * t.line + left;
                now.kernels->metrics.ssim_across(
                    n, shape.channels, floats(r, at, n + margin, r_line),
                    floats(c, at, n + margin, c_line), 2 * centre, &ring[(y + k) % VGQ_SSIM_SIDE]);
            }
            for (size_t k = 0; k < VGQ_SSIM_SIDE; k++)
                rows[k] = &ring[(y + k) % VGQ_SSIM_SIDE];
            parts[part] =
                now.kernels->metrics.ssim_down(n, rows, 2 * centre, 2 * c1 * c1, 2 * c2 * c2);
            next = part + 1;
        }
        vgq_float_leave(&mode);
    }
    if (vgq_stopped())
        return VGQ_ESTOPPED;
    add_parts(t.parts, 1, parts);
    parts[0] /= (double)shape.images * (double)t.map_height * (double)t.map_line;
    return VGQ_OK;
}

/* ---- the table ------------------------------------------------------------------------------- */

const vgq_metric *vgq_metric_row(size_t index)
{
    static const vgq_metric rows[] = {
#define METRIC(name, unit, larger, value) {#name, unit, larger, 0},
#define COMPANION(name, unit, larger, value) {#name, unit, larger, 1},
#include "metrics.def"
    };
    return index < sizeof(rows) / sizeof(*rows) ? &rows[index] : NULL;
}

static double decibels(double peak_square, double mse)
{
    const double ten_over_ln_10 = 0x1.15f2ced384f29p+2;
    if (mse == 0)
        return INFINITY;
    return peak_square > 0 ? ten_over_ln_10 * vgq_log_one(peak_square / mse) : NAN;
}

/* sqrt(x * x) is x, so equal arrays give exactly 1; rounding could otherwise step beyond it. */
static double cosine(double rc, double rr, double cc)
{
    const double norms = sqrt(rr * cc);
    return norms > 0 ? fmin(fmax(rc / norms, -1), 1) : NAN;
}

vgq_status vgq_metric_values(const vgq_moments *m, const vgq_metric_parts *p, double *values)
{
    if (!m || !p || !values)
        return VGQ_EINVAL;
    vgq_float_mode mode;
    vgq_float_enter(&mode);
    const int defined = m->n > 0 && m->nonfinite_r + m->nonfinite_c == 0;
    double *value = values;
#define METRIC(name, unit, larger, formula) *value++ = defined ? (formula) : NAN;
#define COMPANION METRIC
#include "metrics.def"
    vgq_float_leave(&mode);
    return VGQ_OK;
}

/* ---- exp and log ----------------------------------------------------------------------------- */

vgq_status vgq_exp(size_t n, const double *x, double *y)
{
    if (n && (!x || !y))
        return VGQ_EINVAL;
    const vgq_kernels *const kernels = vgq_context_now().kernels;
    vgq_float_mode mode;
    vgq_float_enter(&mode);
    for (size_t i = 0; i < n && !vgq_stopped_at(i / VGQ_BLOCK); i += VGQ_BLOCK)
        kernels->metrics.exp(vgq_min(VGQ_BLOCK, n - i), x + i, y + i);
    vgq_float_leave(&mode);
    return vgq_stopped() ? VGQ_ESTOPPED : VGQ_OK;
}

vgq_status vgq_log(size_t n, const double *x, double *y)
{
    if (n && (!x || !y))
        return VGQ_EINVAL;
    vgq_float_mode mode;
    vgq_float_enter(&mode);
    for (size_t i = 0; i < n && !vgq_stopped_at(i); i++)
        y[i] = vgq_log_one(x[i]);
    vgq_float_leave(&mode);
    return vgq_stopped() ? VGQ_ESTOPPED : VGQ_OK;
}
