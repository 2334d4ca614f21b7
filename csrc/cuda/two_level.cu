/* SPDX-License-Identifier: Apache-2.0
 * CUDA twin of vgq_two_level; scales.h explains the search. A block takes a row. Its half-warps
 * take a group each, SIDES groups at a time, and a thread takes one of the sixteen lanes of the
 * error sums. */
#include "common.cuh"

enum { SIDES = VGQ_THREADS / VGQ_LANES };

/* The range of x[0..n), by the 16 threads of a half-warp. */
template <vgq_dtype DTYPE>
static __device__ vgq_map cover(const void *x, size_t at, size_t n, vgq_range_of_codes format,
                                int asymmetric, float *lo)
{
    float low = 0, high = 0;
    for (size_t i = threadIdx.x % VGQ_LANES; i < n; i += VGQ_LANES) {
        const float value = vgq_load<DTYPE>(x, at + i);
        low = vgq_least(low, value);
        high = vgq_most(high, value);
    }
    *lo = vgq_warp_least(low, VGQ_LANES);
    return vgq_map_of(format, *lo, vgq_warp_most(high, VGQ_LANES), asymmetric);
}

static __device__ double squared_error(float x, vgq_map map)
{
    const int8_t code = vgq_encode(x, map.scale, map.zero, map.lowest, map.highest);
    const double e = x - vgq_decode(code, map.scale, map.zero);
    return e * e;
}

template <vgq_dtype DTYPE>
static __global__ void two_level_kernel(vgq_shape shape, vgq_range_of_codes format, const void *x,
                                        float *channel_scale, uint8_t *factor, int8_t *zero,
                                        double *error)
{
    __shared__ float scales[SIDES];
    __shared__ double errors[2][SIDES]; /* of this round's groups: as chosen, with float scales */
    const unsigned side = threadIdx.x / VGQ_LANES, lane = threadIdx.x % VGQ_LANES;
    const size_t row = blockIdx.x;
    const size_t groups = shape.cols / shape.group + (shape.cols % shape.group != 0);
    const int largest = vgq_largest_factor(zero != NULL);
    float lo, widest = 0;
    for (size_t first = 0; first < groups; first += SIDES) {
        const size_t start = (first + side) * shape.group;
        const size_t n = first + side < groups ? vgq_min(shape.group, shape.cols - start) : 0;
        const vgq_map map = cover<DTYPE>(x, row * shape.cols + start, n, format, zero != NULL, &lo);
        widest = n ? vgq_most(widest, map.scale) : widest;
    }
    if (lane == 0)
        scales[side] = widest;
    __syncthreads();
    for (int i = 0; i < SIDES; i++)
        widest = vgq_most(widest, scales[i]);
    const float channel = vgq_channel_scale(widest, largest);

    double total = 0; /* thread 0: as chosen, thread 1: with float scales */
    for (size_t first = 0; first < groups; first += SIDES) {
        const size_t group = first + side, start = group * shape.group;
        const size_t n = group < groups ? vgq_min(shape.group, shape.cols - start) : 0;
        const vgq_map map = cover<DTYPE>(x, row * shape.cols + start, n, format, zero != NULL, &lo);
        const int lowest = vgq_covering_factor(map.scale, channel, largest) - VGQ_CLIPPED;
        vgq_map tried[VGQ_CANDIDATES];
        double sums[VGQ_CANDIDATES] = {0}, float_sum = 0;
        for (int k = 0; k < VGQ_CANDIDATES; k++) {
            tried[k] = map;
            tried[k].scale = channel * (float)(lowest + k < 1 ? 1 : lowest + k);
            tried[k].zero = zero ? vgq_zero_for(format, lo, tried[k].scale) : 0;
        }
        for (size_t i = lane; i < n; i += VGQ_LANES) {
            const float value = vgq_load<DTYPE>(x, row * shape.cols + start + i);
            float_sum += squared_error(value, map);
#pragma unroll
            for (int k = 0; k < VGQ_CANDIDATES; k++)
                sums[k] += squared_error(value, tried[k]);
        }
        float_sum = vgq_half_warp_sum(float_sum);
        double best = INFINITY;
        int chosen = 0;
#pragma unroll
        for (int k = 0; k < VGQ_CANDIDATES; k++) {
            const double e = vgq_half_warp_sum(sums[k]);
            if (lowest + k >= 1 && lowest + k <= largest && e < best) {
                best = e;
                chosen = k;
            }
        }
        if (lane == 0 && n) {
            factor[row * groups + group] = (uint8_t)(lowest + chosen);
            if (zero)
                zero[row * groups + group] =
                    (int8_t)vgq_zero_for(format, lo, channel * (float)(lowest + chosen));
            errors[0][side] = best;
            errors[1][side] = float_sum;
        }
        __syncthreads();
        if (threadIdx.x < 2) /* in the groups' order */
            for (size_t i = 0; i < SIDES && first + i < groups; i++)
                total += errors[threadIdx.x][i];
        __syncthreads();
    }
    if (threadIdx.x < 2)
        error[2 * row + threadIdx.x] = total;
    if (threadIdx.x == 0)
        channel_scale[row] = channel;
}

vgq_status vgq_two_level_cuda(vgq_dtype dtype, vgq_shape shape, const void *x, float *channel_scale,
                              uint8_t *factor, int8_t *zero, double *error, void *stream)
{
    const size_t elements = shape.rows * shape.cols;
    if (vgq_bad_shape(dtype, shape) || (elements && (!x || !factor)) ||
        (shape.rows && (!channel_scale || !error)) || shape.rows > VGQ_MOST_BLOCKS)
        return VGQ_EINVAL;
    if (!shape.rows)
        return VGQ_OK;
    VGQ_BY_DTYPE(dtype,
                 vgq_launch(two_level_kernel<DTYPE>, (unsigned)shape.rows, VGQ_THREADS, 0, stream,
                            shape, vgq_formats[VGQ_I4], x, channel_scale, factor, zero, error));
}
