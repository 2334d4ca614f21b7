/* SPDX-License-Identifier: Apache-2.0
 * What the metrics kernels of all instruction sets and of CUDA share: one element's moments, the
 * end of a block, a row's entropies, and the window and the formula of SSIM. */
#ifndef VGQ_METRICS_LANES_H
#define VGQ_METRICS_LANES_H

#include "exp_log.h"
#include "kernels.h"

/* Rows of metrics.def that are sums. */
enum {
#define SUM(name, term) SUM_##name,
#include "metrics.def"
    SUMS
};

/* Adds element i of a block to its lane. */
static inline void add_element(double lanes[SUMS][VGQ_LANES], size_t i, float r_element,
                               float c_element)
{
    const double r = r_element, c = c_element, d = r - c;
#define SUM(name, term) lanes[SUM_##name][i % VGQ_LANES] += term;
#include "metrics.def"
}

static inline void lanes_to_moments(double lanes[SUMS][VGQ_LANES], vgq_moments *m)
{
#define SUM(name, term) m->name = vgq_lane_sum(lanes[SUM_##name]);
#include "metrics.def"
}

/* Range and count of what is not finite. */
VGQ_INLINE void vgq_add_to_range(float r, float c, vgq_moments *m)
{
    if (!(fabsf(c) < INFINITY))
        m->nonfinite_c++;
    if (!(fabsf(r) < INFINITY)) {
        m->nonfinite_r++;
        return;
    }
    m->lo = r < m->lo ? r : m->lo;
    m->hi = r > m->hi ? r : m->hi;
}

/* p = softmax(r), q = softmax(c); a = r - max r, b = c - max c; R, C: the sums of e^a and e^b.
 * Cross entropy = ln C + sum e^a * -b / R, of which no term is negative.
 * Divergence = sum e^a * (a - b) / R + ln(C / R), each term exactly 0 for equal rows. */
VGQ_INLINE void vgq_add_entropy(const double sums[VGQ_SOFTMAX_SUMS], vgq_entropy *total)
{
    const double sum_r = sums[VGQ_SOFTMAX_R], sum_c = sums[VGQ_SOFTMAX_C];
    const double divergence = sums[VGQ_SOFTMAX_KL] / sum_r + vgq_log_one(sum_c / sum_r);
    total->cross_entropy += vgq_log_one(sum_c) + sums[VGQ_SOFTMAX_CROSS] / sum_r;
    total->kl_divergence += divergence > 0 ? divergence : 0; /* rounding can leave -1e-16 */
}

/* exp(-k^2 / (2 * 1.5^2)), k = 0..5 from the middle outwards, over the sum of all eleven; 80-bit
 * arithmetic, rounded once. */
#define VGQ_SSIM_WINDOW                                                                         \
    {                                                                                           \
        0x1.106560aa892c0p-2, 0x1.b43c3f52b19f2p-3, 0x1.bff0fe8e98418p-4, 0x1.26eb175d83f66p-5, \
            0x1.f1fe01ae5a5b7p-8, 0x1.0d956b52a1d6fp-10                                         \
    }

/* The eleven taps, those of equal weight paired, from the outside in. */
VGQ_INLINE double vgq_filter(const double *x, size_t step)
{
    const double window[] = VGQ_SSIM_WINDOW;
    double sum = window[5] * (x[0] + x[10 * step]);
    for (size_t k = 4; k > 0; k--)
        sum += window[k] * (x[(5 - k) * step] + x[(5 + k) * step]);
    return sum + window[0] * x[5 * step];
}

/* The similarity of a pixel from the filtered s, d, s^2, d^2 (Wang et al. 2004, eq. 13). With
 * S = mu_r + mu_c and D = mu_r - mu_c: 2 mu_r mu_c = (S^2 - D^2) / 2, mu_r^2 + mu_c^2 = (S^2 + D^2)
 * / 2; covariance and variances likewise. c1 and c2 come doubled, for the halves left out. */
VGQ_INLINE double vgq_similarity(const double maps[VGQ_SSIM_MAPS], double twice_centre, double c1,
                                 double c2)
{
    const double s = maps[VGQ_SSIM_S], d = maps[VGQ_SSIM_D];
    const double sum = s + twice_centre, sum2 = sum * sum, d2 = d * d;
    const double vs = maps[VGQ_SSIM_SS] - s * s, vd = maps[VGQ_SSIM_DD] - d2;
    return (((sum2 - d2) + c1) * ((vs - vd) + c2)) / (((sum2 + d2) + c1) * ((vs + vd) + c2));
}

#endif
