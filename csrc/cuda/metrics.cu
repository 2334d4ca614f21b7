/* SPDX-License-Identifier: Apache-2.0
 * CUDA twins of metrics.c: the same blocks, lanes and trees, so the same bits. Sixteen threads,
 * half a warp, are the sixteen lanes of a block; a second kernel adds the blocks' results in pairs.
 * Where half-warps need nothing of each other, a CUDA block is one warp: an image has few of them,
 * and they shall not sit on a handful of multiprocessors. */
#include "common.cuh"
#include "../metrics_lanes.h"

typedef struct array {
    vgq_dtype dtype;
    const void *x;
} array;

static int bad_array(array a, size_t n) { return (unsigned)a.dtype >= VGQ_DTYPES || (n && !a.x); }

static __device__ inline float element(array a, size_t i) { return vgq_load_any(a.dtype, a.x, i); }

/* ---- adding parts -----------------------------------------------------------------------------
 * parts[0] = all of them, added in pairs, then pairs of pairs. A block takes JOINED parts, `stride`
 * apart, and leaves their sum in the first; the next launch goes on with those. */

enum { JOINED = 2 * VGQ_THREADS };

/* Fields that are not added: the smallest, the largest; NONE where there is no such field. */
struct joining {
    size_t width, least, most;
};
static const size_t NONE = SIZE_MAX;

static __global__ void join_kernel(joining j, size_t count, size_t stride, double *parts)
{
    __shared__ double sums[VGQ_THREADS];
    const size_t first = (size_t)blockIdx.x * JOINED, own = vgq_min(JOINED, count - first);
    const unsigned t = threadIdx.x, pairs = (unsigned)((own + 1) / 2);
    for (size_t field = 0; field < j.width; field++) {
        double *const at = parts + first * stride * j.width + field;
        const size_t step = stride * j.width;
        if (t < pairs) {
            double a = at[2 * t * step];
            if (2 * t + 1 < own) {
                const double b = at[(2 * t + 1) * step];
                a = field == j.least ? vgq_least(a, b) : field == j.most ? vgq_most(a, b) : a + b;
            }
            sums[t] = a;
        }
        __syncthreads();
        for (unsigned apart = 1; apart < pairs; apart *= 2) {
            if (t % (2 * apart) == 0 && t + apart < pairs) {
                const double a = sums[t], b = sums[t + apart];
                sums[t] = field == j.least  ? vgq_least(a, b)
                          : field == j.most ? vgq_most(a, b)
                                            : a + b;
            }
            __syncthreads();
        }
        if (t == 0)
            *at = sums[0];
        __syncthreads();
    }
}

static vgq_status join(joining j, size_t count, double *parts, void *stream)
{
    vgq_status status = VGQ_OK;
    for (size_t stride = 1; count > 1 && status == VGQ_OK; stride *= JOINED) {
        status = vgq_launch(join_kernel, vgq_blocks(count, JOINED), VGQ_THREADS, 0, stream, j,
                            count, stride, parts);
        count = (count + JOINED - 1) / JOINED;
    }
    return status;
}

/* ---- moments ----------------------------------------------------------------------------------
 */

static __global__ void moments_kernel(size_t n, size_t count, array r_array, array c_array,
                                      vgq_moments *parts)
{
    const size_t block = vgq_thread() / VGQ_LANES, lane = threadIdx.x % VGQ_LANES;
    const size_t from = vgq_min(block * VGQ_BLOCK, n), end = vgq_min(from + VGQ_BLOCK, n);
    double sums[SUMS] = {0};
    vgq_moments m = {};
    m.lo = INFINITY;
    m.hi = -INFINITY;
#pragma unroll 4
    for (size_t i = from + lane; i < end; i += VGQ_LANES) {
        const float r_element = element(r_array, i), c_element = element(c_array, i);
        const double r = r_element, c = c_element, d = r - c;
#define SUM(name, term) sums[SUM_##name] += term;
#include "../metrics.def"
        vgq_add_to_range(r_element, c_element, &m);
    }
    m.n = (double)(end - from);
    m.nonfinite_r = vgq_half_warp_sum(m.nonfinite_r);
    m.nonfinite_c = vgq_half_warp_sum(m.nonfinite_c);
    m.lo = vgq_warp_least(m.lo, VGQ_LANES) + 0.0; /* -0.0 becomes 0.0 */
    m.hi = vgq_warp_most(m.hi, VGQ_LANES) + 0.0;
#define SUM(name, term) m.name = vgq_half_warp_sum(sums[SUM_##name]);
#include "../metrics.def"
    if (lane == 0 && block < count)
        parts[block] = m;
}

vgq_status vgq_compare_cuda(size_t n, vgq_dtype r_dtype, const void *r_x, vgq_dtype c_dtype,
                            const void *c_x, vgq_moments *parts, void *stream)
{
    const array r = {r_dtype, r_x}, c = {c_dtype, c_x};
    const size_t count = vgq_compare_parts(n);
    const joining j = {sizeof(*parts) / sizeof(double), offsetof(vgq_moments, lo) / sizeof(double),
                       offsetof(vgq_moments, hi) / sizeof(double)};
    if (bad_array(r, n) || bad_array(c, n) || !parts)
        return VGQ_EINVAL;
    const vgq_status status = vgq_launch(moments_kernel, vgq_blocks(count, VGQ_WARP / VGQ_LANES),
                                         VGQ_WARP, 0, stream, n, count, r, c, parts);
    return status == VGQ_OK ? join(j, count, (double *)parts, stream) : status;
}

/* ---- cross entropy ----------------------------------------------------------------------------
 */

static __device__ inline float peak_of(array a, size_t offset, size_t n)
{
    float peak = -INFINITY;
    for (size_t i = threadIdx.x % VGQ_LANES; i < n; i += VGQ_LANES)
        peak = vgq_most(peak, element(a, offset + i));
    return vgq_warp_most(peak, VGQ_LANES);
}

/* Half a warp a row; each row's entropies go to row_values. */
static __global__ void entropy_rows_kernel(size_t rows, size_t cols, array r, array c,
                                           vgq_entropy *row_values)
{
    const size_t row = vgq_thread() / VGQ_LANES, n = row < rows ? cols : 0;
    const float r_peak = peak_of(r, row * cols, n), c_peak = peak_of(c, row * cols, n);
    double sums[VGQ_SOFTMAX_SUMS] = {0};
    for (size_t i = threadIdx.x % VGQ_LANES; i < n; i += VGQ_LANES) {
        const double a = (double)element(r, row * cols + i) - r_peak;
        const double b = (double)element(c, row * cols + i) - c_peak;
        const double ea = vgq_exp_one(a);
        sums[VGQ_SOFTMAX_R] += ea;
        sums[VGQ_SOFTMAX_C] += vgq_exp_one(b);
        sums[VGQ_SOFTMAX_CROSS] += ea * -b;
        sums[VGQ_SOFTMAX_KL] += ea * (a - b);
    }
#pragma unroll
    for (int k = 0; k < VGQ_SOFTMAX_SUMS; k++)
        sums[k] = vgq_half_warp_sum(sums[k]);
    if (threadIdx.x % VGQ_LANES == 0 && row < rows) {
        vgq_entropy own = {0, 0};
        vgq_add_entropy(sums, &own);
        row_values[row] = own;
    }
}

/* A thread a part: VGQ_ENTROPY_ROWS rows, one after the other. */
static __global__ void entropy_parts_kernel(size_t rows, size_t count,
                                            const vgq_entropy *row_values, vgq_entropy *parts)
{
    const size_t part = vgq_thread(), first = part * VGQ_ENTROPY_ROWS;
    if (part >= count)
        return;
    vgq_entropy total = {0, 0};
    for (size_t row = first; row < vgq_min(first + VGQ_ENTROPY_ROWS, rows); row++) {
        total.cross_entropy += row_values[row].cross_entropy;
        total.kl_divergence += row_values[row].kl_divergence;
    }
    parts[part] = total;
}

static __global__ void divide_kernel(size_t n, double divisor, double *x)
{
    if (threadIdx.x < n)
        x[threadIdx.x] /= divisor;
}

size_t vgq_cross_entropy_cuda_parts(size_t rows) { return vgq_cross_entropy_parts(rows) + rows; }

vgq_status vgq_cross_entropy_cuda(size_t rows, size_t cols, vgq_dtype r_dtype, const void *r_x,
                                  vgq_dtype c_dtype, const void *c_x, vgq_entropy *parts,
                                  void *stream)
{
    const array r = {r_dtype, r_x}, c = {c_dtype, c_x};
    const size_t count = vgq_cross_entropy_parts(rows);
    const joining j = {sizeof(*parts) / sizeof(double), NONE, NONE};
    size_t n;
    if (__builtin_mul_overflow(rows, cols, &n) || !n || bad_array(r, n) || bad_array(c, n) ||
        !parts)
        return VGQ_EINVAL;
    vgq_entropy *const row_values = parts + count;
    vgq_status status = vgq_launch(entropy_rows_kernel, vgq_blocks(rows, VGQ_WARP / VGQ_LANES),
                                   VGQ_WARP, 0, stream, rows, cols, r, c, row_values);
    if (status == VGQ_OK)
        status = vgq_launch(entropy_parts_kernel, vgq_blocks(count, VGQ_WARP), VGQ_WARP, 0, stream,
                            rows, count, row_values, parts);
    if (status == VGQ_OK)
        status = join(j, count, (double *)parts, stream);
    return status != VGQ_OK ? status
                            : vgq_launch(divide_kernel, 1, VGQ_WARP, 0, stream, j.width,
                                         (double)rows, (double *)parts);
}

/* ---- structural similarity --------------------------------------------------------------------
 * A block walks down STRIP rows of a tile of 256 columns. Each row's s, d and their squares are
 * staged in shared memory and filtered along the row there; the eleven filtered rows above each
 * other stay in the registers of the column's thread, which filters them down. The similarities of
 * the strip are kept in shared memory until its end, when half a warp adds each row in its lanes.
 */

enum { STRIP = VGQ_THREADS / VGQ_LANES, ABOVE = VGQ_SSIM_SIDE - 1 };

static_assert(VGQ_THREADS == VGQ_SSIM_TILE, "a thread a column of the tile");

struct strips {
    vgq_tiling t;
    size_t channels, of_tile; /* strips of a tile */
    double twice_centre, c1, c2;
};

static __global__ void __launch_bounds__(VGQ_THREADS, 2)
    ssim_kernel(strips s, array r_array, array c_array, double *parts)
{
    __shared__ double staged[VGQ_SSIM_MAPS][VGQ_SSIM_TILE + VGQ_SSIM_MARGIN];
    __shared__ double similarities[STRIP][VGQ_SSIM_TILE];
    const unsigned x = threadIdx.x, lane = x % VGQ_LANES, side = x / VGQ_LANES;
    const size_t strip = blockIdx.x % s.of_tile, tile = blockIdx.x / s.of_tile % s.t.tiles;
    const size_t image = blockIdx.x / s.of_tile / s.t.tiles;
    const size_t top = strip * STRIP, left = tile * VGQ_SSIM_TILE;
    const unsigned rows = (unsigned)vgq_min(STRIP, s.t.map_height - top);
    const unsigned n = (unsigned)vgq_min(VGQ_SSIM_TILE, s.t.map_line - left);
    const unsigned column = x < n ? x : n - 1; /* the others work too, and keep nothing */
    double ring[VGQ_SSIM_MAPS][VGQ_SSIM_SIDE] = {};
    for (unsigned k = 0; k < rows + ABOVE; k++) {
        const size_t line = (image * s.t.height + top + k) * s.t.line + left;
        for (unsigned i = x; i < n + ABOVE * s.channels; i += VGQ_THREADS) {
            const double r = element(r_array, line + i), c = element(c_array, line + i);
            const double sum = (r + c) - s.twice_centre, d = r - c;
            staged[VGQ_SSIM_S][i] = sum;
            staged[VGQ_SSIM_D][i] = d;
            staged[VGQ_SSIM_SS][i] = sum * sum;
            staged[VGQ_SSIM_DD][i] = d * d;
        }
        __syncthreads();
        double filtered[VGQ_SSIM_MAPS];
#pragma unroll
        for (int map = 0; map < VGQ_SSIM_MAPS; map++) {
#pragma unroll
            for (int i = 0; i < ABOVE; i++)
                ring[map][i] = ring[map][i + 1];
            ring[map][ABOVE] = vgq_filter(staged[map] + column, s.channels);
            filtered[map] = vgq_filter(ring[map], 1);
            __syncwarp(); /* one map's operands after the other's: half the registers */
        }
        if (k >= ABOVE && x < n)
            similarities[k - ABOVE][x] = vgq_similarity(filtered, s.twice_centre, s.c1, s.c2);
        __syncthreads();
    }
    double sum = 0;
    if (side < rows)
        for (unsigned i = lane; i < n; i += VGQ_LANES)
            sum += similarities[side][i];
    sum = vgq_half_warp_sum(sum);
    if (lane == 0 && side < rows)
        parts[(image * s.t.tiles + tile) * s.t.map_height + top + side] = sum;
}

vgq_status vgq_ssim_cuda(vgq_images shape, vgq_dtype r_dtype, const void *r_x, vgq_dtype c_dtype,
                         const void *c_x, double data_range, double centre, double *parts,
                         void *stream)
{
    const array r = {r_dtype, r_x}, c = {c_dtype, c_x};
    if (vgq_bad_images(shape) || bad_array(r, 1) || bad_array(c, 1) || !(data_range > 0) || !parts)
        return VGQ_EINVAL;
    const vgq_tiling t = vgq_tiling_of(shape);
    const double c1 = 0.01 * data_range, c2 = 0.03 * data_range;
    const strips s = {t,          shape.channels, vgq_parts_of(t.map_height, STRIP),
                      2 * centre, 2 * c1 * c1,    2 * c2 * c2};
    const joining j = {1, NONE, NONE};
    const double pixels = (double)shape.images * (double)t.map_height * (double)t.map_line;
    vgq_status status = vgq_launch(ssim_kernel, (unsigned)(shape.images * t.tiles * s.of_tile),
                                   VGQ_THREADS, 0, stream, s, r, c, parts);
    if (status == VGQ_OK)
        status = join(j, t.parts, parts, stream);
    return status != VGQ_OK
               ? status
               : vgq_launch(divide_kernel, 1, VGQ_WARP, 0, stream, j.width, pixels, parts);
}
