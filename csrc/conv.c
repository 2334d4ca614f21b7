/* SPDX-License-Identifier: Apache-2.0
 * Front of the convolution: an implicit product whose rows are pixels.
 *
 * Codes of a few rows of a picture lie in scratch with their padding, channels last. There the
 * inputs of a kernel's row are neighbours, and those of the next output pixel begin `stride`
 * pixels later: one call of the Linear's tile multiplies a row of the kernel with as many pixels
 * as it has rows, and no picture is ever copied into a matrix. A task is some rows of one picture;
 * it codes them as it comes to them, so that they are still in the cache. */
#include "conv.h"

#include <string.h>

#define UNSIGNED_HIGHEST 254.0f /* codes -127..127, less their zero point of -127 */

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
    float *floats;        /* vgq_source_length, then two pixels */
    unsigned char *operand;
    int32_t *acc;
    float *y; /* [mr][64], and as many residuals */
    vgq_conv_most most;
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
    float *const values = task->floats + vgq_source_length(&plan->pictures);
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
    const float *const row =
        vgq_source_floats(&plan->pictures, task->picture, (size_t)y, task->floats);
    float *const pixel = task->floats + vgq_source_length(&plan->pictures);
    const size_t left = vgq_min(call->padding_width, plan->line);
    const size_t inside = vgq_min(call->width, plan->line - left);
    code_padding(task, start, left);
    for (size_t x = 0; x < inside; x++) {
        const float *from = vgq_pixel_floats(&plan->pictures, row, x, pixel);
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

/* The residuals of `pixels` pixels as floats, rows of 64: n from `first` on, ldy from each other.
 */
static const float *residuals_of(const vgq_conv_task *task, size_t first, size_t pixels, size_t n,
                                 size_t ldy)
{
    const vgq_conv_plan *const plan = task->plan;
    float *const to = task->y + plan->product->mr * VGQ_PANEL;
    if (!plan->call.residual)
        return NULL;
    for (size_t i = 0; i < pixels; i++) {
        float *const row = to + i * VGQ_PANEL;
        const float *const from = vgq_floats(plan->kernels, plan->call.y_dtype, plan->call.residual,
                                             first + i * ldy, n, row);
        if (from != row)
            memcpy(row, from, n * sizeof(*row));
    }
    return to;
}

/* The float product of a pixel's n outputs, which it pads, to y. */
static void project_pixel(const vgq_conv_plan *plan, size_t pixel, size_t n, float *y)
{
    const vgq_conv_call *const call = &plan->call;
    const size_t nbytes = vgq_dtype_nbytes(call->y_dtype);
    float out[VGQ_PANEL];
    for (size_t c = n; c < VGQ_PANEL; c++)
        y[c] = 0;
    for (size_t o = 0, count; o < call->outputs; o += count) {
        count = vgq_min(VGQ_PANEL, call->outputs - o);
        plan->kernels->conv.project(count, y, call->last_weight + o * VGQ_PANEL,
                                    call->last_bias + o, out);
        plan->kernels->quantize.store[call->y_dtype](
            count, out, (char *)call->y + (pixel * call->outputs + o) * nbytes);
    }
}

/* `pixels` neighbours of a row of y from `pixel` on, outputs of panel p, from their sums to y:
 * whole panels of floats where they lie, others in scratch first. */
static void store_pixels(vgq_conv_task *task, size_t pixel, size_t p, size_t pixels,
                         const int32_t *acc, const int32_t *sums, const vgq_conv_columns *columns)
{
    const vgq_conv_plan *const plan = task->plan;
    const vgq_conv_call *const call = &plan->call;
    const vgq_conv_kernels *const conv = &plan->kernels->conv;
    const size_t apart = plan->product->mr * VGQ_PANEL, nbytes = vgq_dtype_nbytes(call->y_dtype);
    const size_t whole = vgq_min(VGQ_PANEL, plan->w.n - p * VGQ_PANEL);
    const size_t n = call->folded ? whole / 2 : whole;
    const size_t ldy = call->folded ? n : plan->w.n, first = pixel * ldy + p * VGQ_PANEL;
    if (call->y_dtype == VGQ_F32 && !call->outputs && n == VGQ_PANEL) {
        float *const y = (float *)call->y + first;
        const float *const residual = call->residual ? (const float *)call->residual + first : NULL;
        conv->finish(pixels, call->kernel_height, apart, acc, columns, sums, task->x_scale, y, ldy);
        conv->last(pixels, n, y, ldy, call->relu_y, residual, call->relu_sum, &task->most);
        return;
    }
    float *const y = task->y;
    conv->finish(pixels, call->kernel_height, apart, acc, columns, sums, task->x_scale, y,
                 VGQ_PANEL);
    for (size_t i = 0; i < pixels && call->folded; i++)
        conv->add(n, y + i * VGQ_PANEL + n, y + i * VGQ_PANEL);
    conv->last(pixels, n, y, VGQ_PANEL, call->relu_y, residuals_of(task, first, pixels, n, ldy),
               call->relu_sum, &task->most);
    for (size_t i = 0; i < pixels; i++) {
        float *const row = y + i * VGQ_PANEL;
        if (call->outputs)
            project_pixel(plan, pixel + i, n, row);
        else
            plan->kernels->quantize.store[call->y_dtype](
                n, row, (char *)call->y + (first + i * ldy) * nbytes);
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
        for (size_t r = 0, run; r < rows; r += run) {
            const size_t row = (at + r) / width, column = (at + r) % width;
            run = vgq_min(rows - r, width - column);
            if (column < call->out_width)
                store_pixels(
                    task, (task->picture * call->out_height + y + row) * call->out_width + column,
                    p, vgq_min(run, call->out_width - column), task->acc + r * VGQ_PANEL,
                    task->windows + at + r, columns);
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
    /* uncovered: another thread would have to write between these two */
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
        const size_t wanted = vgq_conv_input_rows(plan, rows);
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
    for (size_t i = 0; i < VGQ_PANEL; i++) {
        const int32_t magnitude = task.most.magnitude[i], positive = task.most.positive[i];
        const int is_nan = magnitude > 0x7f800000; /* its relu too, whatever its sign is */
        grow(&plan->largest[2 * task.picture], (uint32_t)magnitude);
        grow(&plan->largest[2 * task.picture + 1], (uint32_t)(is_nan ? magnitude : positive));
    }
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
    const float *const row = vgq_stored_row(p, picture, i % p->source_height, (float *)(void *)own);
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
    if (vgq_bad_conv(&w, call) || !call->x || !call->y || (call->relu_x && !call->weight_sums) ||
        (call->outputs && (!call->last_weight || !call->last_bias)))
        return VGQ_EINVAL;
    vgq_conv_plan plan = vgq_conv_plan_of(&w, call);
    if (!scratch || scratch_nbytes < vgq_conv_plan_nbytes(&plan))
        return VGQ_EINVAL;
    unsigned char *at = scratch;
    at += (VGQ_ALIGN - (uintptr_t)at % VGQ_ALIGN) % VGQ_ALIGN;
    plan.panels = (const unsigned char *)packed + sizeof(vgq_header);
    plan.largest = (_Atomic uint32_t *)(void *)at;
    plan.x_largest = (uint32_t *)(void *)(at + vgq_conv_largest_nbytes(&plan));
    memset(at, 0, 2 * vgq_conv_largest_nbytes(&plan));
    vgq_crew_place(&plan.crew, at + 2 * vgq_conv_largest_nbytes(&plan));
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
