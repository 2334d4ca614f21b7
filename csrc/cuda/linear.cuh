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
    int columns;                    /* n, padded to panels */
    vgq_dtype x_dtype, y_dtype;
    bool gelu, x_vectors,
        y_vectors; /* whether rows of x and y may be read and written by 4 and 8 */
    const void *x;
    const float *bias; /* NULL: none */
    void *y;
    const uint64_t *header;
    const float *scale; /* [columns], or [groups][columns] */
    int scale_stride;   /* to a group's scales: columns, or 0 where all groups share them */
    const unsigned char *column; /* zero points or pairs; NULL: INT8 without zero points */
    const unsigned char *codes;
    int8_t *x_codes; /* [m][depth] */
    float *x_scale;  /* [m] */
    int32_t *x_sum;  /* [m] */
};

/* 1; NaN where the bytes were not packed for these kernels, so that every output shows it. */
static __device__ __forceinline__ float if_packed(const linear_args &args)
{
    return *args.header == VGQ_CUDA_MAGIC ? 1.0f : vgq_float_of_bits(0x7fc00000u);
}

/* Of inputs at..at+3 of the padded row, at a multiple of 4: the first one's place in x, and how
 * many are there. Groups start at multiples of 8, so that no four straddle two. */
static __device__ __forceinline__ int source_of(const linear_args &args, int at, int *count)
{
    const int step = at / VGQ_CUDA_STEP, g = step / args.group_steps;
    const int j = at - g * args.group_steps * VGQ_CUDA_STEP, i = g * args.group + j;
    const int end = vgq_least((g + 1) * args.group, args.k);
    *count = g < args.groups && i < end ? vgq_least(4, end - i) : 0;
    return i;
}

static __device__ __forceinline__ float widen(vgq_dtype dtype, uint32_t half)
{
    return dtype == VGQ_F16 ? vgq_float_of_f16((uint16_t)half) : vgq_float_of_bf16((uint16_t)half);
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
        v[0] = widen(args.x_dtype, two.x & 0xffffu), v[1] = widen(args.x_dtype, two.x >> 16);
        v[2] = widen(args.x_dtype, two.y & 0xffffu), v[3] = widen(args.x_dtype, two.y >> 16);
        return;
    }
    for (int j = 0; j < 4; j++)
        v[j] = j < count ? vgq_load_any(args.x_dtype, args.x, i + j) : 0.0f;
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

/* y[i..i+7] = v, of which `count` are there. */
static __device__ __forceinline__ void store8(const linear_args &args, size_t i, int count,
                                              const float (&v)[8])
{
    if (!args.y_vectors || count < 8) {
        for (int j = 0; j < 8; j++)
            if (j < count)
                store1(args, i + j, v[j]);
    } else if (args.y_dtype == VGQ_F32) {
        float4 *const to = (float4 *)((float *)args.y + i);
        to[0] = {v[0], v[1], v[2], v[3]};
        to[1] = {v[4], v[5], v[6], v[7]};
    } else {
        uint32_t pairs[4];
        for (int j = 0; j < 4; j++)
            pairs[j] = narrow(args.y_dtype, v[2 * j]) | narrow(args.y_dtype, v[2 * j + 1]) << 16;
        *(uint4 *)((uint16_t *)args.y + i) = {pairs[0], pairs[1], pairs[2], pairs[3]};
    }
}

/* A word of four INT4 codes plus 8, one a byte, to signed bytes factor * (code - zero). pair: the
 * factor, and factor * (zero + 8), at most 120, in the second byte. The products stay below 256, so
 * they do not touch each other; the top bits are kept out of the subtraction and put right after.
 */
static __device__ __forceinline__ uint32_t expand4(uint32_t codes, uint32_t factor,
                                                   uint32_t subtrahends)
{
    const uint32_t product = codes * factor, tops = 0x80808080u;
    return ((product | tops) - subtrahends) ^ (~product & tops);
}

#endif
