/* SPDX-License-Identifier: Apache-2.0
 * The warp instructions of the products, one function each; the whole warp calls them together. Who
 * compiles this as C++ (tests/cuda_shim) defines them by the fragment layouts of the PTX manual,
 * "Warp-level matrix instructions" and "Data movement: cp.async". */
#ifndef VGQ_MMA_CUH
#define VGQ_MMA_CUH

#include <stdint.h>

#if defined(__CUDACC__)

#if defined(__CUDA_ARCH__)
#define VGQ_ARCH __CUDA_ARCH__
#else
#define VGQ_ARCH 800 /* the host's pass, which only launches */
#endif

static __device__ __forceinline__ uint32_t shared_address(const void *p)
{
    return (uint32_t)__cvta_generic_to_shared(p);
}

/* Four matrices of 8 rows x 16 bytes from shared memory; lane 8 i + r gives the address of row r of
 * matrix i, and lane 4 r + t receives bytes 4t..4t+3 of row r of each. */
static __device__ __forceinline__ void ldmatrix_x4(uint32_t (&d)[4], const void *row)
{
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];"
                 : "=r"(d[0]), "=r"(d[1]), "=r"(d[2]), "=r"(d[3])
                 : "r"(shared_address(row))
                 : "memory");
}

/* d (16x8, int32) += a (16x32, int8) b (32x8, int8). */
static __device__ __forceinline__ void mma_m16n8k32(int32_t (&d)[4], const uint32_t (&a)[4],
                                                    uint32_t b0, uint32_t b1)
{
    asm volatile("mma.sync.aligned.m16n8k32.row.col.s32.s8.s8.s32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, "
                 "{%8,%9}, {%0,%1,%2,%3};"
                 : "+r"(d[0]), "+r"(d[1]), "+r"(d[2]), "+r"(d[3])
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

/* d (8x8, int32) += a (8x16, int8) b (16x8, int8). */
static __device__ __forceinline__ void mma_m8n8k16(int32_t &d0, int32_t &d1, uint32_t a, uint32_t b)
{
    asm volatile("mma.sync.aligned.m8n8k16.row.col.s32.s8.s8.s32 {%0,%1}, {%2}, {%3}, {%0,%1};"
                 : "+r"(d0), "+r"(d1)
                 : "r"(a), "r"(b));
}

#if VGQ_ARCH >= 800
/* 16 bytes from global to shared memory in the background; zeros, nothing read, where !there. */
static __device__ __forceinline__ void copy_async(void *shared, const void *global, bool there)
{
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(shared_address(shared)),
                 "l"(global), "r"(there ? 16 : 0)
                 : "memory");
}

/* This thread's copies since the last call become a group. */
static __device__ __forceinline__ void copy_commit()
{
    asm volatile("cp.async.commit_group;" ::: "memory");
}

/* Until all but the last `pending` groups of this thread have arrived. */
template <int pending> static __device__ __forceinline__ void copy_wait()
{
    asm volatile("cp.async.wait_group %0;" ::"n"(pending) : "memory");
}
#endif

#else
#include "mma_model.h" /* which defines VGQ_ARCH too */
#endif

/* d (16x8, int32) += a (16x32, int8) b (32x8, int8), on any architecture: the fragments of m8n8k16
 * are quarters of those of m16n8k32. */
static __device__ __forceinline__ void mma_s8(int32_t (&d)[4], const uint32_t (&a)[4], uint32_t b0,
                                              uint32_t b1)
{
#if VGQ_ARCH >= 800
    mma_m16n8k32(d, a, b0, b1);
#else
    mma_m8n8k16(d[0], d[1], a[0], b0);
    mma_m8n8k16(d[0], d[1], a[2], b1);
    mma_m8n8k16(d[2], d[3], a[1], b0);
    mma_m8n8k16(d[2], d[3], a[3], b1);
#endif
}

#endif
