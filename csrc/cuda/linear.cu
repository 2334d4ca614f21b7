/* SPDX-License-Identifier: Apache-2.0
 * CUDA twin of linear.c. INT8 activations: tokens are coded, then multiplied in tensor cores
 * (linear_gemm.cuh); integers, epilogue and results have the CPU's bits. Float activations: weights
 * are read once and decoded in registers, for few tokens (linear_gemv.cuh); many are better served
 * by vgq_decode_cuda and a float product. */
#include "linear_gemm.cuh"
#include "linear_gemv.cuh"
#include "linear_tokens.cuh"

/* ---- weights as floats ---------------------------------------------------------------------- */

/* y[n][k]: a warp decodes a unit. */
template <vgq_format format> static __global__ void decode_kernel(const linear_args args)
{
    const int lane = threadIdx.x % VGQ_WARP;
    const int unit = threadIdx.x / VGQ_WARP, panel = (int)blockIdx.x, tile = (int)blockIdx.y;
    const int output = panel * VGQ_CUDA_PANEL + (int)vgq_cuda_output(unit, lane / 4);
    if (output >= args.n)
        return;
    unit_part<format> codes;
    codes.load(args, panel, unit, lane, tile);
    const float zero = zero_of(args, format, output), packed = if_packed(args);
#pragma unroll
    for (int part = 0; part < 4; part++) {
        const int at = tile * VGQ_CUDA_DEPTH + part * 16 + lane % 4 * 4;
        int count;
        const int i = source_of(args, at, &count);
        float v[4];
        weights_of(args, at, output, zero, codes.integers(part), v);
#pragma unroll
        for (int j = 0; j < 4; j++)
            v[j] *= packed;
        store_some(args, (size_t)output * args.k + i, count, v);
    }
}

/* ---- the INT8 product in parts, for another product of integers -------------------------------
 */

/* integers[n][depth]: what gemm_kernel multiplies; a warp takes a unit. */
template <vgq_format format>
static __global__ void integers_kernel(const linear_args args, int8_t *integers)
{
    const int lane = threadIdx.x % VGQ_WARP;
    const int unit = threadIdx.x / VGQ_WARP, panel = (int)blockIdx.x, tile = (int)blockIdx.y;
    const int output = panel * VGQ_CUDA_PANEL + (int)vgq_cuda_output(unit, lane / 4);
    if (output >= args.n)
        return;
    unit_part<format> codes;
    codes.load(args, panel, unit, lane, tile);
    int8_t *const to = integers + (size_t)output * args.depth + tile * VGQ_CUDA_DEPTH;
#pragma unroll
    for (int part = 0; part < 4; part++)
        *(uint32_t *)(to + part * 16 + lane % 4 * 4) = flip_signs(codes.integers(part));
}

/* What follows the sums [m][n]: a thread takes eight neighbours of a row. */
static __global__ void finish_kernel(const linear_args args, const int32_t *sums, bool with_zeros,
                                     bool vectors)
{
    const size_t pieces = ((size_t)args.n + 7) / 8, piece = vgq_thread();
    if (piece >= pieces * args.m)
        return;
    const int m = (int)(piece / pieces), c = (int)(piece % pieces) * 8;
    const int count = vgq_least(8, args.n - c);
    const int32_t *const from = sums + (size_t)m * args.n + c;
    int32_t sum[8];
    if (vectors) {
        const int4 a = ((const int4 *)from)[0], b = ((const int4 *)from)[1];
        sum[0] = a.x, sum[1] = a.y, sum[2] = a.z, sum[3] = a.w;
        sum[4] = b.x, sum[5] = b.y, sum[6] = b.z, sum[7] = b.w;
    } else {
        for (int j = 0; j < 8; j++)
            sum[j] = j < count ? from[j] : 0;
    }
    const eight_outputs outputs(args, c, count, true, with_zeros);
    const float x_scale = args.x_scale[m] * if_packed(args);
    const int32_t x_sum = with_zeros ? args.x_sum[m] : 0;
    float y[8];
#pragma unroll
    for (int j = 0; j < 8; j++)
        y[j] = outputs.of(j, sum[j], x_scale, x_sum);
    store_eight(args, m, c, count, y);
}

/* ---- fronts --------------------------------------------------------------------------------- */

static size_t round_up(size_t n, size_t step) { return (n + step - 1) / step * step; }

/* Scratch: codes, then scales, then sums of the tokens. */
enum { ALIGNMENT = 256 };
static size_t codes_nbytes(size_t m, size_t depth) { return round_up(m * depth, ALIGNMENT); }
static size_t each_nbytes(size_t m) { return round_up(m * 4, ALIGNMENT); }

/* A product whose blocks leave half of the processors idle is split along its inputs, at least
 * LEAST_PART stages a block, where that spares LEAST_SPARED stages, about what two more kernels
 * cost. No GPU has so many processors that a product of more than MOST_BLOCKS blocks is. */
enum { MOST_BLOCKS = 128, MOST_PARTS = 16, LEAST_PART = 4, LEAST_SPARED = 32 };

static size_t narrow_blocks(const vgq_weight &w, size_t m)
{
    return vgq_blocks(m, TILE_M) * (size_t)vgq_blocks(w.n, 64);
}

static size_t sums_nbytes(const vgq_weight &w, size_t m)
{
    const bool may_be = w.scales != VGQ_PER_GROUP && narrow_blocks(w, m) <= MOST_BLOCKS;
    return may_be ? round_up(m * w.n * sizeof(int32_t), ALIGNMENT) : 0;
}

static int bad_call(const vgq_linear_call *call)
{
    return !call || (unsigned)call->activations >= VGQ_ACTIVATIONS ||
           call->activations == VGQ_INT16_ACTIVATIONS || call->x_affine.weight ||
           (call->norm.weight && call->activations != VGQ_INT8_ACTIVATIONS) || call->x_scale != 0 ||
           (unsigned)call->x_dtype >= VGQ_DTYPES || (unsigned)call->y_dtype >= VGQ_DTYPES ||
           call->m > 0x7fffff00u;
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
    return codes_nbytes(call->m, at.depth) + 2 * each_nbytes(call->m) + sums_nbytes(w, call->m);
}

static size_t dtype_bits(vgq_dtype dtype) { return 8 * vgq_dtype_nbytes(dtype); }

static bool norm_by_vectors(vgq_norm norm, size_t k)
{
    return vgq_by_vectors(norm.weight, k, 4, 32) && vgq_by_vectors(norm.bias, k, 4, 32);
}

static linear_args args_of(const vgq_weight &w, const void *packed)
{
    const vgq_cuda_layout at = vgq_cuda_layout_of(&w);
    const unsigned char *const bytes = (const unsigned char *)packed;
    linear_args args = {};
    args.n = (int)w.n, args.k = (int)w.k, args.depth = (int)at.depth;
    args.groups = (int)at.groups, args.group = (int)w.group, args.group_steps = (int)at.group_steps;
    args.steps_inverse = ((1ull << 32) + at.group_steps - 1) / at.group_steps;
    args.straight = at.straight;
    args.columns = (int)at.columns;
    args.header = (const uint64_t *)packed;
    args.scale = (const float *)(bytes + VGQ_CUDA_HEADER);
    args.scale_stride = w.scales == VGQ_PER_GROUP ? args.columns : 0;
    args.column = at.codes == at.column ? NULL : bytes + at.column;
    args.codes = bytes + at.codes;
    return args;
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
                      dim3(vgq_blocks(args.m, TILE_M), vgq_blocks(args.n, units * 16),
                           vgq_blocks(args.depth / VGQ_CUDA_DEPTH, args.split)),
                      TILE_THREADS, (gemm_shape<kind, units>::shared_nbytes), stream, args);
}

template <typename token_codes> static vgq_status code_tokens(const linear_args &args, void *stream)
{
    if (!args.norm.weight)
        return vgq_launch(code_tokens_kernel<token_codes, false>, args.m, CODE_THREADS, 0, stream,
                          args);
    const size_t staged = args.k <= MOST_STAGED ? round_up(args.k, 4) * sizeof(float) : 0;
    return vgq_launch(code_tokens_kernel<token_codes, true>, args.m, CODE_THREADS, staged, stream,
                      args);
}

/* What follows the sums. */
static vgq_status run_finish(const linear_args &args, const vgq_weight *w, const int32_t *sums,
                             void *stream)
{
    const size_t threads = args.m * (((size_t)args.n + 7) / 8);
    if (threads > (size_t)VGQ_MOST_BLOCKS * VGQ_THREADS)
        return VGQ_EINVAL;
    return vgq_launch(finish_kernel, vgq_blocks(threads, VGQ_THREADS), VGQ_THREADS, 0, stream, args,
                      sums, w->format == VGQ_I8 && w->asymmetric,
                      vgq_by_vectors(sums, args.n, 8, 32));
}

/* The product in parts of the depth, so that there is a block for every processor. */
static vgq_status run_split(linear_args args, const vgq_weight *w, int parts, void *stream)
{
    const int stages = args.depth / VGQ_CUDA_DEPTH;
    args.split = (stages + parts - 1) / parts;
    if (cudaMemsetAsync(args.sums, 0, (size_t)args.m * args.n * sizeof(*args.sums),
                        (cudaStream_t)stream) != cudaSuccess)
        return VGQ_ECUDA;
    const vgq_status status = w->format == VGQ_I8 ? run_gemm<WEIGHT_I8, 4>(args, stream)
                                                  : run_gemm<WEIGHT_I4, 4>(args, stream);
    return status == VGQ_OK ? run_finish(args, w, args.sums, stream) : status;
}

/* The product of coded tokens. */
static vgq_status run_int8(linear_args args, const vgq_weight *w, void *stream)
{
    int device, processors;
    if (cudaGetDevice(&device) != cudaSuccess ||
        cudaDeviceGetAttribute(&processors, cudaDevAttrMultiProcessorCount, device) != cudaSuccess)
        return VGQ_ECUDA;
    const int blocks = (int)vgq_least(narrow_blocks(*w, args.m), (size_t)MOST_BLOCKS);
    const int stages = args.depth / VGQ_CUDA_DEPTH;
    const int parts =
        vgq_least(vgq_least(processors / blocks, (int)MOST_PARTS), stages / LEAST_PART);
    if (args.sums && parts > 1 && stages - (stages + parts - 1) / parts >= LEAST_SPARED)
        return run_split(args, w, parts, stream);
    args.sums = NULL;
    if (w->scales == VGQ_PER_GROUP)
        return run_gemm<WEIGHT_I4_GROUPS, 4>(args, stream);
    const bool narrow = is_narrow(args, processors);
    if (w->format == VGQ_I8)
        return narrow ? run_gemm<WEIGHT_I8, 4>(args, stream) : run_gemm<WEIGHT_I8, 8>(args, stream);
    return narrow ? run_gemm<WEIGHT_I4, 4>(args, stream) : run_gemm<WEIGHT_I4, 8>(args, stream);
}

template <vgq_format format, int rows, int units>
static vgq_status run_gemv(const linear_args &args, void *stream)
{
    return vgq_launch(gemv_kernel<format, rows, units>,
                      dim3(args.columns / (8 * units), vgq_blocks(args.m, rows)),
                      GEMV_WARPS * VGQ_WARP, (gemv_shape<format, rows, units>::shared_nbytes),
                      stream, args);
}

/* One or two tokens are bound by the weights' bytes; more by arithmetic and by shared memory, from
 * which two units take the same tokens. */
static vgq_status run_float(const linear_args &args, const vgq_weight *w, void *stream)
{
    if (args.m <= 2)
        return w->format == VGQ_I8 ? run_gemv<VGQ_I8, 2, 1>(args, stream)
                                   : run_gemv<VGQ_I4, 2, 1>(args, stream);
    return w->format == VGQ_I8 ? run_gemv<VGQ_I8, GEMV_ROWS, 2>(args, stream)
                               : run_gemv<VGQ_I4, GEMV_ROWS, 2>(args, stream);
}

/* A call's operands, checked; *w with its group as it counts. VGQ_OK and m = 0: nothing to do. */
static vgq_status operands(const vgq_weight *weight, const void *packed, size_t nbytes,
                           const vgq_linear_call *call, void *scratch, size_t scratch_nbytes,
                           vgq_weight *w, linear_args *args)
{
    const vgq_status status = check(weight, packed, nbytes, w);
    if (status != VGQ_OK)
        return status;
    if (bad_call(call) || call->coded || (call->m && (!call->x || !call->y)))
        return VGQ_EINVAL;
    *args = args_of(*w, packed);
    args->m = (int)call->m;
    args->x_dtype = call->x_dtype, args->y_dtype = call->y_dtype;
    args->x = call->x, args->bias = call->bias, args->y = call->y;
    args->norm = call->norm;
    args->norm_vectors = norm_by_vectors(call->norm, w->k);
    args->gelu = call->gelu != 0;
    args->layer_scale = call->layer_scale, args->residual = call->residual;
    args->x_vectors = vgq_by_vectors(call->x, w->k, 4, dtype_bits(call->x_dtype));
    args->y_vectors = vgq_by_vectors(call->y, w->n, 8, dtype_bits(call->y_dtype));
    args->residual_vectors = vgq_by_vectors(call->residual, w->n, 8, dtype_bits(call->y_dtype));
    args->plain = args->y_dtype == VGQ_BF16 && args->y_vectors && !call->gelu &&
                  !call->layer_scale && !call->residual;
    if (!call->m || call->activations != VGQ_INT8_ACTIVATIONS)
        return VGQ_OK;
    if (!scratch || (uintptr_t)scratch % 16 ||
        scratch_nbytes < vgq_linear_cuda_nbytes(weight, call))
        return VGQ_EINVAL;
    args->x_codes = (int8_t *)scratch;
    args->x_scale = (float *)(args->x_codes + codes_nbytes(call->m, args->depth));
    args->x_sum = (int32_t *)((char *)args->x_scale + each_nbytes(call->m));
    args->split = args->depth / VGQ_CUDA_DEPTH;
    if (sums_nbytes(*w, call->m))
        args->sums = (int32_t *)((char *)args->x_sum + each_nbytes(call->m));
    return VGQ_OK;
}

vgq_status vgq_linear_cuda(const vgq_weight *weight, const void *packed, size_t nbytes,
                           const vgq_linear_call *call, void *scratch, size_t scratch_nbytes,
                           void *stream)
{
    vgq_weight w;
    linear_args args;
    const vgq_status status =
        operands(weight, packed, nbytes, call, scratch, scratch_nbytes, &w, &args);
    if (status != VGQ_OK || !call->m)
        return status;
    if (call->activations != VGQ_INT8_ACTIVATIONS)
        return vgq_blocks(call->m, GEMV_ROWS) > 65535 ? VGQ_EINVAL : run_float(args, &w, stream);
    const vgq_status coded = code_tokens<int8_codes>(args, stream);
    return coded == VGQ_OK ? run_int8(args, &w, stream) : coded;
}

size_t vgq_depth_cuda(const vgq_weight *weight)
{
    vgq_weight w;
    return vgq_check_weight(weight, &w) == VGQ_OK ? vgq_cuda_layout_of(&w).depth : 0;
}

/* Whether integer sums are all that the product has: float scales of groups are added up before. */
static bool in_parts(const vgq_weight *w, const vgq_linear_call *call)
{
    return w->scales != VGQ_PER_GROUP && call->activations == VGQ_INT8_ACTIVATIONS;
}

vgq_status vgq_code_tokens_cuda(const vgq_weight *weight, const void *packed, size_t nbytes,
                                const vgq_linear_call *call, void *scratch, size_t scratch_nbytes,
                                void *stream)
{
    vgq_weight w;
    linear_args args;
    const vgq_status status =
        operands(weight, packed, nbytes, call, scratch, scratch_nbytes, &w, &args);
    if (status != VGQ_OK)
        return status;
    return in_parts(&w, call) ? code_tokens<int8_codes>(args, stream) : VGQ_EINVAL;
}

vgq_status vgq_code_float8_cuda(size_t m, size_t k, vgq_dtype dtype, const void *x, vgq_norm norm,
                                size_t depth, uint8_t *codes, float *scale, void *stream)
{
    if ((unsigned)dtype >= VGQ_DTYPES || !k || depth < k || depth % 4 || depth > 0x7fffff00u ||
        m > 0x7fffff00u || (m && (!x || !codes || !scale)) || (uintptr_t)codes % 4)
        return VGQ_EINVAL;
    linear_args args = {};
    args.m = (int)m, args.k = (int)k, args.depth = (int)depth;
    args.straight = true;
    args.x = x, args.x_dtype = dtype;
    args.norm = norm;
    args.x_vectors = vgq_by_vectors(x, k, 4, dtype_bits(dtype));
    args.norm_vectors = norm_by_vectors(norm, k);
    args.x_codes = (int8_t *)codes, args.x_scale = scale;
    return code_tokens<float8_codes>(args, stream);
}

vgq_status vgq_integers_cuda(const vgq_weight *weight, const void *packed, size_t nbytes,
                             int8_t *integers, void *stream)
{
    vgq_weight w;
    const vgq_status status = check(weight, packed, nbytes, &w);
    if (status != VGQ_OK)
        return status;
    if (!integers || (uintptr_t)integers % 4)
        return VGQ_EINVAL;
    const linear_args args = args_of(w, packed);
    const dim3 grid(args.columns / VGQ_CUDA_PANEL, args.depth / VGQ_CUDA_DEPTH);
    return w.format == VGQ_I8
               ? vgq_launch(integers_kernel<VGQ_I8>, grid, 8 * VGQ_WARP, 0, stream, args, integers)
               : vgq_launch(integers_kernel<VGQ_I4>, grid, 8 * VGQ_WARP, 0, stream, args, integers);
}

vgq_status vgq_finish_cuda(const vgq_weight *weight, const void *packed, size_t nbytes,
                           const vgq_linear_call *call, const int32_t *sums, void *scratch,
                           size_t scratch_nbytes, void *stream)
{
    vgq_weight w;
    linear_args args;
    const vgq_status status =
        operands(weight, packed, nbytes, call, scratch, scratch_nbytes, &w, &args);
    if (status != VGQ_OK)
        return status;
    if (!in_parts(&w, call) || (call->m && !sums))
        return VGQ_EINVAL;
    return run_finish(args, &w, sums, stream);
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
    args.y_vectors = vgq_by_vectors(values, w.k, 4, dtype_bits(dtype));
    const dim3 grid(args.columns / VGQ_CUDA_PANEL, args.depth / VGQ_CUDA_DEPTH);
    return w.format == VGQ_I8
               ? vgq_launch(decode_kernel<VGQ_I8>, grid, 8 * VGQ_WARP, 0, stream, args)
               : vgq_launch(decode_kernel<VGQ_I4>, grid, 8 * VGQ_WARP, 0, stream, args);
}
