/* SPDX-License-Identifier: Apache-2.0
 * The metrics kernels in plain C: the definition of right, docs/conventions.md in code. */
#include "../metrics_lanes.h"

static void moments_scalar(size_t n, const float *r, const float *c, vgq_moments *m)
{
    double lanes[SUMS][VGQ_LANES] = {{0}};
    *m = (vgq_moments){.n = (double)n, .lo = INFINITY, .hi = -INFINITY};
    for (size_t i = 0; i < n; i++) {
        add_element(lanes, i, r[i], c[i]);
        vgq_add_to_range(r[i], c[i], m);
    }
    lanes_to_moments(lanes, m);
}

static float peak_scalar(size_t n, const float *x)
{
    float peak = -INFINITY;
    for (size_t i = 0; i < n; i++)
        peak = x[i] > peak ? x[i] : peak;
    return peak;
}

static void softmax_scalar(size_t n, const float *r, float r_peak, const float *c, float c_peak,
                           double lanes[VGQ_SOFTMAX_SUMS][VGQ_LANES])
{
    for (size_t i = 0; i < n; i++) {
        const size_t lane = i % VGQ_LANES;
        const double a = (double)r[i] - r_peak, b = (double)c[i] - c_peak;
        const double ea = vgq_exp_one(a);
        lanes[VGQ_SOFTMAX_R][lane] += ea;
        lanes[VGQ_SOFTMAX_C][lane] += vgq_exp_one(b);
        lanes[VGQ_SOFTMAX_CROSS][lane] += ea * -b;
        lanes[VGQ_SOFTMAX_KL][lane] += ea * (a - b);
    }
}

static void ssim_across_scalar(size_t n, size_t channels, const float *r, const float *c,
                               double twice_centre, vgq_ssim_row *row)
{
    double maps[VGQ_SSIM_MAPS][VGQ_SSIM_TILE + VGQ_SSIM_MARGIN];
    for (size_t i = 0; i < n + (VGQ_SSIM_SIDE - 1) * channels; i++) {
        const double s = ((double)r[i] + c[i]) - twice_centre, d = (double)r[i] - c[i];
        maps[VGQ_SSIM_S][i] = s;
        maps[VGQ_SSIM_D][i] = d;
        maps[VGQ_SSIM_SS][i] = s * s;
        maps[VGQ_SSIM_DD][i] = d * d;
    }
    for (int map = 0; map < VGQ_SSIM_MAPS; map++)
        for (size_t i = 0; i < n; i++)
            row->maps[map][i] = vgq_filter(maps[map] + i, channels);
}

static double ssim_down_scalar(size_t n, const vgq_ssim_row *const rows[VGQ_SSIM_SIDE],
                               double twice_centre, double c1, double c2)
{
    double lanes[VGQ_LANES] = {0};
    for (size_t i = 0; i < n; i++) {
        double filtered[VGQ_SSIM_MAPS];
        for (int map = 0; map < VGQ_SSIM_MAPS; map++) {
            double column[VGQ_SSIM_SIDE];
            for (int k = 0; k < VGQ_SSIM_SIDE; k++)
                column[k] = rows[k]->maps[map][i];
            filtered[map] = vgq_filter(column, 1);
        }
        lanes[i % VGQ_LANES] += vgq_similarity(filtered, twice_centre, c1, c2);
    }
    return vgq_lane_sum(lanes);
}

static void exp_scalar(size_t n, const double *x, double *y)
{
    for (size_t i = 0; i < n; i++)
        y[i] = vgq_exp_one(x[i]);
}

const vgq_metrics_kernels vgq_metrics_scalar = {
    .moments = moments_scalar,
    .peak = peak_scalar,
    .softmax = softmax_scalar,
    .ssim_across = ssim_across_scalar,
    .ssim_down = ssim_down_scalar,
    .exp = exp_scalar,
};
