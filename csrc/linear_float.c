/* SPDX-License-Identifier: Apache-2.0
 * The Linear's product of floats, or of bfloat16 in pairs: a slice of a panel is decoded at a time,
 * and the sums of a task wait in scratch between the slices. */
#include "linear.h"

enum { FLOAT_SLICE = 128 << 10 /* bytes of a panel's float weights in scratch at a time */ };

static vgq_dtype float_dtype(const vgq_plan *plan)
{
    return plan->float_gemm == plan->kernels->linear.float_gemm ? VGQ_F32 : VGQ_BF16;
}

int vgq_copies_floats(const vgq_plan *plan)
{
    return plan->call.norm.weight || plan->call.x_dtype != float_dtype(plan);
}

void vgq_plan_floats(vgq_plan *plan)
{
    const int bf16 =
        plan->call.activations == VGQ_BF16_ACTIVATIONS && plan->kernels->linear.bf16_gemm;
    plan->float_gemm = bf16 ? plan->kernels->linear.bf16_gemm : plan->kernels->linear.float_gemm;
    plan->float_depth = FLOAT_SLICE / VGQ_PANEL / plan->float_gemm->nbytes;
    plan->mr = VGQ_FLOAT_ROWS;
    if (vgq_copies_floats(plan))
        plan->floats_nbytes =
            vgq_round_up(plan->call.m * plan->w.k * plan->float_gemm->nbytes, VGQ_ALIGN);
    plan->bytes_nbytes = plan->w.format == VGQ_I4 ? plan->float_depth * VGQ_PANEL : 0;
    plan->operand_nbytes = FLOAT_SLICE;
}

void vgq_copy_token(const vgq_plan *plan, size_t m, float *buffer)
{
    const vgq_kernels *const kernels = plan->kernels;
    const size_t k = plan->w.k;
    const vgq_linear_call *const call = &plan->call;
    unsigned char *const to = plan->floats + m * k * plan->float_gemm->nbytes;
    const int stays = float_dtype(plan) == VGQ_F32;
    float *const floats = stays ? (float *)(void *)to : buffer;
    const float *x = vgq_floats(kernels, call->x_dtype, call->x, m * k, k, floats);
    if (call->norm.weight) {
        kernels->rows.norm_row(k, x, &call->norm, floats);
        x = floats;
    }
    if (!stays)
        kernels->quantize.store[VGQ_BF16](k, x, to);
}

#define EIGHT 1, 1, 1, 1, 1, 1, 1, 1
static const float ones[VGQ_PANEL] = {EIGHT, EIGHT, EIGHT, EIGHT, EIGHT, EIGHT, EIGHT, EIGHT};
#undef EIGHT

/* Inputs i..i+depth of a panel as the weights of the float product, in w; or, where there is a row,
 * multiplied with it, in acc. bfloat16 holds the integers of a weight exactly, so there scales come
 * in at the end, unless each group has its own. */
static void decode_slice(const vgq_plan *plan, const vgq_panel *panel, size_t i, size_t depth,
                         uint8_t *scratch, unsigned char *w, const float *row, float *acc)
{
    const vgq_float_gemm *const gemm = plan->float_gemm;
    const uint8_t *const bytes = vgq_bytes_of(plan, panel, i, depth, scratch);
    const int grouped = plan->w.scales == VGQ_PER_GROUP;
    int32_t offset[VGQ_PANEL];
    for (size_t c = 0; c < VGQ_PANEL; c++)
        offset[c] = 128 + (plan->w.format == VGQ_I8 && panel->zero ? panel->zero[c] : 0);
    for (size_t j = 0, stop; j < depth; j = stop) {
        const size_t g = grouped ? vgq_min((i + j) / plan->w.group, plan->at.groups - 1) : 0;
        stop = !grouped || g + 1 == plan->at.groups ? depth
                                                    : vgq_min((g + 1) * plan->w.group - i, depth);
        const float *const scale = grouped                         ? panel->scale + g * VGQ_PANEL
                                   : float_dtype(plan) == VGQ_BF16 ? ones
                                                                   : panel->scale;
        if (row)
            gemm->row(vgq_min(stop - j, plan->w.k - i - j), row + i + j, bytes + j * VGQ_PANEL,
                      offset, scale, acc, i + j > 0);
        else
            gemm->decode(stop - j, bytes + j * VGQ_PANEL, offset, scale,
                         w + j * VGQ_PANEL * gemm->nbytes);
    }
}

void vgq_float_task(const vgq_plan *plan, const vgq_task *task)
{
    const size_t p = task->p, k = plan->w.k, nbytes = plan->float_gemm->nbytes;
    unsigned char *const w = task->own + plan->bytes_nbytes;
    const vgq_panel panel = vgq_panel_at(plan, p);
    const unsigned char *const x =
        plan->floats_nbytes ? plan->floats : (const unsigned char *)plan->call.x;
    const int scaled = float_dtype(plan) == VGQ_F32 || plan->w.scales == VGQ_PER_GROUP;
    const float *const scale = scaled ? ones : panel.scale;
    const int row = task->end - task->start == 1 && plan->float_gemm->row;
    float bias[VGQ_PANEL];
    vgq_bias_of(&plan->epilogue, p, bias);
    for (size_t i = 0; i < k; i += plan->float_depth) {
        const size_t depth = vgq_min(plan->float_depth, plan->at.depth - i);
        const int last = i + depth >= k;
        float *acc = (float *)(void *)(w + plan->operand_nbytes);
        decode_slice(plan, &panel, i, depth, task->own, w,
                     row ? (const float *)(const void *)x + task->start * k : NULL, acc);
        for (size_t m = task->start, rows; m < task->end; m += rows, acc += rows * VGQ_PANEL) {
            const size_t left = task->end - m, tiles = (left + plan->mr - 1) / plan->mr;
            rows = (left + tiles - 1) / tiles; /* as even as can be: 7 rows are 4 and 3 */
            if (last)
                vgq_fetch_rows(&plan->epilogue, m, rows, p);
            if (!row)
                plan->float_gemm->tile(rows, vgq_min(depth, k - i), x + (m * k + i) * nbytes, k, w,
                                       acc, i > 0);
            for (size_t r = 0; r < rows && last; r++) {
                float *const y = acc + r * VGQ_PANEL;
                for (size_t c = 0; c < VGQ_PANEL; c++)
                    y[c] = y[c] * scale[c] + bias[c];
                vgq_store_row(&plan->epilogue, m + r, p, y);
            }
        }
    }
}
