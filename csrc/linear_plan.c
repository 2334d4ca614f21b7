/* SPDX-License-Identifier: Apache-2.0
 * The plan of a Linear's call: which product, how rows are cut, and where everything lies in the
 * scratch. */
#include "linear.h"

#include <float.h>

enum {
    MOST_ROWS = 768 /* of a task: amortizes preparing a panel, and its codes stay in L2 */
};

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
    const int summed =
        product->group_sums || (plan->w.scales == VGQ_PER_GROUP && product->offset != 0);
    vgq_tokens *const tokens = &plan->tokens;
    *tokens = (vgq_tokens){
        .kernels = plan->kernels,
        .dtype = call->x_dtype,
        .x = call->x,
        .norm = call->norm,
        .affine = call->x_affine,
        .x_scale = call->x_scale,
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
    plan->strips = product->strip && digits == 1 && plan->w.scales != VGQ_PER_GROUP;
    plan->acc_nbytes = plan->strips ? VGQ_STRIP_ROWS * VGQ_PANEL * sizeof(float)
                                    : plan->mr * VGQ_PANEL * (sizeof(int32_t) + sizeof(float));
}

/* As few blocks as give each thread some four tasks and keep no block too long; by shape and team
 * alone. Each block prepares every panel once. */
static void cut_rows(vgq_plan *plan)
{
    const size_t wanted = 4 * (size_t)plan->crew.team;
    const size_t limit = plan->product ? plan->product->most_nbytes : 0;
    const size_t most =
        limit ? vgq_min(MOST_ROWS, vgq_round_up(limit / plan->tokens.pitch, plan->mr)) : MOST_ROWS;
    const size_t least = (plan->lines + most - 1) / most;
    plan->blocks = (wanted + plan->at.panels - 1) / plan->at.panels;
    plan->blocks = plan->blocks > least ? plan->blocks : least;
    plan->rows = vgq_round_up((plan->lines + plan->blocks - 1) / plan->blocks, plan->mr);
    plan->blocks = (plan->lines + plan->rows - 1) / plan->rows;
}

vgq_plan vgq_plan_of(const vgq_weight *w, const vgq_linear_call *call)
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

size_t vgq_plan_nbytes(const vgq_plan *plan)
{
    return VGQ_ALIGN + plan->floats_nbytes + plan->codes_nbytes + plan->scale_nbytes +
           plan->sum_nbytes + vgq_crew_nbytes(&plan->crew);
}

void vgq_plan_place(vgq_plan *plan, unsigned char *at)
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

/* Whether the call says how x is coded. */
static int changes_codes(const vgq_linear_call *call)
{
    return call->x_affine.weight || call->x_affine.bias || call->x_scale != 0;
}

int vgq_bad_codes(const vgq_linear_call *call, size_t k)
{
    const vgq_coded *const coded = call->coded;
    return coded &&
           (changes_codes(call) || call->activations != VGQ_INT8_ACTIVATIONS || call->norm.weight ||
            coded->pitch < k || coded->pitch % 64 || coded->pitch > SIZE_MAX / 8 / call->m);
}

int vgq_bad_call(const vgq_linear_call *call)
{
    return !call || (unsigned)call->activations >= VGQ_ACTIVATIONS ||
           (unsigned)call->x_dtype >= VGQ_DTYPES || (unsigned)call->y_dtype >= VGQ_DTYPES ||
           (changes_codes(call) && call->activations < VGQ_INT8_ACTIVATIONS) ||
           (call->x_affine.bias && !call->x_affine.weight) ||
           (call->x_scale != 0 && !(call->x_scale >= 0x1p-112f && call->x_scale <= FLT_MAX)) ||
           call->m > SIZE_MAX / 8 / VGQ_DEEPEST / sizeof(int32_t);
}

size_t vgq_linear_nbytes(const vgq_weight *weight, const vgq_linear_call *call)
{
    vgq_weight w;
    if (vgq_check_weight(weight, &w) != VGQ_OK || vgq_bad_call(call) || !call->m ||
        vgq_bad_codes(call, w.k))
        return 0;
    const vgq_plan plan = vgq_plan_of(&w, call);
    return vgq_plan_nbytes(&plan);
}
