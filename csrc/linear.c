/* SPDX-License-Identifier: Apache-2.0
 * Front of the quantized Linear: splits a product over threads, and multiplies codes.
 *
 * A product is cut into tasks of one panel and one block of rows. A task prepares its panel once
 * in scratch that stays in the cache and runs the tiles of its rows over it. No sum is split
 * between tasks, so neither the thread count nor the order changes a bit. */
#include "linear.h"

#include <string.h>

enum { CODED_AT_ONCE = 8 /* tokens of a task of the activations' pass */ };

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
        const int32_t *const sum = tokens->sum + m * tokens->sums + (product->offset != 0 ? g : 0);
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

/* The rows of a task in one strip, or a strip at a time where they pass through scratch. */
static void strip_task(const vgq_plan *plan, const vgq_task *task, const vgq_operand *operand,
                       float *floats, const vgq_columns *columns)
{
    const vgq_tokens *const tokens = &plan->tokens;
    const vgq_epilogue *const e = &plan->epilogue;
    const int stored = vgq_is_stored_by_strip(e, task->p);
    const size_t most = stored ? task->end - task->start : VGQ_STRIP_ROWS;
    const size_t y_nbytes = plan->call.m * e->n * vgq_dtype_nbytes(e->dtype);
    const size_t codes = plan->at.panel_nbytes - plan->at.codes;
    const int has_next =
        stored && most >= VGQ_NEXT_ROWS && task->p + 1 < plan->at.panels && codes <= VGQ_NEXT_MOST;
    for (size_t m = task->start, rows; m < task->end; m += rows) {
        rows = vgq_min(most, task->end - m);
        const vgq_strip strip = {
            .rows = rows,
            .codes = tokens->codes + m * tokens->pitch,
            .ld = tokens->pitch,
            .sum = tokens->sum + m,
            .x_scale = tokens->scale + m,
            .columns = columns,
            .y = stored ? (void *)vgq_y_at(e, m, task->p) : floats,
            .ldy = stored ? e->n : VGQ_PANEL,
            .dtype = stored ? e->dtype : VGQ_F32,
            .gelu = stored && e->gelu,
            .layer_scale = stored ? vgq_layer_scale_at(e, task->p) : NULL,
            .residual = stored ? vgq_residual_at(e, m, task->p) : NULL,
            .fetch_y = stored & (y_nbytes > VGQ_CACHED_Y),
            .next = (const char *)operand->panel->codes + plan->at.panel_nbytes,
            .next_nbytes = has_next ? codes : 0,
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
    if (plan->strips) {
        strip_task(plan, task, &operand, (float *)(void *)acc, &columns);
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
    if (vgq_bad_call(call))
        return VGQ_EINVAL;
    if (!call->m)
        return VGQ_OK;
    const vgq_coded *const coded = call->coded;
    if (vgq_bad_codes(call, w.k) || !call->y ||
        (coded ? !coded->codes || !coded->scale || !coded->sum : !call->x))
        return VGQ_EINVAL;
    vgq_plan plan = vgq_plan_of(&w, call);
    if (!scratch || scratch_nbytes < vgq_plan_nbytes(&plan))
        return VGQ_EINVAL;
    plan.panels = (const unsigned char *)packed + sizeof(vgq_header);
    vgq_plan_place(&plan, scratch);
    if (plan.coders)
        status = vgq_run_tasks(&plan.crew, plan.coders,
                               (call->m + CODED_AT_ONCE - 1) / CODED_AT_ONCE, run_tokens, &plan);
    if (status == VGQ_OK)
        status = vgq_run_tasks(&plan.crew, plan.crew.team, plan.blocks * plan.at.panels,
                               run_product, &plan);
    return status;
}
