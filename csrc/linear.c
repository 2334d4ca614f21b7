/* SPDX-License-Identifier: Apache-2.0
 * Front of the quantized Linear: splits a product over threads, and multiplies codes.
 *
 * A product is cut into tasks of one panel and one block of rows. A task prepares its panel once
 * in scratch that stays in the cache and runs the tiles of its rows over it. No sum is split
 * between tasks, so neither the thread count nor the order changes a bit. */
#include "linear.h"

#include <string.h>

enum {
    MOST_ROWS = 768, /* of a task: amortizes preparing a panel, and its codes stay in L2 */
    MOST_STRIP_ROWS = 3072,
    CODED_AT_ONCE = 8 /* tokens of a task of the activations' pass */
};

/* ---- the plan ---------------------------------------------------------------------------------
 */

static void plan_codes(vgq_plan *plan)
{
    const vgq_linear_call *const call = &plan->call;
    const vgq_linear_kernels *const kernels = &plan->kernels->linear;
    const vgq_product *const *way = kernels->products;
    const size_t digits = call->activations == VGQ_INT16_ACTIVATIONS ? 2 : 1;
    plan->lines = call->m * digits;
    while ((*way)->applies && !(*way)->applies(&plan->w, plan->lines))
        way++;
    const vgq_product *const product = plan->product = *way;
    plan->mr = product->mr - product->mr % digits; /* a tile holds whole tokens */
    const int summed = plan->w.scales == VGQ_PER_GROUP || product->group_sums;
    vgq_tokens *const tokens = &plan->tokens;
    *tokens = (vgq_tokens){
        .kernels = plan->kernels,
        .dtype = call->x_dtype,
        .x = call->x,
        .norm = call->norm,
        .coded = call->coded,
        .k = plan->w.k,
        .code_row = product->code_row ? product->code_row : kernels->code_row,
        .code_nbytes = product->code_nbytes,
        .digits = digits,
        /* Lines whole pages apart would lie in the same places of the L1 cache. */
        .pitch = plan->at.depth + VGQ_ALIGN / product->code_nbytes,
        .sums = summed ? plan->at.groups : 1,
        .group = plan->w.group,
    };
    if (call->coded && !product->code_row && tokens->sums == 1) { /* read where they are */
        tokens->pitch = call->coded->pitch;
        plan->coders = 0;
    } else {
        plan->codes_nbytes =
            vgq_round_up(plan->lines * tokens->pitch * tokens->code_nbytes, VGQ_ALIGN);
        plan->scale_nbytes = vgq_round_up(call->m * sizeof(float), VGQ_ALIGN);
        plan->sum_nbytes = vgq_round_up(plan->lines * tokens->sums * sizeof(int32_t), VGQ_ALIGN);
    }
    if (plan->w.format == VGQ_I4 && !product->nibbles)
        plan->bytes_nbytes = plan->at.depth * VGQ_PANEL;
    if (product->operand_nbytes)
        plan->operand_nbytes = vgq_round_up(product->operand_nbytes(plan->at.depth), VGQ_ALIGN);
    plan->strip_rows = product->strip && digits == 1 ? VGQ_STRIP_ROWS : 0;
    plan->acc_nbytes = (plan->strip_rows ? plan->strip_rows : plan->mr) * VGQ_PANEL *
                       (sizeof(int32_t) + sizeof(float));
}

/* As few blocks as keep every thread busy and no block too long; by shape and team alone. */
static void cut_rows(vgq_plan *plan)
{
    const size_t threads = (size_t)plan->crew.team;
    /* A strip's codes are what stays in L2, so its tasks may be long. */
    const size_t most = plan->strip_rows ? MOST_STRIP_ROWS : MOST_ROWS;
    plan->blocks = (plan->lines + most - 1) / most;
    if (plan->at.panels < 4 * threads && plan->blocks < threads)
        plan->blocks = threads;
    plan->rows = vgq_round_up((plan->lines + plan->blocks - 1) / plan->blocks, plan->mr);
    plan->blocks = (plan->lines + plan->rows - 1) / plan->rows;
}

static vgq_plan plan_of(const vgq_weight *w, const vgq_linear_call *call)
{
    const vgq_context now = call->context ? *call->context : vgq_context_now();
    vgq_plan plan = {.kernels = now.kernels, .w = *w, .call = *call, .lines = call->m};
    plan.at = vgq_layout_of(&plan.w);
    plan.coders = 1;
    plan.epilogue = (vgq_epilogue){
        .kernels = plan.kernels,
        .n = w->n,
        .dtype = call->y_dtype,
        .y = call->y,
        .bias = call->bias,
        .gelu = call->gelu,
        .layer_scale = call->layer_scale,
        .residual = call->residual,
    };
    size_t token_floats = w->k;
    if (call->activations >= VGQ_INT8_ACTIVATIONS) {
        plan_codes(&plan);
        token_floats = vgq_token_floats(&plan.tokens);
    } else {
        vgq_plan_floats(&plan);
        plan.coders = plan.floats_nbytes > 0;
    }
    plan.crew.team = vgq_team(now.threads, plan.lines * w->k * vgq_min(w->n, 1024) / 64);
    /* Coding is quick: a few rows are done before other threads would have begun. */
    if (plan.coders && vgq_team(now.threads, plan.lines * w->k / 4) >= plan.crew.team)
        plan.coders = plan.crew.team;
    cut_rows(&plan);
    if (!plan.product)
        plan.acc_nbytes = plan.rows * VGQ_PANEL * sizeof(float);
    const size_t product_nbytes = plan.bytes_nbytes + plan.operand_nbytes + plan.acc_nbytes;
    const size_t token_nbytes = token_floats * sizeof(float);
    plan.crew.own_nbytes =
        vgq_round_up(product_nbytes > token_nbytes ? product_nbytes : token_nbytes, VGQ_ALIGN);
    return plan;
}

static size_t plan_nbytes(const vgq_plan *plan)
{
    return VGQ_ALIGN + plan->floats_nbytes + plan->codes_nbytes + plan->scale_nbytes +
           plan->sum_nbytes + vgq_crew_nbytes(&plan->crew);
}

static void place(vgq_plan *plan, unsigned char *at)
{
    vgq_tokens *const tokens = &plan->tokens;
    at += (VGQ_ALIGN - (uintptr_t)at % VGQ_ALIGN) % VGQ_ALIGN;
    plan->floats = at;
    tokens->codes = at += plan->floats_nbytes;
    tokens->scale = (float *)(void *)(at += plan->codes_nbytes);
    tokens->sum = (int32_t *)(void *)(at += plan->scale_nbytes);
    vgq_crew_place(&plan->crew, at + plan->sum_nbytes);
    if (plan->product && !plan->coders) { /* given, and only read */
        tokens->codes = (unsigned char *)(uintptr_t)plan->call.coded->codes;
        tokens->scale = (float *)(uintptr_t)plan->call.coded->scale;
        tokens->sum = (int32_t *)(uintptr_t)plan->call.coded->sum;
    }
}

static int bad_codes(const vgq_linear_call *call, size_t k)
{
    const vgq_coded *const coded = call->coded;
    return coded && (call->activations != VGQ_INT8_ACTIVATIONS || call->norm.weight ||
                     coded->pitch < k || coded->pitch % 64 || coded->pitch > SIZE_MAX / 8 / call->m);
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
    if (vgq_check_weight(weight, &w) != VGQ_OK || bad_call(call) || !call->m ||
        bad_codes(call, w.k))
        return 0;
    const vgq_plan plan = plan_of(&w, call);
    return plan_nbytes(&plan);
}

/* ---- panels -----------------------------------------------------------------------------------
 */

vgq_panel vgq_panel_at(const vgq_plan *plan, size_t p)
{
    const unsigned char *const at = plan->panels + p * plan->at.panel_nbytes;
    return (vgq_panel){
        .format = plan->w.format,
        .k = plan->at.depth,
        .group = plan->w.group,
        .groups = plan->at.groups,
        .scale = (const float *)(const void *)at,
        .zero = plan->w.asymmetric ? (const int8_t *)at + plan->at.zero : NULL,
        .factor = plan->w.scales == VGQ_TWO_LEVEL ? at + plan->at.factor : NULL,
        .codes = at + plan->at.codes,
    };
}

const uint8_t *vgq_bytes_of(const vgq_plan *plan, const vgq_panel *panel, size_t start,
                            size_t depth, uint8_t *bytes)
{
#define EIGHT 1, 1, 1, 1, 1, 1, 1, 1
    static const uint8_t all_one[VGQ_PANEL] = {EIGHT, EIGHT, EIGHT, EIGHT,
                                               EIGHT, EIGHT, EIGHT, EIGHT};
#undef EIGHT
    static const int8_t no_zero[VGQ_PANEL];
    if (panel->format == VGQ_I8)
        return panel->codes + start * VGQ_PANEL;
    for (size_t i = start; i < start + depth;) {
        const size_t g = vgq_min(i / panel->group, panel->groups - 1);
        const size_t end =
            g + 1 == panel->groups ? start + depth : vgq_min((g + 1) * panel->group, start + depth);
        plan->kernels->linear.expand4(end - i, panel->codes + i * VGQ_PANEL / 2,
                                      panel->factor ? panel->factor + g * VGQ_PANEL : all_one,
                                      panel->zero ? panel->zero + g * VGQ_PANEL : no_zero,
                                      bytes + (i - start) * VGQ_PANEL);
        i = end;
    }
    return bytes;
}

/* The panel in the form that the product reads, its offsets, scales and bias. */
static vgq_operand operand_of(const vgq_plan *plan, const vgq_task *task, const vgq_panel *panel,
                              vgq_columns *columns)
{
    const vgq_product *const product = plan->product;
    vgq_operand operand = {.k = panel->k, .data = panel->codes, .panel = panel};
    columns->scale = panel->scale;
    vgq_bias_of(&plan->epilogue, task->p, columns->bias);
    for (size_t c = 0; c < VGQ_PANEL; c++)
        columns->offset[c] =
            product->offset + (panel->format == VGQ_I8 && panel->zero ? panel->zero[c] : 0);
    if (!product->nibbles)
        operand.data = vgq_bytes_of(plan, panel, 0, panel->k, task->own);
    if (product->prepare) {
        unsigned char *const prepared = task->own + plan->bytes_nbytes;
        product->prepare(panel, product->nibbles ? NULL : operand.data, prepared, columns->offset);
        operand.data = prepared;
    }
    return operand;
}

/* ---- tasks ------------------------------------------------------------------------------------
 */

/* Rows of the next tile when so many are left: few of them cost as much as more, so none is left
 * for the end. */
static size_t tile_rows(const vgq_plan *plan, size_t left)
{
    const size_t tiles = (left + plan->mr - 1) / plan->mr;
    return vgq_round_up((left + tiles - 1) / tiles, plan->tokens.digits);
}

/* The lines of a tile from m on, from acc to y. acc is followed by floats of its size. */
static void finish_rows(const vgq_plan *plan, const vgq_task *task, size_t m, size_t rows,
                        int32_t *acc, const vgq_columns *columns)
{
    static const int32_t once[VGQ_TILE_ROWS] = {1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1,
                                                1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1};
    const vgq_linear_kernels *const kernels = &plan->kernels->linear;
    const size_t digits = plan->tokens.digits, token = m / digits, tokens = rows / digits;
    const int32_t *const sum =
        plan->product->whole_offset ? once : plan->tokens.sum + m * plan->tokens.sums;
    const int stored = vgq_is_stored(&plan->epilogue, task->p);
    float *const y = stored ? (float *)(void *)vgq_y_at(&plan->epilogue, token, task->p)
                            : (float *)(void *)(acc + plan->mr * VGQ_PANEL);
    (digits == 1 ? kernels->finish : kernels->finish16)(
        tokens, acc, columns, sum, plan->tokens.scale + token, y, stored ? plan->w.n : VGQ_PANEL);
    for (size_t r = 0; r < tokens && !stored; r++)
        vgq_store_row(&plan->epilogue, token + r, task->p, y + r * VGQ_PANEL);
}

/* Float scales a group: each group's exact sum is scaled and added, in order of the groups. */
static void group_rows(const vgq_plan *plan, const vgq_task *task, size_t m, size_t rows,
                       const vgq_operand *operand, int32_t *acc, const vgq_columns *columns)
{
    const vgq_product *const product = plan->product;
    const vgq_linear_kernels *const kernels = &plan->kernels->linear;
    const vgq_tokens *const tokens = &plan->tokens;
    const vgq_panel *const panel = operand->panel;
    float *const total = (float *)(void *)(acc + plan->mr * VGQ_PANEL);
    memset(total, 0, rows * VGQ_PANEL * sizeof(*total));
    for (size_t g = 0; g < panel->groups; g++) {
        const size_t at = g * panel->group;
        const vgq_operand part = {
            .k = g + 1 == panel->groups ? panel->k - at : panel->group,
            .data = (const char *)operand->data + at * VGQ_PANEL * product->weight_nbytes,
            .panel = panel,
        };
        const int32_t *const sum = tokens->sum + m * tokens->sums + g;
        product->tile(rows, &part, tokens->codes + (m * tokens->pitch + at) * tokens->code_nbytes,
                      tokens->pitch, sum, acc);
        for (size_t r = 0; r < rows; r += tokens->digits) {
            const int32_t both[2] = {sum[r * tokens->sums],
                                     sum[(r + tokens->digits - 1) * tokens->sums]};
            float *const into = total + r / tokens->digits * VGQ_PANEL;
            if (tokens->digits == 1)
                kernels->flush(acc + r * VGQ_PANEL, product->offset, both[0],
                               panel->scale + g * VGQ_PANEL, into);
            else
                kernels->flush16(acc + r * VGQ_PANEL, product->offset, both,
                                 panel->scale + g * VGQ_PANEL, into);
        }
    }
    const size_t token = m / tokens->digits;
    for (size_t r = 0; r < rows / tokens->digits; r++) {
        float *const y = total + r * VGQ_PANEL;
        for (size_t c = 0; c < VGQ_PANEL; c++)
            y[c] = y[c] * tokens->scale[token + r] + columns->bias[c];
        vgq_store_row(&plan->epilogue, token + r, task->p, y);
    }
}

/* The rows of a task, a strip at a time. */
static void strip_task(const vgq_plan *plan, const vgq_task *task, const vgq_operand *operand,
                       int32_t *acc, const vgq_columns *columns)
{
    const vgq_tokens *const tokens = &plan->tokens;
    const vgq_epilogue *const e = &plan->epilogue;
    const int stored = vgq_is_stored_by_strip(e, task->p);
    float *const floats = (float *)(void *)(acc + plan->strip_rows * VGQ_PANEL);
    for (size_t m = task->start, rows; m < task->end; m += rows) {
        const size_t left = task->end - m, strips = (left - 1) / plan->strip_rows + 1;
        rows = vgq_min(left, vgq_round_up((left + strips - 1) / strips, plan->mr));
        const vgq_strip strip = {
            .rows = rows,
            .codes = tokens->codes + m * tokens->pitch,
            .ld = tokens->pitch,
            .sum = tokens->sum + m,
            .x_scale = tokens->scale + m,
            .columns = columns,
            .acc = acc,
            .y = stored ? (void *)vgq_y_at(e, m, task->p) : floats,
            .ldy = stored ? e->n : VGQ_PANEL,
            .dtype = stored ? e->dtype : VGQ_F32,
            .gelu = stored && e->gelu,
        };
        plan->product->strip(operand, &strip);
        for (size_t r = 0; r < rows && !stored; r++)
            vgq_store_row(e, m + r, task->p, floats + r * VGQ_PANEL);
    }
}

static void code_task(const vgq_plan *plan, const vgq_task *task)
{
    const vgq_tokens *const tokens = &plan->tokens;
    const vgq_panel panel = vgq_panel_at(plan, task->p);
    vgq_columns columns;
    const vgq_operand operand = operand_of(plan, task, &panel, &columns);
    int32_t *const acc = (int32_t *)(void *)(task->own + plan->bytes_nbytes + plan->operand_nbytes);
    if (plan->strip_rows) {
        strip_task(plan, task, &operand, acc, &columns);
        return;
    }
    for (size_t m = task->start, rows; m < task->end; m += rows) {
        rows = tile_rows(plan, task->end - m);
        if (plan->w.scales == VGQ_PER_GROUP) {
            group_rows(plan, task, m, rows, &operand, acc, &columns);
            continue;
        }
        vgq_fetch_rows(&plan->epilogue, m / tokens->digits, rows / tokens->digits, task->p);
        plan->product->tile(rows, &operand, tokens->codes + m * tokens->pitch * tokens->code_nbytes,
                            tokens->pitch, tokens->sum + m * tokens->sums, acc);
        finish_rows(plan, task, m, rows, acc, &columns);
    }
}

static void run_product(const void *job, size_t i, unsigned char *own)
{
    const vgq_plan *const plan = job;
    const size_t start = i / plan->at.panels * plan->rows;
    const vgq_task task = {start, vgq_min(start + plan->rows, plan->lines), i % plan->at.panels,
                           own};
    if (plan->product)
        code_task(plan, &task);
    else
        vgq_float_task(plan, &task);
}

static void run_tokens(const void *job, size_t i, unsigned char *own)
{
    const vgq_plan *const plan = job;
    const size_t end = vgq_min((i + 1) * CODED_AT_ONCE, plan->call.m);
    for (size_t m = i * CODED_AT_ONCE; m < end; m++)
        if (plan->product)
            vgq_code_token(&plan->tokens, m, (float *)(void *)own);
        else
            vgq_copy_token(plan, m, (float *)(void *)own);
}

vgq_status vgq_linear(const void *packed, size_t nbytes, const vgq_linear_call *call, void *scratch,
                      size_t scratch_nbytes)
{
    vgq_weight w;
    vgq_status status = vgq_packed_weight(packed, nbytes, &w);
    if (status != VGQ_OK)
        return status;
    if (bad_call(call))
        return VGQ_EINVAL;
    if (!call->m)
        return VGQ_OK;
    const vgq_coded *const coded = call->coded;
    if (bad_codes(call, w.k) || !call->y ||
        (coded ? !coded->codes || !coded->scale || !coded->sum : !call->x))
        return VGQ_EINVAL;
    vgq_plan plan = plan_of(&w, call);
    if (!scratch || scratch_nbytes < plan_nbytes(&plan))
        return VGQ_EINVAL;
    plan.panels = (const unsigned char *)packed + sizeof(vgq_header);
    place(&plan, scratch);
    if (plan.coders)
        status = vgq_run_tasks(&plan.crew, plan.coders,
                               (call->m + CODED_AT_ONCE - 1) / CODED_AT_ONCE, run_tokens, &plan);
    if (status == VGQ_OK)
        status = vgq_run_tasks(&plan.crew, plan.crew.team, plan.blocks * plan.at.panels,
                               run_product, &plan);
    return status;
}
