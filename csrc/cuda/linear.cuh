/* SPDX-License-Identifier: Apache-2.0
 * What the kernels of the Linear share: a call's operands as kernels take them, and how a row of
 * floats of any dtype is read and written. */
#ifndef VGQ_LINEAR_CUH
#define VGQ_LINEAR_CUH

#include "common.cuh"
#include "linear_layout.h"
#include "../gelu.h"

/* A call, for the kernels. Pointers are the device's; sizes fit int but for products of two. */
struct linear_args {
    int m, n, k, depth;             /* depth: inputs, padded as the codes of the weight are */
    int groups, group, group_steps; /* of a row: groups, their inputs, products of each */
    bool straight;                  /* as in vgq_cuda_layout */
    uint64_t steps_inverse;         /* 2^32 / group_steps, rounded up: see group_of */
    int columns;                    /* n, padded to panels */
    vgq_dtype x_dtype, y_dtype;
    bool gelu, x_vectors,
        y_vectors; /* whether rows of x may be read by 4; of y written by 8, of decoded ones by 4 */
    bool residual_vectors; /* whether those of the residual may be read by 8 */
    bool plain;            /* y is bfloat16, written by 8, and nothing follows the bias */
    bool norm_vectors;     /* whether the norm's weight and bias may be read by 4 */
    const void *x;
    vgq_norm norm;            /* as in vgq_linear_call; with coded tokens only */
    const float *bias;        /* NULL: none */
    const float *layer_scale; /* NULL: none */
    const void *residual;     /* NULL: none */
    void *y;
    const uint64_t *header;
    const float *scale; /* [columns], or [groups][columns] */
    int scale_stride;   /* to a group's scales: columns, or 0 where all groups share them */
    const unsigned char *column; /* zero points or pairs; NULL: INT8 without zero points */
    const unsigned char *codes;
    int8_t *x_codes; /* [m][depth] */
    float *x_scale;  /* [m] */
    int32_t *x_sum;  /* [m] */
    int32_t *sums; /* [m][n], zeros before: where parts of the depth are added up, `split` 64 inputs
                      each; NULL: a block has all of it */
    int split;
};

/* 1; NaN where the bytes were not packed for these kernels, so that every output shows it. */
static __device__ __forceinline__ float if_packed(const linear_args &args)
{
    return *args.header == VGQ_CUDA_MAGIC ? 1.0f : vgq_float_of_bits(0x7fc00000u);
}

/* step / group_steps: exact while step * group_steps < 2^32, and a tenth of a division. */
static __device__ __forceinline__ int group_of(const linear_args &args, int step)
{
    return (int)((uint64_t)(unsigned)step * args.steps_inverse >> 32);
}

/* Of inputs at..at+3 of the padded row, at a multiple of 4: the first one's place in x, and how
 * many are there. Groups start at multiples of 8, so that no four straddle two. */
static __device__ __forceinline__ int source_of(const linear_args &args, int at, int *count)
{
    if (args.straight) {
        *count = vgq_most(0, vgq_least(4, args.k - at));
        return at;
    }
    const int g = group_of(args, at / VGQ_CUDA_STEP);
    const int j = at - g * args.group_steps * VGQ_CUDA_STEP, i = g * args.group + j;
    const int end = vgq_least((g + 1) * args.group, args.k);
    *count = g < args.groups && i < end ? vgq_least(4, end - i) : 0;
    return i;
}

static __device__ __forceinline__ float float_of_f16(uint32_t half)
{
#if defined(__CUDA_ARCH__)
    float v;
    asm("cvt.f32.f16 %0, %1;" : "=f"(v) : "h"((uint16_t)half));
    return v;
#else
    return vgq_float_of_f16((uint16_t)half);
#endif
}

static __device__ __forceinline__ float widen(vgq_dtype dtype, uint32_t half)
{
    return dtype == VGQ_F16 ? float_of_f16(half) : vgq_float_of_bf16((uint16_t)half);
}

/* x[i..i+3] as floats; zeros from count on. */
static __device__ __forceinline__ void load4(const linear_args &args, size_t i, int count,
                                             float (&v)[4])
{
    if (args.x_vectors && count == 4) {
        if (args.x_dtype == VGQ_F32) {
            const float4 four = *(const float4 *)((const float *)args.x + i);
            v[0] = four.x, v[1] = four.y, v[2] = four.z, v[3] = four.w;
            return;
        }
        const uint2 two = *(const uint2 *)((const uint16_t *)args.x + i);
        if (args.x_dtype == VGQ_F16) {
            v[0] = float_of_f16(two.x & 0xffffu), v[1] = float_of_f16(two.x >> 16);
            v[2] = float_of_f16(two.y & 0xffffu), v[3] = float_of_f16(two.y >> 16);
        } else {
            v[0] = vgq_float_of_bits(two.x << 16), v[1] = vgq_float_of_bits(two.x & 0xffff0000u);
            v[2] = vgq_float_of_bits(two.y << 16), v[3] = vgq_float_of_bits(two.y & 0xffff0000u);
        }
        return;
    }
    for (int j = 0; j < 4; j++)
        v[j] = j < count ? vgq_load_any(args.x_dtype, args.x, i + j) : 0.0f;
}

/* from[i..i+3], of which `count` are there; `vectors`: at once. */
static __device__ __forceinline__ float4 four_floats(const float *from, int i, int count,
                                                     bool vectors)
{
    if (vectors && count == 4)
        return *(const float4 *)(from + i);
    return {count > 0 ? from[i] : 0.0f, count > 1 ? from[i + 1] : 0.0f,
            count > 2 ? from[i + 2] : 0.0f, count > 3 ? from[i + 3] : 0.0f};
}

/* Rounded once, half to even. The GPU's own conversions differ in the bits of a NaN only. */
static __device__ __forceinline__ uint32_t narrow(vgq_dtype dtype, float v)
{
#if defined(__CUDA_ARCH__)
    uint16_t half;
    if (dtype == VGQ_F16) {
        asm("cvt.rn.f16.f32 %0, %1;" : "=h"(half) : "f"(v));
        return half;
    }
#if __CUDA_ARCH__ >= 800
    asm("cvt.rn.bf16.f32 %0, %1;" : "=h"(half) : "f"(v));
    return half;
#endif
#endif
    return dtype == VGQ_F16 ? vgq_f16_of_float(v) : vgq_bf16_of_float(v);
}

static __device__ __forceinline__ void store1(const linear_args &args, size_t i, float v)
{
    if (args.y_dtype == VGQ_F32)
        ((float *)args.y)[i] = v;
    else
        ((uint16_t *)args.y)[i] = (uint16_t)narrow(args.y_dtype, v);
}

/* y[i..i+N-1] = v, of which `count` are there: 4 or 8 neighbours, at once where y_vectors says that
 * so many may be. */
template <int N>
static __device__ __forceinline__ void store_some(const linear_args &args, size_t i, int count,
                                                  const float (&v)[N])
{
    if (!args.y_vectors || count < N) {
#pragma unroll
        for (int j = 0; j < N; j++)
            if (j < count)
                store1(args, i + j, v[j]);
    } else if (args.y_dtype == VGQ_F32) {
        float4 *const to = (float4 *)((float *)args.y + i);
#pragma unroll
        for (int j = 0; j < N / 4; j++)
            to[j] = {v[4 * j], v[4 * j + 1], v[4 * j + 2], v[4 * j + 3]};
    } else {
        uint32_t pairs[N / 2];
#pragma unroll
        for (int j = 0; j < N / 2; j++)
            pairs[j] = narrow(args.y_dtype, v[2 * j]) | narrow(args.y_dtype, v[2 * j + 1]) << 16;
        if constexpr (N == 8)
            *(uint4 *)((uint16_t *)args.y + i) = {pairs[0], pairs[1], pairs[2], pairs[3]};
        else
            *(uint2 *)((uint16_t *)args.y + i) = {pairs[0], pairs[1]};
    }
}

/* What eight neighbouring outputs do to their sums; held in registers while rows pass by. */
struct eight_outputs {
    float scale[8], bias[8];
    int32_t minus_zero[8];

    /* Outputs c..c+7, c a multiple of 8, of which `count` are there; scales and zero points are
     * padded to panels. */
    __device__ __forceinline__ eight_outputs(const linear_args &args, int c, int count,
                                             bool with_scales, bool with_zeros)
    {
        const float4 *const scales = (const float4 *)(args.scale + c);
        const int4 *const zeros = (const int4 *)((const int32_t *)args.column + c);
#pragma unroll
        for (int j = 0; j < 8; j += 4) {
            const float4 s = with_scales ? scales[j / 4] : float4{1, 1, 1, 1};
            const int4 z = with_zeros ? zeros[j / 4] : int4{0, 0, 0, 0};
            scale[j] = s.x, scale[j + 1] = s.y, scale[j + 2] = s.z, scale[j + 3] = s.w;
            minus_zero[j] = -z.x, minus_zero[j + 1] = -z.y;
            minus_zero[j + 2] = -z.z, minus_zero[j + 3] = -z.w;
        }
#pragma unroll
        for (int j = 0; j < 8; j++)
            bias[j] = args.bias && j < count ? args.bias[c + j] : 0.0f;
    }

    /* Output j of a token, from the sum of its products; docs/conventions.md, "Linear". */
    __device__ __forceinline__ float of(int j, int32_t sum, float x_scale, int32_t x_sum) const
    {
        return (float)(sum + minus_zero[j] * x_sum) * x_scale * scale[j] + bias[j];
    }
};

static __device__ __forceinline__ void rotate(float (&y)[8])
{
    const float first = y[0];
#pragma unroll
    for (int j = 0; j < 7; j++)
        y[j] = y[j + 1];
    y[7] = first;
}

/* y[j] += element i + j of the residual, eight neighbours of which `count` are there. */
static __device__ __forceinline__ void add_residual(const linear_args &args, size_t i, int count,
                                                    float (&y)[8])
{
    if (!args.residual_vectors || count < 8) {
#pragma unroll 1
        for (int j = 0; j < 8; j++, rotate(y))
            if (j < count)
                y[0] = y[0] + vgq_load_any(args.y_dtype, args.residual, i + j);
    } else if (args.y_dtype == VGQ_F32) {
        const float4 *const from = (const float4 *)((const float *)args.residual + i);
        const float4 a = from[0], b = from[1];
        y[0] = y[0] + a.x, y[1] = y[1] + a.y, y[2] = y[2] + a.z, y[3] = y[3] + a.w;
        y[4] = y[4] + b.x, y[5] = y[5] + b.y, y[6] = y[6] + b.z, y[7] = y[7] + b.w;
    } else {
        const uint4 four = *(const uint4 *)((const uint16_t *)args.residual + i);
        const uint32_t pairs[4] = {four.x, four.y, four.z, four.w};
#pragma unroll
        for (int j = 0; j < 8; j++)
            y[j] = y[j] + widen(args.y_dtype, pairs[j / 2] >> j % 2 * 16 & 0xffffu);
    }
}

/* Eight neighbouring outputs of a token to y, through what follows the bias. */
static __device__ __forceinline__ void store_eight(const linear_args &args, int m, int c, int count,
                                                   float (&y)[8])
{
    const size_t i = (size_t)m * args.n + c;
    if (args.gelu)
#pragma unroll 1
        for (int j = 0; j < 8; j++) /* in turns: eight copies of it would be no faster */
            y[0] = vgq_gelu(y[0]), rotate(y);
    if (args.layer_scale)
#pragma unroll
        for (int j = 0; j < 8; j++)
            y[j] = y[j] * (j < count ? args.layer_scale[c + j] : 1.0f);
    if (args.residual)
        add_residual(args, i, count, y);
    store_some(args, i, count, y);
}

/* The same where args.plain: a path without the questions that stand above. */
static __device__ __forceinline__ void store_plain(const linear_args &args, int m, int c,
                                                   const float (&y)[8])
{
    uint32_t pairs[4];
#pragma unroll
    for (int j = 0; j < 4; j++)
        pairs[j] = narrow(VGQ_BF16, y[2 * j]) | narrow(VGQ_BF16, y[2 * j + 1]) << 16;
    *(uint4 *)((uint16_t *)args.y + ((size_t)m * args.n + c)) = {pairs[0], pairs[1], pairs[2],
                                                                 pairs[3]};
}

/* Output `c` of token m to y, likewise. */
static __device__ __forceinline__ void store_one(const linear_args &args, int m, int c, float y)
{
    const size_t i = (size_t)m * args.n + c;
    if (args.gelu)
        y = vgq_gelu(y);
    if (args.layer_scale)
        y = y * args.layer_scale[c];
    if (args.residual)
        y = y + vgq_load_any(args.y_dtype, args.residual, i);
    store1(args, i, y);
}

/* Integers plus 128, a byte each, of four INT4 codes plus 8 (linear_layout.h): all that comes about
 * stays a byte, so that one multiply-add serves the four. pair: factor and shift, in bytes 0 and 1
 * of the word or, where `high`, in 2 and 3. */
static __device__ __forceinline__ uint32_t expand4(uint32_t codes, uint32_t pair, bool high)
{
    return codes * __byte_perm(pair, 0, high ? 0x4442 : 0x4440) +
           __byte_perm(pair, 0, high ? 0x3333 : 0x1111);
}

/* The low and the high nibbles of a word, a byte each. */
static __device__ __forceinline__ uint32_t low_nibbles(uint32_t word) { return word & 0x0f0f0f0fu; }
static __device__ __forceinline__ uint32_t high_nibbles(uint32_t word)
{
    return word >> 4 & 0x0f0f0f0fu;
}

/* From bytes plus 128 to signed bytes, and back. */
static __device__ __forceinline__ uint32_t flip_signs(uint32_t word) { return word ^ 0x80808080u; }

#endif
