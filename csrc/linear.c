/* SPDX-License-Identifier: Apache-2.0
 * Front of the quantized Linear: splits a product over threads.
 *
 * A product is cut into tasks of one panel and one block of rows. A task expands its panel once
 * into scratch that stays in the cache and runs the tiles of its rows over it. Each thread has
 * tasks of its own, neighbours, and then helps the others with theirs. No sum is split between
 * tasks, so neither the thread count nor the order changes a bit. */
#include "formats.h"
#include "gelu.h"
#include "packed.h"

#include <stdatomic.h>
#include <string.h>

enum {
    FEW_ROWS = 16,           /* that W4 is multiplied with unexpanded */
    MOST_ROWS = 768,         /* of a task: amortizes expanding a panel, and its codes stay in L2 */
    FLOAT_SLICE = 128 << 10, /* bytes of a panel's float weights in scratch at a time */
    ALIGN = 64
};

/* The tasks of one thread, and which of them is next; a cache line. */
typedef struct vgq_queue {
    _Atomic size_t next;
    size_t end;
    unsigned char apart[ALIGN - 2 * sizeof(size_t)];
} vgq_queue;

/* One call, cut up. Scratch: activations (codes, or floats where x is not float), a scale and sums
 * a token, the queues, then for each thread its operand and its accumulators. */
typedef struct vgq_plan {
    vgq_weight w;
    vgq_layout at;
    vgq_linear_call call;
    const vgq_linear_kernels *kernels;
    const vgq_few_gemm *few;          /* what multiplies codes: the first of these */
    const vgq_int4_gemm *int4;        /* that is there, or int_gemm */
    const vgq_float_gemm *float_gemm; /* what multiplies floats, and inputs that it takes a slice */
    size_t float_depth;
    vgq_code_row_fn *code_row;     /* of what multiplies, as the next two */
    size_t mr, code_nbytes, pitch; /* pitch: codes from a line to the next */
    const unsigned char *panels;
    size_t digits, lines; /* rows of codes of a token, 2 where they have 16 bits; and of all */
    int team, coders;     /* threads of the product, and of the activations' pass before it */
    size_t rows, blocks;  /* lines of a task; blocks of them */
    size_t sums;          /* sums of codes a line: 1, or one a group */
    size_t x_nbytes, scale_nbytes, sum_nbytes, bytes_nbytes, operand_nbytes, acc_nbytes, own_nbytes;
    unsigned char *x;   /* codes [lines][pitch], or floats [m][k] */
    float *x_scale;     /* [m] */
    int32_t *x_sum;     /* [lines][sums] */
    vgq_queue *queues;  /* [team] */
    unsigned char *own; /* the first thread's share */
} vgq_plan;

static int is_int(const vgq_plan *plan) { return plan->call.activations >= VGQ_INT8_ACTIVATIONS; }

static vgq_dtype float_dtype(const vgq_plan *plan)
{
    return plan->float_gemm == plan->kernels->float_gemm ? VGQ_F32 : VGQ_BF16;
}

/* What multiplies codes, and what it wants of them and of the thread's scratch. */
static void choose(vgq_plan *plan)
{
    const vgq_int_gemm *const gemm = plan->kernels->int_gemm;
    const size_t depth = plan->at.depth;
    if (plan->w.scales == VGQ_TWO_LEVEL && plan->lines <= FEW_ROWS)
        plan->few = gemm->few;
    const int whole_chunks = plan->at.groups == 1 || plan->w.group % VGQ_INT4_CHUNK == 0;
    if (plan->w.scales == VGQ_TWO_LEVEL && !plan->w.asymmetric && whole_chunks && !plan->few)
        plan->int4 = gemm->int4;
    plan->mr = gemm->mr;
    plan->code_nbytes = plan->few || plan->int4 ? 1 : gemm->code_nbytes;
    plan->code_row = plan->kernels->code_row;
    if (plan->few) {
        plan->mr = plan->few->mr;
        plan->sums = plan->at.groups;
    } else if (plan->int4) {
        plan->mr = plan->int4->mr;
        plan->code_row = plan->int4->code_row;
        plan->bytes_nbytes =
            VGQ_INT4_CHUNK_NBYTES * vgq_round_up(depth, VGQ_INT4_CHUNK) / VGQ_INT4_CHUNK;
    } else {
        if (gemm->code_row)
            plan->code_row = gemm->code_row;
        if (plan->w.format == VGQ_I4)
            plan->bytes_nbytes = depth * VGQ_PANEL;
        if (gemm->bytes_tile && plan->lines <= FEW_ROWS && plan->w.scales != VGQ_PER_GROUP)
            plan->mr = gemm->bytes_mr;
        else if (gemm->widen)
            plan->operand_nbytes = depth * VGQ_PANEL * gemm->weight_nbytes;
    }
}

static vgq_plan plan_of(const vgq_weight *w, const vgq_linear_call *call)
{
    vgq_plan plan = {.w = *w, .call = *call, .kernels = &vgq_chosen()->linear};
    const int bf16 = call->activations == VGQ_BF16_ACTIVATIONS && plan.kernels->bf16_gemm;
    plan.float_gemm = bf16 ? plan.kernels->bf16_gemm : plan.kernels->float_gemm;
    plan.float_depth = FLOAT_SLICE / VGQ_PANEL / plan.float_gemm->nbytes;
    plan.at = vgq_layout_of(&plan.w);
    plan.digits = call->activations == VGQ_INT16_ACTIVATIONS ? 2 : 1;
    plan.lines = call->m * plan.digits;
    plan.team = vgq_team(plan.lines * w->k * (w->n < 1024 ? w->n : 1024) / 64);
    plan.mr = VGQ_FLOAT_ROWS;
    plan.sums = plan.w.scales == VGQ_PER_GROUP ? plan.at.groups : 1;
    if (is_int(&plan)) {
        choose(&plan);
        /* Lines whole pages apart would lie in the same places of the L1 cache. */
        plan.pitch = plan.at.depth + ALIGN / plan.code_nbytes;
    }
    plan.mr -= plan.mr % plan.digits; /* a tile holds whole tokens */
    /* Coding is quick: a few rows are done before other threads would have begun. */
    plan.coders = vgq_team(plan.lines * w->k / 4) < plan.team ? 1 : plan.team;
    const size_t threads = (size_t)plan.team;
    /* As few blocks as keep every thread busy and no block too long; by shape and team alone. */
    plan.blocks = (plan.lines + MOST_ROWS - 1) / MOST_ROWS;
    if (plan.at.panels < 4 * threads && plan.blocks < threads)
        plan.blocks = threads;
    plan.rows = vgq_round_up((plan.lines + plan.blocks - 1) / plan.blocks, plan.mr);
    plan.blocks = (plan.lines + plan.rows - 1) / plan.rows;
    if (is_int(&plan)) {
        plan.x_nbytes = vgq_round_up(plan.lines * plan.pitch * plan.code_nbytes, ALIGN);
        plan.scale_nbytes = vgq_round_up(call->m * sizeof(float), ALIGN);
        plan.sum_nbytes = vgq_round_up(plan.lines * plan.sums * sizeof(int32_t), ALIGN);
        plan.acc_nbytes = plan.mr * VGQ_PANEL * (sizeof(int32_t) + sizeof(float));
    } else {
        plan.x_nbytes = call->x_dtype == float_dtype(&plan)
                            ? 0
                            : vgq_round_up(call->m * plan.w.k * plan.float_gemm->nbytes, ALIGN);
        plan.bytes_nbytes = plan.w.format == VGQ_I4 ? plan.float_depth * VGQ_PANEL : 0;
        plan.operand_nbytes = FLOAT_SLICE;
        plan.acc_nbytes = plan.rows * VGQ_PANEL * sizeof(float);
    }
    plan.own_nbytes = plan.bytes_nbytes + plan.operand_nbytes + plan.acc_nbytes;
    /* A token as floats, and its digits. */
    const size_t token_nbytes = (2 * plan.digits - 1) * plan.w.k * sizeof(float);
    if (plan.own_nbytes < token_nbytes)
        plan.own_nbytes = vgq_round_up(token_nbytes, ALIGN);
    return plan;
}

static size_t plan_nbytes(const vgq_plan *plan)
{
    return ALIGN + plan->x_nbytes + plan->scale_nbytes + plan->sum_nbytes +
           (size_t)plan->team * (sizeof(vgq_queue) + plan->own_nbytes);
}

static int bad_call(const vgq_linear_call *call)
{
    return !call || (unsigned)call->activations >= VGQ_ACTIVATIONS ||
           (unsigned)call->x_dtype >= VGQ_DTYPES || (unsigned)call->y_dtype >= VGQ_DTYPES ||
           call->m > SIZE_MAX / 8 / VGQ_DEEPEST / sizeof(int32_t);
}

size_t vgq_linear_nbytes(const vgq_weight *weight, const vgq_linear_call *call)
{
    vgq_weight w;
    if (vgq_check_weight(weight, &w) != VGQ_OK || bad_call(call) || !call->m)
        return 0;
    const vgq_plan plan = plan_of(&w, call);
    return plan_nbytes(&plan);
}

/* Row m of x as floats: x itself, or a copy of it in buffer. */
static const float *float_row(const vgq_plan *plan, size_t m, float *buffer)
{
    const vgq_dtype dtype = plan->call.x_dtype;
    const char *const row = (const char *)plan->call.x + m * plan->w.k * vgq_dtype_nbytes(dtype);
    if (dtype == VGQ_F32)
        return (const float *)(const void *)row;
    vgq_chosen()->quantize.load[dtype](plan->w.k, row, buffer);
    return buffer;
}

/* Copy token m as the float product reads it. */
static void copy_token(const vgq_plan *plan, size_t m, float *buffer)
{
    const size_t k = plan->w.k;
    unsigned char *const to = plan->x + m * k * plan->float_gemm->nbytes;
    if (float_dtype(plan) == VGQ_F32)
        float_row(plan, m, (float *)(void *)to);
    else
        vgq_chosen()->quantize.store[VGQ_BF16](k, float_row(plan, m, buffer), to);
}

/* The sums of a token's codes over each group of the weights. */
static void group_sums(const vgq_plan *plan, const unsigned char *codes, int32_t *sums)
{
    for (size_t g = 0; g < plan->sums; g++) {
        const size_t start = g * plan->w.group, end = vgq_min(start + plan->w.group, plan->w.k);
        const int16_t *const wide = (const int16_t *)(const void *)codes;
        int32_t sum = 0;
        if (plan->code_nbytes == 2)
            for (size_t i = start; i < end; i++)
                sum += wide[i];
        else
            for (size_t i = start; i < end; i++)
                sum += (int8_t)codes[i];
        sums[g] = sum;
    }
}

/* The codes rint(x * inverse) as 255 * high + low, both -127..127. The quotient is never near a
 * tie, since 255 is odd. A float far below 2^23 that is added to 1.5 * 2^23 loses what stands
 * behind the point, ties to even. */
static void split_digits(size_t k, const float *x, float inverse, float *high, float *low)
{
    const float large = 0x1.8p23f;
    for (size_t i = 0; i < k; i++) {
        const float code = (x[i] * inverse + large) - large;
        high[i] = (code * (1.0f / 255.0f) + large) - large;
        low[i] = code - 255.0f * high[i];
    }
}

/* A line of codes and its sums. */
static void code_line(const vgq_plan *plan, size_t line, const float *x, float inverse)
{
    unsigned char *const codes = plan->x + line * plan->pitch * plan->code_nbytes;
    int32_t *const sums = plan->x_sum + line * plan->sums;
    const int32_t sum = plan->code_row(plan->w.k, plan->pitch, x, inverse, codes);
    sums[0] = plan->int4 ? 1 : sum; /* what finish multiplies the offsets with */
    if (plan->sums > 1)
        group_sums(plan, codes, sums);
}

/* Code token m. Buffer, this thread's own: a 2-byte x widened, digits. */
static void code_token(const vgq_plan *plan, size_t m, float *buffer)
{
    const size_t k = plan->w.k;
    const float *const x = float_row(plan, m, buffer);
    const float highest = plan->digits == 1 ? VGQ_INT8_HIGHEST : VGQ_INT16_HIGHEST;
    float inverse;
    plan->x_scale[m] = vgq_token_scale(plan->kernels->largest(k, x), highest, &inverse);
    if (plan->digits == 1) {
        code_line(plan, m, x, inverse);
        return;
    }
    split_digits(k, x, inverse, buffer + k, buffer + 2 * k);
    code_line(plan, 2 * m, buffer + k, 1);
    code_line(plan, 2 * m + 1, buffer + 2 * k, 1);
}

typedef struct vgq_panel {
    const float *scale;
    const int8_t *zero;    /* NULL: symmetric */
    const uint8_t *factor; /* NULL: all 1 */
    const uint8_t *codes;
} vgq_panel;

static vgq_panel panel_at(const vgq_plan *plan, size_t p)
{
    const unsigned char *const at = plan->panels + p * plan->at.panel_nbytes;
    return (vgq_panel){
        .scale = (const float *)(const void *)at,
        .zero = plan->w.asymmetric ? (const int8_t *)at + plan->at.zero : NULL,
        .factor = plan->w.scales == VGQ_TWO_LEVEL ? at + plan->at.factor : NULL,
        .codes = at + plan->at.codes,
    };
}

#define EIGHT 1, 1, 1, 1, 1, 1, 1, 1
#define ONES                                                   \
    {                                                          \
        EIGHT, EIGHT, EIGHT, EIGHT, EIGHT, EIGHT, EIGHT, EIGHT \
    }
static const int8_t no_zero[VGQ_PANEL];

/* Inputs start..start+depth of a panel as bytes: those packed, or W4 expanded into `bytes`.
 * start and depth are multiples of 8. */
static const uint8_t *bytes_of(const vgq_plan *plan, vgq_panel panel, size_t start, size_t depth,
                               uint8_t *bytes)
{
    static const uint8_t all_one[VGQ_PANEL] = ONES;
    if (plan->w.format == VGQ_I8)
        return panel.codes + start * VGQ_PANEL;
    for (size_t i = start; i < start + depth;) {
        const size_t g = vgq_min(i / plan->w.group, plan->at.groups - 1);
        const size_t end = g + 1 == plan->at.groups
                               ? start + depth
                               : vgq_min((g + 1) * plan->w.group, start + depth);
        plan->kernels->expand4(end - i, panel.codes + i * VGQ_PANEL / 2,
                               panel.factor ? panel.factor + g * VGQ_PANEL : all_one,
                               panel.zero ? panel.zero + g * VGQ_PANEL : no_zero,
                               bytes + (i - start) * VGQ_PANEL);
        i = end;
    }
    return bytes;
}

/* Where row m of panel p lies in y. */
static char *y_at(const vgq_plan *plan, size_t m, size_t p)
{
    return (char *)plan->call.y +
           (m * plan->w.n + p * VGQ_PANEL) * vgq_dtype_nbytes(plan->call.y_dtype);
}

static void store_row(const vgq_plan *plan, size_t m, size_t p, const float *y)
{
    const size_t n = vgq_min(VGQ_PANEL, plan->w.n - p * VGQ_PANEL);
    float after[VGQ_PANEL];
    for (size_t c = 0; plan->call.gelu && c < n; c++)
        after[c] = vgq_gelu(y[c]);
    vgq_chosen()->quantize.store[plan->call.y_dtype](n, plan->call.gelu ? after : y,
                                                     y_at(plan, m, p));
}

static void bias_of(const vgq_plan *plan, size_t p, float bias[VGQ_PANEL])
{
    const size_t col = p * VGQ_PANEL, n = vgq_min(VGQ_PANEL, plan->w.n - col);
    memset(bias, 0, VGQ_PANEL * sizeof(*bias));
    if (plan->call.bias)
        memcpy(bias, plan->call.bias + col, n * sizeof(*bias));
}

/* The scales and the bias of panel p; offset is the caller's. */
static vgq_columns columns_of(const vgq_plan *plan, size_t p)
{
    vgq_columns columns = {.scale = panel_at(plan, p).scale};
    bias_of(plan, p, columns.bias);
    return columns;
}

/* One task: rows start..end against panel p, with this thread's scratch. */
typedef struct vgq_task {
    size_t start, end, p;
    unsigned char *own;
} vgq_task;

/* Have the lines of y that a tile ends in come to the cache while it runs. */
static void fetch_rows(const vgq_plan *plan, const vgq_task *task, size_t m, size_t rows)
{
    const size_t nbytes = VGQ_PANEL * vgq_dtype_nbytes(plan->call.y_dtype);
    for (size_t r = 0; r < rows; r += plan->digits)
        for (size_t i = 0; i < nbytes; i += ALIGN)
            __builtin_prefetch(y_at(plan, (m + r) / plan->digits, task->p) + i, 1);
}

/* The lines of a tile from m on, from acc to y. acc is followed by floats of its size. */
static void finish_rows(const vgq_plan *plan, const vgq_task *task, size_t m, size_t rows,
                        int32_t *acc, const vgq_columns *columns, const int32_t *sum)
{
    const vgq_linear_kernels *const kernels = plan->kernels;
    vgq_finish_fn *const finish = plan->digits == 1 ? kernels->finish : kernels->finish16;
    const size_t token = m / plan->digits, tokens = rows / plan->digits;
    const float *const x_scale = plan->x_scale + token;
    if (plan->call.y_dtype == VGQ_F32 && !plan->call.gelu &&
        (task->p + 1) * VGQ_PANEL <= plan->w.n) {
        float *const y = (float *)(void *)y_at(plan, token, task->p);
        finish(tokens, acc, columns, sum, x_scale, y, plan->w.n);
        return;
    }
    float *const y = (float *)(void *)(acc + plan->mr * VGQ_PANEL);
    finish(tokens, acc, columns, sum, x_scale, y, VGQ_PANEL);
    for (size_t r = 0; r < tokens; r++)
        store_row(plan, token + r, task->p, y + r * VGQ_PANEL);
}

/* Rows of the next tile when so many are left: few of them cost as much as more, so none is left
 * for the end. */
static size_t tile_rows(const vgq_plan *plan, size_t left)
{
    const size_t tiles = (left + plan->mr - 1) / plan->mr;
    return vgq_round_up((left + tiles - 1) / tiles, plan->digits);
}

static void few_task(const vgq_plan *plan, const vgq_task *task)
{
    const vgq_panel panel = panel_at(plan, task->p);
    const size_t depth = plan->at.depth;
    const vgq_few_weight w = {.k = depth,
                              .group = plan->w.group,
                              .groups = plan->at.groups,
                              .nibbles = panel.codes,
                              .factor = panel.factor,
                              .zero = panel.zero};
    int32_t *const acc = (int32_t *)(void *)task->own;
    const vgq_columns columns = columns_of(plan, task->p); /* offsets of 0 */
    for (size_t m = task->start, rows; m < task->end; m += rows) {
        rows = tile_rows(plan, task->end - m);
        const int32_t *const sums = plan->x_sum + m * plan->sums;
        plan->few->tile(rows, &w, (const int8_t *)plan->x + m * plan->pitch, plan->pitch, sums,
                        acc);
        finish_rows(plan, task, m, rows, acc, &columns, sums);
    }
}

/* Symmetric two-level W4 by the instruction set's own way: the activations' 128 comes off with the
 * sums of the weights. */
static void int4_task(const vgq_plan *plan, const vgq_task *task)
{
    const vgq_panel panel = panel_at(plan, task->p);
    const size_t depth = plan->at.depth;
    const size_t group =
        vgq_round_up(plan->w.group, 8); /* one group of all k ends with the padding */
    int8_t *const operand = (int8_t *)task->own;
    int32_t *const acc = (int32_t *)(void *)(task->own + plan->bytes_nbytes);
    vgq_columns columns = columns_of(plan, task->p);
    plan->int4->expand(depth, group, panel.codes, panel.factor, operand, columns.offset);
    for (size_t c = 0; c < VGQ_PANEL; c++)
        columns.offset[c] *= 128;
    for (size_t m = task->start, rows; m < task->end; m += rows) {
        rows = tile_rows(plan, task->end - m);
        fetch_rows(plan, task, m, rows);
        plan->int4->tile(rows, depth, plan->x + m * plan->pitch, plan->pitch, operand, acc);
        finish_rows(plan, task, m, rows, acc, &columns, plan->x_sum + m);
    }
}

/* Float scales a group: each group's exact sum is scaled and added, in order of the groups. */
static void group_rows(const vgq_plan *plan, const vgq_task *task, size_t m, size_t rows,
                       const unsigned char *operand, int32_t *acc)
{
    const vgq_int_gemm *const gemm = plan->kernels->int_gemm;
    const float *const scale = panel_at(plan, task->p).scale;
    const size_t depth = plan->at.depth;
    float *const total = (float *)(void *)(acc + gemm->mr * VGQ_PANEL);
    float bias[VGQ_PANEL], y[VGQ_PANEL];
    bias_of(plan, task->p, bias);
    memset(total, 0, gemm->mr * VGQ_PANEL * sizeof(*total));
    for (size_t g = 0; g < plan->at.groups; g++) {
        const size_t at = g * plan->w.group;
        const size_t k = g + 1 == plan->at.groups ? depth - at : plan->w.group;
        gemm->tile(rows, k, plan->x + (m * plan->pitch + at) * gemm->code_nbytes, plan->pitch,
                   operand + at * VGQ_PANEL * gemm->weight_nbytes, acc);
        const int32_t *const sum = plan->x_sum + m * plan->sums + g;
        for (size_t r = 0; r < rows; r += plan->digits) {
            const int32_t both[2] = {sum[r * plan->sums], sum[(r + plan->digits - 1) * plan->sums]};
            float *const into = total + r / plan->digits * VGQ_PANEL;
            if (plan->digits == 1)
                plan->kernels->flush(acc + r * VGQ_PANEL, gemm->offset, both[0],
                                     scale + g * VGQ_PANEL, into);
            else
                plan->kernels->flush16(acc + r * VGQ_PANEL, gemm->offset, both,
                                       scale + g * VGQ_PANEL, into);
        }
    }
    const size_t token = m / plan->digits;
    for (size_t r = 0; r < rows / plan->digits; r++) {
        for (size_t c = 0; c < VGQ_PANEL; c++)
            y[c] = total[r * VGQ_PANEL + c] * plan->x_scale[token + r] + bias[c];
        store_row(plan, token + r, task->p, y);
    }
}

static void int_task(const vgq_plan *plan, const vgq_task *task)
{
    const vgq_int_gemm *const gemm = plan->kernels->int_gemm;
    const vgq_panel panel = panel_at(plan, task->p);
    const size_t depth = plan->at.depth;
    const unsigned char *operand = bytes_of(plan, panel, 0, depth, task->own);
    const int narrow = gemm->widen && !plan->operand_nbytes;
    if (gemm->widen && !narrow) {
        gemm->widen(depth, operand, task->own + plan->bytes_nbytes);
        operand = task->own + plan->bytes_nbytes;
    }
    int32_t *const acc = (int32_t *)(void *)(task->own + plan->bytes_nbytes + plan->operand_nbytes);
    vgq_columns columns = columns_of(plan, task->p);
    for (size_t c = 0; c < VGQ_PANEL; c++)
        columns.offset[c] = (narrow ? 128 : gemm->offset) +
                            (plan->w.format == VGQ_I8 && panel.zero ? panel.zero[c] : 0);
    for (size_t m = task->start, rows; m < task->end; m += rows) {
        rows = tile_rows(plan, task->end - m);
        if (plan->w.scales == VGQ_PER_GROUP) {
            group_rows(plan, task, m, rows, operand, acc);
            continue;
        }
        fetch_rows(plan, task, m, rows);
        (narrow ? gemm->bytes_tile : gemm->tile)(
            rows, depth, plan->x + m * plan->pitch * gemm->code_nbytes, plan->pitch, operand, acc);
        finish_rows(plan, task, m, rows, acc, &columns, plan->x_sum + m);
    }
}

static const float ones[VGQ_PANEL] = ONES;

/* Inputs i..i+depth of a panel as the weights of the float product. bfloat16 holds the integers of
 * a weight exactly, so there scales come in at the end, unless each group has its own. */
static void decode_slice(const vgq_plan *plan, vgq_panel panel, size_t i, size_t depth,
                         uint8_t *scratch, unsigned char *w)
{
    const uint8_t *const bytes = bytes_of(plan, panel, i, depth, scratch);
    const int grouped = plan->w.scales == VGQ_PER_GROUP;
    int32_t offset[VGQ_PANEL];
    for (size_t c = 0; c < VGQ_PANEL; c++)
        offset[c] = 128 + (plan->w.format == VGQ_I8 && panel.zero ? panel.zero[c] : 0);
    for (size_t j = 0, stop; j < depth; j = stop) {
        const size_t g = grouped ? vgq_min((i + j) / plan->w.group, plan->at.groups - 1) : 0;
        stop = !grouped || g + 1 == plan->at.groups ? depth
                                                    : vgq_min((g + 1) * plan->w.group - i, depth);
        plan->float_gemm->decode(stop - j, bytes + j * VGQ_PANEL, offset,
                                 grouped                         ? panel.scale + g * VGQ_PANEL
                                 : float_dtype(plan) == VGQ_BF16 ? ones
                                                                 : panel.scale,
                                 w + j * VGQ_PANEL * plan->float_gemm->nbytes);
    }
}

/* Rows start..end against panel p, floats: a slice of the panel is decoded at a time, and the sums
 * wait in acc between them. */
static void float_task(const vgq_plan *plan, const vgq_task *task)
{
    const size_t p = task->p, k = plan->w.k, nbytes = plan->float_gemm->nbytes;
    unsigned char *const w = task->own + plan->bytes_nbytes;
    const vgq_panel panel = panel_at(plan, p);
    const unsigned char *const x = plan->x_nbytes ? plan->x : (const unsigned char *)plan->call.x;
    const int scaled = float_dtype(plan) == VGQ_F32 || plan->w.scales == VGQ_PER_GROUP;
    const float *const scale = scaled ? ones : panel.scale;
    float bias[VGQ_PANEL];
    bias_of(plan, p, bias);
    for (size_t i = 0; i < k; i += plan->float_depth) {
        const size_t depth = vgq_min(plan->float_depth, plan->at.depth - i);
        const int last = i + depth >= k;
        decode_slice(plan, panel, i, depth, task->own, w);
        float *acc = (float *)(void *)(w + plan->operand_nbytes);
        for (size_t m = task->start, rows; m < task->end; m += rows, acc += rows * VGQ_PANEL) {
            rows = vgq_min(VGQ_FLOAT_ROWS, task->end - m);
            if (last)
                fetch_rows(plan, task, m, rows);
            plan->float_gemm->tile(rows, vgq_min(depth, k - i), x + (m * k + i) * nbytes, k, w, acc,
                                   i > 0);
            for (size_t r = 0; r < rows && last; r++) {
                float *const y = acc + r * VGQ_PANEL;
                for (size_t c = 0; c < VGQ_PANEL; c++)
                    y[c] = y[c] * scale[c] + bias[c];
                store_row(plan, m + r, p, y);
            }
        }
    }
}

int omp_get_thread_num(void); /* of threads.c */
int omp_get_num_threads(void);

/* Thread `me`'s share of n things. */
static void share(size_t n, size_t threads, size_t me, size_t *first, size_t *last)
{
    *first = n / threads * me + vgq_min(n % threads, me);
    *last = *first + n / threads + (me < n % threads);
}

static void run_task(const vgq_plan *plan, size_t i, unsigned char *own)
{
    const size_t start = i / plan->at.panels * plan->rows;
    const vgq_task task = {start, vgq_min(start + plan->rows, plan->lines), i % plan->at.panels,
                           own};
    if (plan->few)
        few_task(plan, &task);
    else if (plan->int4)
        int4_task(plan, &task);
    else if (is_int(plan))
        int_task(plan, &task);
    else
        float_task(plan, &task);
}

vgq_status vgq_linear(const void *packed, size_t nbytes, const vgq_linear_call *call, void *scratch,
                      size_t scratch_nbytes)
{
    vgq_weight w;
    const vgq_status status = vgq_packed_weight(packed, nbytes, &w);
    if (status != VGQ_OK)
        return status;
    if (bad_call(call) || (call->m && (!call->x || !call->y)))
        return VGQ_EINVAL;
    if (!call->m)
        return VGQ_OK;
    vgq_plan plan = plan_of(&w, call);
    if (!scratch || scratch_nbytes < plan_nbytes(&plan))
        return VGQ_EINVAL;
    unsigned char *at = scratch;
    at += (ALIGN - (uintptr_t)at % ALIGN) % ALIGN;
    plan.panels = (const unsigned char *)packed + sizeof(vgq_header);
    plan.x = at;
    plan.x_scale = (float *)(void *)(at += plan.x_nbytes);
    plan.x_sum = (int32_t *)(void *)(at += plan.scale_nbytes);
    plan.queues = (vgq_queue *)(void *)(at += plan.sum_nbytes);
    const size_t team = (size_t)plan.team;
    plan.own = at + team * sizeof(vgq_queue);
    if (is_int(&plan) || plan.x_nbytes) {
#pragma omp parallel num_threads(plan.coders)
        {
            vgq_float_mode mode;
            vgq_float_enter(&mode);
            unsigned char *const own = plan.own + (size_t)omp_get_thread_num() * plan.own_nbytes;
            size_t m, last;
            share(call->m, (size_t)omp_get_num_threads(), (size_t)omp_get_thread_num(), &m, &last);
            for (; m < last && !vgq_stopped_at(m); m++) {
                if (is_int(&plan))
                    code_token(&plan, m, (float *)(void *)own);
                else
                    copy_token(&plan, m, (float *)(void *)own);
            }
            vgq_float_leave(&mode);
        }
    }
    for (size_t t = 0; t < team; t++) {
        size_t first;
        share(plan.blocks * plan.at.panels, team, t, &first, &plan.queues[t].end);
        atomic_init(&plan.queues[t].next, first);
    }
#pragma omp parallel num_threads(plan.team)
    {
        vgq_float_mode mode;
        vgq_float_enter(&mode);
        const size_t me = (size_t)omp_get_thread_num();
        for (size_t t = 0; t < team; t++) {
            vgq_queue *const queue = &plan.queues[(me + t) % team];
            for (size_t i; (i = atomic_fetch_add(&queue->next, 1)) < queue->end && !vgq_stopped();)
                run_task(&plan, i, plan.own + me * plan.own_nbytes);
        }
        vgq_float_leave(&mode);
    }
    return vgq_stopped() ? VGQ_ESTOPPED : VGQ_OK;
}
