/* SPDX-License-Identifier: Apache-2.0
 * Activations as INT8 or FP8 codes, a block a token: LayerNorm where it is asked for, the largest
 * magnitude, codes, the sum of INT8 ones. docs/conventions.md, "Activations" and "Linear". */
#ifndef VGQ_LINEAR_TOKENS_CUH
#define VGQ_LINEAR_TOKENS_CUH

#include "linear.cuh"

enum { CODE_THREADS = 128 };

template <typename T> static __device__ inline T block_most(T x, T *shared)
{
    x = vgq_warp_most(x, VGQ_WARP);
    if (threadIdx.x % VGQ_WARP == 0)
        shared[threadIdx.x / VGQ_WARP] = x;
    __syncthreads();
    for (int i = 0; i < CODE_THREADS / VGQ_WARP; i++)
        x = vgq_most(x, shared[i]);
    return x;
}

static __device__ inline int32_t block_sum(int32_t x, int32_t *shared)
{
    for (int step = VGQ_WARP / 2; step > 0; step /= 2)
        x += __shfl_xor_sync(VGQ_ALL_LANES, x, step);
    if (threadIdx.x % VGQ_WARP == 0)
        shared[threadIdx.x / VGQ_WARP] = x;
    __syncthreads();
    x = 0;
    for (int i = 0; i < CODE_THREADS / VGQ_WARP; i++)
        x += shared[i];
    return x;
}

/* A token's inputs as floats. With a norm, a row of up to MOST_STAGED comes to shared memory first,
 * by all threads at once; of a longer one every reading goes to the cache. */
enum { MOST_STAGED = 4096 };

struct token_row {
    const linear_args &args;
    size_t start;  /* its first element in x */
    float *staged; /* NULL: it is not */

    __device__ inline void stage()
    {
        for (int i = (int)threadIdx.x * 4; staged && i < args.k; i += CODE_THREADS * 4) {
            float v[4];
            load4(args, start + i, vgq_least(4, args.k - i), v);
            *(float4 *)(staged + i) = {v[0], v[1], v[2], v[3]};
        }
        __syncthreads();
    }
    __device__ inline float one(int i) const
    {
        return staged ? staged[i] : vgq_load_any(args.x_dtype, args.x, start + i);
    }
    /* Inputs i..i+3, i a multiple of 4, of which `count` are there; the others are 0. */
    __device__ inline void four(int i, int count, float (&v)[4]) const
    {
        if (staged && count > 0) {
            const float4 f = *(const float4 *)(staged + i);
            v[0] = f.x, v[1] = f.y, v[2] = f.z, v[3] = f.w;
        } else {
            load4(args, start + i, count, v);
        }
    }
};

/* LayerNorm of a row (docs/conventions.md): its mean and 1 / its deviation, the same in every
 * thread of a whole warp, whose halves do the same. A thread has one of the sixteen lanes. */
struct row_norm {
    float mean, inverse;

    __device__ inline void find(const token_row &row)
    {
        const int k = row.args.k;
        float sum = 0;
#pragma unroll 8
        for (int i = threadIdx.x % VGQ_LANES; i < k; i += VGQ_LANES)
            sum = sum + row.one(i);
        mean = vgq_half_warp_sum(sum) / (float)k;
        sum = 0;
#pragma unroll 8
        for (int i = threadIdx.x % VGQ_LANES; i < k; i += VGQ_LANES) {
            const float d = row.one(i) - mean;
            sum = fmaf(d, d, sum);
        }
        inverse = 1.0f / sqrtf(vgq_half_warp_sum(sum) / (float)k + row.args.norm.eps);
    }

    /* v: inputs i..i+3 of the row, of which `count` are there; the others become 0, or NaN in a row
     * that is not finite, which has a NaN anyhow. */
    __device__ inline void apply(const linear_args &args, int i, int count, float (&v)[4]) const
    {
        const float4 w = four_floats(args.norm.weight, i, count, args.norm_vectors);
        for (int j = 0; j < 4; j++)
            v[j] = (v[j] - mean) * inverse;
        if (args.norm.bias) {
            const float4 b = four_floats(args.norm.bias, i, count, args.norm_vectors);
            v[0] = fmaf(v[0], w.x, b.x), v[1] = fmaf(v[1], w.y, b.y);
            v[2] = fmaf(v[2], w.z, b.z), v[3] = fmaf(v[3], w.w, b.w);
        } else {
            v[0] = v[0] * w.x, v[1] = v[1] * w.y, v[2] = v[2] * w.z, v[3] = v[3] * w.w;
        }
    }
};

/* Four codes in a word, of which `count` are there and the others 0. INT8, as vgq_encode_token: 1.5
 * x 2^23 leaves the nearest integer, ties to even, in the low bits of a float. */
struct int8_codes {
    float scale, inverse;
    uint32_t finite; /* all bits, or none in a row that is not finite */

    __device__ inline explicit int8_codes(uint32_t largest)
    {
        scale = vgq_token_scale(largest, VGQ_INT8_HIGHEST, &inverse);
        finite = largest < 0x7f800000u ? ~0u : 0u;
    }
    __device__ inline uint32_t of(const float (&v)[4], int) const
    {
        uint32_t code[4];
        for (int j = 0; j < 4; j++)
            code[j] = vgq_bits_of_float(fminf(fmaxf(v[j] * inverse, -127.0f), 127.0f) + 0x1.8p23f);
        return __byte_perm(__byte_perm(code[0], code[1], 0x40), __byte_perm(code[2], code[3], 0x40),
                           0x5410) &
               finite;
    }
    static __device__ inline int32_t sum(uint32_t word, int32_t sum)
    {
        return __dp4a((int)word, 0x01010101, sum);
    }
};

/* FP8 (e4m3fn): v / scale, the scale at least 2^-126, rounded to nearest even; what torch's
 * operators give in vggtquant/ops/float8.py. NaN and infinity: a scale of NaN or infinity. */
struct float8_codes {
    float scale;

    __device__ inline explicit float8_codes(uint32_t largest)
    {
        const float s = vgq_float_of_bits(largest) / 448.0f;
        scale = s < 0x1p-126f ? 0x1p-126f : s;
    }
    /* |v| is at most 448, by a rounding; below 2^-6 numbers are 2^-9 apart. */
    static __device__ inline uint32_t one(float v)
    {
        const uint32_t bits = vgq_bits_of_float(v), sign = bits >> 24 & 0x80u;
        const uint32_t size = bits & 0x7fffffffu;
        if (size > 0x7f800000u)
            return sign | 0x7fu;
        if (size < 121u << 23)
            return sign | (vgq_bits_of_float(vgq_float_of_bits(size) + 0x1p14f) - (141u << 23));
        return sign | (size - (120u << 23) + 0x7ffffu + (size >> 20 & 1u)) >> 20;
    }
    static __device__ inline uint32_t two(float low, float high)
    {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 890
        uint16_t pair;
        asm("cvt.rn.satfinite.e4m3x2.f32 %0, %1, %2;" : "=h"(pair) : "f"(high), "f"(low));
        return pair;
#else
        return one(low) | one(high) << 8;
#endif
    }
    __device__ inline uint32_t of(const float (&v)[4], int count) const
    {
        const uint32_t low = two(v[0] / scale, v[1] / scale);
        const uint32_t word = low | two(v[2] / scale, v[3] / scale) << 16;
        return count < 4 ? word & ((1u << 8 * count) - 1) : word;
    }
    static __device__ inline int32_t sum(uint32_t, int32_t sum) { return sum; }
};

/* A block codes a token: its largest magnitude, then codes, four a thread, where the product wants
 * them. A second reading finds the row in the cache or, with a norm, in shared memory, where the
 * first one has left it normalized. */
template <typename token_codes, bool with_norm>
static __global__ void __launch_bounds__(CODE_THREADS, 8) code_tokens_kernel(const linear_args args)
{
    __shared__ uint32_t largest_of[CODE_THREADS / VGQ_WARP];
    __shared__ int32_t sum_of[CODE_THREADS / VGQ_WARP];
    __shared__ row_norm norm_of;
    const size_t m = blockIdx.x;
    token_row row = {args, m * (size_t)args.k, NULL};
    uint32_t largest = 0;
    float v[4];
    int count;
    row_norm norm;
    if constexpr (with_norm) {
        if (args.k <= MOST_STAGED)
            row.staged = (float *)vgq_dynamic();
        row.stage();
        if (threadIdx.x < VGQ_WARP)
            norm.find(row);
        if (threadIdx.x == 0)
            norm_of = norm;
        __syncthreads();
        norm = norm_of;
    }
    for (int at = (int)threadIdx.x * 4; at < args.depth; at += CODE_THREADS * 4) {
        const int i = source_of(args, at, &count);
        row.four(i, count, v);
        if constexpr (with_norm) {
            norm.apply(args, i, count, v);
            if (row.staged && count > 0)
                *(float4 *)(row.staged + i) = {v[0], v[1], v[2], v[3]};
        }
        for (int j = 0; j < 4; j++)
            largest = vgq_most(largest, vgq_bits_of_float(v[j]) & 0x7fffffffu);
    }
    const token_codes codes(block_most(largest, largest_of));
    int32_t sum = 0;
    for (int at = (int)threadIdx.x * 4; at < args.depth; at += CODE_THREADS * 4) {
        const int i = source_of(args, at, &count);
        row.four(i, count, v);
        if constexpr (with_norm)
            if (!row.staged)
                norm.apply(args, i, count, v);
        const uint32_t word = codes.of(v, count);
        sum = token_codes::sum(word, sum);
        *(uint32_t *)(args.x_codes + m * (size_t)args.depth + at) = word;
    }
    if (args.x_sum)
        sum = block_sum(sum, sum_of);
    if (threadIdx.x == 0) {
        args.x_scale[m] = codes.scale;
        if (args.x_sum)
            args.x_sum[m] = sum;
    }
}

#endif
