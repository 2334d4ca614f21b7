/* SPDX-License-Identifier: Apache-2.0
 * The metrics kernels with AVX2: the operations of metrics_scalar.c, four lanes at a time, so every
 * bit is the same. Fused multiply-add only where the product is exact: a product of two floats is.
 */
#include "../kernels.h"

#if defined(__x86_64__)

#include "isa.h"
#include "../metrics_lanes.h"

static const double window[] = VGQ_SSIM_WINDOW;

#include <immintrin.h>

ISA_BEGIN("avx2,fma")

static inline __m256d load4(const float *x) { return _mm256_cvtps_pd(_mm_loadu_ps(x)); }
static inline __m256d set4(double x) { return _mm256_set1_pd(x); }
static inline __m256d abs4(__m256d x) { return _mm256_andnot_pd(set4(-0.0), x); }

/* x[0..n) and zeros, n < 4, without touching what follows x[n - 1]. */
static inline __m256d load_some(size_t n, const float *x)
{
    const __m128i wanted = _mm_cmpgt_epi32(_mm_set1_epi32((int)n), _mm_setr_epi32(0, 1, 2, 3));
    return _mm256_cvtps_pd(_mm_maskload_ps(x, wanted));
}

/* All bits set in the first n of four. */
static inline __m256d first_of_4(size_t n)
{
    return _mm256_castsi256_pd(
        _mm256_cmpgt_epi64(_mm256_set1_epi64x((long long)n), _mm256_setr_epi64x(0, 1, 2, 3)));
}

/* ---- moments ------------------------------------------------------------------------------------
 */

/* Four of the sixteen lanes, elements 0..3, 16..19, ... of r and c: six sums stay in registers. */
static void moments_quarter(size_t n, const float *r_x, const float *c_x, double *lanes)
{
    __m256d abs_d = _mm256_loadu_pd(lanes + SUM_abs_d * VGQ_LANES);
    __m256d dd = _mm256_loadu_pd(lanes + SUM_dd * VGQ_LANES);
    __m256d rc = _mm256_loadu_pd(lanes + SUM_rc * VGQ_LANES);
    __m256d rr = _mm256_loadu_pd(lanes + SUM_rr * VGQ_LANES);
    __m256d cc = _mm256_loadu_pd(lanes + SUM_cc * VGQ_LANES);
    __m256d relative = _mm256_loadu_pd(lanes + SUM_relative * VGQ_LANES);
    for (size_t i = 0; i < n; i += VGQ_LANES) {
        const __m256d r = load4(r_x + i), c = load4(c_x + i), d = _mm256_sub_pd(r, c);
        const __m256d size = abs4(d);
        abs_d = _mm256_add_pd(abs_d, size);
        dd = _mm256_add_pd(dd, _mm256_mul_pd(d, d));
        rc = _mm256_fmadd_pd(r, c, rc);
        rr = _mm256_fmadd_pd(r, r, rr);
        cc = _mm256_fmadd_pd(c, c, cc);
        relative = _mm256_add_pd(relative, _mm256_div_pd(size, _mm256_add_pd(abs4(r), set4(1e-8))));
    }
    _mm256_storeu_pd(lanes + SUM_abs_d * VGQ_LANES, abs_d);
    _mm256_storeu_pd(lanes + SUM_dd * VGQ_LANES, dd);
    _mm256_storeu_pd(lanes + SUM_rc * VGQ_LANES, rc);
    _mm256_storeu_pd(lanes + SUM_rr * VGQ_LANES, rr);
    _mm256_storeu_pd(lanes + SUM_cc * VGQ_LANES, cc);
    _mm256_storeu_pd(lanes + SUM_relative * VGQ_LANES, relative);
}

/* lo, hi of the finite, and how many of n (a multiple of 8) are finite: comparisons with NaN fail.
 */
static size_t finite_range(size_t n, const float *x, __m256 *lo, __m256 *hi)
{
    const __m256 infinity = _mm256_set1_ps(INFINITY), sign = _mm256_set1_ps(-0.0f);
    __m256i finite = _mm256_setzero_si256();
    for (size_t i = 0; i < n; i += 8) {
        const __m256 v = _mm256_loadu_ps(x + i);
        const __m256 is_finite = _mm256_cmp_ps(_mm256_andnot_ps(sign, v), infinity, _CMP_LT_OQ);
        *lo = _mm256_min_ps(*lo, _mm256_blendv_ps(infinity, v, is_finite));
        *hi = _mm256_max_ps(*hi, _mm256_blendv_ps(_mm256_or_ps(infinity, sign), v, is_finite));
        finite = _mm256_sub_epi32(finite, _mm256_castps_si256(is_finite));
    }
    int counts[8], total = 0;
    _mm256_storeu_si256((__m256i *)(void *)counts, finite);
    for (int i = 0; i < 8; i++)
        total += counts[i];
    return (size_t)total;
}

static void moments_avx2(size_t n, const float *r, const float *c, vgq_moments *m)
{
    enum { CHUNK = 512 }; /* of r and c: stays in L1 over the five passes */
    double lanes[SUMS][VGQ_LANES] = {{0}};
    float ranges[4][8];
    __m256 lo = _mm256_set1_ps(INFINITY), hi = _mm256_set1_ps(-INFINITY);
    __m256 no_lo = lo, no_hi = hi;
    const size_t whole = n - n % VGQ_LANES;
    *m = (vgq_moments){.n = (double)n, .lo = INFINITY, .hi = -INFINITY};
    for (size_t at = 0; at < whole; at += CHUNK) {
        const size_t size = whole - at < CHUNK ? whole - at : CHUNK;
        m->nonfinite_r += (double)(size - finite_range(size, r + at, &lo, &hi));
        m->nonfinite_c += (double)(size - finite_range(size, c + at, &no_lo, &no_hi));
        for (size_t lane = 0; lane < VGQ_LANES; lane += 4)
            moments_quarter(size, r + at + lane, c + at + lane, &lanes[0][lane]);
    }
    _mm256_storeu_ps(ranges[0], lo);
    _mm256_storeu_ps(ranges[1], hi);
    for (int i = 0; i < 8; i++) {
        m->lo = ranges[0][i] < m->lo ? ranges[0][i] : m->lo;
        m->hi = ranges[1][i] > m->hi ? ranges[1][i] : m->hi;
    }
    for (size_t i = whole; i < n; i++) {
        add_element(lanes, i, r[i], c[i]);
        vgq_add_to_range(r[i], c[i], m);
    }
    lanes_to_moments(lanes, m);
}

/* ---- softmax ------------------------------------------------------------------------------------
 */

static float peak_avx2(size_t n, const float *x)
{
    float peaks[8], peak = -INFINITY;
    __m256 max = _mm256_set1_ps(peak);
    size_t i = 0;
    for (; i + 8 <= n; i += 8)
        max = _mm256_max_ps(_mm256_loadu_ps(x + i), max);
    _mm256_storeu_ps(peaks, max);
    for (int k = 0; k < 8; k++)
        peak = peaks[k] > peak ? peaks[k] : peak;
    for (; i < n; i++)
        peak = x[i] > peak ? x[i] : peak;
    return peak;
}

/* vgq_exp_one, operation by operation. */
static inline __m256d exp4(__m256d x)
{
    const __m256d shifted =
        _mm256_add_pd(_mm256_mul_pd(x, set4(0x1.71547652b82fep0)), set4(VGQ_ROUNDER));
    const __m256d k = _mm256_sub_pd(shifted, set4(VGQ_ROUNDER));
    const __m256d y = _mm256_sub_pd(_mm256_sub_pd(x, _mm256_mul_pd(k, set4(VGQ_LN2_HIGH))),
                                    _mm256_mul_pd(k, set4(VGQ_LN2_LOW)));
    __m256d p = set4(VGQ_EXP_TAYLOR_FIRST);
#define TERM(t) p = _mm256_add_pd(_mm256_mul_pd(p, y), set4(t));
    VGQ_EXP_TAYLOR(TERM)
#undef TERM
    p = _mm256_add_pd(set4(1), _mm256_add_pd(y, _mm256_mul_pd(_mm256_mul_pd(y, y), p)));
    p = _mm256_castsi256_pd(_mm256_add_epi64(_mm256_castpd_si256(p),
                                             _mm256_slli_epi64(_mm256_castpd_si256(shifted), 52)));
    p = _mm256_blendv_pd(p, set4(INFINITY), _mm256_cmp_pd(x, set4(VGQ_EXP_HIGHEST), _CMP_GT_OQ));
    p = _mm256_blendv_pd(p, _mm256_setzero_pd(),
                         _mm256_cmp_pd(x, set4(VGQ_EXP_LOWEST), _CMP_LT_OQ));
    return _mm256_blendv_pd(p, x, _mm256_cmp_pd(x, x, _CMP_UNORD_Q));
}

static inline void add4(double *lanes, __m256d x)
{
    _mm256_storeu_pd(lanes, _mm256_add_pd(_mm256_loadu_pd(lanes), x));
}

/* Four elements, of which the ones that `wanted` masks out add 0. */
static inline void softmax4(__m256d a, __m256d b, __m256d wanted, double *lanes)
{
    const __m256d ea = _mm256_and_pd(exp4(a), wanted), eb = _mm256_and_pd(exp4(b), wanted);
    add4(lanes + VGQ_SOFTMAX_R * VGQ_LANES, ea);
    add4(lanes + VGQ_SOFTMAX_C * VGQ_LANES, eb);
    add4(lanes + VGQ_SOFTMAX_CROSS * VGQ_LANES, _mm256_mul_pd(ea, _mm256_xor_pd(b, set4(-0.0))));
    add4(lanes + VGQ_SOFTMAX_KL * VGQ_LANES, _mm256_mul_pd(ea, _mm256_sub_pd(a, b)));
}

static void softmax_avx2(size_t n, const float *r, float r_peak, const float *c, float c_peak,
                         double lanes[VGQ_SOFTMAX_SUMS][VGQ_LANES])
{
    const __m256d r_top = set4(r_peak), c_top = set4(c_peak);
    const __m256d all = _mm256_castsi256_pd(_mm256_set1_epi64x(-1));
    size_t i = 0;
    for (; i + 4 <= n; i += 4)
        softmax4(_mm256_sub_pd(load4(r + i), r_top), _mm256_sub_pd(load4(c + i), c_top), all,
                 &lanes[0][i % VGQ_LANES]);
    if (i < n) {
        const __m256d wanted = first_of_4(n - i);
        softmax4(_mm256_sub_pd(load_some(n - i, r + i), r_top),
                 _mm256_sub_pd(load_some(n - i, c + i), c_top), wanted, &lanes[0][i % VGQ_LANES]);
    }
}

static void exp_avx2(size_t n, const double *x, double *y)
{
    size_t i = 0;
    for (; i + 4 <= n; i += 4)
        _mm256_storeu_pd(y + i, exp4(_mm256_loadu_pd(x + i)));
    for (; i < n; i++)
        y[i] = vgq_exp_one(x[i]);
}

/* ---- structural similarity ----------------------------------------------------------------------
 */

static inline __m256d weigh(int k, const double *before, const double *after)
{
    return _mm256_mul_pd(set4(window[k]),
                         _mm256_add_pd(_mm256_loadu_pd(before), _mm256_loadu_pd(after)));
}

static inline __m256d filter_across(const double *x, size_t step)
{
    __m256d sum = weigh(5, x, x + 10 * step);
    for (size_t k = 4; k > 0; k--)
        sum = _mm256_add_pd(sum, weigh((int)k, x + (5 - k) * step, x + (5 + k) * step));
    return _mm256_add_pd(sum, _mm256_mul_pd(set4(window[0]), _mm256_loadu_pd(x + 5 * step)));
}

static inline __m256d filter_down(const vgq_ssim_row *const rows[VGQ_SSIM_SIDE], int map, size_t i)
{
    __m256d sum = weigh(5, rows[0]->maps[map] + i, rows[10]->maps[map] + i);
    for (int k = 4; k > 0; k--)
        sum = _mm256_add_pd(sum, weigh(k, rows[5 - k]->maps[map] + i, rows[5 + k]->maps[map] + i));
    return _mm256_add_pd(sum,
                         _mm256_mul_pd(set4(window[0]), _mm256_loadu_pd(rows[5]->maps[map] + i)));
}

/* Works on up to three numbers too many, in the buffers' slack: nobody reads their results. */
static void ssim_across_avx2(size_t n, size_t channels, const float *r, const float *c,
                             double twice_centre, vgq_ssim_row *row)
{
    double maps[VGQ_SSIM_MAPS][VGQ_SSIM_TILE + VGQ_SSIM_MARGIN + 8];
    const size_t inputs = n + (VGQ_SSIM_SIDE - 1) * channels;
    for (size_t i = 0; i < inputs + 3; i += 4) {
        const size_t left = i < inputs ? inputs - i : 0;
        const __m256d rv = left < 4 ? load_some(left, r + i) : load4(r + i);
        const __m256d cv = left < 4 ? load_some(left, c + i) : load4(c + i);
        const __m256d s = _mm256_sub_pd(_mm256_add_pd(rv, cv), set4(twice_centre));
        const __m256d d = _mm256_sub_pd(rv, cv);
        _mm256_storeu_pd(maps[VGQ_SSIM_S] + i, s);
        _mm256_storeu_pd(maps[VGQ_SSIM_D] + i, d);
        _mm256_storeu_pd(maps[VGQ_SSIM_SS] + i, _mm256_mul_pd(s, s));
        _mm256_storeu_pd(maps[VGQ_SSIM_DD] + i, _mm256_mul_pd(d, d));
    }
    for (int map = 0; map < VGQ_SSIM_MAPS; map++)
        for (size_t i = 0; i < n; i += 4)
            _mm256_storeu_pd(row->maps[map] + i, filter_across(maps[map] + i, channels));
}

/* similarity() of four pixels, operation by operation. */
static inline __m256d similarity4(const vgq_ssim_row *const rows[VGQ_SSIM_SIDE], size_t i,
                                  __m256d twice_centre, __m256d c1, __m256d c2)
{
    const __m256d s = filter_down(rows, VGQ_SSIM_S, i), d = filter_down(rows, VGQ_SSIM_D, i);
    const __m256d sum = _mm256_add_pd(s, twice_centre);
    const __m256d sum2 = _mm256_mul_pd(sum, sum), d2 = _mm256_mul_pd(d, d);
    const __m256d vs = _mm256_sub_pd(filter_down(rows, VGQ_SSIM_SS, i), _mm256_mul_pd(s, s));
    const __m256d vd = _mm256_sub_pd(filter_down(rows, VGQ_SSIM_DD, i), d2);
    return _mm256_div_pd(_mm256_mul_pd(_mm256_add_pd(_mm256_sub_pd(sum2, d2), c1),
                                       _mm256_add_pd(_mm256_sub_pd(vs, vd), c2)),
                         _mm256_mul_pd(_mm256_add_pd(_mm256_add_pd(sum2, d2), c1),
                                       _mm256_add_pd(_mm256_add_pd(vs, vd), c2)));
}

static double ssim_down_avx2(size_t n, const vgq_ssim_row *const rows[VGQ_SSIM_SIDE],
                             double twice_centre, double c1, double c2)
{
    double lanes[VGQ_LANES] = {0};
    for (size_t i = 0; i < n; i += 4) {
        const __m256d x = similarity4(rows, i, set4(twice_centre), set4(c1), set4(c2));
        const __m256d wanted = first_of_4(n - i);
        add4(lanes + i % VGQ_LANES, _mm256_and_pd(x, wanted));
    }
    return vgq_lane_sum(lanes);
}

ISA_END

const vgq_metrics_kernels vgq_metrics_avx2 = {
    .moments = moments_avx2,
    .peak = peak_avx2,
    .softmax = softmax_avx2,
    .ssim_across = ssim_across_avx2,
    .ssim_down = ssim_down_avx2,
    .exp = exp_avx2,
};
#endif
