/* SPDX-License-Identifier: Apache-2.0
 * Private: the slots that an instruction set may fill, and the list of tables that fill them.
 * A kernel works on one row, block or tile: no checks but assert, no threads, no allocation, no
 * failure. Tables may have holes: dispatch.c lets the next weaker table fill them. scalar has none.
 */
#ifndef VGQ_KERNELS_H
#define VGQ_KERNELS_H

#include "formats.h"
#include "metrics_sizes.h"
#include "scales.h"
#include "vgq.h"
#include "weight.h"

/* Fronts cut long rows into blocks of this many elements: a multiple of 16 (the lanes of a float
 * reduction) and of 2 (two 4-bit codes share a byte). */
#define VGQ_BLOCK 4096
#define VGQ_LANES 16

VGQ_INLINE size_t vgq_min(size_t a, size_t b) { return a < b ? a : b; }

VGQ_INLINE size_t vgq_round_up(size_t n, size_t step) { return (n + step - 1) / step * step; }

/* ---- quantize ------------------------------------------------------------------------------- */

/* dst[i] = (float)src[i], exact. Of 2-byte dtypes: floats are read where they are. */
typedef void vgq_load_fn(size_t n, const void *src, float *dst);
/* dst[i] = src[i] rounded once, half to even. */
typedef void vgq_store_fn(size_t n, const float *src, void *dst);

/* Widen *lo..*hi so that it holds every finite x; returns how many are NaN or infinite
 * (then lo and hi are unspecified). */
typedef size_t vgq_span_fn(size_t n, const float *x, float *lo, float *hi);

typedef void vgq_encode_fn(size_t n, const float *x, vgq_map map, int8_t *codes);
typedef void vgq_decode_fn(size_t n, const int8_t *codes, vgq_map map, float *x);
/* lanes[i % 16] += (x[i] - decode(encode(x[i])))^2, in index order; the difference in float,
 * the square and the sum in double. */
typedef void vgq_error_fn(size_t n, const float *x, vgq_map map, double lanes[VGQ_LANES]);
/* Two codes a byte, the even one in the low nibble; an odd last code leaves the high nibble 0. */
typedef void vgq_pack4_fn(size_t n, const int8_t *codes, uint8_t *q);
typedef void vgq_unpack4_fn(size_t n, const uint8_t *q, int8_t *codes);

typedef struct vgq_quantize_kernels {
    vgq_load_fn *load[VGQ_DTYPES];
    vgq_store_fn *store[VGQ_DTYPES];
    vgq_span_fn *span;
    vgq_encode_fn *encode;
    vgq_decode_fn *decode;
    vgq_error_fn *error;
    vgq_pack4_fn *pack4;
    vgq_unpack4_fn *unpack4;
} vgq_quantize_kernels;

#include "kernels_metrics.h"
#include "kernels_linear.h"
#include "kernels_rows.h"
#include "kernels_attention.h"
#include "kernels_conv.h"

/* ---- an instruction set's table ---------------------------------------------------------------
 */

/* All kernels of one instruction set: its own, and a weaker one's where it has none. Composed once
 * (dispatch.c) and constant from then on, so a call may keep a pointer to it. */
typedef struct vgq_kernels {
    vgq_quantize_kernels quantize;
    vgq_metrics_kernels metrics;
    vgq_linear_kernels linear;
    vgq_rows_kernels rows;
    vgq_attention_kernels attention;
    vgq_conv_kernels conv;
} vgq_kernels;

#ifdef __cplusplus
extern "C" {
#endif

/* Instruction sets, weakest first: X(name, what the CPU and the system must support, confirmed).
 * confirmed: 1 where the kernels have run on such hardware with the scalar table's results; a table
 * that is not confirmed is compared with the scalar one when the process starts (selfcheck.c).
 * A new one: a row here, its tables below, and the files cpu/<subject>_<isa>.c. */
#if defined(__x86_64__)
int vgq_has_f16c(void);
int vgq_has_avxvnni(void);
int vgq_has_amx(void);
#define VGQ_HAS_AVX2 \
    (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && vgq_has_f16c())
#define VGQ_HAS_AVX512                                                          \
    (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") && \
     __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl"))
#define VGQ_HAS_VNNI (VGQ_HAS_AVX512 && __builtin_cpu_supports("avx512vnni"))
#define VGQ_HAS_BF16 (VGQ_HAS_AVX512 && __builtin_cpu_supports("avx512bf16"))
#define VGQ_ISAS(X)                                                \
    X(scalar, 1, 1)                                                \
    X(avx2, VGQ_HAS_AVX2, 1)                                       \
    X(avxvnni, VGQ_HAS_AVX2 &&vgq_has_avxvnni(), VGQ_NOT_MODELLED) \
    X(avx512, VGQ_HAS_AVX512, 1)                                   \
    X(avx512vnni, VGQ_HAS_VNNI, 1)                                 \
    X(avx512bf16, VGQ_HAS_BF16, 1)                                 \
    X(amx, vgq_has_amx(), VGQ_NOT_MODELLED)
#if defined(VGQ_MODELS) /* a build of the tests, whose models may be wrong on purpose */
#define VGQ_NOT_MODELLED 0
#else
#define VGQ_NOT_MODELLED 1
#endif
#define VGQ_TABLES(X)        \
    X(quantize, scalar)      \
    X(metrics, scalar)       \
    X(linear, scalar)        \
    X(rows, scalar)          \
    X(attention, scalar)     \
    X(quantize, avx2)        \
    X(metrics, avx2)         \
    X(linear, avx2)          \
    X(rows, avx2)            \
    X(linear, avxvnni)       \
    X(quantize, avx512)      \
    X(linear, avx512)        \
    X(rows, avx512)          \
    X(linear, avx512vnni)    \
    X(linear, avx512bf16)    \
    X(linear, amx)           \
    X(conv, scalar)          \
    X(conv, avx2)            \
    X(conv, avx512)          \
    X(attention, avx2)       \
    X(attention, avxvnni)    \
    X(attention, avx512)     \
    X(attention, avx512vnni) \
    X(attention, amx)
#elif defined(__aarch64__)
int vgq_has_dotprod(void);
int vgq_has_i8mm(void);
#define VGQ_ISAS(X)                  \
    X(scalar, 1, 1)                  \
    X(neon, 1, 0)                    \
    X(neondot, vgq_has_dotprod(), 0) \
    X(neoni8mm, vgq_has_dotprod() && vgq_has_i8mm(), 0)
#define VGQ_TABLES(X)     \
    X(quantize, scalar)   \
    X(metrics, scalar)    \
    X(linear, scalar)     \
    X(rows, scalar)       \
    X(attention, scalar)  \
    X(conv, scalar)       \
    X(linear, neon)       \
    X(linear, neondot)    \
    X(linear, neoni8mm)   \
    X(attention, neon)    \
    X(attention, neondot) \
    X(attention, neoni8mm)
#else
#define VGQ_ISAS(X) X(scalar, 1, 1)
#define VGQ_TABLES(X)    \
    X(quantize, scalar)  \
    X(metrics, scalar)   \
    X(linear, scalar)    \
    X(rows, scalar)      \
    X(attention, scalar) \
    X(conv, scalar)
#endif

#define X(subject, isa) extern const vgq_##subject##_kernels vgq_##subject##_##isa;
VGQ_TABLES(X)
#undef X

/* ---- shared by the fronts ------------------------------------------------------------------- */

VGQ_INLINE size_t vgq_dtype_nbytes(vgq_dtype dtype) { return dtype == VGQ_F32 ? 4 : 2; }

/* The lanes of a reduction, added by a fixed tree: i with i + 8, then 4, 2, 1. Written out, because
 * compilers make stores and loads of a loop over halves. */
VGQ_INLINE double vgq_lane_sum(const double x[VGQ_LANES])
{
    const double sum0 = (x[0] + x[8]) + (x[4] + x[12]), sum1 = (x[1] + x[9]) + (x[5] + x[13]);
    const double sum2 = (x[2] + x[10]) + (x[6] + x[14]), sum3 = (x[3] + x[11]) + (x[7] + x[15]);
    return (sum0 + sum2) + (sum1 + sum3);
}

/* n elements of x from `offset` on as floats: x itself where it holds floats, else a copy of them
 * in buffer. */
VGQ_INLINE const float *vgq_floats(const vgq_kernels *kernels, vgq_dtype dtype, const void *x,
                                   size_t offset, size_t n, float *buffer)
{
    const char *const at = (const char *)x + offset * vgq_dtype_nbytes(dtype);
    if (dtype == VGQ_F32)
        return (const float *)(const void *)at;
    kernels->quantize.load[dtype](n, at, buffer);
    return buffer;
}

/* Ask for rows of nbytes each, `pitch` bytes apart, to come to the cache. */
static inline void vgq_fetch(const void *rows, size_t count, size_t pitch, size_t nbytes)
{
    for (const char *row = (const char *)rows; count; count--, row += pitch)
        for (size_t i = 0; i < nbytes; i += 64)
            __builtin_prefetch(row + i);
}

/* Of that many threads, those for work of so many elements: 1 where a parallel region would cost
 * more than it gains. */
int vgq_team(int threads, size_t elements);

/* Whether the call that this thread works for is to end: asked by fronts between blocks and tasks,
 * so that no answer waits longer than one of these. */
int vgq_stopped(void);
/* For blocks and groups, each of which is done before it would have asked: every 64th does. */
static inline int vgq_stopped_at(size_t index) { return index % 64 == 0 && vgq_stopped(); }

/* What the threads of a region watch: their caller's (vgq_watch). */
vgq_stop *vgq_watched(void);

/* Default rounding and denormals for one thread's share of the work, whatever the caller has set
 * (torch.set_flush_denormal, for one): enter, compute, leave. */
typedef struct vgq_float_mode {
    unsigned char saved[64];
} vgq_float_mode;
void vgq_float_enter(vgq_float_mode *mode);
void vgq_float_leave(const vgq_float_mode *mode);

/* dispatch.c and selfcheck.c: whether the table gives the scalar one's bits for a few products. */
int vgq_agrees(const vgq_kernels *table, const vgq_kernels *scalar);

#ifdef __cplusplus
}
#endif

#endif
