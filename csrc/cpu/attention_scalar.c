/* SPDX-License-Identifier: Apache-2.0
 * Attention kernels in plain C: the definition of right for every other table. Operands are
 * row-major: q and k a row a token, v a row a token. */
#include "attention_rows.h"

static void prepare_scalar(const vgq_rows *rows, size_t first, size_t n, float *to)
{
    prepare_rows(rows, first, n, to);
}

/* ---- float ------------------------------------------------------------------------------------
 */

static int pack_keys_f32_scalar(size_t n, size_t depth, const float *x, void *panel, float *scale)
{
    memcpy(panel, x, n * depth * sizeof(*x));
    memset((float *)panel + n * depth, 0, (VGQ_PANEL - n) * depth * sizeof(*x));
    for (size_t i = 0; i < VGQ_PANEL; i++)
        scale[i] = 1;
    return not_finite(n * depth, x);
}

enum { ROWS = 4 };

static void scores_f32_scalar(size_t keys, size_t depth, const void *queries, const int32_t *first,
                              const void *panels, const float *scale, float *s)
{
    const float *const q = queries, *const k = panels;
    (void)first, (void)scale;
    for (size_t r = 0; r < ROWS; r++)
        for (size_t j = 0; j < keys; j++) {
            float sum = 0;
            for (size_t i = 0; i < depth; i++)
                sum += q[r * depth + i] * k[j * depth + i];
            s[r * VGQ_KEYS + j] = sum;
        }
}

static float largest_score(size_t n, const float *s)
{
    float max = s[0];
    for (size_t j = 1; j < n; j++)
        max = s[j] > max ? s[j] : max;
    return max;
}

/* What comes before the p of a row: the block's peak, the row's top and the factors. */
static float begin_row(size_t n, float *s, float r, float *top, float *kept, float *added)
{
    const float peak = vgq_row_peak(n, s, largest_score(n, s), r);
    vgq_join_top(peak, top, kept, added);
    return peak;
}

static void softmax_f32_scalar(size_t rows, size_t n, float *s, const float *r, vgq_gathered to,
                               float *kept, float *added, void *weights)
{
    for (size_t m = 0; m < rows; m++, s += VGQ_KEYS) {
        float *const p = (float *)weights + m * VGQ_KEYS;
        const float peak = begin_row(n, s, r[m], &to.top[m], &kept[m], &added[m]);
        float lanes[VGQ_LANES] = {0};
        for (size_t j = 0; j < n; j++) {
            p[j] = vgq_exp2(fmaf(s[j], r[m], -peak));
            lanes[j % VGQ_LANES] += p[j];
        }
        for (size_t i = 0; i < VGQ_LANES; i++)
            to.lanes[m][i] = fmaf(lanes[i], added[m], to.lanes[m][i] * kept[m]);
        for (size_t j = n; j < vgq_round_up(n, VGQ_PANEL); j++)
            p[j] = 0;
    }
}

static void values_f32_scalar(size_t rows, size_t keys, size_t depth, const void *weights,
                              const void *block, const float *scale, const float *kept,
                              const float *added, float *o)
{
    const float *const p = weights, *const v = block;
    (void)scale;
    for (size_t m = 0; m < rows; m++)
        for (size_t c = 0; c < depth; c++) {
            float sum = 0;
            for (size_t j = 0; j < keys; j++)
                sum += p[m * VGQ_KEYS + j] * v[j * depth + c];
            o[m * depth + c] = fmaf(sum, added[m], o[m * depth + c] * kept[m]);
        }
}

/* ---- INT8 -------------------------------------------------------------------------------------
 */

static int pack_keys_i8_scalar(size_t n, size_t depth, const float *x, void *panel, float *scale)
{
    int8_t *const k = panel;
    int32_t codes[VGQ_WIDEST];
    int finite = 1;
    memset(k, 0, VGQ_PANEL * depth);
    for (size_t j = 0; j < VGQ_PANEL; j++)
        scale[j] = 0;
    for (size_t j = 0; j < n; j++) {
        scale[j] = key_scale(code_row(depth, x + j * depth, codes));
        finite &= scale[j] == scale[j];
        for (size_t i = 0; i < depth; i++)
            k[j * depth + i] = (int8_t)codes[i];
    }
    return !finite;
}

static void scores_i8_scalar(size_t keys, size_t depth, const void *queries, const int32_t *first,
                             const void *panels, const float *scale, float *s)
{
    const int8_t *const q = queries, *const k = panels;
    (void)first;
    for (size_t r = 0; r < ROWS; r++)
        for (size_t j = 0; j < keys; j++) {
            int32_t sum = 0;
            for (size_t i = 0; i < depth; i++)
                sum += q[r * depth + i] * k[j * depth + i];
            s[r * VGQ_KEYS + j] = (float)sum * scale[j];
        }
}

static int pack_values_i8_scalar(size_t n, size_t depth, const float *x, void *block, float *scale)
{
    int8_t *const v = block;
    float inverse[VGQ_WIDEST];
    const int finite = column_scales(n, depth, x, scale, inverse);
    memset(v, 0, vgq_round_up(n, VGQ_PANEL) * depth);
    for (size_t i = 0; i < n * depth; i++)
        v[i] = vgq_encode_token(x[i], inverse[i % depth]);
    return !finite;
}

/* 255 * 2^x, 0 below 2^-126. */
static float exp2_code(float x)
{
    if (!(x >= -126.0f))
        return x != x ? x : 0;
    const float whole = rintf(x), f = x - whole;
    float p = VGQ_EXP2_CODES_FIRST;
#define TERM(t) p = fmaf(p, f, t);
    VGQ_EXP2_CODES(TERM)
#undef TERM
    return p * vgq_float_of_bits((uint32_t)(127 + (int)whole) << 23);
}

static void softmax_u8_scalar(size_t rows, size_t n, float *s, const float *r, vgq_gathered to,
                              float *kept, float *added, void *weights)
{
    for (size_t m = 0; m < rows; m++, s += VGQ_KEYS) {
        uint8_t *const codes = (uint8_t *)weights + m * VGQ_KEYS;
        const float peak = begin_row(n, s, r[m], &to.top[m], &kept[m], &added[m]);
        float lanes[VGQ_LANES] = {0};
        for (size_t j = 0; j < n; j++) {
            const float p = exp2_code(fmaf(s[j], r[m], -peak));
            lanes[j % VGQ_LANES] += p;
            codes[j] = p == p ? (uint8_t)fminf(rintf(p), 255.0f) : 0;
        }
        for (size_t i = 0; i < VGQ_LANES; i++)
            to.lanes[m][i] = fmaf(lanes[i], added[m], to.lanes[m][i] * kept[m]);
        memset(codes + n, 0, vgq_round_up(n, VGQ_PANEL) - n);
    }
}

static void values_i8_scalar(size_t rows, size_t keys, size_t depth, const void *weights,
                             const void *block, const float *scale, const float *kept,
                             const float *added, float *o)
{
    const uint8_t *const p = weights;
    const int8_t *const v = block;
    for (size_t m = 0; m < rows; m++)
        for (size_t c = 0; c < depth; c++) {
            int32_t sum = 0;
            for (size_t j = 0; j < keys; j++)
                sum += p[m * VGQ_KEYS + j] * v[j * depth + c];
            o[m * depth + c] = fmaf((float)sum, scale[c] * added[m], o[m * depth + c] * kept[m]);
        }
}

static const vgq_scores_gemm scores_f32 = {.rows = ROWS,
                                           .q_nbytes = sizeof(float),
                                           .k_nbytes = sizeof(float),
                                           .code_queries = code_queries_f32,
                                           .pack_keys = pack_keys_f32_scalar,
                                           .tile = scores_f32_scalar};
static const vgq_values_gemm values_f32 = {.p_nbytes = sizeof(float),
                                           .v_nbytes = sizeof(float),
                                           .pack_values = pack_values_f32,
                                           .softmax = softmax_f32_scalar,
                                           .tile = values_f32_scalar};
static const vgq_scores_gemm scores_i8 = {.rows = ROWS,
                                          .q_nbytes = 1,
                                          .k_nbytes = 1,
                                          .code_queries = code_queries_i8,
                                          .pack_keys = pack_keys_i8_scalar,
                                          .tile = scores_i8_scalar};
static const vgq_values_gemm values_i8 = {.p_nbytes = 1,
                                          .v_nbytes = 1,
                                          .pack_values = pack_values_i8_scalar,
                                          .softmax = softmax_u8_scalar,
                                          .tile = values_i8_scalar};

const vgq_attention_kernels vgq_attention_scalar = {
    .prepare = prepare_scalar,
    .scores = {[VGQ_FLOAT_ACTIVATIONS] = &scores_f32, [VGQ_INT8_ACTIVATIONS] = &scores_i8},
    .values = {[VGQ_FLOAT_ACTIVATIONS] = &values_f32, [VGQ_INT8_ACTIVATIONS] = &values_i8},
};
