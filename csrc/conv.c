/* SPDX-License-Identifier: Apache-2.0
 * Front of the convolution: an implicit product whose rows are pixels.
 *
 * Codes of a few rows of a picture lie in scratch with their padding, channels last. There the
 * inputs of a kernel's row are neighbours, and those of the next output pixel begin `stride`
 * pixels later: one call of the Linear's tile multiplies a row of the kernel with as many pixels
 * as it has rows, and no picture is ever copied into a matrix. A task is some rows of one picture;
 * it codes them as it comes to them, so that they are still in the cache. */
#include "formats.h"
#include "packed.h"

#include <stdatomic.h>
#include <string.h>

enum {
    BLOCK_PIXELS = 512, /* whose codes are made before they are multiplied, at least */
    LEAST_ROWS = 4,     /* of a task: the rows around it are coded twice */
    STEP = 8,           /* inputs that a tile takes at least */
    ALIGN = 64
};

#define UNSIGNED_HIGHEST 254.0f /* codes -127..127, less their zero point of -127 */

static size_t aligned(size_t nbytes) { return vgq_round_up(nbytes, ALIGN); }

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
    const size_t n = p->source_width * p->channels, row = picture * p->source_height + y;
    const char *const at = (const char *)p->x + row * n * vgq_dtype_nbytes(p->dtype);
    if (p->dtype == VGQ_F32)
        return (const float *)(const void *)at;
    vgq_chosen()->quantize.load[p->dtype](n, at, buffer);
    return buffer;
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
    vgq_chosen()->conv.lerp(n, first, second, place.weight, buffer + 2 * n);
    return buffer + 2 * n;
}

/* Pixel x of a row of source_floats. */
static const float *pixel_floats(const vgq_pictures *p, const float *row, size_t x, float *buffer)
{
    if (!resized(p))
        return row + x * p->channels;
    const vgq_place place = place_of(x, p->width, p->source_width);
    vgq_chosen()->conv.lerp(p->channels, row + place.first * p->channels,
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
    const vgq_int_gemm *gemm;
    vgq_code_row_fn *code_row;
    const unsigned char *panels;
    size_t pixel;            /* codes of a pixel */
    size_t line;             /* pixels of a row of codes, padding included */
    size_t segment;          /* inputs of a row of the kernel */
    size_t block_rows;       /* output rows whose codes are made at once */
    size_t task_rows, tasks; /* tasks of a picture */
    int joined;              /* whether tiles run on from a row to the next */
    int team;
    size_t codes_nbytes, sums_nbytes, windows_nbytes, floats_nbytes, operand_nbytes, acc_nbytes;
    size_t own_nbytes;
    unsigned char *own;
    _Atomic uint32_t *largest; /* [pictures][2] of y, as bits */
    uint32_t *x_largest;       /* [pictures][2] */
} vgq_conv_plan;

static size_t input_rows(const vgq_conv_plan *plan, size_t rows)
{
    return (rows - 1) * plan->call.stride_height + plan->call.kernel_height;
}

static vgq_conv_plan conv_plan_of(const vgq_weight *w, const vgq_conv_call *call)
{
    vgq_conv_plan plan = {.w = *w, .call = *call, .kernels = vgq_chosen()};
    plan.at = vgq_layout_of(&plan.w);
    plan.pictures =
        (vgq_pictures){call->x,        call->x_dtype,       call->height,      call->width,
                       call->channels, call->source_height, call->source_width};
    plan.gemm = plan.kernels->linear.int_gemm;
    plan.code_row = plan.gemm->code_row ? plan.gemm->code_row : plan.kernels->linear.code_row;
    plan.pixel = vgq_conv_channels(call->channels);
    plan.line = (call->out_width - 1) * call->stride_width + call->kernel_width;
    plan.segment = call->kernel_width * plan.pixel;
    plan.joined = call->stride_height == 1 && call->stride_width == 1 && plan.gemm->mr >= 16;
    const size_t pixels = call->pictures * call->out_height * call->out_width;
    plan.team = vgq_team(pixels * w->k * (w->n < 1024 ? w->n : 1024) / 64);
    const size_t threads = (size_t)plan.team;
    size_t tasks = (4 * threads + call->pictures - 1) / call->pictures;
    tasks = vgq_min(tasks, (call->out_height + LEAST_ROWS - 1) / LEAST_ROWS);
    plan.task_rows = (call->out_height + tasks - 1) / tasks;
    plan.tasks = (call->out_height + plan.task_rows - 1) / plan.task_rows;
    plan.block_rows =
        vgq_min((BLOCK_PIXELS + call->out_width - 1) / call->out_width, plan.task_rows);
    const size_t pixels_in = input_rows(&plan, plan.block_rows) * plan.line;
    plan.codes_nbytes = aligned(pixels_in * plan.pixel * plan.gemm->code_nbytes);
    plan.sums_nbytes = aligned(pixels_in * sizeof(int32_t));
    plan.windows_nbytes = aligned(plan.block_rows * plan.line * sizeof(int32_t));
    plan.floats_nbytes =
        aligned((source_length(&plan.pictures) + 2 * call->channels) * sizeof(float));
    plan.operand_nbytes =
        plan.gemm->widen ? plan.at.depth * VGQ_PANEL * plan.gemm->weight_nbytes : 0;
    plan.acc_nbytes =
        plan.gemm->mr * VGQ_PANEL * (call->kernel_height * sizeof(int32_t) + 2 * sizeof(float));
    plan.own_nbytes = plan.codes_nbytes + plan.sums_nbytes + plan.windows_nbytes +
                      plan.floats_nbytes + plan.operand_nbytes + plan.acc_nbytes + ALIGN;
    return plan;
}

static size_t largest_nbytes(const vgq_conv_plan *plan)
{
    return aligned(plan->call.pictures * 2 * sizeof(uint32_t));
}

static size_t conv_plan_nbytes(const vgq_conv_plan *plan)
{
    return ALIGN + 2 * largest_nbytes(plan) + (size_t)plan->team * plan->own_nbytes;
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
           w->k % (c->kernel_height * c->kernel_width) || (c->outputs && w->n > VGQ_PANEL) ||
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
    return task->codes + pixel * task->plan->pixel * task->plan->gemm->code_nbytes;
}

/* `pixels` pixels of zeros, from `pixel` on. */
static void code_padding(const vgq_conv_task *task, size_t pixel, size_t pixels)
{
    const vgq_conv_plan *const plan = task->plan;
    const size_t nbytes = plan->pixel * plan->gemm->code_nbytes;
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
    const size_t n = vgq_min(VGQ_PANEL, plan->w.n - p * VGQ_PANEL);
    const size_t first = pixel * plan->w.n + p * VGQ_PANEL,
                 nbytes = vgq_dtype_nbytes(call->y_dtype);
    float widened[VGQ_PANEL];
    const float *residual = NULL;
    if (call->residual) {
        const char *const at = (const char *)call->residual + first * nbytes;
        residual = (const float *)(const void *)at;
        if (call->y_dtype != VGQ_F32) {
            quantize->load[call->y_dtype](n, at, widened);
            residual = widened;
        }
    }
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
    vgq_conv_columns columns = {.offset = plan->gemm->offset};
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
static void multiply_run(vgq_conv_task *task, size_t p, const void *operand,
                         const vgq_conv_columns *columns, size_t y, size_t first, size_t count)
{
    const vgq_conv_plan *const plan = task->plan;
    const vgq_conv_call *const call = &plan->call;
    const vgq_int_gemm *const gemm = plan->gemm;
    const size_t apart = gemm->mr * VGQ_PANEL;
    const size_t width = plan->joined ? plan->line : call->out_width; /* outputs from row to row */
    const size_t tiles = (count + gemm->mr - 1) / gemm->mr;
    for (size_t t = 0, done = 0, rows; t < tiles; t++, done += rows) {
        rows = (count - done + tiles - t - 1) / (tiles - t); /* as even as can be */
        const size_t at = first + done, i = at / width, j = at % width;
        for (size_t u = 0; u < call->kernel_height; u++)
            gemm->tile(
                rows, plan->segment,
                codes_at(task, (i * call->stride_height + u) * plan->line + j * call->stride_width),
                call->stride_width * plan->pixel,
                (const char *)operand + u * plan->segment * VGQ_PANEL * gemm->weight_nbytes,
                task->acc + u * apart);
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
        const uint8_t *const bytes = plan->panels + p * plan->at.panel_nbytes + plan->at.codes;
        const void *operand = bytes;
        if (plan->gemm->widen) {
            plan->gemm->widen(plan->at.depth, bytes, task->operand);
            operand = task->operand;
        }
        if (plan->joined)
            multiply_run(task, p, operand, &columns, y, 0, (rows - 1) * plan->line + width);
        else
            for (size_t i = 0; i < rows; i++)
                multiply_run(task, p, operand, &columns, y, i * width, width);
    }
}

static void grow(_Atomic uint32_t *to, uint32_t value)
{
    uint32_t now = atomic_load(to);
    while (now < value && !atomic_compare_exchange_weak(to, &now, value))
        ;
}

static void run_conv_task(const vgq_conv_plan *plan, size_t index, unsigned char *own)
{
    const vgq_conv_call *const call = &plan->call;
    vgq_conv_task task = {.plan = plan, .picture = index / plan->tasks};
    task.x_scale =
        vgq_token_scale(plan->x_largest[2 * task.picture + (call->relu_x != 0)],
                        call->relu_x ? UNSIGNED_HIGHEST : VGQ_INT8_HIGHEST, &task.inverse);
    own += (ALIGN - (uintptr_t)own % ALIGN) % ALIGN;
    task.codes = own;
    task.sums = (int32_t *)(void *)(own += plan->codes_nbytes);
    task.windows = (int32_t *)(void *)(own += plan->sums_nbytes);
    task.floats = (float *)(void *)(own += plan->windows_nbytes);
    task.operand = own += plan->floats_nbytes;
    task.acc = (int32_t *)(void *)(own += plan->operand_nbytes);
    task.y = (float *)(void *)(task.acc + call->kernel_height * plan->gemm->mr * VGQ_PANEL);
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
                    kept * plan->line * plan->pixel * plan->gemm->code_nbytes);
            memmove(task.sums, task.sums + gone * plan->line,
                    kept * plan->line * sizeof(*task.sums));
        }
    }
    grow(&plan->largest[2 * task.picture], task.most[0]);
    grow(&plan->largest[2 * task.picture + 1], task.most[1]);
}

/* ---- the calls --------------------------------------------------------------------------------
 */

int omp_get_thread_num(void); /* of threads.c */
int omp_get_num_threads(void);

/* The largest magnitudes of rows first, first + step, ... of all pictures. */
static void look_for_largest(const vgq_conv_plan *plan, size_t first, size_t step, float *buffer)
{
    const vgq_pictures *const p = &plan->pictures;
    _Atomic uint32_t *const to = (_Atomic uint32_t *)(void *)plan->x_largest;
    for (size_t i = first; i < plan->call.pictures * p->source_height; i += step) {
        const size_t picture = i / p->source_height, n = p->source_width * p->channels;
        const float *const row = stored_row(p, picture, i % p->source_height, buffer);
        uint32_t positive = 0;
        if (plan->call.relu_x) {
            for (size_t k = 0; k < n; k++) {
                const uint32_t bits = row[k] <= 0 ? 0 : vgq_bits_of_float(row[k]) & 0x7fffffffu;
                positive = bits > positive ? bits : positive;
            }
            grow(to + 2 * picture + 1, positive);
        } else {
            grow(to + 2 * picture, plan->kernels->linear.largest(n, row));
        }
    }
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
    const vgq_status status = vgq_packed_weight(packed, nbytes, &w);
    if (status != VGQ_OK)
        return status;
    if (bad_conv(&w, call) || !call->x || !call->y || (call->relu_x && !call->weight_sums) ||
        (call->outputs && (!call->last_weight || !call->last_bias)))
        return VGQ_EINVAL;
    vgq_conv_plan plan = conv_plan_of(&w, call);
    if (!scratch || scratch_nbytes < conv_plan_nbytes(&plan))
        return VGQ_EINVAL;
    unsigned char *at = scratch;
    at += (ALIGN - (uintptr_t)at % ALIGN) % ALIGN;
    plan.panels = (const unsigned char *)packed + sizeof(vgq_header);
    plan.largest = (_Atomic uint32_t *)(void *)at;
    plan.x_largest = (uint32_t *)(void *)(at + largest_nbytes(&plan));
    plan.own = at + 2 * largest_nbytes(&plan);
    memset(at, 0, 2 * largest_nbytes(&plan));
    if (call->x_largest)
        for (size_t i = 0; i < 2 * call->pictures; i++)
            plan.x_largest[i] = vgq_bits_of_float(call->x_largest[i]) & 0x7fffffffu;
    else
#pragma omp parallel num_threads(plan.team)
    {
        vgq_float_mode mode;
        vgq_float_enter(&mode);
        const size_t me = (size_t)omp_get_thread_num();
        look_for_largest(&plan, me, (size_t)omp_get_num_threads(),
                         (float *)(void *)(plan.own + me * plan.own_nbytes));
        vgq_float_leave(&mode);
    }
    if (call->column_embedding)
        add_embedding(&plan);
    _Atomic size_t next;
    atomic_init(&next, 0);
#pragma omp parallel num_threads(plan.team)
    {
        vgq_float_mode mode;
        vgq_float_enter(&mode);
        unsigned char *const own = plan.own + (size_t)omp_get_thread_num() * plan.own_nbytes;
        for (size_t i;
             (i = atomic_fetch_add(&next, 1)) < call->pictures * plan.tasks && !vgq_stopped();)
            run_conv_task(&plan, i, own);
        vgq_float_leave(&mode);
    }
    for (size_t i = 0; i < 2 * call->pictures && call->y_largest; i++)
        call->y_largest[i] = vgq_float_of_bits(atomic_load(&plan.largest[i]));
    return vgq_stopped() ? VGQ_ESTOPPED : VGQ_OK;
}

/* ---- resizing alone ---------------------------------------------------------------------------
 */

static vgq_pictures pictures_of(const vgq_resize_call *c)
{
    return (vgq_pictures){c->x,        c->x_dtype,       c->height,      c->width,
                          c->channels, c->source_height, c->source_width};
}

/* Floats of a thread's scratch: a row's sources, a row, and what is added to it. */
static size_t resize_length(const vgq_resize_call *call)
{
    const vgq_pictures pictures = pictures_of(call);
    return vgq_round_up(source_length(&pictures) + 2 * call->width * call->channels,
                        ALIGN / sizeof(float));
}

static int bad_resize(const vgq_resize_call *c)
{
    return !c || (unsigned)c->x_dtype >= VGQ_DTYPES || (unsigned)c->y_dtype >= VGQ_DTYPES ||
           too_many(c->pictures, c->height, c->width, c->channels) ||
           too_many(c->pictures, c->source_height, c->source_width, c->channels);
}

static int resize_team(const vgq_resize_call *call)
{
    return vgq_team(call->pictures * call->height * call->width * call->channels);
}

size_t vgq_resize_nbytes(const vgq_resize_call *call)
{
    if (bad_resize(call))
        return 0;
    return ALIGN + (size_t)resize_team(call) * resize_length(call) * sizeof(float);
}

static void resize_row(const vgq_resize_call *call, size_t i, float *buffer)
{
    const vgq_pictures pictures = pictures_of(call);
    const vgq_kernels *const kernels = vgq_chosen();
    const size_t channels = call->channels, n = call->width * channels;
    const size_t at = i * n * vgq_dtype_nbytes(call->y_dtype);
    const float *const row = source_floats(&pictures, i / call->height, i % call->height, buffer);
    float *const y = buffer + source_length(&pictures), *const added = y + n;
    for (size_t x = 0; x < call->width; x++) {
        const float *const pixel = pixel_floats(&pictures, row, x, y + x * channels);
        if (pixel != y + x * channels)
            memcpy(y + x * channels, pixel, channels * sizeof(*y));
    }
    if (call->added) {
        const char *const from = (const char *)call->added + at;
        if (call->y_dtype == VGQ_F32) {
            kernels->conv.add(n, (const float *)(const void *)from, y);
        } else {
            kernels->quantize.load[call->y_dtype](n, from, added);
            kernels->conv.add(n, added, y);
        }
    }
    kernels->quantize.store[call->y_dtype](n, y, (char *)call->y + at);
}

vgq_status vgq_resize(const vgq_resize_call *call, void *scratch, size_t scratch_nbytes)
{
    if (bad_resize(call) || !call->x || !call->y || !scratch ||
        scratch_nbytes < vgq_resize_nbytes(call))
        return VGQ_EINVAL;
    unsigned char *at = scratch;
    at += (ALIGN - (uintptr_t)at % ALIGN) % ALIGN;
#pragma omp parallel num_threads(resize_team(call))
    {
        vgq_float_mode mode;
        vgq_float_enter(&mode);
        const size_t me = (size_t)omp_get_thread_num(), step = (size_t)omp_get_num_threads();
        float *const own = (float *)(void *)at + me * resize_length(call);
        for (size_t i = me; i < call->pictures * call->height && !vgq_stopped(); i += step)
            resize_row(call, i, own);
        vgq_float_leave(&mode);
    }
    return vgq_stopped() ? VGQ_ESTOPPED : VGQ_OK;
}
