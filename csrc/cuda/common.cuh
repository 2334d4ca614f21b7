/* SPDX-License-Identifier: Apache-2.0
 * What the CUDA files share: the launch, loads and stores of the three dtypes, reductions of a
 * warp.
 *
 * Rules that keep every .cu file readable by a host compiler too, which runs it in tests/cuda_shim:
 *   - kernels start through vgq_launch, never <<<>>>; they are `static __global__`;
 *   - shared memory is declared `__shared__ T name[N];` in a kernel or taken from vgq_dynamic();
 *   - a block has a multiple of 32 threads, and no thread returns before the block's last barrier;
 *   - inline PTX stands in wrappers of one instruction each, beside their host twins (mma.cuh).
 * Products that feed an addition are never contracted (-fmad=false), as on the CPU. */
#ifndef VGQ_CUDA_COMMON_CUH
#define VGQ_CUDA_COMMON_CUH

#if defined(__CUDACC__)
#include <cuda_runtime.h>
#else
#include "cuda_shim.h"
#endif

#include "../kernels.h"
#include "../vgq_cuda.h"

enum { VGQ_WARP = 32, VGQ_THREADS = 256 };
#define VGQ_ALL_LANES 0xffffffffu

/* Stamps a call for each dtype of the elements: the name in `call` is DTYPE. */
#define VGQ_BY_DTYPE(dtype, call)                \
    do {                                         \
        if ((dtype) == VGQ_F32) {                \
            constexpr vgq_dtype DTYPE = VGQ_F32; \
            return call;                         \
        }                                        \
        if ((dtype) == VGQ_F16) {                \
            constexpr vgq_dtype DTYPE = VGQ_F16; \
            return call;                         \
        }                                        \
        constexpr vgq_dtype DTYPE = VGQ_BF16;    \
        return call;                             \
    } while (0)

template <typename T> struct vgq_exactly {
    typedef T type;
};

/* Starts kernel(args...) on the caller's stream; no block, nothing to do. Neither allocates nor
 * waits, so a CUDA graph can capture it. */
template <typename... P>
static inline vgq_status vgq_launch(void (*kernel)(P...), dim3 grid, dim3 block,
                                    size_t shared_nbytes, void *stream,
                                    typename vgq_exactly<P>::type... args)
{
    if (!grid.x || !grid.y || !grid.z)
        return VGQ_OK;
#if defined(__CUDACC__)
    void *pointers[] = {(void *)&args...};
    if (shared_nbytes > 48 * 1024 &&
        cudaFuncSetAttribute((const void *)kernel, cudaFuncAttributeMaxDynamicSharedMemorySize,
                             (int)shared_nbytes) != cudaSuccess)
        return VGQ_ECUDA;
    return cudaLaunchKernel((const void *)kernel, grid, block, pointers, shared_nbytes,
                            (cudaStream_t)stream) == cudaSuccess
               ? VGQ_OK
               : VGQ_ECUDA;
#else
    (void)stream;
    shim::launch(grid, block, shared_nbytes, [=] { kernel(args...); });
    return VGQ_OK;
#endif
}

/* The launch's dynamic shared memory, aligned to 128 bytes. */
static __device__ inline unsigned char *vgq_dynamic(void)
{
#if defined(__CUDACC__)
    extern __shared__ __align__(128) unsigned char vgq_dynamic_bytes[];
    return vgq_dynamic_bytes;
#else
    return shim::dynamic_shared();
#endif
}

#define VGQ_MOST_BLOCKS 0x7fffffffu /* along a grid's x; 65,535 along y and z */

/* Blocks of `size` for n things. */
static inline unsigned vgq_blocks(size_t n, size_t size)
{
    return (unsigned)((n + size - 1) / size);
}

/* This thread's number among those of the grid. */
static __device__ inline size_t vgq_thread(void)
{
    return (size_t)blockIdx.x * blockDim.x + threadIdx.x;
}

/* ---- elements ------------------------------------------------------------------------------- */

/* A 16-bit element as float, exact; and back, rounded once, half to even. */
template <vgq_dtype DTYPE> static __device__ inline float vgq_widen(uint16_t half)
{
    return DTYPE == VGQ_F16 ? vgq_float_of_f16(half) : vgq_float_of_bf16(half);
}
template <vgq_dtype DTYPE> static __device__ inline uint16_t vgq_narrow(float value)
{
    return DTYPE == VGQ_F16 ? vgq_f16_of_float(value) : vgq_bf16_of_float(value);
}

/* Element i of x as float. */
template <vgq_dtype DTYPE> static __device__ inline float vgq_load(const void *x, size_t i)
{
    return DTYPE == VGQ_F32 ? ((const float *)x)[i] : vgq_widen<DTYPE>(((const uint16_t *)x)[i]);
}

/* Element i of x = value. */
template <vgq_dtype DTYPE> static __device__ inline void vgq_store(void *x, size_t i, float value)
{
    if (DTYPE == VGQ_F32)
        ((float *)x)[i] = value;
    else
        ((uint16_t *)x)[i] = vgq_narrow<DTYPE>(value);
}

/* Whether `by` neighbours of a row of cols elements may be read or written at once, as 16 bytes or,
 * where they are fewer, as what they are: then every such piece of every row is aligned. */
static inline bool vgq_by_vectors(const void *rows, size_t cols, size_t by, size_t element_bits)
{
    const size_t nbytes = by * element_bits / 8;
    return cols % by == 0 && (uintptr_t)rows % (nbytes < 16 ? nbytes : 16) == 0;
}

/* The same for a dtype that is known when it runs only; every thread of a grid takes one branch. */
static __device__ inline float vgq_load_any(vgq_dtype dtype, const void *x, size_t i)
{
    return dtype == VGQ_F32   ? vgq_load<VGQ_F32>(x, i)
           : dtype == VGQ_F16 ? vgq_load<VGQ_F16>(x, i)
                              : vgq_load<VGQ_BF16>(x, i);
}

/* ---- reductions ----------------------------------------------------------------------------- */

/* The lanes of a float sum, 16 neighbouring threads of a warp, by vgq_lane_sum's tree: i with i +
 * 8, then 4, 2, 1. Thread 0 of the 16 has the sum (addition commutes, so the others have it too).
 */
template <typename T> static __device__ inline T vgq_half_warp_sum(T x)
{
    for (int step = VGQ_LANES / 2; step > 0; step /= 2)
        x = x + __shfl_xor_sync(VGQ_ALL_LANES, x, step);
    return x;
}

template <typename T> static __host__ __device__ inline T vgq_least(T a, T b)
{
    return b < a ? b : a;
}
template <typename T> static __host__ __device__ inline T vgq_most(T a, T b)
{
    return b > a ? b : a;
}

/* The smallest and the largest of `width` neighbouring threads, 16 or 32; all of the warp call. */
template <typename T> static __device__ inline T vgq_warp_least(T x, int width)
{
    for (int step = width / 2; step > 0; step /= 2)
        x = vgq_least(x, __shfl_xor_sync(VGQ_ALL_LANES, x, step));
    return x;
}
template <typename T> static __device__ inline T vgq_warp_most(T x, int width)
{
    for (int step = width / 2; step > 0; step /= 2)
        x = vgq_most(x, __shfl_xor_sync(VGQ_ALL_LANES, x, step));
    return x;
}

#endif
