/* SPDX-License-Identifier: Apache-2.0
 * CUDA twin of linear.c. INT8 activations: tokens are coded, then multiplied in tensor cores
 * (linear_gemm.cuh); integers, epilogue and results have the CPU's bits. Float activations: weights
 * are read once and decoded in registers, for few tokens; many are better served by vgq_decode_cuda
 * and a float product. */
#include "linear_gemm.cuh"

/* ---- activations ---------------------------------------------------------------------------- */

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

/* A block codes a token: its largest magnitude, then codes, four a thread, where the product wants
 * them. The second reading finds the row in the cache. */
static __global__ void __launch_bounds__(CODE_THREADS) code_tokens_kernel(const linear_args args)
{
    __shared__ uint32_t largest_of[CODE_THREADS / VGQ_WARP];
    __shared__ int32_t sum_of[CODE_THREADS / VGQ_WARP];
    const size_t m = blockIdx.x, row = m * (size_t)args.k;
    uint32_t largest = 0;
    float v[4];
    int count;
    for (int at = (int)threadIdx.x * 4; at < args.depth; at += CODE_THREADS * 4) {
        const int i = source_of(args, at, &count);
        load4(args, row + i, count, v);
        for (int j = 0; j < 4; j++)
            largest = vgq_most(largest, vgq_bits_of_float(v[j]) & 0x7fffffffu);
    }
    float inverse;
    largest = block_most(largest, largest_of);
    const float scale = vgq_token_scale(largest, VGQ_INT8_HIGHEST, &inverse);
    int32_t sum = 0;
    for (int at = (int)threadIdx.x * 4; at < args.depth; at += CODE_THREADS * 4) {
        const int i = source_of(args, at, &count);
        load4(args, row + i, count, v);
        uint32_t word = 0;
        for (int j = 0; j < 4; j++) {
            const int8_t code = vgq_encode_token(v[j], inverse);
            word |= (uint32_t)(uint8_t)code << 8 * j;
            sum += code;
        }
        *(uint32_t *)(args.x_codes + m * (size_t)args.depth + at) = word;
    }
    sum = block_sum(sum, sum_of);
    if (threadIdx.x == 0) {
        args.x_scale[m] = scale;
        args.x_sum[m] = sum;
    }
}

/* ---- few tokens, floats --------------------------------------------------------------------- */

enum { GEMV_WARPS = 4, GEMV_ROWS = 8 };

/* A lane's words of a unit as four times four signed bytes, INT8 or expanded INT4. The places of
 * their inputs are 16 apart, from 4 (lane % 4) on. */
template <vgq_format format>
static __device__ __forceinline__ void unit_words(const linear_args &args, int panel, int unit,
                                                  int lane, int tile, uint32_t (&w)[4])
{
    constexpr int nbytes = format == VGQ_I8 ? VGQ_CUDA_UNIT_I8 : VGQ_CUDA_UNIT_I4;
    const int tiles = args.depth / VGQ_CUDA_DEPTH;
    const unsigned char *const from =
        args.codes + (((size_t)panel * tiles + tile) * 8 + unit) * nbytes + lane * (nbytes / 32);
    if (format == VGQ_I8) {
        const uint4 four = *(const uint4 *)from;
        w[0] = four.x, w[1] = four.y, w[2] = four.z, w[3] = four.w;
        return;
    }
    const uint2 two = *(const uint2 *)from;
    for (int step = 0; step < 2; step++) {
        const int g = vgq_least((tile * 2 + step) / args.group_steps, args.groups - 1);
        const uint32_t pair =
            ((const uint16_t *)args
                 .column)[(size_t)g * args.columns + panel * VGQ_CUDA_PANEL + lane / 4 * 8 + unit];
        const uint32_t factor = pair & 255u, subtrahends = (pair >> 8) * 0x01010101u;
        const uint32_t word = step ? two.y : two.x;
        w[2 * step] = expand4(word & 0x0f0f0f0fu, factor, subtrahends);
        w[2 * step + 1] = expand4(word >> 4 & 0x0f0f0f0fu, factor, subtrahends);
    }
}

/* The float weight that a byte of unit_words stands for, as docs/conventions.md has it. */
static __device__ __forceinline__ float weight_of(const linear_args &args, int at, int output,
                                                  int32_t zero, uint32_t word, int j)
{
    const int g = vgq_least(at / VGQ_CUDA_STEP / args.group_steps, args.groups - 1);
    const float scale = args.scale[(size_t)g * args.scale_stride + output];
    return (float)((int8_t)(word >> 8 * j) - zero) * scale;
}

static __device__ __forceinline__ int32_t zero_of(const linear_args &args, vgq_format format,
                                                  int output)
{
    return format == VGQ_I8 && args.column ? ((const int32_t *)args.column)[output] : 0;
}

/* A block computes a unit of 8 outputs for up to `rows` tokens; its warps take the unit's stages by
 * turns, a lane 16 inputs of one output each time. Sums of lanes and warps are added in a fixed
 * order. */
template <vgq_format format, int rows>
static __global__ void __launch_bounds__(GEMV_WARPS *VGQ_WARP) gemv_kernel(const linear_args args)
{
    float *const sums = (float *)vgq_dynamic(); /* [warps][rows][8 outputs] */
    const int lane = threadIdx.x % VGQ_WARP, warp = threadIdx.x / VGQ_WARP;
    const int panel = (int)blockIdx.x / 8, unit = (int)blockIdx.x % 8;
    const int output = panel * VGQ_CUDA_PANEL + (int)vgq_cuda_output(unit, lane / 4);
    const int first = (int)blockIdx.y * rows, tiles = args.depth / VGQ_CUDA_DEPTH;
    const int32_t zero = zero_of(args, format, output);
    float acc[rows];
    for (int r = 0; r < rows; r++)
        acc[r] = 0;
    for (int tile = warp; tile < tiles; tile += GEMV_WARPS) {
        uint32_t w[4];
        unit_words<format>(args, panel, unit, lane, tile, w);
#pragma unroll(rows > 2 ? 1 : 4)
        for (int part = 0; part < 4; part++) {
            const int at = tile * VGQ_CUDA_DEPTH + part * 16 + lane % 4 * 4;
            int count;
            const int i = source_of(args, at, &count);
            float weight[4], x[4];
            for (int j = 0; j < 4; j++)
                weight[j] = weight_of(args, at, output, zero, w[0], j);
            w[0] = w[1], w[1] = w[2], w[2] = w[3]; /* an index would put them in memory */
#pragma unroll
            for (int r = 0; r < rows; r++) {
                load4(args, (size_t)vgq_least(first + r, args.m - 1) * args.k + i, count, x);
                for (int j = 0; j < 4; j++)
                    acc[r] = j < count ? fmaf(x[j], weight[j], acc[r]) : acc[r];
            }
        }
    }
    for (int r = 0; r < rows; r++) {
        acc[r] += __shfl_xor_sync(VGQ_ALL_LANES, acc[r], 1);
        acc[r] += __shfl_xor_sync(VGQ_ALL_LANES, acc[r], 2);
        if (lane % 4 == 0)
            sums[(warp * rows + r) * 8 + lane / 4] = acc[r];
    }
    __syncthreads();
    const int r = (int)threadIdx.x / 8, c = (int)threadIdx.x % 8;
    const int column = panel * VGQ_CUDA_PANEL + (int)vgq_cuda_output(unit, c);
    if (r >= rows || first + r >= args.m || column >= args.n)
        return;
    float y = 0;
    for (int i = 0; i < GEMV_WARPS; i++)
        y += sums[(i * rows + r) * 8 + c];
    y = y * if_packed(args) + (args.bias ? args.bias[column] : 0.0f);
    store1(args, (size_t)(first + r) * args.n + column, args.gelu ? vgq_gelu(y) : y);
}

/* ---- weights as floats ---------------------------------------------------------------------- */

/* y[n][k]: a warp decodes a unit. */
template <vgq_format format> static __global__ void decode_kernel(const linear_args args)
{
    const int lane = threadIdx.x % VGQ_WARP;
    const int unit = threadIdx.x / VGQ_WARP, panel = (int)blockIdx.x, tile = (int)blockIdx.y;
    const int output = panel * VGQ_CUDA_PANEL + (int)vgq_cuda_output(unit, lane / 4);
    if (output >= args.n)
        return;
    uint32_t w[4];
    unit_words<format>(args, panel, unit, lane, tile, w);
    const int32_t zero = zero_of(args, format, output);
    for (int part = 0; part < 4; part++) {
        const int at = tile * VGQ_CUDA_DEPTH + part * 16 + lane % 4 * 4;
        int count;
        const int i = source_of(args, at, &count);
        for (int j = 0; j < count; j++)
            store1(args, (size_t)output * args.k + i + j,
                   weight_of(args, at, output, zero, w[part], j) * if_packed(args));
    }
}

/* ---- fronts --------------------------------------------------------------------------------- */

static size_t round_up(size_t n, size_t step) { return (n + step - 1) / step * step; }

/* Scratch: codes, then scales, then sums of the tokens. */
enum { ALIGNMENT = 256 };
static size_t codes_nbytes(size_t m, size_t depth) { return round_up(m * depth, ALIGNMENT); }
static size_t each_nbytes(size_t m) { return round_up(m * 4, ALIGNMENT); }

static int bad_call(const vgq_linear_call *call)
{
    return !call || (unsigned)call->activations >= VGQ_ACTIVATIONS ||
           call->activations == VGQ_INT16_ACTIVATIONS || (unsigned)call->x_dtype >= VGQ_DTYPES ||
           (unsigned)call->y_dtype >= VGQ_DTYPES || call->m > 0x7fffff00u;
}

/* What fits a grid's 65,535 blocks along y and ints for sizes; *w with its group as it counts. */
static vgq_status check(const vgq_weight *weight, const void *packed, size_t nbytes, vgq_weight *w)
{
    const vgq_status status = vgq_check_weight(weight, w);
    if (status != VGQ_OK)
        return status;
    if (w->n > 65535u * VGQ_CUDA_PANEL)
        return VGQ_EINVAL;
    return packed && nbytes == vgq_cuda_layout_of(w).nbytes && (uintptr_t)packed % 16 == 0
               ? VGQ_OK
               : VGQ_EPACKED;
}

size_t vgq_linear_cuda_nbytes(const vgq_weight *weight, const vgq_linear_call *call)
{
    vgq_weight w;
    if (vgq_check_weight(weight, &w) != VGQ_OK || bad_call(call) ||
        call->activations != VGQ_INT8_ACTIVATIONS)
        return 0;
    const vgq_cuda_layout at = vgq_cuda_layout_of(&w);
    return codes_nbytes(call->m, at.depth) + 2 * each_nbytes(call->m);
}

static linear_args args_of(const vgq_weight &w, const void *packed)
{
    const vgq_cuda_layout at = vgq_cuda_layout_of(&w);
    const unsigned char *const bytes = (const unsigned char *)packed;
    linear_args args = {};
    args.n = (int)w.n, args.k = (int)w.k, args.depth = (int)at.depth;
    args.groups = (int)at.groups, args.group = (int)w.group, args.group_steps = (int)at.group_steps;
    args.columns = (int)at.columns;
    args.header = (const uint64_t *)packed;
    args.scale = (const float *)(bytes + VGQ_CUDA_HEADER);
    args.scale_stride = w.scales == VGQ_PER_GROUP ? args.columns : 0;
    args.column = at.codes == at.column ? NULL : bytes + at.column;
    args.codes = bytes + at.codes;
    return args;
}

/* Whether rows of that many elements may be read or written `by` at a time. */
static bool by_vectors(const void *rows, size_t cols, vgq_dtype dtype, size_t by)
{
    const size_t nbytes = by * vgq_dtype_nbytes(dtype);
    return cols % by == 0 && (uintptr_t)rows % (nbytes < 16 ? nbytes : 16) == 0;
}

/* The two shapes of a block take turns over the processors; a wide one does twice the work of a
 * narrow one in 2 / 1.1 of its time. */
static bool is_narrow(const linear_args &args, int processors)
{
    const size_t rows = vgq_blocks(args.m, TILE_M);
    const size_t wide = rows * vgq_blocks(args.n, 128), narrow = rows * vgq_blocks(args.n, 64);
    return 20 * vgq_blocks(wide, processors) > 11 * vgq_blocks(narrow, processors);
}

template <weight_kind kind, int units>
static vgq_status run_gemm(const linear_args &args, void *stream)
{
    return vgq_launch(gemm_kernel<kind, units>,
                      dim3(vgq_blocks(args.m, TILE_M), vgq_blocks(args.n, units * 16)),
                      TILE_THREADS, (gemm_shape<kind, units>::shared_nbytes), stream, args);
}

static vgq_status run_int8(const linear_args &args, const vgq_weight *w, void *stream)
{
    int device, processors;
    if (cudaGetDevice(&device) != cudaSuccess ||
        cudaDeviceGetAttribute(&processors, cudaDevAttrMultiProcessorCount, device) != cudaSuccess)
        return VGQ_ECUDA;
    const vgq_status status = vgq_launch(code_tokens_kernel, args.m, CODE_THREADS, 0, stream, args);
    if (status != VGQ_OK)
        return status;
    if (w->scales == VGQ_PER_GROUP)
        return run_gemm<WEIGHT_I4_GROUPS, 4>(args, stream);
    const bool narrow = is_narrow(args, processors);
    if (w->format == VGQ_I8)
        return narrow ? run_gemm<WEIGHT_I8, 4>(args, stream) : run_gemm<WEIGHT_I8, 8>(args, stream);
    return narrow ? run_gemm<WEIGHT_I4, 4>(args, stream) : run_gemm<WEIGHT_I4, 8>(args, stream);
}

template <vgq_format format, int rows>
static vgq_status run_gemv(const linear_args &args, void *stream)
{
    return vgq_launch(gemv_kernel<format, rows>, dim3(args.columns / 8, vgq_blocks(args.m, rows)),
                      GEMV_WARPS * VGQ_WARP, GEMV_WARPS * rows * 8 * sizeof(float), stream, args);
}

static vgq_status run_float(const linear_args &args, const vgq_weight *w, void *stream)
{
    if (args.m <= 2)
        return w->format == VGQ_I8 ? run_gemv<VGQ_I8, 2>(args, stream)
                                   : run_gemv<VGQ_I4, 2>(args, stream);
    return w->format == VGQ_I8 ? run_gemv<VGQ_I8, GEMV_ROWS>(args, stream)
                               : run_gemv<VGQ_I4, GEMV_ROWS>(args, stream);
}

vgq_status vgq_linear_cuda(const vgq_weight *weight, const void *packed, size_t nbytes,
                           const vgq_linear_call *call, void *scratch, size_t scratch_nbytes,
                           void *stream)
{
    vgq_weight w;
    const vgq_status status = check(weight, packed, nbytes, &w);
    if (status != VGQ_OK)
        return status;
    if (bad_call(call) || (call->m && (!call->x || !call->y)))
        return VGQ_EINVAL;
    if (!call->m)
        return VGQ_OK;
    linear_args args = args_of(w, packed);
    args.m = (int)call->m;
    args.x_dtype = call->x_dtype, args.y_dtype = call->y_dtype;
    args.x = call->x, args.bias = call->bias, args.y = call->y;
    args.gelu = call->gelu != 0;
    args.x_vectors = by_vectors(call->x, w.k, call->x_dtype, 4);
    args.y_vectors = by_vectors(call->y, w.n, call->y_dtype, 8);
    if (call->activations != VGQ_INT8_ACTIVATIONS)
        return vgq_blocks(call->m, GEMV_ROWS) > 65535 ? VGQ_EINVAL : run_float(args, &w, stream);
    if (!scratch || (uintptr_t)scratch % 16 ||
        scratch_nbytes < vgq_linear_cuda_nbytes(weight, call))
        return VGQ_EINVAL;
    args.x_codes = (int8_t *)scratch;
    args.x_scale = (float *)(args.x_codes + codes_nbytes(call->m, args.depth));
    args.x_sum = (int32_t *)((char *)args.x_scale + each_nbytes(call->m));
    return run_int8(args, &w, stream);
}

vgq_status vgq_decode_cuda(const vgq_weight *weight, const void *packed, size_t nbytes,
                           vgq_dtype dtype, void *values, void *stream)
{
    vgq_weight w;
    const vgq_status status = check(weight, packed, nbytes, &w);
    if (status != VGQ_OK)
        return status;
    if ((unsigned)dtype >= VGQ_DTYPES || !values)
        return VGQ_EINVAL;
    linear_args args = args_of(w, packed);
    args.y = values, args.y_dtype = dtype;
    const dim3 grid(args.columns / VGQ_CUDA_PANEL, args.depth / VGQ_CUDA_DEPTH);
    return w.format == VGQ_I8
               ? vgq_launch(decode_kernel<VGQ_I8>, grid, 8 * VGQ_WARP, 0, stream, args)
               : vgq_launch(decode_kernel<VGQ_I4>, grid, 8 * VGQ_WARP, 0, stream, args);
}
