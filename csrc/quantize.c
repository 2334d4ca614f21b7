/* SPDX-License-Identifier: Apache-2.0
 * Front of quantization: checks, chooses kernels, splits rows over threads. Which numbers come out
 * is said in docs/conventions.md. */
#include "kernels.h"

static size_t span_of(const vgq_kernels *kernels, vgq_dtype dtype, const void *x, size_t offset,
                      size_t n, float *lo, float *hi)
{
    float buffer[VGQ_BLOCK];
    size_t nonfinite = 0;
    *lo = *hi = 0;
    for (size_t i = 0; i < n && !(i && vgq_stopped_at(i / VGQ_BLOCK)); i += VGQ_BLOCK) {
        const size_t m = vgq_min(VGQ_BLOCK, n - i);
        nonfinite +=
            kernels->quantize.span(m, vgq_floats(kernels, dtype, x, offset + i, m, buffer), lo, hi);
    }
    return nonfinite;
}

vgq_status vgq_range(vgq_dtype dtype, vgq_shape shape, const void *x, float *lo, float *hi,
                     uint64_t *nonfinite)
{
    const size_t elements = shape.rows * shape.cols, groups = vgq_row_groups(shape);
    if (vgq_bad_shape(dtype, shape) || (elements && (!x || !lo || !hi)) ||
        (shape.rows && !nonfinite))
        return VGQ_EINVAL;
    const vgq_context now = vgq_context_now();
#pragma omp parallel num_threads(vgq_team(now.threads, elements))
    {
        vgq_float_mode mode;
        vgq_float_enter(&mode);
#pragma omp for schedule(static) nowait
        for (size_t r = 0; r < shape.rows; r++) {
            nonfinite[r] = 0;
            for (size_t g = 0; g < groups && !vgq_stopped_at(g); g++) {
                const size_t at = g * shape.group;
                nonfinite[r] += span_of(now.kernels, dtype, x, r * shape.cols + at,
                                        vgq_min(shape.group, shape.cols - at), lo + r * groups + g,
                                        hi + r * groups + g);
            }
        }
        vgq_float_leave(&mode);
    }
    return vgq_stopped() ? VGQ_ESTOPPED : VGQ_OK;
}

vgq_status vgq_parameters(vgq_format format, size_t n, const float *lo, const float *hi,
                          float *scale, int8_t *zero)
{
    if ((unsigned)format >= VGQ_FORMATS || (n && (!lo || !hi || !scale)))
        return VGQ_EINVAL;
    vgq_float_mode mode;
    vgq_float_enter(&mode);
    for (size_t i = 0; i < n && !vgq_stopped_at(i); i++) {
        const vgq_map map = vgq_map_of(vgq_formats[format], lo[i], hi[i], zero != NULL);
        scale[i] = map.scale;
        if (zero)
            zero[i] = (int8_t)map.zero;
    }
    vgq_float_leave(&mode);
    return vgq_stopped() ? VGQ_ESTOPPED : VGQ_OK;
}

/* ---- codes ------------------------------------------------------------------------------------
 * Work is cut into blocks of VGQ_BLOCK elements of a row, so that one long row (per tensor) is
 * split as many short ones are. A block starts at an even element, hence at a whole byte. */

typedef struct vgq_job {
    const vgq_kernels *kernels;
    vgq_format format;
    vgq_shape shape;
    const float *scale;
    const int8_t *zero;
} vgq_job;

/* Map of the group that holds element `col` of `row`, and where that group ends. */
static vgq_map map_at(const vgq_job *job, size_t row, size_t col, size_t *end)
{
    const size_t group = col / job->shape.group;
    const size_t at = row * vgq_row_groups(job->shape) + group;
    *end = vgq_min((group + 1) * job->shape.group, job->shape.cols);
    return (vgq_map){job->scale[at], job->zero ? job->zero[at] : 0, vgq_formats[job->format].lowest,
                     vgq_formats[job->format].highest};
}

static void encode_block(const vgq_job *job, vgq_dtype dtype, const void *x, size_t row,
                         size_t start, uint8_t *q)
{
    float buffer[VGQ_BLOCK];
    int8_t codes[VGQ_BLOCK];
    const vgq_quantize_kernels *const k = &job->kernels->quantize;
    const size_t n = vgq_min(VGQ_BLOCK, job->shape.cols - start);
    const float *const values =
        vgq_floats(job->kernels, dtype, x, row * job->shape.cols + start, n, buffer);
    uint8_t *const bytes =
        q + row * vgq_row_nbytes(job->format, job->shape.cols) + vgq_row_nbytes(job->format, start);
    int8_t *const out = vgq_formats[job->format].bits == 4 ? codes : (int8_t *)bytes;
    for (size_t i = 0, end; i < n; i = end) {
        const vgq_map map = map_at(job, row, start + i, &end);
        end = vgq_min(end - start, n);
        k->encode(end - i, values + i, map, out + i);
    }
    if (vgq_formats[job->format].bits == 4)
        k->pack4(n, codes, bytes);
}

static void decode_block(const vgq_job *job, vgq_dtype dtype, const uint8_t *q, size_t row,
                         size_t start, void *x)
{
    float buffer[VGQ_BLOCK];
    int8_t codes[VGQ_BLOCK];
    const vgq_quantize_kernels *const k = &job->kernels->quantize;
    const size_t n = vgq_min(VGQ_BLOCK, job->shape.cols - start);
    const uint8_t *const bytes =
        q + row * vgq_row_nbytes(job->format, job->shape.cols) + vgq_row_nbytes(job->format, start);
    const int8_t *in = (const int8_t *)bytes;
    if (vgq_formats[job->format].bits == 4) {
        k->unpack4(n, bytes, codes);
        in = codes;
    }
    for (size_t i = 0, end; i < n; i = end) {
        const vgq_map map = map_at(job, row, start + i, &end);
        end = vgq_min(end - start, n);
        k->decode(end - i, in + i, map, buffer + i);
    }
    k->store[dtype](n, buffer,
                    (char *)x + (row * job->shape.cols + start) * vgq_dtype_nbytes(dtype));
}

vgq_status vgq_quantize(vgq_format format, vgq_dtype dtype, vgq_shape shape, const void *x,
                        const float *scale, const int8_t *zero, uint8_t *q)
{
    const size_t elements = shape.rows * shape.cols;
    if ((unsigned)format >= VGQ_FORMATS || vgq_bad_shape(dtype, shape) ||
        (elements && (!x || !scale || !q)))
        return VGQ_EINVAL;
    const vgq_context now = vgq_context_now();
    const vgq_job job = {now.kernels, format, shape, scale, zero};
    const size_t blocks = shape.cols / VGQ_BLOCK + (shape.cols % VGQ_BLOCK != 0);
#pragma omp parallel num_threads(vgq_team(now.threads, elements))
    {
        int stop = 0;
        vgq_float_mode mode;
        vgq_float_enter(&mode);
#pragma omp for schedule(static) nowait
        for (size_t i = 0; i < shape.rows * blocks; i++)
            if (!(stop = stop || vgq_stopped_at(i)))
                encode_block(&job, dtype, x, i / blocks, i % blocks * VGQ_BLOCK, q);
        vgq_float_leave(&mode);
    }
    return vgq_stopped() ? VGQ_ESTOPPED : VGQ_OK;
}

vgq_status vgq_dequantize(vgq_format format, vgq_dtype dtype, vgq_shape shape, const uint8_t *q,
                          const float *scale, const int8_t *zero, void *x)
{
    const size_t elements = shape.rows * shape.cols;
    if ((unsigned)format >= VGQ_FORMATS || vgq_bad_shape(dtype, shape) ||
        (elements && (!x || !scale || !q)))
        return VGQ_EINVAL;
    const vgq_context now = vgq_context_now();
    const vgq_job job = {now.kernels, format, shape, scale, zero};
    const size_t blocks = shape.cols / VGQ_BLOCK + (shape.cols % VGQ_BLOCK != 0);
#pragma omp parallel num_threads(vgq_team(now.threads, elements))
    {
        int stop = 0;
        vgq_float_mode mode;
        vgq_float_enter(&mode);
#pragma omp for schedule(static) nowait
        for (size_t i = 0; i < shape.rows * blocks; i++)
            if (!(stop = stop || vgq_stopped_at(i)))
                decode_block(&job, dtype, q, i / blocks, i % blocks * VGQ_BLOCK, x);
        vgq_float_leave(&mode);
    }
    return vgq_stopped() ? VGQ_ESTOPPED : VGQ_OK;
}

/* ---- two-level scales: the search is explained in scales.h ----------------------------------- */

static double error_of(const vgq_kernels *kernels, vgq_dtype dtype, const void *x, size_t offset,
                       size_t n, vgq_map map)
{
    float buffer[VGQ_BLOCK];
    double lanes[VGQ_LANES] = {0};
    for (size_t i = 0; i < n && !(i && vgq_stopped_at(i / VGQ_BLOCK)); i += VGQ_BLOCK) {
        const size_t m = vgq_min(VGQ_BLOCK, n - i);
        kernels->quantize.error(m, vgq_floats(kernels, dtype, x, offset + i, m, buffer), map,
                                lanes);
    }
    return vgq_lane_sum(lanes);
}

static void two_level_row(const vgq_kernels *kernels, vgq_dtype dtype, vgq_shape shape,
                          const void *x, size_t row, float *channel_scale, uint8_t *factor,
                          int8_t *zero, double *error)
{
    const size_t groups = vgq_row_groups(shape);
    const int largest = vgq_largest_factor(zero != NULL);
    float lo, hi, widest = 0;
    for (size_t g = 0; g < groups && !vgq_stopped_at(g); g++) {
        const size_t at = g * shape.group, n = vgq_min(shape.group, shape.cols - at);
        span_of(kernels, dtype, x, row * shape.cols + at, n, &lo, &hi);
        widest = fmaxf(widest, vgq_map_of(vgq_formats[VGQ_I4], lo, hi, zero != NULL).scale);
    }
    const float channel = vgq_channel_scale(widest, largest);
    channel_scale[row] = channel;
    error[2 * row] = error[2 * row + 1] = 0;
    for (size_t g = 0; g < groups && !vgq_stopped_at(g); g++) {
        const size_t at = g * shape.group, n = vgq_min(shape.group, shape.cols - at);
        const size_t offset = row * shape.cols + at;
        span_of(kernels, dtype, x, offset, n, &lo, &hi);
        vgq_map map = vgq_map_of(vgq_formats[VGQ_I4], lo, hi, zero != NULL);
        error[2 * row + 1] += error_of(kernels, dtype, x, offset, n, map);
        const int cover = vgq_covering_factor(map.scale, channel, largest);
        double best = INFINITY;
        for (int f = cover - VGQ_CLIPPED; f <= cover + 1; f++) {
            if (f < 1 || f > largest)
                continue;
            map.scale = channel * (float)f;
            map.zero = zero ? vgq_zero_for(vgq_formats[VGQ_I4], lo, map.scale) : 0;
            const double e = error_of(kernels, dtype, x, offset, n, map);
            if (e < best) {
                best = e;
                factor[row * groups + g] = (uint8_t)f;
                if (zero)
                    zero[row * groups + g] = (int8_t)map.zero;
            }
        }
        error[2 * row] += best;
    }
}

vgq_status vgq_two_level(vgq_dtype dtype, vgq_shape shape, const void *x, float *channel_scale,
                         uint8_t *factor, int8_t *zero, double *error)
{
    const size_t elements = shape.rows * shape.cols;
    if (vgq_bad_shape(dtype, shape) || (elements && (!x || !factor)) ||
        (shape.rows && (!channel_scale || !error)))
        return VGQ_EINVAL;
    const vgq_context now = vgq_context_now();
#pragma omp parallel num_threads(vgq_team(now.threads, elements))
    {
        vgq_float_mode mode;
        vgq_float_enter(&mode);
#pragma omp for schedule(static) nowait
        for (size_t r = 0; r < shape.rows; r++)
            two_level_row(now.kernels, dtype, shape, x, r, channel_scale, factor, zero, error);
        vgq_float_leave(&mode);
    }
    return vgq_stopped() ? VGQ_ESTOPPED : VGQ_OK;
}
