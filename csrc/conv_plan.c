/* SPDX-License-Identifier: Apache-2.0
 * Which convolutions there are, and how a call is cut up. */
#include "conv.h"

enum {
    BLOCK_PIXELS = 512, /* whose codes are made before they are multiplied, at least */
    LEAST_ROWS = 4,     /* of a task: the rows around it are coded twice */
    STEP = 8            /* inputs that a tile takes at least */
};

static size_t aligned(size_t nbytes) { return vgq_round_up(nbytes, VGQ_ALIGN); }

size_t vgq_conv_channels(size_t channels) { return vgq_round_up(channels, STEP); }

size_t vgq_conv_input_rows(const vgq_conv_plan *plan, size_t rows)
{
    return (rows - 1) * plan->call.stride_height + plan->call.kernel_height;
}

vgq_conv_plan vgq_conv_plan_of(const vgq_weight *w, const vgq_conv_call *call)
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
    const size_t pixels_in = vgq_conv_input_rows(&plan, plan.block_rows) * plan.line;
    plan.codes_nbytes = aligned(pixels_in * plan.pixel * product->code_nbytes);
    plan.sums_nbytes = aligned(pixels_in * sizeof(int32_t));
    plan.windows_nbytes = aligned(plan.block_rows * plan.line * sizeof(int32_t));
    plan.floats_nbytes =
        aligned((vgq_source_length(&plan.pictures) + 2 * call->channels) * sizeof(float));
    plan.operand_nbytes =
        product->operand_nbytes ? aligned(product->operand_nbytes(plan.at.depth)) : 0;
    plan.acc_nbytes =
        product->mr * VGQ_PANEL * (call->kernel_height * sizeof(int32_t) + 2 * sizeof(float));
    plan.crew.own_nbytes = plan.codes_nbytes + plan.sums_nbytes + plan.windows_nbytes +
                           plan.floats_nbytes + plan.operand_nbytes + aligned(plan.acc_nbytes);
    return plan;
}

size_t vgq_conv_largest_nbytes(const vgq_conv_plan *plan)
{
    return aligned(plan->call.pictures * 2 * sizeof(uint32_t));
}

size_t vgq_conv_plan_nbytes(const vgq_conv_plan *plan)
{
    return VGQ_ALIGN + 2 * vgq_conv_largest_nbytes(plan) + vgq_crew_nbytes(&plan->crew);
}

static int bad_sizes(const vgq_conv_call *c)
{
    return vgq_too_many(c->pictures, c->height, c->width, c->channels) ||
           vgq_too_many(c->pictures, c->source_height, c->source_width, c->channels) ||
           vgq_too_many(1, c->kernel_height, c->kernel_width, c->channels) || !c->stride_height ||
           !c->stride_width || vgq_too_many(c->pictures, c->out_height, c->out_width, 1) ||
           c->kernel_height > VGQ_DEEPEST || c->kernel_width > VGQ_DEEPEST ||
           c->stride_height > VGQ_DEEPEST || c->stride_width > VGQ_DEEPEST ||
           vgq_too_many(c->out_height, c->stride_height, c->out_width, c->stride_width);
}

int vgq_bad_conv(const vgq_weight *w, const vgq_conv_call *c)
{
    return !c || (unsigned)c->x_dtype >= VGQ_DTYPES || (unsigned)c->y_dtype >= VGQ_DTYPES ||
           bad_sizes(c) || w->format != VGQ_I8 || w->asymmetric ||
           w->k / c->kernel_height / c->kernel_width != vgq_conv_channels(c->channels) ||
           w->k % (c->kernel_height * c->kernel_width) ||
           ((c->outputs || c->folded) && w->n > VGQ_PANEL) || (c->folded && w->n % 2) ||
           vgq_too_many(c->pictures, c->out_height, c->out_width, w->n) ||
           (!c->column_embedding) != (!c->row_embedding) ||
           (c->column_embedding && c->channels % 2);
}

size_t vgq_conv2d_nbytes(const vgq_weight *weight, const vgq_conv_call *call)
{
    vgq_weight w;
    if (vgq_check_weight(weight, &w) != VGQ_OK || vgq_bad_conv(&w, call))
        return 0;
    const vgq_conv_plan plan = vgq_conv_plan_of(&w, call);
    return vgq_conv_plan_nbytes(&plan);
}
