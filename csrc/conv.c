/* SPDX-License-Identifier: Apache-2.0
 * Front of the convolution: an implicit product whose rows are pixels.
 *
 * Codes of a few rows of a picture lie in scratch with their padding, channels last. There the
 * inputs of a kernel's row are neighbours, and those of the next output pixel begin `stride`
 * pixels later: one call of the Linear's tile multiplies a row of the kernel with as many pixels
 * as it has rows, and no picture is ever copied into a matrix. A task is some rows of one picture;
 * it codes them as it comes to them, so that they are still in the cache. */
#include "packed.h"
#include "tasks.h"

#include <stdatomic.h>
#include <string.h>

enum {
    BLOCK_PIXELS = 512, /* whose codes are made before they are multiplied, at least */
    LEAST_ROWS = 4,     /* of a task: the rows around it are coded twice */
    STEP = 8            /* inputs that a tile takes at least */
};

#define UNSIGNED_HIGHEST 254.0f /* codes -127..127, less their zero point of -127 */

static size_t aligned(size_t nbytes) { return vgq_round_up(nbytes, VGQ_ALIGN); }

size_t vgq_conv_channels(size_t channels) { return vgq_round_up(channels, STEP); }

/* ---- rows of pictures as floats ---------------------------------------------------------------
 */

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

/* Pictures as they are read: resized where the sizes differ. */
typedef struct vgq_pictures {
    const vgq_kernels *kernels;
    const void *x;
    vgq_dtype dtype;
    size_t height, width, channels, source_height, source_width;
} vgq_pictures;

static int resized(const vgq_pictures *p)
{
    return p->height != p->source_height || p->width != p->source_width;
}

/* Floats of scratch for source_floats. */
static size_t source_length(const vgq_pictures *p)
{
    return (resized(p) ? 3 : 1) * p->source_width * p->channels;
}

static const float *stored_row(const vgq_pictures *p, size_t picture, size_t y, float *buffer)
{
    const size_t n = p->source_width * p->channels;
    return vgq_floats(p->kernels, p->dtype, p->x, (picture * p->source_height + y) * n, n, buffer);
}

/* Row y of a picture, of the source's width. */
static const float *source_floats(const vgq_pictures *p, size_t picture, size_t y, float *buffer)
{
    if (!resized(p))
        return stored_row(p, picture, y, buffer);
    const vgq_place place = place_of(y, p->height, p->source_height);
    const size_t n = p->source_width * p->channels;
    const float *const first = stored_row(p, picture, place.first, buffer);
    const float *const second = stored_row(p, picture, place.second, buffer + n);
    p->kernels->conv.lerp(n, first, second, place.weight, buffer + 2 * n);
    return buffer + 2 * n;
}

/* Pixel x of a row of source_floats. */
static const float *pixel_floats(const vgq_pictures *p, const float *row, size_t x, float *buffer)
{
    if (!resized(p))
        return row + x * p->channels;
    const vgq_place place = place_of(x, p->width, p->source_width);
    p->kernels->conv.lerp(p->channels, row + place.first * p->channels,
                          row + place.second * p->channels, place.weight, buffer);
    return buffer;
}

/* ---- the plan ---------------------------------------------------------------------------------
 */

typedef struct vgq_conv_plan {
    vgq_weight w;
    vgq_layout at;
    vgq_conv_call call;
    vgq_pictures pictures;
    const vgq_kernels *kernels;
    const vgq_product *product;
    vgq_code_row_fn *code_row;
    const unsigned char *panels;
    size_t pixel;            /* codes of a pixel */
    size_t line;             /* pixels of a row of codes, padding included */
    size_t segment;          /* inputs of a row of the kernel */
    size_t block_rows;       /* output rows whose codes are made at once */
    size_t task_rows, tasks; /* tasks of a picture */
    int joined;              /* whether tiles run on from a row to the next */
    size_t codes_nbytes, sums_nbytes, windows_nbytes, floats_nbytes, operand_nbytes, acc_nbytes;
    vgq_crew crew;
    _Atomic uint32_t *largest; /* [pictures][2] of y, as bits */
    uint32_t *x_largest;       /* [pictures][2] */
} vgq_conv_plan;

static size_t input_rows(const vgq_conv_plan *plan, size_t rows)
{
    return (rows - 1) * plan->call.stride_height + plan->call.kernel_height;
}

static vgq_conv_plan conv_plan_of(const vgq_weight *w, const vgq_conv_call *call)
{
    const vgq_context now = call->context ? *call->context : vgq_context_now();
    vgq_conv_plan plan = {.w = *w, .call = *call, .kernels = now.kernels};
    const vgq_product *const *way = plan.kernels->linear.products;
    const size_t lines = call->out_height * call->out_width;
    /* One whose operand may be cut between the rows of a kernel; the last one can, and applies. */
    while (!(*way)->weight_nbytes || ((*way)->applies && !(*way)->applies(w, lines)))
        way++;
    const vgq_product *const product = plan.product = *way;
    plan.at = vgq_layout_of(&plan.w);
    plan.pictures =
        (vgq_pictures){plan.kernels, call->x,        call->x_dtype,       call->height,
                       call->width,  call->channels, call->source_height, call->source_width};
    plan.code_row = product->code_row ? product->code_row : plan.kernels->linear.code_row;
    plan.pixel = vgq_conv_channels(call->channels);
    plan.line = (call->out_width - 1) * call->stride_width + call->kernel_width;
    plan.segment = call->kernel_width * plan.pixel;
    plan.joined = call->stride_height == 1 && call->stride_width == 1 && product->mr >= 16;
    const size_t pixels = call->pictures * call->out_height * call->out_width;
    plan.crew.team = vgq_team(now.threads, pixels * w->k * vgq_min(w->n, 1024) / 64);
    const size_t threads = (size_t)plan.crew.team;
    size_t tasks = (4 * threads + call->pictures - 1) / call->pictures;
    tasks = vgq_min(tasks, (call->out_height + LEAST_ROWS - 1) / LEAST_ROWS);
    plan.task_rows = (call->out_height + tasks - 1) / tasks;
    plan.tasks = (call->out_height + plan.task_rows - 1) / plan.task_rows;
    plan.block_rows =
        vgq_min((BLOCK_PIXELS + call->out_width - 1) / call->out_width, plan.task_rows);
    const size_t pixels_in = input_rows(&plan, plan.block_rows) * plan.line;
    plan.codes_nbytes = aligned(pixels_in * plan.pixel * product->code_nbytes);
    plan.sums_nbytes = aligned(pixels_in * sizeof(int32_t));
    plan.windows_nbytes = aligned(plan.block_rows * plan.line * sizeof(int32_t));
    plan.floats_nbytes =
        aligned((source_length(&plan.pictures) + 2 * call->channels) * sizeof(float));
    plan.operand_nbytes =
        product->operand_nbytes ? aligned(product->operand_nbytes(plan.at.depth)) : 0;
    plan.acc_nbytes =
        product->mr * VGQ_PANEL * (call->kernel_height * sizeof(int32_t) + 2 * sizeof(float));
    plan.crew.own_nbytes = plan.codes_nbytes + plan.sums_nbytes + plan.windows_nbytes +
                           plan.floats_nbytes + plan.operand_nbytes + aligned(plan.acc_nbytes);
    return plan;
}

static size_t largest_nbytes(const vgq_conv_plan *plan)
{
    return aligned(plan->call.pictures * 2 * sizeof(uint32_t));
}

static size_t conv_plan_nbytes(const vgq_conv_plan *plan)
{
    return VGQ_ALIGN + 2 * largest_nbytes(plan) + vgq_crew_nbytes(&plan->crew);
}

/* No product of sizes may overflow. */
static int too_many(size_t a, size_t b, size_t c, size_t d)
{
    const size_t most = SIZE_MAX / 64;
    return !a || !b || !c || !d || a > most / b || a * b > most / c || a * b * c > most / d;
}

static int bad_sizes(const vgq_conv_call *c)
{
    return too_many(c->pictures, c->height, c->width, c->channels) ||
           too_many(c->pictures, c->source_height, c->source_width, c->channels) ||
           too_many(1, c->kernel_height, c->kernel_width, c->channels) || !c->stride_height ||
           !c->stride_width || too_many(c->pictures, c->out_height, c->out_width, 1) ||
           c->kernel_height > VGQ_DEEPEST || c->kernel_width > VGQ_DEEPEST ||
           c->stride_height > VGQ_DEEPEST || c->stride_width > VGQ_DEEPEST ||
           too_many(c->out_height, c->stride_height, c->out_width, c->stride_width);
}

static int bad_conv(const vgq_weight *w, const vgq_conv_call *c)
{
    return !c || (unsigned)c->x_dtype >= VGQ_DTYPES || (unsigned)c->y_dtype >= VGQ_DTYPES ||
           bad_sizes(c) || w->format != VGQ_I8 || w->asymmetric || w->scales != VGQ_PER_ROW ||
           w->k / c->kernel_height / c->kernel_width != vgq_conv_channels(c->channels) ||
           w->k % (c->kernel_height * c->kernel_width) ||
           ((c->outputs || c->folded) && w->n > VGQ_PANEL) || (c->folded && w->n % 2) ||
           too_many(c->pictures, c->out_height, c->out_width, w->n) ||
           (!c->column_embedding) != (!c->row_embedding) ||
           (c->column_embedding && c->channels % 2);
}

size_t vgq_conv2d_nbytes(const vgq_weight *weight, const vgq_conv_call *call)
{
    vgq_weight w;
    if (vgq_check_weight(weight, &w) != VGQ_OK || bad_conv(&w, call))
        return 0;
    const vgq_conv_plan plan = conv_plan_of(&w, call);
    return conv_plan_nbytes(&plan);
}

/* ---- a task -----------------------------------------------------------------------------------
 */

/* One task's place: a thread's scratch, the picture, and how its codes are made. */
typedef struct vgq_conv_task {
    const vgq_conv_plan *plan;
    size_t picture;
    float x_scale, inverse;
    unsigned char *codes; /* [input rows][line][pixel] */
    int32_t *sums;        /* [input rows][line]: of a pixel's codes */
    int32_t *windows;     /* [pixels of the block]: of all codes that an output is made of */
    float *floats;        /* source_length, then two pixels */
    unsigned char *operand;
    int32_t *acc;
    float *y; /* [mr][64], and as many residuals */
    uint32_t most[2];
} vgq_conv_task;

static unsigned char *codes_at(const vgq_conv_task *task, size_t pixel)
{
    return task->codes + pixel * task->plan->pixel * task->plan->product->code_nbytes;
}

/* `pixels` pixels of zeros, from `pixel` on. */
static void code_padding(const vgq_conv_task *task, size_t pixel, size_t pixels)
{
    const vgq_conv_plan *const plan = task->plan;
    const size_t nbytes = plan->pixel * plan->product->code_nbytes;
    float *const values = task->floats + source_length(&plan->pictures);
    if (!pixels)
        return;
    for (size_t i = 0; i < plan->call.channels; i++)
        values[i] = plan->call.relu_x ? -127.0f : 0;
    task->sums[pixel] =
        plan->code_row(plan->call.channels, plan->pixel, values, 1.0f, codes_at(task, pixel));
    for (size_t i = 1; i < pixels; i++) {
        task->sums[pixel + i] = task->sums[pixel];
        memcpy(codes_at(task, pixel + i), codes_at(task, pixel), nbytes);
    }
}

/* Input row y of the picture (outside: zeros) as row `to` of the codes. */
static void code_line(const vgq_conv_task *task, ptrdiff_t y, size_t to)
{
    const vgq_conv_plan *const plan = task->plan;
    const vgq_conv_call *const call = &plan->call;
    const size_t start = to * plan->line, channels = call->channels, half = channels / 2;
    if (y < 0 || (size_t)y >= call->height) {
        code_padding(task, start, plan->line);
        return;
    }
    const vgq_conv_kernels *const conv = &plan->kernels->conv;
    const float *const row = source_floats(&plan->pictures, task->picture, (size_t)y, task->floats);
    float *const pixel = task->floats + source_length(&plan->pictures);
    const size_t left = vgq_min(call->padding_width, plan->line);
    const size_t inside = vgq_min(call->width, plan->line - left);
    code_padding(task, start, left);
    for (size_t x = 0; x < inside; x++) {
        const float *from = pixel_floats(&plan->pictures, row, x, pixel);
        if (call->column_embedding) {
            if (from != pixel)
                memcpy(pixel, from, channels * sizeof(*pixel));
            conv->add(half, call->column_embedding + x * half, pixel);
            conv->add(half, call->row_embedding + (size_t)y * half, pixel + half);
            from = pixel;
        }
        float inverse = task->inverse;
        if (call->relu_x) {
            conv->code_unsigned(channels, from, inverse, pixel + channels);
            from = pixel + channels;
            inverse = 1;
        }
        task->sums[start + left + x] =
            plan->code_row(channels, plan->pixel, from, inverse, codes_at(task, start + left + x));
    }
    code_padding(task, start + left + inside, plan->line - left - inside);
}

/* The sums of the codes that each output of `rows` rows is made of. */
static void sum_windows(const vgq_conv_task *task, size_t rows)
{
    const vgq_conv_plan *const plan = task->plan;
    const vgq_conv_call *const call = &plan->call;
    const size_t apart = plan->joined ? plan->line : call->out_width;
    for (size_t i = 0; i < rows; i++)
        for (size_t j = 0; j < call->out_width; j++) {
            const int32_t *const at =
                task->sums + i * call->stride_height * plan->line + j * call->stride_width;
            int32_t sum = 0;
            for (size_t u = 0; u < call->kernel_height; u++)
                for (size_t v = 0; v < call->kernel_width; v++)
                    sum += at[u * plan->line + v];
            task->windows[i * apart + j] = sum;
        }
}

/* One pixel's outputs of panel p, from floats to y. */
static void store_pixel(vgq_conv_task *task, size_t pixel, size_t p, float *y)
{
    const vgq_conv_plan *const plan = task->plan;
    const vgq_conv_call *const call = &plan->call;
    const vgq_quantize_kernels *const quantize = &plan->kernels->quantize;
    const size_t whole = vgq_min(VGQ_PANEL, plan->w.n - p * VGQ_PANEL);
    const size_t n = call->folded ? whole / 2 : whole;
    const size_t first = pixel * (call->folded ? n : plan->w.n) + p * VGQ_PANEL,
                 nbytes = vgq_dtype_nbytes(call->y_dtype);
    float widened[VGQ_PANEL];
    const float *residual = NULL;
    if (call->folded)
        plan->kernels->conv.add(n, y + n, y);
    if (call->residual)
        residual = vgq_floats(plan->kernels, call->y_dtype, call->residual, first, n, widened);
    plan->kernels->conv.last(n, y, call->relu_y, residual, call->relu_sum, task->most);
    if (!call->outputs) {
        quantize->store[call->y_dtype](n, y, (char *)call->y + first * nbytes);
        return;
    }
    for (size_t c = n; c < VGQ_PANEL; c++)
        y[c] = 0;
    float out[VGQ_PANEL];
    for (size_t o = 0, count; o < call->outputs; o += count) {
        count = vgq_min(VGQ_PANEL, call->outputs - o);
        plan->kernels->conv.project(count, y, call->last_weight + o * VGQ_PANEL,
                                    call->last_bias + o, out);
        quantize->store[call->y_dtype](count, out,
                                       (char *)call->y + (pixel * call->outputs + o) * nbytes);
    }
}

static vgq_conv_columns columns_of(const vgq_conv_plan *plan, size_t p)
{
    const size_t n = vgq_min(VGQ_PANEL, plan->w.n - p * VGQ_PANEL);
    vgq_conv_columns columns = {.offset = plan->product->offset};
    memcpy(columns.scale, plan->panels + p * plan->at.panel_nbytes, sizeof(columns.scale));
    for (size_t c = 0; c < n; c++) {
        if (plan->call.relu_x)
            columns.correction[c] = 127 * plan->call.weight_sums[p * VGQ_PANEL + c];
        if (plan->call.bias)
            columns.bias[c] = plan->call.bias[p * VGQ_PANEL + c];
    }
    return columns;
}

/* `count` outputs from `first` on, neighbours in the codes; the block begins with output row y. */
static void multiply_run(vgq_conv_task *task, size_t p, const vgq_operand *operand,
                         const vgq_conv_columns *columns, size_t y, size_t first, size_t count)
{
    const vgq_conv_plan *const plan = task->plan;
    const vgq_conv_call *const call = &plan->call;
    const vgq_product *const product = plan->product;
    vgq_operand part = *operand;
    part.k = plan->segment;
    const size_t apart = product->mr * VGQ_PANEL;
    const size_t width = plan->joined ? plan->line : call->out_width; /* outputs from row to row */
    const size_t tiles = (count + product->mr - 1) / product->mr;
    for (size_t t = 0, done = 0, rows; t < tiles; t++, done += rows) {
        rows = (count - done + tiles - t - 1) / (tiles - t); /* as even as can be */
        const size_t at = first + done, i = at / width, j = at % width;
        for (size_t u = 0; u < call->kernel_height; u++) {
            part.data = (const char *)operand->data +
                        u * plan->segment * VGQ_PANEL * product->weight_nbytes;
            product->tile(
                rows, &part,
                codes_at(task, (i * call->stride_height + u) * plan->line + j * call->stride_width),
                call->stride_width * plan->pixel, NULL, task->acc + u * apart);
        }
        plan->kernels->conv.finish(rows, call->kernel_height, apart, task->acc, columns,
                                   task->windows + at, task->x_scale, task->y);
        for (size_t r = 0; r < rows; r++) {
            const size_t row = (at + r) / width, column = (at + r) % width;
            if (column < call->out_width)
                store_pixel(task,
                            (task->picture * call->out_height + y + row) * call->out_width + column,
                            p, task->y + r * VGQ_PANEL);
        }
    }
}

/* Output rows y..y+rows, whose codes are there. */
static void multiply_block(vgq_conv_task *task, size_t y, size_t rows)
{
    const vgq_conv_plan *const plan = task->plan;
    const size_t width = plan->call.out_width;
    sum_windows(task, rows);
    for (size_t p = 0; p < plan->at.panels; p++) {
        const vgq_conv_columns columns = columns_of(plan, p);
        const vgq_panel panel = {
            .format = VGQ_I8,
            .k = plan->at.depth,
            .group = plan->w.group,
            .groups = 1,
            .scale = columns.scale,
            .codes = plan->panels + p * plan->at.panel_nbytes + plan->at.codes,
        };
        vgq_operand operand = {.k = panel.k, .data = panel.codes, .panel = &panel};
        if (plan->product->prepare) {
            int32_t offset[VGQ_PANEL]; /* stays, without zero points */
            plan->product->prepare(&panel, panel.codes, task->operand, offset);
            operand.data = task->operand;
        }
        if (plan->joined)
            multiply_run(task, p, &operand, &columns, y, 0, (rows - 1) * plan->line + width);
        else
            for (size_t i = 0; i < rows; i++)
                multiply_run(task, p, &operand, &columns, y, i * width, width);
    }
}

static void grow(_Atomic uint32_t *to, uint32_t value)
{
    uint32_t now = atomic_load(to);
    while (now < value && !atomic_compare_exchange_weak(to, &now, value))
        ;
}

static void run_conv_task(const void *job, size_t index, unsigned char *own)
{
    const vgq_conv_plan *const plan = job;
    const vgq_conv_call *const call = &plan->call;
    vgq_conv_task task = {.plan = plan, .picture = index / plan->tasks};
    task.x_scale =
        vgq_token_scale(plan->x_largest[2 * task.picture + (call->relu_x != 0)],
                        call->relu_x ? UNSIGNED_HIGHEST : VGQ_INT8_HIGHEST, &task.inverse);
    task.codes = own;
    task.sums = (int32_t *)(void *)(own += plan->codes_nbytes);
    task.windows = (int32_t *)(void *)(own += plan->sums_nbytes);
    task.floats = (float *)(void *)(own += plan->windows_nbytes);
    task.operand = own += plan->floats_nbytes;
    task.acc = (int32_t *)(void *)(own += plan->operand_nbytes);
    task.y = (float *)(void *)(task.acc + call->kernel_height * plan->product->mr * VGQ_PANEL);
    const size_t first = index % plan->tasks * plan->task_rows;
    const size_t end = vgq_min(first + plan->task_rows, call->out_height);
    size_t kept = 0; /* rows of codes that the block before has left at the front */
    for (size_t y = first, rows; y < end && !vgq_stopped(); y += rows) {
        rows = vgq_min(plan->block_rows, end - y);
        const size_t wanted = input_rows(plan, rows);
        const ptrdiff_t top =
            (ptrdiff_t)(y * call->stride_height) - (ptrdiff_t)call->padding_height;
        for (size_t i = kept; i < wanted; i++)
            code_line(&task, top + (ptrdiff_t)i, i);
        multiply_block(&task, y, rows);
        const size_t gone = rows * call->stride_height;
        kept = wanted > gone ? wanted - gone : 0;
        if (kept) {
            memmove(task.codes, codes_at(&task, gone * plan->line),
                    kept * plan->line * plan->pixel * plan->product->code_nbytes);
            memmove(task.sums, task.sums + gone * plan->line,
                    kept * plan->line * sizeof(*task.sums));
        }
    }
    grow(&plan->largest[2 * task.picture], task.most[0]);
    grow(&plan->largest[2 * task.picture + 1], task.most[1]);
}

/* ---- the calls --------------------------------------------------------------------------------
 */

/* The largest magnitudes of a row of x. */
static void look_for_largest(const void *job, size_t i, unsigned char *own)
{
    const vgq_conv_plan *const plan = job;
    const vgq_pictures *const p = &plan->pictures;
    _Atomic uint32_t *const to = (_Atomic uint32_t *)(void *)plan->x_largest;
    const size_t picture = i / p->source_height, n = p->source_width * p->channels;
    const float *const row = stored_row(p, picture, i % p->source_height, (float *)(void *)own);
    uint32_t positive = 0;
    if (!plan->call.relu_x) {
        grow(to + 2 * picture, plan->kernels->linear.largest(n, row));
        return;
    }
    for (size_t k = 0; k < n; k++) {
        const uint32_t bits = row[k] <= 0 ? 0 : vgq_bits_of_float(row[k]) & 0x7fffffffu;
        positive = bits > positive ? bits : positive;
    }
    grow(to + 2 * picture + 1, positive);
}

/* x's largest values with what is added to them: an upper bound. */
static void add_embedding(vgq_conv_plan *plan)
{
    const vgq_conv_call *const call = &plan->call;
    const size_t half = call->channels / 2;
    const uint32_t column =
        plan->kernels->linear.largest(call->width * half, call->column_embedding);
    const uint32_t row = plan->kernels->linear.largest(call->height * half, call->row_embedding);
    const float added = vgq_float_of_bits(column > row ? column : row);
    for (size_t i = 0; i < 2 * call->pictures; i++)
        plan->x_largest[i] =
            vgq_bits_of_float(vgq_float_of_bits(plan->x_largest[i]) + added) & 0x7fffffffu;
}

vgq_status vgq_conv2d(const void *packed, size_t nbytes, const vgq_conv_call *call, void *scratch,
                      size_t scratch_nbytes)
{
    vgq_weight w;
    vgq_status status = vgq_packed_weight(packed, nbytes, &w);
    if (status != VGQ_OK)
        return status;
    if (bad_conv(&w, call) || !call->x || !call->y || (call->relu_x && !call->weight_sums) ||
        (call->outputs && (!call->last_weight || !call->last_bias)))
        return VGQ_EINVAL;
    vgq_conv_plan plan = conv_plan_of(&w, call);
    if (!scratch || scratch_nbytes < conv_plan_nbytes(&plan))
        return VGQ_EINVAL;
    unsigned char *at = scratch;
    at += (VGQ_ALIGN - (uintptr_t)at % VGQ_ALIGN) % VGQ_ALIGN;
    plan.panels = (const unsigned char *)packed + sizeof(vgq_header);
    plan.largest = (_Atomic uint32_t *)(void *)at;
    plan.x_largest = (uint32_t *)(void *)(at + largest_nbytes(&plan));
    memset(at, 0, 2 * largest_nbytes(&plan));
    vgq_crew_place(&plan.crew, at + 2 * largest_nbytes(&plan));
    for (size_t i = 0; i < 2 * call->pictures && call->x_largest; i++)
        plan.x_largest[i] = vgq_bits_of_float(call->x_largest[i]) & 0x7fffffffu;
    if (!call->x_largest)
        status = vgq_run_tasks(&plan.crew, plan.crew.team, call->pictures * call->source_height,
                               look_for_largest, &plan);
    if (status == VGQ_OK && call->column_embedding)
        add_embedding(&plan);
    if (status == VGQ_OK)
        status = vgq_run_tasks(&plan.crew, plan.crew.team, call->pictures * plan.tasks,
                               run_conv_task, &plan);
    for (size_t i = 0; i < 2 * call->pictures && call->y_largest; i++)
        call->y_largest[i] = vgq_float_of_bits(atomic_load(&plan.largest[i]));
    return status;
}

/* ---- resizing alone ---------------------------------------------------------------------------
 */

typedef struct vgq_resize_plan {
    vgq_resize_call call;
    vgq_pictures pictures;
    vgq_crew crew;
} vgq_resize_plan;

static int bad_resize(const vgq_resize_call *c)
{
    return !c || (unsigned)c->x_dtype >= VGQ_DTYPES || (unsigned)c->y_dtype >= VGQ_DTYPES ||
           too_many(c->pictures, c->height, c->width, c->channels) ||
           too_many(c->pictures, c->source_height, c->source_width, c->channels);
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
    plan.crew.own_nbytes = aligned((source_length(&plan.pictures) + 2 * row) * sizeof(float));
    return plan;
}

size_t vgq_resize_nbytes(const vgq_resize_call *call)
{
    if (bad_resize(call))
        return 0;
    const vgq_resize_plan plan = resize_plan_of(call);
    return VGQ_ALIGN + vgq_crew_nbytes(&plan.crew);
}

/* Row i of all pictures. own: what source_floats wants, a row, what is added to it. */
static void resize_row(const void *job, size_t i, unsigned char *own)
{
    const vgq_resize_plan *const plan = job;
    const vgq_resize_call *const call = &plan->call;
    const vgq_kernels *const kernels = plan->pictures.kernels;
    const size_t channels = call->channels, n = call->width * channels;
    float *const buffer = (float *)(void *)own, *const y = buffer + source_length(&plan->pictures);
    const float *const row =
        source_floats(&plan->pictures, i / call->height, i % call->height, buffer);
    for (size_t x = 0; x < call->width; x++) {
        const float *const pixel = pixel_floats(&plan->pictures, row, x, y + x * channels);
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
