/* SPDX-License-Identifier: Apache-2.0
 * The product of coded activations with packed weights: exact integer sums in tensor cores.
 *
 * A block of 4 warps (2 x 2) computes 128 rows x 128 outputs ("wide") or 128 x 64, 64 inputs a
 * stage. Stages lie in shared memory, three of them: cp.async fills one while another is used (on
 * sm_75, two, filled through registers). Activations lie in a stage by rows of 64 bytes, whose four
 * 16-byte pieces are permuted so that ldmatrix meets no bank twice; weights are units that lanes
 * read as they are (linear_layout.h). 48 KB and at most 255 registers: two blocks a processor. */
#ifndef VGQ_LINEAR_GEMM_CUH
#define VGQ_LINEAR_GEMM_CUH

#include "linear.cuh"
#include "mma.cuh"

enum { TILE_M = 128, TILE_THREADS = 128, TILE_ROWS_MMA = 4 /* of a warp, 16 rows each */ };

/* What weights are: codes of 8 bits, or of 4 with two-level scales, or of 4 with float ones, whose
 * groups are summed in floats. */
enum weight_kind { WEIGHT_I8, WEIGHT_I4, WEIGHT_I4_GROUPS };

template <weight_kind kind, int units> struct gemm_shape {
    static constexpr int panels = units / 4; /* 64 outputs each; a warp has `units` */
    static constexpr int unit_nbytes = kind == WEIGHT_I8 ? VGQ_CUDA_UNIT_I8 : VGQ_CUDA_UNIT_I4;
    static constexpr int x_nbytes = TILE_M * VGQ_CUDA_DEPTH;
    static constexpr int w_nbytes = panels * 8 * unit_nbytes;
    static constexpr int pair_nbytes = kind == WEIGHT_I8 ? 0 : 2 * panels * VGQ_CUDA_PANEL * 2;
    static constexpr int stage_nbytes = x_nbytes + w_nbytes + pair_nbytes;
    static constexpr int stages = VGQ_ARCH >= 800 ? 3 : 2;
    /* What a launch asks for: three stages, or 2 rows x 4 words x units of every thread at the end.
     */
    static constexpr int shared_nbytes =
        3 * stage_nbytes > units * 32 * TILE_THREADS ? 3 * stage_nbytes : units * 32 * TILE_THREADS;
    static constexpr int x_pieces = x_nbytes / 16 / TILE_THREADS; /* of a thread */
    static constexpr int w_pieces = w_nbytes / 16 / TILE_THREADS;
};

/* Where a stage keeps piece c (of 4) of row r: eight rows of the same piece, which ldmatrix reads
 * at once, lie in eight different groups of four banks. */
static __device__ __forceinline__ int x_place(int row, int piece)
{
    return row * VGQ_CUDA_DEPTH + ((piece ^ (row >> 1 & 3)) << 4);
}

/* This thread's pieces of every stage: what it copies from where to where. */
template <weight_kind kind, int units> struct gemm_loader {
    using shape = gemm_shape<kind, units>;
    const linear_args &args;
    const int8_t *x;        /* its first piece of the activations, stage 0 */
    const unsigned char *w; /* of the weights */
    int row, x_to, panel, piece;
#if VGQ_ARCH < 800
    uint4 x_held[shape::x_pieces], w_held[shape::w_pieces], pair_held;
#endif

    __device__ __forceinline__ gemm_loader(const linear_args &a) : args(a)
    {
        const int thread = (int)threadIdx.x;
        row = (int)blockIdx.x * TILE_M + thread / 4;
        x = args.x_codes + (size_t)row * args.depth + thread % 4 * 16;
        x_to = x_place(thread / 4, thread % 4);
        panel = (int)blockIdx.y * shape::panels;
        piece = thread * 16;
        w = args.codes + (size_t)panel * panel_nbytes() + piece;
    }

    __device__ __forceinline__ size_t panel_nbytes() const
    {
        return (size_t)(args.depth / VGQ_CUDA_DEPTH) * 8 * shape::unit_nbytes;
    }

    /* Piece i of the weights lies in which panel of this block? All pieces of a thread, 16 bytes of
     * every 2 KB, are whole panels apart or in the same one. */
    __device__ __forceinline__ const unsigned char *w_from(int i, int stage, bool *there) const
    {
        const int at = i * TILE_THREADS * 16, of_panel = 8 * shape::unit_nbytes;
        *there = (panel + at / of_panel) * VGQ_CUDA_PANEL < args.columns;
        return w + at / of_panel * panel_nbytes() + at % of_panel + (size_t)stage * of_panel;
    }

    /* The pairs of a stage: [2 products][panels][64] of 2 bytes, 8 pieces a panel. */
    __device__ __forceinline__ const unsigned char *pairs_from(int stage, bool *there) const
    {
        const int thread = (int)threadIdx.x, p = thread / 8 % shape::panels;
        const int step = 2 * stage + thread / 8 / shape::panels;
        const int g = vgq_least(group_of(args, step), args.groups - 1);
        *there = (panel + p) * VGQ_CUDA_PANEL < args.columns;
        return args.column + ((size_t)g * args.columns + (panel + p) * VGQ_CUDA_PANEL) * 2 +
               thread % 8 * 16;
    }

    __device__ __forceinline__ bool has_pairs() const
    {
        return kind != WEIGHT_I8 && threadIdx.x < shape::pair_nbytes / 16;
    }

#if VGQ_ARCH >= 800
    __device__ __forceinline__ void load(int stage, unsigned char *to) const
    {
#pragma unroll
        for (int i = 0; i < shape::x_pieces; i++) {
            const bool there = row + 32 * i < args.m;
            const int8_t *const from = x + (size_t)(32 * i) * args.depth + stage * VGQ_CUDA_DEPTH;
            copy_async(to + x_to + 32 * i * VGQ_CUDA_DEPTH, there ? from : args.x_codes, there);
        }
#pragma unroll
        for (int i = 0; i < shape::w_pieces; i++) {
            bool there;
            const unsigned char *const from = w_from(i, stage, &there);
            copy_async(to + shape::x_nbytes + i * TILE_THREADS * 16 + piece,
                       there ? from : args.codes, there);
        }
        if (has_pairs()) {
            bool there;
            const unsigned char *const from = pairs_from(stage, &there);
            copy_async(to + shape::x_nbytes + shape::w_nbytes + piece, there ? from : args.column,
                       there);
        }
    }
#else
    __device__ __forceinline__ void fetch(int stage)
    {
        const uint4 zeros = {0, 0, 0, 0};
#pragma unroll
        for (int i = 0; i < shape::x_pieces; i++)
            x_held[i] =
                row + 32 * i < args.m
                    ? *(const uint4 *)(x + (size_t)(32 * i) * args.depth + stage * VGQ_CUDA_DEPTH)
                    : zeros;
#pragma unroll
        for (int i = 0; i < shape::w_pieces; i++) {
            bool there;
            const unsigned char *const from = w_from(i, stage, &there);
            w_held[i] = there ? *(const uint4 *)from : zeros;
        }
        if (has_pairs()) {
            bool there;
            const unsigned char *const from = pairs_from(stage, &there);
            pair_held = there ? *(const uint4 *)from : zeros;
        }
    }

    __device__ __forceinline__ void put(unsigned char *to) const
    {
#pragma unroll
        for (int i = 0; i < shape::x_pieces; i++)
            *(uint4 *)(to + x_to + 32 * i * VGQ_CUDA_DEPTH) = x_held[i];
#pragma unroll
        for (int i = 0; i < shape::w_pieces; i++)
            *(uint4 *)(to + shape::x_nbytes + i * TILE_THREADS * 16 + piece) = w_held[i];
        if (has_pairs())
            *(uint4 *)(to + shape::x_nbytes + shape::w_nbytes + piece) = pair_held;
    }
#endif
};

/* A warp's part of the tile: 64 rows x 8 `units` outputs. */
template <weight_kind kind, int units> struct gemm_warp {
    using shape = gemm_shape<kind, units>;
    static constexpr bool grouped = kind == WEIGHT_I4_GROUPS;
    int32_t acc[TILE_ROWS_MMA][units][4];
    float total[grouped ? TILE_ROWS_MMA : 1][grouped ? units : 1][4];
    int lane, warp_m, warp_n;

    __device__ __forceinline__ gemm_warp()
    {
        const int thread = (int)threadIdx.x;
        lane = thread % 32, warp_m = thread / 32 % 2, warp_n = thread / 64;
#pragma unroll
        for (int i = 0; i < TILE_ROWS_MMA; i++)
#pragma unroll
            for (int u = 0; u < units; u++)
#pragma unroll
                for (int e = 0; e < 4; e++) {
                    acc[i][u][e] = 0;
                    if constexpr (grouped)
                        total[i][u][e] = 0;
                }
    }

    /* This lane's bytes of every unit: B fragments of two products, INT4 ones as nibbles. */
    static constexpr int words = shape::unit_nbytes / 128;
    __device__ __forceinline__ void load(const unsigned char *stage,
                                         uint32_t (&w)[units][words]) const
    {
        const unsigned char *const from =
            stage + shape::x_nbytes + warp_n * units * shape::unit_nbytes + lane * words * 4;
#pragma unroll
        for (int u = 0; u < units; u++)
            if constexpr (words == 4) {
                const uint4 four = *(const uint4 *)(from + u * shape::unit_nbytes);
                w[u][0] = four.x, w[u][1] = four.y, w[u][2] = four.z, w[u][3] = four.w;
            } else {
                const uint2 two = *(const uint2 *)(from + u * shape::unit_nbytes);
                w[u][0] = two.x, w[u][1] = two.y;
            }
    }

    /* The pairs of this lane's row of every unit: of the panel's 8 units, this warp has all or
     * half. */
    __device__ __forceinline__ void load_pairs(const unsigned char *stage, int step,
                                               uint32_t (&pairs)[units / 2]) const
    {
        const unsigned char *const from =
            stage + shape::x_nbytes + shape::w_nbytes + step * (shape::pair_nbytes / 2) +
            (units == 8 ? warp_n * VGQ_CUDA_PANEL * 2 : warp_n * 8) + lane / 4 * 16;
        if constexpr (units == 8) {
            const uint4 four = *(const uint4 *)from;
            pairs[0] = four.x, pairs[1] = four.y, pairs[2] = four.z, pairs[3] = four.w;
        } else {
            const uint2 two = *(const uint2 *)from;
            pairs[0] = two.x, pairs[1] = two.y;
        }
    }

    /* acc += the product of 32 inputs: the first or the second half of a stage. */
    __device__ __forceinline__ void multiply(const unsigned char *stage, int step,
                                             const uint32_t (&w)[units][words])
    {
        uint32_t b[units][2];
        if constexpr (kind == WEIGHT_I8) {
#pragma unroll
            for (int u = 0; u < units; u++)
                b[u][0] = w[u][step * 2], b[u][1] = w[u][step * 2 + 1];
        } else {
            uint32_t pairs[units / 2];
            load_pairs(stage, step, pairs);
#pragma unroll
            for (int u = 0; u < units; u++) {
                const uint32_t pair = pairs[u / 2], word = w[u][step];
                b[u][0] = flip_signs(expand4(low_nibbles(word), pair, u % 2));
                b[u][1] = flip_signs(expand4(high_nibbles(word), pair, u % 2));
            }
        }
#pragma unroll
        for (int i = 0; i < TILE_ROWS_MMA; i++) {
            uint32_t a[4];
            ldmatrix_x4(a, stage + x_place(warp_m * 64 + i * 16 + lane % 16, step * 2 + lane / 16));
#pragma unroll
            for (int u = 0; u < units; u++)
                mma_s8(acc[i][u], a, b[u][0], b[u][1]);
        }
    }

    /* This lane's first output of four units (block 0 or, where wide, 1), in the whole matrix. */
    __device__ __forceinline__ int output(int block) const
    {
        return ((int)blockIdx.y * 2 + warp_n) * units * 8 + block * 32 + lane % 4 * 8;
    }

    /* total += acc * scale of a group; acc = 0. */
    __device__ __forceinline__ void flush(const linear_args &args, int g)
    {
#pragma unroll
        for (int u = 0; u < units; u++)
#pragma unroll
            for (int j = 0; j < 2; j++) {
                const int c = output(u / 4) + u % 4 * 2 + j;
                const float scale =
                    c < args.columns ? args.scale[(size_t)g * args.columns + c] : 0.0f;
#pragma unroll
                for (int i = 0; i < TILE_ROWS_MMA; i++)
#pragma unroll
                    for (int half = 0; half < 2; half++) {
                        float *const sum = &total[i][u][2 * half + j];
                        *sum = *sum + (float)acc[i][u][2 * half + j] * scale;
                        acc[i][u][2 * half + j] = 0;
                    }
            }
    }

    /* Sums of 32 rows (i, i + 1) go through shared memory, each thread has its own 64 words (or
     * 32), so that the loop over them need not be unrolled: GELU and three dtypes would stand there
     * 128 times. */
    __device__ __forceinline__ void finish_rows(const linear_args &args, float packed, int i,
                                                uint32_t *held) const
    {
#pragma unroll
        for (int at = 0; at < 2 * units * 4; at++) {
            const int of = i + at / (units * 4), u = at / 4 % units, e = at % 4;
            const int row = at / (units * 4) * 2 + e / 2; /* of this lane's four */
            uint32_t *const word = held + ((row * units + u) * 2 + e % 2) * TILE_THREADS;
            if constexpr (grouped)
                *word = vgq_bits_of_float(total[of][u][e]);
            else
                *word = (uint32_t)acc[of][u][e];
        }
        const bool with_zeros = kind == WEIGHT_I8 && args.column;
#pragma unroll 1
        for (int block = 0; block < units / 4; block++) {
            const int c = output(block), count = vgq_least(8, args.n - c);
            if (count <= 0)
                continue;
            const eight_outputs outputs(args, c, count, !grouped, with_zeros);
#pragma unroll 1
            for (int row = 0; row < 4; row++) {
                const int m = (int)blockIdx.x * TILE_M + warp_m * 64 + i * 16 + row * 8 + lane / 4;
                if (m < args.m)
                    finish_eight(args, outputs, packed, m, c, count, with_zeros,
                                 held + (row * units + block * 4) * 2 * TILE_THREADS);
            }
        }
    }

    /* Eight neighbouring outputs of one row. */
    __device__ __forceinline__ void finish_eight(const linear_args &args,
                                                 const eight_outputs &outputs, float packed, int m,
                                                 int c, int count, bool with_zeros,
                                                 const uint32_t *held) const
    {
        const float x_scale = args.x_scale[m] * packed;
        const int32_t sum = with_zeros ? args.x_sum[m] : 0;
        float y[8];
#pragma unroll
        for (int j = 0; j < 8; j++) {
            const uint32_t word = held[j * TILE_THREADS];
            if constexpr (grouped)
                y[j] = vgq_float_of_bits(word) * x_scale + outputs.bias[j];
            else
                y[j] = outputs.of(j, (int32_t)word, x_scale, sum);
        }
        if (args.plain && count == 8)
            store_plain(args, m, c, y);
        else
            store_eight(args, m, c, count, y);
    }

    /* sums += acc: whole numbers, so the order in which blocks come does not show. */
    __device__ __forceinline__ void add(const linear_args &args) const
    {
#pragma unroll
        for (int i = 0; i < TILE_ROWS_MMA; i++)
#pragma unroll
            for (int half = 0; half < 2; half++) {
                const int m = (int)blockIdx.x * TILE_M + warp_m * 64 + i * 16 + half * 8 + lane / 4;
                int32_t *const row = args.sums + (size_t)m * args.n;
#pragma unroll
                for (int at = 0; at < 2 * units; at++) {
                    const int c = output(at / 8) + at % 8;
                    if (m < args.m && c < args.n)
                        atomicAdd(row + c, acc[i][at / 2][2 * half + at % 2]);
                }
            }
    }

    __device__ __forceinline__ void finish(const linear_args &args, unsigned char *shared) const
    {
        const float packed = if_packed(args);
        uint32_t *const held = (uint32_t *)shared + threadIdx.x;
        __syncthreads(); /* all are done with the last stage */
        finish_rows(args, packed, 0, held);
        finish_rows(args, packed, 2, held);
    }
};

template <weight_kind kind, int units>
static __global__ void __launch_bounds__(TILE_THREADS, 2) gemm_kernel(const linear_args args)
{
    using shape = gemm_shape<kind, units>;
    unsigned char *const stages = vgq_dynamic();
    gemm_loader<kind, units> loader(args);
    gemm_warp<kind, units> warp;
    const int all = args.depth / VGQ_CUDA_DEPTH, first = (int)blockIdx.z * args.split;
    const int tiles = vgq_least(all, first + args.split);
    [[maybe_unused]] int group_left = args.group_steps, g = 0;

#if VGQ_ARCH >= 800
    for (int tile = 0; tile < shape::stages - 1; tile++) {
        if (first + tile < tiles)
            loader.load(first + tile, stages + tile * shape::stage_nbytes);
        copy_commit();
    }
#else
    loader.fetch(first);
    loader.put(stages);
    __syncthreads();
#endif
    for (int tile = first; tile < tiles; tile++) {
        const int stage = tile - first;
        const unsigned char *const here = stages + stage % shape::stages * shape::stage_nbytes;
#if VGQ_ARCH >= 800
        const int next = tile + shape::stages - 1;
        copy_wait<shape::stages - 2>();
        __syncthreads(); /* all have this stage, and are done with the one before it */
        if (next < tiles)
            loader.load(next,
                        stages + (stage + shape::stages - 1) % shape::stages * shape::stage_nbytes);
        copy_commit();
#else
        if (tile + 1 < tiles)
            loader.fetch(tile + 1);
#endif
        uint32_t w[units][gemm_warp<kind, units>::words];
        warp.load(here, w);
#pragma unroll
        for (int step = 0; step < 2; step++) {
            warp.multiply(here, step, w);
            if constexpr (kind == WEIGHT_I4_GROUPS)
                if (--group_left == 0 && g < args.groups) {
                    warp.flush(args, g++);
                    group_left = args.group_steps;
                }
        }
#if VGQ_ARCH < 800
        if (tile + 1 < tiles)
            loader.put(stages + (stage + 1) % shape::stages * shape::stage_nbytes);
        __syncthreads();
#endif
    }
    if constexpr (kind != WEIGHT_I4_GROUPS)
        if (args.sums) {
            warp.add(args);
            return;
        }
    warp.finish(args, stages);
}

#endif
