/* SPDX-License-Identifier: Apache-2.0
 * CUDA twins of quantize.c, but for the two-level search: the same numbers to the bit, from the
 * same encode, decode and scales (formats.h, scales.h). Each is one pass that memory bounds. */
#include "common.cuh"

/* ---- ranges ---------------------------------------------------------------------------------
 * A warp takes a piece of a group: the whole of a short one, PIECE elements of a long one. Pieces
 * are joined by atomics on bits: lo is never above 0 and hi never below, so of either sign the
 * larger bit pattern is the larger magnitude, and the order of joining cannot show. */

enum { PIECE = 2048 };

struct pieces {
    vgq_shape shape;
    size_t row_groups, of_group, count;
};

static pieces pieces_of(vgq_shape shape)
{
    const size_t row_groups = vgq_row_groups(shape), of_group = vgq_parts_of(shape.group, PIECE);
    return {shape, row_groups, of_group, shape.rows * row_groups * of_group};
}

template <vgq_dtype DTYPE>
static __global__ void range_kernel(pieces p, const void *x, unsigned *lo, unsigned *hi,
                                    unsigned long long *nonfinite)
{
    const size_t piece = vgq_thread() / VGQ_WARP, lane = threadIdx.x % VGQ_WARP;
    if (piece >= p.count)
        return; /* the whole warp: there is no barrier but its own below */
    const size_t group = piece / p.of_group, row = group / p.row_groups;
    const size_t start = group % p.row_groups * p.shape.group;
    const size_t from = start + piece % p.of_group * PIECE;
    const size_t end = vgq_min(vgq_min(from + PIECE, start + p.shape.group), p.shape.cols);
    float low = 0, high = 0;
    unsigned bad = 0;
    for (size_t i = from + lane; i < end; i += VGQ_WARP) {
        const float value = vgq_load<DTYPE>(x, row * p.shape.cols + i);
        bad += (vgq_bits_of_float(value) & 0x7f800000u) == 0x7f800000u;
        low = vgq_least(low, value);
        high = vgq_most(high, value);
    }
    low = vgq_warp_least(low, VGQ_WARP);
    high = vgq_warp_most(high, VGQ_WARP);
    for (int step = VGQ_WARP / 2; step > 0; step /= 2)
        bad += __shfl_xor_sync(VGQ_ALL_LANES, bad, step);
    if (lane == 0) {
        atomicMax(&lo[group], vgq_bits_of_float(low));
        atomicMax(&hi[group], vgq_bits_of_float(high));
        if (bad)
            atomicAdd(&nonfinite[row], (unsigned long long)bad);
    }
}

vgq_status vgq_range_cuda(vgq_dtype dtype, vgq_shape shape, const void *x, float *lo, float *hi,
                          uint64_t *nonfinite, void *stream)
{
    const size_t elements = shape.rows * shape.cols;
    if (vgq_bad_shape(dtype, shape) || (elements && (!x || !lo || !hi)) ||
        (shape.rows && !nonfinite))
        return VGQ_EINVAL;
    const pieces p = pieces_of(shape);
    const size_t groups = shape.rows * p.row_groups;
    cudaStream_t const on = (cudaStream_t)stream;
    if (shape.rows &&
        cudaMemsetAsync(nonfinite, 0, shape.rows * sizeof(*nonfinite), on) != cudaSuccess)
        return VGQ_ECUDA;
    if (!elements)
        return VGQ_OK;
    if (cudaMemsetAsync(lo, 0, groups * sizeof(*lo), on) != cudaSuccess ||
        cudaMemsetAsync(hi, 0, groups * sizeof(*hi), on) != cudaSuccess)
        return VGQ_ECUDA;
    VGQ_BY_DTYPE(dtype, vgq_launch(range_kernel<DTYPE>, vgq_blocks(p.count, VGQ_THREADS / VGQ_WARP),
                                   VGQ_THREADS, 0, stream, p, x, (unsigned *)lo, (unsigned *)hi,
                                   (unsigned long long *)nonfinite));
}

static __global__ void parameters_kernel(vgq_range_of_codes format, size_t n, const float *lo,
                                         const float *hi, float *scale, int8_t *zero)
{
    const size_t i = vgq_thread();
    if (i >= n)
        return;
    const vgq_map map = vgq_map_of(format, lo[i], hi[i], zero != NULL);
    scale[i] = map.scale;
    if (zero)
        zero[i] = (int8_t)map.zero;
}

vgq_status vgq_parameters_cuda(vgq_format format, size_t n, const float *lo, const float *hi,
                               float *scale, int8_t *zero, void *stream)
{
    if ((unsigned)format >= VGQ_FORMATS || (n && (!lo || !hi || !scale)))
        return VGQ_EINVAL;
    return vgq_launch(parameters_kernel, vgq_blocks(n, VGQ_THREADS), VGQ_THREADS, 0, stream,
                      vgq_formats[format], n, lo, hi, scale, zero);
}

/* ---- codes ----------------------------------------------------------------------------------
 * A thread owns RUN neighbours of a row, hence whole bytes: vectors where rows are aligned. */

enum { RUN = 8 };

struct codes {
    vgq_shape shape;
    vgq_range_of_codes format;
    size_t row_groups, row_runs, row_nbytes, runs;
    const float *scale;
    const int8_t *zero;
    bool x_vectors, q_vectors;
};

static codes codes_of(vgq_format format, vgq_dtype dtype, vgq_shape shape, const void *x,
                      const float *scale, const int8_t *zero, const uint8_t *q)
{
    const size_t row_runs = (shape.cols + RUN - 1) / RUN;
    return {shape,
            vgq_formats[format],
            vgq_row_groups(shape),
            row_runs,
            vgq_row_nbytes(format, shape.cols),
            shape.rows * row_runs,
            scale,
            zero,
            vgq_by_vectors(x, shape.cols, RUN, 8 * vgq_dtype_nbytes(dtype)),
            vgq_by_vectors(q, shape.cols, RUN, vgq_formats[format].bits)};
}

/* x[i..i+7] as floats; zeros from n on. */
template <vgq_dtype DTYPE>
static __device__ inline void load_run(bool vectors, const void *x, size_t i, size_t n,
                                       float (&v)[RUN])
{
    if (!vectors) {
#pragma unroll
        for (int j = 0; j < RUN; j++)
            v[j] = (size_t)j < n ? vgq_load<DTYPE>(x, i + j) : 0.0f;
    } else if (DTYPE == VGQ_F32) {
        const float4 *const from = (const float4 *)((const float *)x + i);
        const float4 a = from[0], b = from[1];
        v[0] = a.x, v[1] = a.y, v[2] = a.z, v[3] = a.w;
        v[4] = b.x, v[5] = b.y, v[6] = b.z, v[7] = b.w;
    } else {
        const uint4 a = *(const uint4 *)((const uint16_t *)x + i);
        const unsigned pairs[] = {a.x, a.y, a.z, a.w};
#pragma unroll
        for (int j = 0; j < RUN; j++)
            v[j] = vgq_widen<DTYPE>((uint16_t)(pairs[j / 2] >> j % 2 * 16));
    }
}

/* The inverse. */
template <vgq_dtype DTYPE>
static __device__ inline void store_run(bool vectors, void *x, size_t i, size_t n,
                                        const float (&v)[RUN])
{
    if (!vectors) {
#pragma unroll
        for (int j = 0; j < RUN; j++)
            if ((size_t)j < n)
                vgq_store<DTYPE>(x, i + j, v[j]);
    } else if (DTYPE == VGQ_F32) {
        float4 *const to = (float4 *)((float *)x + i);
        to[0] = {v[0], v[1], v[2], v[3]};
        to[1] = {v[4], v[5], v[6], v[7]};
    } else {
        unsigned pairs[RUN / 2];
#pragma unroll
        for (int j = 0; j < RUN / 2; j++)
            pairs[j] = vgq_narrow<DTYPE>(v[2 * j]) | (unsigned)vgq_narrow<DTYPE>(v[2 * j + 1])
                                                         << 16;
        *(uint4 *)((uint16_t *)x + i) = {pairs[0], pairs[1], pairs[2], pairs[3]};
    }
}

/* The map of a run's elements, one after the other. */
struct walk {
    const codes *c;
    size_t group, left; /* the group's number, and how many of its elements are still to come */
    vgq_map map;

    __device__ walk(const codes &of, size_t row, size_t col) : c(&of)
    {
        group = row * of.row_groups + col / of.shape.group;
        left = of.shape.group - col % of.shape.group;
        read();
    }
    __device__ void read()
    {
        map = {c->scale[group], c->zero ? c->zero[group] : 0, c->format.lowest, c->format.highest};
    }
    /* `more`: an element follows, so the next group is there where this one ends. */
    __device__ void next(bool more)
    {
        if (--left == 0 && more) {
            group++;
            left = c->shape.group;
            read();
        }
    }
};

/* Codes lie in `words` as in memory, low bits first: BITS of each. */
template <vgq_dtype DTYPE, int BITS>
static __global__ void quantize_kernel(codes c, const void *x, uint8_t *q)
{
    const size_t run = vgq_thread();
    if (run >= c.runs)
        return;
    const size_t row = run / c.row_runs, col = run % c.row_runs * RUN;
    const size_t n = vgq_min(RUN, c.shape.cols - col);
    float v[RUN];
    load_run<DTYPE>(c.x_vectors, x, row * c.shape.cols + col, n, v);
    walk w(c, row, col);
    unsigned words[BITS / 4] = {};
#pragma unroll
    for (int i = 0; i < RUN; i++)
        if ((size_t)i < n) {
            const vgq_map &map = w.map;
            const int code = vgq_encode(v[i], map.scale, map.zero, map.lowest, map.highest);
            words[i * BITS / 32] |= (code & ((1u << BITS) - 1)) << i * BITS % 32;
            w.next((size_t)i + 1 < n);
        }
    uint8_t *const bytes = q + row * c.row_nbytes + col * BITS / 8;
    if (!c.q_vectors) {
#pragma unroll
        for (int i = 0; i < BITS; i++)
            if ((size_t)i * 8 < n * BITS)
                bytes[i] = (uint8_t)(words[i / 4] >> i % 4 * 8);
    } else if (BITS == 8) {
        *(uint2 *)bytes = {words[0], words[BITS / 4 - 1]};
    } else {
        *(unsigned *)bytes = words[0];
    }
}

template <vgq_dtype DTYPE, int BITS>
static __global__ void dequantize_kernel(codes c, const uint8_t *q, void *x)
{
    const size_t run = vgq_thread();
    if (run >= c.runs)
        return;
    const size_t row = run / c.row_runs, col = run % c.row_runs * RUN;
    const size_t n = vgq_min(RUN, c.shape.cols - col);
    const uint8_t *const bytes = q + row * c.row_nbytes + col * BITS / 8;
    unsigned words[BITS / 4] = {};
    if (!c.q_vectors) {
#pragma unroll
        for (int i = 0; i < BITS; i++)
            if ((size_t)i * 8 < n * BITS)
                words[i / 4] |= (unsigned)bytes[i] << i % 4 * 8;
    } else if (BITS == 8) {
        const uint2 both = *(const uint2 *)bytes;
        words[0] = both.x, words[BITS / 4 - 1] = both.y;
    } else {
        words[0] = *(const unsigned *)bytes;
    }
    walk w(c, row, col);
    float v[RUN];
#pragma unroll
    for (int i = 0; i < RUN; i++) {
        const int shift = 32 - BITS - i * BITS % 32; /* up and down again: with the sign */
        const int8_t code = (int8_t)((int)(words[i * BITS / 32] << shift) >> (32 - BITS));
        v[i] = vgq_decode(code, w.map.scale, w.map.zero);
        w.next((size_t)i + 1 < n);
    }
    store_run<DTYPE>(c.x_vectors, x, row * c.shape.cols + col, n, v);
}

static int bad_codes(vgq_format format, vgq_dtype dtype, vgq_shape shape, const void *x,
                     const float *scale, const uint8_t *q)
{
    return (unsigned)format >= VGQ_FORMATS || vgq_bad_shape(dtype, shape) ||
           (shape.rows && shape.cols && (!x || !scale || !q));
}

template <vgq_dtype DTYPE>
static vgq_status quantize_from(codes c, const void *x, uint8_t *q, void *stream)
{
    return vgq_launch(c.format.bits == 8 ? quantize_kernel<DTYPE, 8> : quantize_kernel<DTYPE, 4>,
                      vgq_blocks(c.runs, VGQ_THREADS), VGQ_THREADS, 0, stream, c, x, q);
}

vgq_status vgq_quantize_cuda(vgq_format format, vgq_dtype dtype, vgq_shape shape, const void *x,
                             const float *scale, const int8_t *zero, uint8_t *q, void *stream)
{
    if (bad_codes(format, dtype, shape, x, scale, q))
        return VGQ_EINVAL;
    const codes c = codes_of(format, dtype, shape, x, scale, zero, q);
    VGQ_BY_DTYPE(dtype, quantize_from<DTYPE>(c, x, q, stream));
}

template <vgq_dtype DTYPE>
static vgq_status dequantize_to(codes c, const uint8_t *q, void *x, void *stream)
{
    return vgq_launch(c.format.bits == 8 ? dequantize_kernel<DTYPE, 8>
                                         : dequantize_kernel<DTYPE, 4>,
                      vgq_blocks(c.runs, VGQ_THREADS), VGQ_THREADS, 0, stream, c, q, x);
}

vgq_status vgq_dequantize_cuda(vgq_format format, vgq_dtype dtype, vgq_shape shape,
                               const uint8_t *q, const float *scale, const int8_t *zero, void *x,
                               void *stream)
{
    if (bad_codes(format, dtype, shape, x, scale, q))
        return VGQ_EINVAL;
    const codes c = codes_of(format, dtype, shape, x, scale, zero, q);
    VGQ_BY_DTYPE(dtype, dequantize_to<DTYPE>(c, q, x, stream));
}
