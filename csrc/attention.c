/* SPDX-License-Identifier: Apache-2.0
 * Front of attention: splits a call over threads.
 *
 * A task is one head of one batch and a span of its rows of q. It walks over the keys in blocks,
 * packs each block's k and v for the kernels into scratch that stays in the cache, and brings every
 * row of the span on by it: scores, softmax, product with v. So no scratch grows with the number of
 * tokens. A row's result depends on its own q and on the blocks in order, not on its span. */
#include "tasks.h"

enum {
    SPAN_MOST = 2048 * 64, /* rows of a task times depth: packing the keys is a small part then */
    SPAN_LEAST = 64,
    TASKS = 4 /* a thread, so that the last ones do not wait for each other */
};

/* One call, cut up. */
typedef struct vgq_plan {
    vgq_attention_call call;
    const vgq_attention_kernels *kernels;
    vgq_store_fn *store;
    const vgq_scores_gemm *scores;
    const vgq_values_gemm *values;
    vgq_rows part[3];          /* q, k and v of the first head */
    size_t depth;              /* channels, padded */
    float factor;              /* what makes scores the exponents of 2 */
    size_t span, spans, tasks; /* rows of a task; of a head; tasks of all */
    vgq_crew crew;
} vgq_plan;

/* A thread's scratch. */
typedef struct vgq_own {
    float *x;            /* [VGQ_KEYS][depth] */
    float *mean;         /* [depth]: of k */
    float *k_scale;      /* [VGQ_KEYS] */
    float *v_scale;      /* [depth] */
    float *s;            /* [group][VGQ_KEYS] */
    float *kept, *added; /* [group] */
    unsigned char *k, *v, *p;
    unsigned char *q; /* of the span, as what follows */
    float *r;
    int32_t *first;
    vgq_gathered to;
    float *o;
    uintptr_t end;
} vgq_own;

/* Rows of a span, up to whole groups. */
static size_t padded_span(const vgq_plan *plan)
{
    return vgq_round_up(plan->span, plan->scores->rows);
}

/* Lay a thread's scratch out from `at` on; from 0: its end is its size. */
static vgq_own own_at(const vgq_plan *plan, uintptr_t at)
{
    const size_t depth = plan->depth, group = plan->scores->rows, rows = padded_span(plan);
    vgq_own own;
#define TAKE(member, nbytes) \
    own.member = (void *)at; \
    at += vgq_round_up((nbytes), VGQ_ALIGN);
    TAKE(x, VGQ_KEYS * depth * sizeof(float))
    TAKE(mean, depth * sizeof(float))
    TAKE(k_scale, VGQ_KEYS * sizeof(float))
    TAKE(v_scale, depth * sizeof(float))
    TAKE(s, group * VGQ_KEYS * sizeof(float))
    TAKE(kept, group * sizeof(float))
    TAKE(added, group * sizeof(float))
    TAKE(k, VGQ_KEYS * depth * plan->scores->k_nbytes)
    TAKE(v, VGQ_KEYS * depth * plan->values->v_nbytes)
    TAKE(p, group * VGQ_KEYS * plan->values->p_nbytes)
    TAKE(q, rows * depth * plan->scores->q_nbytes)
    TAKE(r, rows * sizeof(float))
    TAKE(first, rows * sizeof(int32_t))
    TAKE(to.top, rows * sizeof(float))
    TAKE(to.lanes, rows * VGQ_LANES * sizeof(float))
    TAKE(o, rows * depth * sizeof(float))
#undef TAKE
    own.end = at;
    return own;
}

static vgq_rows rows_of(const vgq_attention_call *call, size_t part, size_t depth)
{
    static const vgq_norm none;
    vgq_rows rows = {
        .x = (const char *)call->qkv + part * call->strides[2] * vgq_dtype_nbytes(call->x_dtype),
        .stride = call->strides[1],
        .dtype = call->x_dtype,
        .dim = call->dim,
        .depth = depth,
        .norm = part == 0   ? call->q_norm
                : part == 1 ? call->k_norm
                            : none,
    };
    if (part < 2) {
        rows.cos = call->cos;
        rows.sin = call->sin;
        rows.rope_tokens = call->rope_tokens;
        rows.rope_width = call->rope_width;
    }
    return rows;
}

static vgq_plan plan_of(const vgq_attention_call *call)
{
    const vgq_context now = call->context ? *call->context : vgq_context_now();
    const vgq_kernels *const chosen = now.kernels;
    vgq_plan plan = {.call = *call, .kernels = &chosen->attention};
    plan.store = chosen->quantize.store[call->y_dtype];
    plan.scores = plan.kernels->scores[call->scores];
    if (!plan.scores)
        plan.scores = plan.kernels->scores[VGQ_FLOAT_ACTIVATIONS];
    plan.values = plan.kernels->values[call->values];
    if (!plan.values)
        plan.values = plan.kernels->values[VGQ_FLOAT_ACTIVATIONS];
    plan.depth = vgq_round_up(call->dim, VGQ_DEPTH);
    plan.factor = call->scale * VGQ_LOG2E;
    for (size_t part = 0; part < 3; part++)
        plan.part[part] = rows_of(call, part, plan.depth);
    const size_t all = call->batch * call->heads;
    /* a product of 64 x 64 channels for each pair of tokens would be 64 elements of other work */
    plan.crew.team = vgq_team(
        now.threads, vgq_min(all * call->tokens, SIZE_MAX / call->tokens / 4) * call->tokens);
    const size_t wanted = TASKS * (size_t)plan.crew.team;
    plan.spans = (call->tokens * plan.depth + SPAN_MOST - 1) / SPAN_MOST;
    if (all * plan.spans < wanted)
        plan.spans = (wanted + all - 1) / all;
    plan.span = vgq_round_up((call->tokens + plan.spans - 1) / plan.spans, plan.scores->rows);
    if (plan.span < SPAN_LEAST)
        plan.span = vgq_min(SPAN_LEAST, call->tokens);
    plan.spans = (call->tokens + plan.span - 1) / plan.span;
    plan.tasks = all * plan.spans;
    plan.crew.team = (int)vgq_min((size_t)plan.crew.team, plan.tasks);
    plan.crew.own_nbytes = own_at(&plan, 0).end;
    return plan;
}

static size_t plan_nbytes(const vgq_plan *plan) { return VGQ_ALIGN + vgq_crew_nbytes(&plan->crew); }

static int is_bad(const vgq_attention_call *call)
{
    return !call || (unsigned)call->scores > VGQ_INT8_ACTIVATIONS ||
           (unsigned)call->values > VGQ_INT8_ACTIVATIONS || (unsigned)call->x_dtype >= VGQ_DTYPES ||
           (unsigned)call->y_dtype >= VGQ_DTYPES || !call->dim || call->dim % 8 ||
           call->dim > VGQ_WIDEST || !(call->scale >= 0 && isfinite(call->scale)) ||
           !call->cos != !call->sin ||
           (call->cos && (!call->rope_tokens || !call->rope_width || call->rope_width % 2 ||
                          call->dim % call->rope_width));
}

static int is_empty(const vgq_attention_call *call)
{
    return !call->batch || !call->tokens || !call->heads;
}

size_t vgq_attention_nbytes(const vgq_attention_call *call)
{
    if (is_bad(call) || is_empty(call))
        return 0;
    const vgq_plan plan = plan_of(call);
    return plan_nbytes(&plan);
}

/* One task: rows start..end of a head, with this thread's scratch. */
typedef struct vgq_task {
    size_t start, end;
    vgq_rows part[3];
    char *y; /* of token 0 */
    vgq_own own;
} vgq_task;

/* The mean of k over at most VGQ_KEYS keys, evenly spread. */
static void find_mean(const vgq_plan *plan, vgq_task *task)
{
    enum { AHEAD = 8 };
    const size_t tokens = plan->call.tokens, n = vgq_min(tokens, VGQ_KEYS);
    const vgq_rows *const k = &task->part[1];
    const size_t nbytes = vgq_dtype_nbytes(k->dtype);
    float *const mean = task->own.mean, *const x = task->own.x;
    for (size_t c = 0; c < plan->depth; c++)
        mean[c] = 0;
    for (size_t i = 0; i < n; i++) {
        /* those keys stand apart: prepare asks ahead for others */
        const size_t later = vgq_min(i + AHEAD, n - 1) * tokens / n;
        for (size_t c = 0; c < k->dim * nbytes; c += VGQ_ALIGN)
            __builtin_prefetch((const char *)k->x + later * k->stride * nbytes + c);
        plan->kernels->prepare(k, i * tokens / n, 1, x);
        for (size_t c = 0; c < plan->depth; c++)
            mean[c] += x[c];
    }
    for (size_t c = 0; c < plan->depth; c++)
        mean[c] /= (float)n;
}

/* The span's rows of q as operands, zeros after them. */
static void begin_span(const vgq_plan *plan, vgq_task *task)
{
    const vgq_scores_gemm *const scores = plan->scores;
    const size_t rows = task->end - task->start, depth = plan->depth, padded = padded_span(plan);
    vgq_own *const own = &task->own;
    for (size_t i = 0, n; i < padded; i += n) {
        const size_t left = i < rows ? rows - i : 0;
        n = vgq_min(VGQ_KEYS, padded - i);
        plan->kernels->prepare(&task->part[0], task->start + i, vgq_min(n, left), own->x);
        if (left < n)
            memset(own->x + left * depth, 0, (n - left) * depth * sizeof(float));
        scores->code_queries(n, depth, own->x, plan->factor, own->q + i * depth * scores->q_nbytes,
                             own->r + i, own->first + i);
    }
    for (size_t i = 0; i < padded; i++)
        own->to.top[i] = VGQ_TOP_LEAST;
    memset(own->to.lanes, 0, padded * sizeof(*own->to.lanes));
    memset(own->o, 0, padded * depth * sizeof(float));
}

/* Pack a block of n keys from `key` on. Whether a value is not finite. */
static int pack_block(const vgq_plan *plan, vgq_task *task, size_t key, size_t n)
{
    vgq_own *const own = &task->own;
    const size_t depth = plan->depth;
    int bad = 0;
    for (size_t i = 0; i < n; i += VGQ_PANEL) {
        const size_t keys = vgq_min(VGQ_PANEL, n - i);
        plan->kernels->prepare(&task->part[1], key + i, keys, own->x);
        for (size_t j = 0; j < keys; j++)
            for (size_t c = 0; c < depth; c++)
                own->x[j * depth + c] -= own->mean[c];
        bad |= plan->scores->pack_keys(
            keys, depth, own->x, own->k + i * depth * plan->scores->k_nbytes, own->k_scale + i);
    }
    plan->kernels->prepare(&task->part[2], key, n, own->x);
    return bad | plan->values->pack_values(n, depth, own->x, own->v, own->v_scale);
}

/* Bring the span's rows on by the block that is packed. */
static void add_block(const vgq_plan *plan, vgq_task *task, size_t n)
{
    vgq_own *const own = &task->own;
    const size_t depth = plan->depth, group = plan->scores->rows;
    const size_t keys = vgq_round_up(n, VGQ_PANEL), rows = task->end - task->start;
    for (size_t i = 0; i < rows; i += group) {
        const vgq_gathered to = {own->to.top + i, own->to.lanes + i};
        plan->scores->tile(keys, depth, own->q + i * depth * plan->scores->q_nbytes, own->first + i,
                           own->k, own->k_scale, own->s);
        plan->values->softmax(group, n, own->s, own->r + i, to, own->kept, own->added, own->p);
        plan->values->tile(group, keys, depth, own->p, own->v, own->v_scale, own->kept, own->added,
                           own->o + i * depth);
    }
}

/* The tree of vgq_lane_sum, in float. */
static float lane_sum(const float x[VGQ_LANES])
{
    float sum[VGQ_LANES / 2];
    for (size_t i = 0; i < VGQ_LANES / 2; i++)
        sum[i] = x[i] + x[i + VGQ_LANES / 2];
    for (size_t n = VGQ_LANES / 4; n; n /= 2)
        for (size_t i = 0; i < n; i++)
            sum[i] += sum[i + n];
    return sum[0];
}

/* A few rows at a time: a row that is stored as soon as it is scaled would be read in wider pieces
 * than it was just written, and wait for the memory. */
static void store_span(const vgq_plan *plan, vgq_task *task, int bad)
{
    enum { AT_ONCE = 16 };
    const size_t dim = plan->call.dim, rows = task->end - task->start;
    const size_t step = plan->call.heads * dim * vgq_dtype_nbytes(plan->call.y_dtype);
    char *y = task->y + task->start * step;
    for (size_t i = 0, n; i < rows; i += n) {
        n = vgq_min(AT_ONCE, rows - i);
        float *const o = task->own.o + i * plan->depth;
        for (size_t r = 0; r < n; r++) {
            const float inverse = bad ? NAN : 1.0f / lane_sum(task->own.to.lanes[i + r]);
            for (size_t c = 0; c < dim; c++)
                o[r * plan->depth + c] *= inverse;
        }
        for (size_t r = 0; r < n; r++, y += step)
            plan->store(dim, o + r * plan->depth, y);
    }
}

static void run_task(const void *job, size_t index, unsigned char *own)
{
    const vgq_plan *const plan = job;
    const vgq_attention_call *const call = &plan->call;
    const size_t span = index % plan->spans, head = index / plan->spans % call->heads;
    const size_t batch = index / plan->spans / call->heads;
    vgq_task task = {.start = span * plan->span, .own = own_at(plan, (uintptr_t)own)};
    task.end = vgq_min(task.start + plan->span, call->tokens);
    task.y = (char *)call->y + (batch * call->tokens * call->heads + head) * call->dim *
                                   vgq_dtype_nbytes(call->y_dtype);
    for (size_t part = 0; part < 3; part++) {
        task.part[part] = plan->part[part];
        task.part[part].x =
            (const char *)plan->part[part].x +
            (batch * call->strides[0] + head * call->strides[3]) * vgq_dtype_nbytes(call->x_dtype);
    }
    find_mean(plan, &task);
    begin_span(plan, &task);
    int bad = 0;
    for (size_t key = 0, n; key < call->tokens && !vgq_stopped(); key += n) {
        n = vgq_min(VGQ_KEYS, call->tokens - key);
        bad |= pack_block(plan, &task, key, n);
        add_block(plan, &task, n);
    }
    store_span(plan, &task, bad);
}

vgq_status vgq_attention(const vgq_attention_call *call, void *scratch, size_t scratch_nbytes)
{
    if (is_bad(call) || (!is_empty(call) && (!call->qkv || !call->y)))
        return VGQ_EINVAL;
    if (is_empty(call))
        return VGQ_OK;
    vgq_plan plan = plan_of(call);
    if (!scratch || scratch_nbytes < plan_nbytes(&plan))
        return VGQ_EINVAL;
    const size_t beyond = (uintptr_t)scratch % VGQ_ALIGN;
    vgq_crew_place(&plan.crew, (unsigned char *)scratch + (beyond ? VGQ_ALIGN - beyond : 0));
    return vgq_run_tasks(&plan.crew, plan.crew.team, plan.tasks, run_task, &plan);
}
