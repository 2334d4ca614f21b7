/* SPDX-License-Identifier: Apache-2.0
 * Pictures as rows and pixels of floats, resized on the way, and the front that only resizes. */
#include "conv.h"

#include <string.h>

/* Where an output row or column of a resized picture lies in its source. */
typedef struct vgq_place {
    size_t first, second;
    float weight; /* of the second */
} vgq_place;

static vgq_place place_of(size_t i, size_t size, size_t source)
{
    const double at = size > 1 ? (double)i * (double)(source - 1) / (double)(size - 1) : 0;
    const size_t first = (size_t)at;
    return (vgq_place){first, vgq_min(first + 1, source - 1), (float)(at - (double)first)};
}

static int resized(const vgq_pictures *p)
{
    return p->height != p->source_height || p->width != p->source_width;
}

size_t vgq_source_length(const vgq_pictures *p)
{
    return (resized(p) ? 3 : 1) * p->source_width * p->channels;
}

const float *vgq_stored_row(const vgq_pictures *p, size_t picture, size_t y, float *buffer)
{
    const size_t n = p->source_width * p->channels;
    return vgq_floats(p->kernels, p->dtype, p->x, (picture * p->source_height + y) * n, n, buffer);
}

const float *vgq_source_floats(const vgq_pictures *p, size_t picture, size_t y, float *buffer)
{
    if (!resized(p))
        return vgq_stored_row(p, picture, y, buffer);
    const vgq_place place = place_of(y, p->height, p->source_height);
    const size_t n = p->source_width * p->channels;
    const float *const first = vgq_stored_row(p, picture, place.first, buffer);
    const float *const second = vgq_stored_row(p, picture, place.second, buffer + n);
    p->kernels->conv.lerp(n, first, second, place.weight, buffer + 2 * n);
    return buffer + 2 * n;
}

const float *vgq_pixel_floats(const vgq_pictures *p, const float *row, size_t x, float *buffer)
{
    if (!resized(p))
        return row + x * p->channels;
    const vgq_place place = place_of(x, p->width, p->source_width);
    p->kernels->conv.lerp(p->channels, row + place.first * p->channels,
                          row + place.second * p->channels, place.weight, buffer);
    return buffer;
}

int vgq_too_many(size_t a, size_t b, size_t c, size_t d)
{
    const size_t most = SIZE_MAX / 64;
    return !a || !b || !c || !d || a > most / b || a * b > most / c || a * b * c > most / d;
}

typedef struct vgq_resize_plan {
    vgq_resize_call call;
    vgq_pictures pictures;
    vgq_crew crew;
} vgq_resize_plan;

static int bad_resize(const vgq_resize_call *c)
{
    return !c || (unsigned)c->x_dtype >= VGQ_DTYPES || (unsigned)c->y_dtype >= VGQ_DTYPES ||
           vgq_too_many(c->pictures, c->height, c->width, c->channels) ||
           vgq_too_many(c->pictures, c->source_height, c->source_width, c->channels);
}

static vgq_resize_plan resize_plan_of(const vgq_resize_call *c)
{
    const vgq_context now = c->context ? *c->context : vgq_context_now();
    vgq_resize_plan plan = {
        .call = *c,
        .pictures = {now.kernels, c->x, c->x_dtype, c->height, c->width, c->channels,
                     c->source_height, c->source_width},
    };
    const size_t row = c->width * c->channels;
    plan.crew.team = vgq_team(now.threads, c->pictures * c->height * row);
    plan.crew.own_nbytes =
        vgq_round_up((vgq_source_length(&plan.pictures) + 2 * row) * sizeof(float), VGQ_ALIGN);
    return plan;
}

size_t vgq_resize_nbytes(const vgq_resize_call *call)
{
    if (bad_resize(call))
        return 0;
    const vgq_resize_plan plan = resize_plan_of(call);
    return VGQ_ALIGN + vgq_crew_nbytes(&plan.crew);
}

/* Row i of all pictures. own: what vgq_source_floats wants, a row, what is added to it. */
static void resize_row(const void *job, size_t i, unsigned char *own)
{
    const vgq_resize_plan *const plan = job;
    const vgq_resize_call *const call = &plan->call;
    const vgq_kernels *const kernels = plan->pictures.kernels;
    const size_t channels = call->channels, n = call->width * channels;
    float *const buffer = (float *)(void *)own, *const y =
                                                    buffer + vgq_source_length(&plan->pictures);
    const float *const row =
        vgq_source_floats(&plan->pictures, i / call->height, i % call->height, buffer);
    for (size_t x = 0; x < call->width; x++) {
        const float *const pixel = vgq_pixel_floats(&plan->pictures, row, x, y + x * channels);
        if (pixel != y + x * channels)
            memcpy(y + x * channels, pixel, channels * sizeof(*y));
    }
    if (call->added)
        kernels->conv.add(n, vgq_floats(kernels, call->y_dtype, call->added, i * n, n, y + n), y);
    kernels->quantize.store[call->y_dtype](
        n, y, (char *)call->y + i * n * vgq_dtype_nbytes(call->y_dtype));
}

vgq_status vgq_resize(const vgq_resize_call *call, void *scratch, size_t scratch_nbytes)
{
    if (bad_resize(call) || !call->x || !call->y || !scratch)
        return VGQ_EINVAL;
    vgq_resize_plan plan = resize_plan_of(call);
    if (scratch_nbytes < VGQ_ALIGN + vgq_crew_nbytes(&plan.crew))
        return VGQ_EINVAL;
    unsigned char *const at = scratch;
    vgq_crew_place(&plan.crew, at + (VGQ_ALIGN - (uintptr_t)at % VGQ_ALIGN) % VGQ_ALIGN);
    return vgq_run_tasks(&plan.crew, plan.crew.team, call->pictures * call->height, resize_row,
                         &plan);
}
