/* SPDX-License-Identifier: Apache-2.0
 * Enough of CUDA's language for a host compiler to run the files of csrc/cuda: blocks one after the
 * other, a block's threads as fibers that change only where they wait for each other, so every run
 * is the same. Compile with `g++ -x c++ -std=c++17 -Itests/cuda_shim` and link shim.cpp.
 *
 * Built with -fsanitize=address,undefined, reads and writes beyond arrays are found. Built with
 * -fsanitize=thread but without its runtime, shim.cpp is called for every access (race.cpp): two
 * threads that touch a byte, one of them writing, with no barrier between, are a race; so is a read
 * of shared memory that no thread of the block has written. Both end the program with one line.
 * Tensor core instructions and cp.async: mma_model.h, whose calls use shim::show. */
#ifndef VGQ_CUDA_SHIM_H
#define VGQ_CUDA_SHIM_H

#include <math.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#define __host__
#define __device__
#define __global__
#define __forceinline__ inline
#define __align__(n) __attribute__((aligned(n)))
#define __launch_bounds__(...)
#define __shared__ static /* the address sanitizer guards it, race.cpp watches all statics */
#define VGQ_NOT_WATCHED __attribute__((no_sanitize("thread")))

struct dim3 {
    unsigned x, y, z;
    dim3(unsigned x_ = 1, unsigned y_ = 1, unsigned z_ = 1) : x(x_), y(y_), z(z_) {}
};
struct uint2 {
    unsigned x, y;
} __align__(8);
struct uint4 {
    unsigned x, y, z, w;
} __align__(16);
struct int4 {
    int x, y, z, w;
} __align__(16);
struct float4 {
    float x, y, z, w;
} __align__(16);

namespace shim
{
enum { LARGEST_BLOCK = 1024, WARP = 32, EXCHANGED = 128 };

/* The running thread's indices, for the macros below. */
extern struct indices {
    dim3 thread, block, block_size, grid_size;
} running_at;
typedef void entry(const void *closure);

/* Runs entry(closure) once for each thread of the grid. */
void run(dim3 grid, dim3 block, size_t shared_nbytes, entry *kernel, const void *closure);
template <typename F> void launch(dim3 grid, dim3 block, size_t shared_nbytes, const F &kernel)
{
    run(
        grid, block, shared_nbytes,
        [](const void *closure) { (*static_cast<const F *>(closure))(); }, &kernel);
}

/* Prints kernel position and text, ends the program. */
[[noreturn]] void fail(const char *format, ...) __attribute__((format(printf, 1, 2)));

unsigned char *dynamic_shared();
/* All threads of the block; all threads of `mask` in the warp. */
void block_barrier();
void warp_barrier(unsigned mask);
/* Shows nbytes (at most EXCHANGED) of this thread to its warp and waits for the others of `mask`;
 * then warp_sees(lane) is what that lane shows, until warp_done, which waits again. */
void warp_exchange(unsigned mask, const void *bytes, size_t nbytes);
const void *warp_sees(unsigned lane);
void warp_done(unsigned mask);
unsigned lane();
/* For race.cpp: who accesses now. `epoch`s count the barriers passed. */
struct stamp {
    uint32_t block; /* serial number over all launches, from 1; 0: nobody */
    uint32_t thread, block_epoch, warp_epoch;
};
bool running();
stamp now();
uint32_t first_block_of_launch();
/* Global memory to watch beside shared memory, or no longer. Means nothing without race.cpp's
 * instrumentation. */
void watch(const void *first, size_t nbytes);
void unwatch(const void *first);
/* An access that the compiler does not see, such as one of an instruction that a wrapper imitates.
 */
void touch(const void *first, size_t nbytes, bool writes);
/* Called by run: a new block's shared memory holds nothing. */
void forget_shared(const void *dynamic, size_t nbytes);

template <typename T> VGQ_NOT_WATCHED T shuffle(unsigned mask, T x, unsigned source)
{
    T seen;
    warp_exchange(mask, &x, sizeof(x));
    memcpy(&seen, warp_sees(source), sizeof(seen));
    warp_done(mask);
    return seen;
}
} // namespace shim

#define threadIdx (shim::running_at.thread)
#define blockIdx (shim::running_at.block)
#define blockDim (shim::running_at.block_size)
#define gridDim (shim::running_at.grid_size)

static inline void __syncthreads() { shim::block_barrier(); }
static inline void __syncwarp(unsigned mask = 0xffffffffu) { shim::warp_barrier(mask); }

template <typename T> T __shfl_sync(unsigned mask, T x, int source, int width = 32)
{
    const unsigned base = shim::lane() / (unsigned)width * (unsigned)width;
    return shim::shuffle(mask, x, base + (unsigned)source % (unsigned)width);
}
template <typename T> T __shfl_xor_sync(unsigned mask, T x, int bits)
{
    return shim::shuffle(mask, x, shim::lane() ^ (unsigned)bits);
}
template <typename T> T __shfl_down_sync(unsigned mask, T x, unsigned delta)
{
    const unsigned source = shim::lane() + delta;
    return shim::shuffle(mask, x, source < shim::WARP ? source : shim::lane());
}
static inline unsigned __ballot_sync(unsigned mask, int predicate)
{
    unsigned votes = 0;
    shim::warp_exchange(mask, &predicate, sizeof(predicate));
    for (unsigned i = 0; i < shim::WARP; i++) {
        int vote = 0;
        if (mask >> i & 1)
            memcpy(&vote, shim::warp_sees(i), sizeof(vote));
        votes |= (unsigned)(vote != 0) << i;
    }
    shim::warp_done(mask);
    return votes;
}
static inline int __any_sync(unsigned mask, int predicate)
{
    return __ballot_sync(mask, predicate) != 0;
}
static inline int __all_sync(unsigned mask, int predicate)
{
    return __ballot_sync(mask, predicate) == mask;
}

/* Fibers change at barriers only, so these are atomic as they stand. */
template <typename T> VGQ_NOT_WATCHED T atomicAdd(T *at, T x)
{
    const T old = *at;
    *at = old + x;
    return old;
}
template <typename T> VGQ_NOT_WATCHED T atomicMax(T *at, T x)
{
    const T old = *at;
    *at = x > old ? x : old;
    return old;
}

/* Of the eight bytes of a (0 to 3) and b, those that the selector's four digits name. */
static inline unsigned __byte_perm(unsigned a, unsigned b, unsigned selector)
{
    const uint64_t both = (uint64_t)b << 32 | a;
    unsigned result = 0;
    for (unsigned i = 0; i < 4; i++)
        result |= (unsigned)(both >> (selector >> 4 * i & 7) * 8 & 255) << 8 * i;
    return result;
}

/* c and the products of the four signed bytes of a and b. */
static inline int __dp4a(int a, int b, int c)
{
    for (unsigned i = 0; i < 32; i += 8)
        c += (int8_t)((unsigned)a >> i) * (int8_t)((unsigned)b >> i);
    return c;
}

/* ---- the runtime's functions that the sources call ------------------------------------------ */

typedef void *cudaStream_t;
typedef enum cudaError_t {
    cudaSuccess,
    cudaErrorNoKernelImageForDevice,
    cudaErrorUnsupportedPtxVersion
} cudaError_t;
static inline cudaError_t cudaMemsetAsync(void *at, int value, size_t nbytes, cudaStream_t)
{
    memset(at, value, nbytes);
    return cudaSuccess;
}
static inline cudaError_t cudaGetLastError() { return cudaSuccess; }
static inline const char *cudaGetErrorString(cudaError_t) { return "no error"; }
namespace shim
{
inline int processors = 2; /* of the device that the runtime tells of */
}
enum cudaDeviceAttr { cudaDevAttrMultiProcessorCount };
static inline cudaError_t cudaGetDevice(int *device)
{
    *device = 0;
    return cudaSuccess;
}
static inline cudaError_t cudaDeviceGetAttribute(int *value, cudaDeviceAttr, int)
{
    *value = shim::processors;
    return cudaSuccess;
}
static inline cudaError_t cudaGetDeviceCount(int *count)
{
    *count = 1;
    return cudaSuccess;
}

#endif
