/* SPDX-License-Identifier: Apache-2.0
 * Packed weights as floats, decoded in registers, and the product of a few float tokens with them.
 */
#ifndef VGQ_LINEAR_GEMV_CUH
#define VGQ_LINEAR_GEMV_CUH

#include "linear.cuh"
#include "mma.cuh"

/* ---- weights as floats ---------------------------------------------------------------------- */

/* A lane's part of a unit as it lies in memory: INT8 codes, or two words of INT4 codes, each with
 * its pair. Nothing here waits for it, so that a part is under way while another is multiplied. */
template <vgq_format format> struct unit_part {
    static constexpr int words = format == VGQ_I8 ? 4 : 2;
    uint32_t word[words], pair[2];

    __device__ __forceinline__ void load(const linear_args &args, int panel, int unit, int lane,
                                         int tile)
    {
        constexpr int nbytes = format == VGQ_I8 ? VGQ_CUDA_UNIT_I8 : VGQ_CUDA_UNIT_I4;
        const size_t place = ((size_t)panel * (args.depth / VGQ_CUDA_DEPTH) + tile) * 8 + unit;
        const unsigned char *const from = args.codes + place * nbytes + lane * (nbytes / 32);
        if constexpr (format == VGQ_I8) {
            const uint4 four = *(const uint4 *)from;
            word[0] = four.x, word[1] = four.y, word[2] = four.z, word[3] = four.w;
        } else {
            const uint2 two = *(const uint2 *)from;
            word[0] = two.x, word[1] = two.y;
#pragma unroll
            for (int step = 0; step < 2; step++) {
                const int g = vgq_least(group_of(args, tile * 2 + step), args.groups - 1);
                const size_t at = (size_t)g * args.columns + panel * VGQ_CUDA_PANEL;
                pair[step] = ((const uint16_t *)args.column)[at + lane / 4 * 8 + unit];
            }
        }
    }

    /* Four integers plus 128: of inputs 16 part + 4 (lane % 4) on. */
    __device__ __forceinline__ uint32_t integers(int part) const
    {
        if constexpr (format == VGQ_I8)
            return flip_signs(word[part]);
        const uint32_t codes = word[part / 2];
        return expand4(part % 2 ? high_nibbles(codes) : low_nibbles(codes), pair[part / 2], false);
    }
};

/* An output's zero point as the integers have it, plus 128 + 2^23: see weights_of. */
static __device__ __forceinline__ float zero_of(const linear_args &args, vgq_format format,
                                                int output)
{
    const bool with_zeros = format == VGQ_I8 && args.column;
    return 0x1p23f + (float)(128 + (with_zeros ? ((const int32_t *)args.column)[output] : 0));
}

/* The float weights that integers plus 128 stand for (docs/conventions.md), inputs at..at+3 of the
 * padded row. A byte under the bits of 2^23 is 2^23 plus that byte, and all differences are exact:
 * two instructions, where converting an integer takes a slower one. */
static __device__ __forceinline__ void weights_of(const linear_args &args, int at, int output,
                                                  float zero, uint32_t integers, float (&weight)[4])
{
    const int g = vgq_least(group_of(args, at / VGQ_CUDA_STEP), args.groups - 1);
    const float scale = args.scale[(size_t)g * args.scale_stride + output];
#pragma unroll
    for (int j = 0; j < 4; j++)
        weight[j] =
            (vgq_float_of_bits(__byte_perm(integers, 0x4b000000u, 0x7440 + j)) - zero) * scale;
}

/* ---- few tokens, floats --------------------------------------------------------------------- */

enum { GEMV_WARPS = 8, GEMV_ROWS = 8, GEMV_CHUNK = GEMV_WARPS * VGQ_CUDA_DEPTH /* inputs */ };

/* A chunk of `rows` tokens from `first` on, as floats and padded as the weight's inputs are. */
template <int rows>
static __device__ __forceinline__ void load_tokens(const linear_args &args, int first, int start,
                                                   float *to)
{
    for (int at = (int)threadIdx.x * 4; at < rows * GEMV_CHUNK; at += GEMV_WARPS * VGQ_WARP * 4) {
        const int token = vgq_least(first + at / GEMV_CHUNK, args.m - 1);
        int count;
        const int i = source_of(args, start + at % GEMV_CHUNK, &count);
        float v[4];
        load4(args, (size_t)token * args.k + i, count, v);
        *(float4 *)(to + at) = {v[0], v[1], v[2], v[3]};
    }
}

/* A block computes `units` units of 8 outputs for up to `rows` tokens. Tokens come through shared
 * memory by chunks; of a chunk each warp takes a stage, and a lane 16 inputs of one output of each
 * unit. Sums of lanes and warps are added in a fixed order. */
template <vgq_format format, int rows, int units> struct gemv_shape {
    static constexpr int sums = GEMV_WARPS * rows * units * 8, floats = rows * GEMV_CHUNK;
    static constexpr int shared_nbytes = (sums > floats ? sums : floats) * 4;
};

template <vgq_format format, int rows, int units>
static __global__ void __launch_bounds__(GEMV_WARPS *VGQ_WARP, rows > 2 ? 1 : 4)
    gemv_kernel(const linear_args args)
{
    float *const shared = (float *)vgq_dynamic(); /* a chunk; [warps][rows][outputs] at the end */
    const int lane = threadIdx.x % VGQ_WARP, warp = threadIdx.x / VGQ_WARP;
    const int panel = (int)blockIdx.x * units / 8, unit = (int)blockIdx.x * units % 8;
    const int first = (int)blockIdx.y * rows, tiles = args.depth / VGQ_CUDA_DEPTH;
    float acc[units][rows], zero[units];
    int output[units];
    unit_part<format> next[units];
#pragma unroll
    for (int u = 0; u < units; u++) {
        output[u] = panel * VGQ_CUDA_PANEL + (int)vgq_cuda_output(unit + u, lane / 4);
        zero[u] = zero_of(args, format, output[u]);
        next[u].load(args, panel, unit + u, lane, vgq_least(warp, tiles - 1));
        for (int r = 0; r < rows; r++)
            acc[u][r] = 0;
    }
    for (int tile = warp; tile < tiles + warp; tile += GEMV_WARPS) {
        __syncthreads(); /* all are done with the chunk before */
        load_tokens<rows>(args, first, (tile - warp) * VGQ_CUDA_DEPTH, shared);
        __syncthreads();
        unit_part<format> codes[units];
#pragma unroll
        for (int u = 0; u < units; u++) {
            codes[u] = next[u];
            next[u].load(args, panel, unit + u, lane, vgq_least(tile + GEMV_WARPS, tiles - 1));
        }
        if (tile >= tiles)
            continue;
#pragma unroll
        for (int part = 0; part < 4; part++) {
            const int place = part * 16 + lane % 4 * 4;
            float weight[units][4];
#pragma unroll
            for (int u = 0; u < units; u++)
                weights_of(args, tile * VGQ_CUDA_DEPTH + place, output[u], zero[u],
                           codes[u].integers(part), weight[u]);
#pragma unroll
            for (int r = 0; r < rows; r++) {
                const float4 x =
                    *(const float4 *)(shared + r * GEMV_CHUNK + warp * VGQ_CUDA_DEPTH + place);
#pragma unroll
                for (int u = 0; u < units; u++) {
                    acc[u][r] = fmaf(x.x, weight[u][0], acc[u][r]);
                    acc[u][r] = fmaf(x.y, weight[u][1], acc[u][r]);
                    acc[u][r] = fmaf(x.z, weight[u][2], acc[u][r]);
                    acc[u][r] = fmaf(x.w, weight[u][3], acc[u][r]);
                }
            }
        }
    }
    __syncthreads();
#pragma unroll
    for (int u = 0; u < units; u++)
#pragma unroll
        for (int r = 0; r < rows; r++) {
            acc[u][r] += __shfl_xor_sync(VGQ_ALL_LANES, acc[u][r], 1);
            acc[u][r] += __shfl_xor_sync(VGQ_ALL_LANES, acc[u][r], 2);
            if (lane % 4 == 0)
                shared[((warp * rows + r) * units + u) * 8 + lane / 4] = acc[u][r];
        }
    __syncthreads();
    const int r = (int)threadIdx.x / (units * 8), c = (int)threadIdx.x % (units * 8);
    const int column = panel * VGQ_CUDA_PANEL + (int)vgq_cuda_output(unit + c / 8, c % 8);
    if (r >= rows || first + r >= args.m || column >= args.n)
        return;
    float y = 0;
    for (int i = 0; i < GEMV_WARPS; i++)
        y += shared[(i * rows + r) * units * 8 + c];
    y = y * if_packed(args) + (args.bias ? args.bias[column] : 0.0f);
    store_one(args, first + r, column, y);
}

#endif
