/* SPDX-License-Identifier: Apache-2.0
 * Front of quantization: checks, chooses kernels, splits rows over threads. Which numbers come out
 * is said in docs/conventions.md. */
#include "kernels.h"

#include <float.h>
#include <math.h>
#include <string.h>

#define FORMAT(ID, tag, bits_, lowest_, highest_) [VGQ_##ID] = {bits_, lowest_, highest_},
static const struct {
    int bits, lowest, highest;
} formats[VGQ_FORMATS] = {
#include "formats.def"
};
#undef FORMAT

size_t vgq_row_groups(vgq_shape shape)
{
    return shape.group ? shape.cols / shape.group + (shape.cols % shape.group != 0) : 0;
}

size_t vgq_row_nbytes(vgq_format format, size_t cols)
{
    return formats[format].bits == 4 ? cols / 2 + cols % 2 : cols;
}

static int bad_shape(vgq_dtype dtype, vgq_shape shape)
{
    return (unsigned)dtype >= VGQ_DTYPES ||
           (shape.cols && (!shape.group || shape.group > shape.cols)) ||
           (shape.cols && shape.rows > SIZE_MAX / sizeof(float) / shape.cols);
}

/* Elements offset..offset+n of x as floats: x itself where it is float, else converted into buffer.
 */
static const float *floats(vgq_dtype dtype, const void *x, size_t offset, size_t n, float *buffer)
{
    const char *at = (const char *)x + offset * vgq_dtype_nbytes(dtype);
    if (dtype == VGQ_F32 && (uintptr_t)at % sizeof(float) == 0)
        return (const float *)(const void *)at;
    vgq_chosen()->quantize.load[dtype](n, at, buffer);
    return buffer;
}

static size_t span_of(vgq_dtype dtype, const void *x, size_t offset, size_t n, float *lo, float *hi)
{
    float buffer[VGQ_BLOCK];
    size_t nonfinite = 0;
    *lo = *hi = 0;
    for (size_t i = 0; i < n && !(i && vgq_stopped_at(i / VGQ_BLOCK)); i += VGQ_BLOCK) {
        const size_t m = vgq_min(VGQ_BLOCK, n - i);
        nonfinite +=
            vgq_chosen()->quantize.span(m, floats(dtype, x, offset + i, m, buffer), lo, hi);
    }
    return nonfinite;
}

vgq_status vgq_range(vgq_dtype dtype, vgq_shape shape, const void *x, float *lo, float *hi,
                     uint64_t *nonfinite)
{
    const size_t elements = shape.rows * shape.cols, groups = vgq_row_groups(shape);
    if (bad_shape(dtype, shape) || (elements && (!x || !lo || !hi || !nonfinite)))
        return VGQ_EINVAL;
#pragma omp parallel num_threads(vgq_team(elements))
    {
        vgq_float_mode mode;
        vgq_float_enter(&mode);
#pragma omp for schedule(static) nowait
        for (size_t r = 0; r < shape.rows; r++) {
            nonfinite[r] = 0;
            for (size_t g = 0; g < groups && !vgq_stopped_at(g); g++) {
                const size_t at = g * shape.group;
                nonfinite[r] +=
                    span_of(dtype, x, r * shape.cols + at, vgq_min(shape.group, shape.cols - at),
                            lo + r * groups + g, hi + r * groups + g);
            }
        }
        vgq_float_leave(&mode);
    }
    return vgq_stopped() ? VGQ_ESTOPPED : VGQ_OK;
}

/* A scale is a normal number, so that division by it and denormal-flushing callers are harmless. */
static float normal_scale(double scale) { return fmaxf((float)scale, FLT_MIN); }

static vgq_map symmetric_map(vgq_format format, float lo, float hi)
{
    const float absmax = fmaxf(-lo, hi);
    return (vgq_map){normal_scale(absmax / (float)formats[format].highest), 0,
                     formats[format].lowest, formats[format].highest};
}

/* The zero point for a scale: the code of 0.0, saturated. */
static int zero_for(vgq_format format, float lo, float scale)
{
    const double z = rint(formats[format].lowest - (double)lo / scale);
    return (int)fmin(fmax(z, formats[format].lowest), formats[format].highest);
}

static vgq_map asymmetric_map(vgq_format format, float lo, float hi)
{
    const int steps = formats[format].highest - formats[format].lowest;
    const float scale = normal_scale(((double)hi - (double)lo) / steps);
    return (vgq_map){scale, zero_for(format, lo, scale), formats[format].lowest,
                     formats[format].highest};
}

vgq_status vgq_parameters(vgq_format format, size_t n, const float *lo, const float *hi,
                          float *scale, int8_t *zero)
{
    if ((unsigned)format >= VGQ_FORMATS || (n && (!lo || !hi || !scale)))
        return VGQ_EINVAL;
    vgq_float_mode mode;
    vgq_float_enter(&mode);
    for (size_t i = 0; i < n && !vgq_stopped_at(i); i++) {
        const vgq_map map =
            zero ? asymmetric_map(format, lo[i], hi[i]) : symmetric_map(format, lo[i], hi[i]);
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
    return (vgq_map){job->scale[at], job->zero ? job->zero[at] : 0, formats[job->format].lowest,
                     formats[job->format].highest};
}

static void encode_block(const vgq_job *job, vgq_dtype dtype, const void *x, size_t row,
                         size_t start, uint8_t *q)
{
    float buffer[VGQ_BLOCK];
    int8_t codes[VGQ_BLOCK];
    const vgq_quantize_kernels *const k = &vgq_chosen()->quantize;
    const size_t n = vgq_min(VGQ_BLOCK, job->shape.cols - start);
    const float *const values = floats(dtype, x, row * job->shape.cols + start, n, buffer);
    uint8_t *const bytes =
        q + row * vgq_row_nbytes(job->format, job->shape.cols) + vgq_row_nbytes(job->format, start);
    int8_t *const out = formats[job->format].bits == 4 ? codes : (int8_t *)bytes;
    for (size_t i = 0, end; i < n; i = end) {
        const vgq_map map = map_at(job, row, start + i, &end);
        end = vgq_min(end - start, n);
        k->encode(end - i, values + i, map, out + i);
    }
    if (formats[job->format].bits == 4)
        k->pack4(n, codes, bytes);
}

static void decode_block(const vgq_job *job, vgq_dtype dtype, const uint8_t *q, size_t row,
                         size_t start, void *x)
{
    float buffer[VGQ_BLOCK];
    int8_t codes[VGQ_BLOCK];
    const vgq_quantize_kernels *const k = &vgq_chosen()->quantize;
    const size_t n = vgq_min(VGQ_BLOCK, job->shape.cols - start);
    const uint8_t *const bytes =
        q + row * vgq_row_nbytes(job->format, job->shape.cols) + vgq_row_nbytes(job->format, start);
    const int8_t *in = (const int8_t *)bytes;
    if (formats[job->format].bits == 4) {
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
    if ((unsigned)format >= VGQ_FORMATS || bad_shape(dtype, shape) ||
        (elements && (!x || !scale || !q)))
        return VGQ_EINVAL;
    const vgq_job job = {format, shape, scale, zero};
    const size_t blocks = shape.cols / VGQ_BLOCK + (shape.cols % VGQ_BLOCK != 0);
#pragma omp parallel num_threads(vgq_team(elements))
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
    if ((unsigned)format >= VGQ_FORMATS || bad_shape(dtype, shape) ||
        (elements && (!x || !scale || !q)))
        return VGQ_EINVAL;
    const vgq_job job = {format, shape, scale, zero};
    const size_t blocks = shape.cols / VGQ_BLOCK + (shape.cols % VGQ_BLOCK != 0);
#pragma omp parallel num_threads(vgq_team(elements))
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

/* ---- two-level scales -------------------------------------------------------------------------
 * The factor that just covers a group's range is not the best one: clipping the few largest weights
 * makes all other steps finer. So a group tries that factor, the next, and CLIPPED below it, and
 * keeps the one with the smallest squared error (the smallest factor of equals). */

enum { CLIPPED = 4 };

/* Nearest float with 17 significant bits, ties to even: times a factor (4 bits) times a code less
 * its zero point (5 bits; with 5 the factor has 3) it still fits the 24 bits of a float. */
static float round17(float x)
{
    int exponent;
    const double mantissa = frexp((double)x, &exponent);
    return (float)ldexp(rint(ldexp(mantissa, 17)), exponent - 17);
}

static double error_of(vgq_dtype dtype, const void *x, size_t offset, size_t n, vgq_map map)
{
    float buffer[VGQ_BLOCK];
    double lanes[VGQ_LANES] = {0};
    for (size_t i = 0; i < n && !(i && vgq_stopped_at(i / VGQ_BLOCK)); i += VGQ_BLOCK) {
        const size_t m = vgq_min(VGQ_BLOCK, n - i);
        vgq_chosen()->quantize.error(m, floats(dtype, x, offset + i, m, buffer), map, lanes);
    }
    return vgq_lane_sum(lanes);
}

static void two_level_row(vgq_dtype dtype, vgq_shape shape, const void *x, size_t row,
                          float *channel_scale, uint8_t *factor, int8_t *zero, double *error)
{
    const size_t groups = vgq_row_groups(shape);
    const int largest = zero ? 8 : 15;
    float lo, hi, widest = 0;
    for (size_t g = 0; g < groups && !vgq_stopped_at(g); g++) {
        const size_t at = g * shape.group, n = vgq_min(shape.group, shape.cols - at);
        span_of(dtype, x, row * shape.cols + at, n, &lo, &hi);
        const vgq_map map = zero ? asymmetric_map(VGQ_I4, lo, hi) : symmetric_map(VGQ_I4, lo, hi);
        widest = fmaxf(widest, map.scale);
    }
    const float channel = fmaxf(round17(widest / (float)largest), FLT_MIN);
    channel_scale[row] = channel;
    error[2 * row] = error[2 * row + 1] = 0;
    for (size_t g = 0; g < groups && !vgq_stopped_at(g); g++) {
        const size_t at = g * shape.group, n = vgq_min(shape.group, shape.cols - at);
        const size_t offset = row * shape.cols + at;
        span_of(dtype, x, offset, n, &lo, &hi);
        vgq_map map = zero ? asymmetric_map(VGQ_I4, lo, hi) : symmetric_map(VGQ_I4, lo, hi);
        error[2 * row + 1] += error_of(dtype, x, offset, n, map);
        const int cover = (int)fminf(floorf(map.scale / channel), (float)largest);
        double best = INFINITY;
        for (int f = cover - CLIPPED; f <= cover + 1; f++) {
            if (f < 1 || f > largest)
                continue;
            map.scale = channel * (float)f;
            map.zero = zero ? zero_for(VGQ_I4, lo, map.scale) : 0;
            const double e = error_of(dtype, x, offset, n, map);
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
    if (bad_shape(dtype, shape) || (elements && (!x || !channel_scale || !factor || !error)))
        return VGQ_EINVAL;
#pragma omp parallel num_threads(vgq_team(elements))
    {
        vgq_float_mode mode;
        vgq_float_enter(&mode);
#pragma omp for schedule(static) nowait
        for (size_t r = 0; r < shape.rows; r++)
            two_level_row(dtype, shape, x, r, channel_scale, factor, zero, error);
        vgq_float_leave(&mode);
    }
    return vgq_stopped() ? VGQ_ESTOPPED : VGQ_OK;
}
