/* SPDX-License-Identifier: Apache-2.0
 * Attention against a softmax in double: its exponentials, groups of any number of rows, whole
 * calls, and what scores far away, NaN and infinities give. */
#include "core.h"

#include "../csrc/kernels.h"

#include <math.h>
#include <string.h>

/* ---- exponentials -----------------------------------------------------------------------------
 *
 * Over every float that they are taken of: from -127 to a score's rounding above 0. A row of 16
 * scores, of which the first is 0 and so the top, leaves each p by itself in the sums. */

/* The largest relative error of p / unit over every step-th float; p of floats below 2^-126 may be
 * anything that small. */
static double worst_error(const vgq_values_gemm *values, double unit, uint32_t step)
{
    enum { N = VGQ_LANES };
    const uint32_t last = vgq_bits_of_float(127.0f);
    static unsigned char p[VGQ_KEYS * sizeof(float)];
    static float s[VGQ_KEYS];
    double worst = 0;
    for (uint32_t bits = 1; bits < last;) {
        float top = VGQ_TOP_LEAST, lanes[1][VGQ_LANES] = {{0}}, kept, added, r = 1, x[N] = {0};
        for (int i = 1; i < N; i++) {
            x[i] = -vgq_float_of_bits(bits < last ? bits : last);
            /* of floats so small that 2^x is 1, a few */
            bits += bits < vgq_bits_of_float(0x1p-26f) ? 4093 * step : step;
        }
        memcpy(s, x, sizeof(x));
        values->softmax(1, N, s, &r, (vgq_gathered){&top, lanes}, &kept, &added, p);
        for (int i = 0; i < N; i++) {
            const double want = exp2(x[i]), got = lanes[0][i] / unit;
            if (x[i] < -126)
                CHECK(got >= 0 && got < 0x1p-118, "2^%a is %a", x[i], got);
            else
                worst = fmax(worst, fabs(got / want - 1));
        }
    }
    return worst;
}

void test_exponentials(uint32_t step)
{
    const vgq_kernels *const kernels = vgq_context_now().kernels;
    const vgq_values_gemm *const floats = kernels->attention.values[VGQ_FLOAT_ACTIVATIONS];
    const vgq_values_gemm *const codes = kernels->attention.values[VGQ_INT8_ACTIVATIONS];
    const uint32_t of_scalar = strcmp(vgq_isa(), "scalar") ? 1 : 61; /* it has no instruction */
    double worst = worst_error(floats, 1, step * of_scalar);
    CHECK(worst < 2.5e-7, "2^x is off by %g", worst);
    worst = worst_error(codes, 255, step * of_scalar);
    CHECK(worst < 1.03e-4, "2^x of codes is off by %g", worst);
}

/* ---- rows of any number -----------------------------------------------------------------------
 */

enum { DIM = 64 };

/* How far from a mean of values in -1 to 1 a softmax with v may be: float32, bfloat16, 8 bits. */
static const double bounds[] = {2e-6, 8e-3, 8e-3};

/* One block of n keys: softmax and product with v of `rows` rows, into o. */
static void block_of_rows(const vgq_values_gemm *values, size_t rows, size_t n, const float *scores,
                          const float *v, float *o)
{
    static _Alignas(64) unsigned char p[VGQ_GROUP_MOST * VGQ_KEYS * sizeof(float)];
    static _Alignas(64) unsigned char block[VGQ_KEYS * DIM * sizeof(float)];
    static float s[VGQ_GROUP_MOST * VGQ_KEYS], lanes[VGQ_GROUP_MOST][VGQ_LANES];
    float scale[DIM], kept[VGQ_GROUP_MOST], added[VGQ_GROUP_MOST], r[VGQ_GROUP_MOST];
    float top[VGQ_GROUP_MOST];
    for (size_t i = 0; i < rows; i++) {
        r[i] = 1.5f;
        top[i] = VGQ_TOP_LEAST;
    }
    memset(lanes, 0, sizeof(lanes));
    memset(o, 0, rows * DIM * sizeof(*o));
    memcpy(s, scores, rows * VGQ_KEYS * sizeof(*s));
    CHECK(!values->pack_values(n, DIM, v, block, scale), " ");
    values->softmax(rows, n, s, r, (vgq_gathered){top, lanes}, kept, added, p);
    values->tile(rows, vgq_round_up(n, VGQ_PANEL), DIM, p, block, scale, kept, added, o);
    for (size_t i = 0; i < rows; i++) {
        float sum = 0;
        for (size_t j = 0; j < VGQ_LANES; j++)
            sum += lanes[i][j];
        for (size_t c = 0; c < DIM; c++)
            o[i * DIM + c] /= sum;
    }
}

/* A row's result is its own, whatever the number of rows beside it, and that of a softmax. */
static void test_groups(const vgq_values_gemm *values, double bound)
{
    static const size_t keys[] = {1, 9, 64, 200, VGQ_KEYS};
    static float s[VGQ_GROUP_MOST * VGQ_KEYS], o[VGQ_GROUP_MOST * DIM], all[VGQ_GROUP_MOST * DIM];
    static float v[VGQ_KEYS * DIM];
    for (size_t i = 0; i < VGQ_KEYS * DIM; i++)
        v[i] = numbers[i % CORE_NUMBERS];
    for (size_t i = 0; i < VGQ_GROUP_MOST * VGQ_KEYS; i++)
        s[i] = 4 * numbers[(i + 77) % CORE_NUMBERS];
    for (size_t k = 0; k < sizeof(keys) / sizeof(keys[0]); k++) {
        const size_t n = keys[k];
        block_of_rows(values, VGQ_GROUP_MOST, n, s, v, all);
        for (size_t i = 0; i < VGQ_GROUP_MOST; i++) {
            double sum = 0, mean[DIM] = {0};
            for (size_t j = 0; j < n; j++) {
                const double p = exp2(1.5 * (double)s[i * VGQ_KEYS + j]);
                sum += p;
                for (size_t c = 0; c < DIM; c++)
                    mean[c] += p * (double)v[j * DIM + c];
            }
            for (size_t c = 0; c < DIM; c++)
                CHECK(fabs(all[i * DIM + c] - mean[c] / sum) < bound, "row %zu of %zu keys: %g", i,
                      n, all[i * DIM + c] - mean[c] / sum);
        }
        for (size_t rows = 1; rows < VGQ_GROUP_MOST; rows++) {
            block_of_rows(values, rows, n, s, v, o);
            CHECK(memcmp(o, all, rows * DIM * sizeof(*o)) == 0, "%zu rows, %zu keys", rows, n);
        }
    }
}

/* ---- whole calls ------------------------------------------------------------------------------
 */

enum { TOKENS = VGQ_KEYS + 4, HEADS = 2, PARTS = 3, ROW = PARTS * HEADS * DIM };
static float qkv[2 * TOKENS * ROW], y[2 * TOKENS * HEADS * DIM], before[TOKENS * HEADS * DIM];

/* Channel 0 of head 0. */
static float *at(size_t token, size_t part) { return qkv + token * ROW + part * HEADS * DIM; }

static void attend(int mode, size_t tokens, float scale)
{
    static unsigned char scratch[4 << 20];
    const vgq_attention_call call = {.scores = (vgq_activations)(mode % 3),
                                     .values = (vgq_activations)(mode / 3),
                                     .batch = 1,
                                     .tokens = tokens,
                                     .heads = HEADS,
                                     .dim = DIM,
                                     .qkv = qkv,
                                     .strides = {0, ROW, HEADS * DIM, DIM},
                                     .scale = scale,
                                     .y = y};
    CHECK(vgq_attention_nbytes(&call) <= sizeof(scratch), " ");
    CHECK(vgq_attention(&call, scratch, sizeof(scratch)) == VGQ_OK, " ");
}

static void fill(size_t tokens)
{
    for (size_t i = 0; i < tokens * ROW; i++)
        qkv[i] = numbers[i * 7 % CORE_NUMBERS];
}

/* Some rows of every span. */
static void test_softmax(int mode, size_t tokens)
{
    const double bound = fmax(bounds[mode % 3], bounds[mode / 3]);
    fill(tokens);
    attend(mode, tokens, 0.25f);
    for (size_t t = 0; t < tokens; t += 1 + tokens / 60)
        for (size_t h = 0; h < HEADS; h++) {
            double sum = 0, mean[DIM] = {0};
            for (size_t j = 0; j < tokens; j++) {
                double score = 0;
                for (size_t c = 0; c < DIM; c++)
                    score += (double)at(t, 0)[h * DIM + c] * (double)at(j, 1)[h * DIM + c];
                const double p = exp(0.25 * score);
                sum += p;
                for (size_t c = 0; c < DIM; c++)
                    mean[c] += p * (double)at(j, 2)[h * DIM + c];
            }
            for (size_t c = 0; c < DIM; c++) {
                const float got = y[(t * HEADS + h) * DIM + c];
                CHECK(fabs((double)got - mean[c] / sum) < bound, "token %zu of %zu, mode %d: %g", t,
                      tokens, mode, (double)got - mean[c] / sum);
            }
        }
}

/* Which rows of head 0 are NaN while that value is there; those of head 1 are as before. */
static void test_spoiled(int mode, size_t token, size_t part, float value, int some, int all)
{
    const float good = at(token, part)[11];
    at(token, part)[11] = value;
    attend(mode, TOKENS, 0.25f);
    at(token, part)[11] = good;
    for (size_t t = 0; t < TOKENS; t++)
        for (size_t c = 0; c < DIM; c++) {
            const size_t i = t * HEADS * DIM + c;
            if (all || (some && t == token))
                CHECK(isnan(y[i]), "token %zu, part %zu, mode %d: %g", t, part, mode, (double)y[i]);
            else
                CHECK(isfinite(y[i]), "token %zu, part %zu, mode %d", t, part, mode);
            CHECK(!some || all || t == token || y[i] == before[i], "token %zu, mode %d", t, mode);
            CHECK(y[i + DIM] == before[i + DIM], "the other head, token %zu", t);
        }
}

/* Keys far above and below: a row's peak of one block of keys is beyond the other's by more than
 * any power, in both orders, so that the result is the mean of the v of one block; near ones beside
 * them are as in test_softmax. */
static void test_far(int mode)
{
    const double bound = fmax(bounds[mode % 3], bounds[mode / 3]);
    fill(TOKENS);
    for (size_t t = 0; t < TOKENS; t++)
        for (size_t c = 0; c < DIM; c++) {
            at(t, 0)[c] = t % 2 ? 1e4f : -1e4f;
            at(t, 1)[c] = t < VGQ_KEYS ? -1e4f : 1e4f;
        }
    attend(mode, TOKENS, 1);
    double mean[2][DIM] = {{0}};
    for (size_t t = 0; t < TOKENS; t++)
        for (size_t c = 0; c < DIM; c++)
            mean[t >= VGQ_KEYS][c] += (double)at(t, 2)[c];
    for (size_t t = 0; t < TOKENS; t++)
        for (size_t c = 0; c < DIM; c++) {
            const double want = mean[t % 2][c] / (t % 2 ? TOKENS - VGQ_KEYS : VGQ_KEYS);
            const float got = y[t * HEADS * DIM + c];
            CHECK(fabs((double)got - want) < bound, "token %zu, mode %d: %g, not %g", t, mode,
                  (double)got, want);
        }
}

void test_attention_values(void)
{
    static const size_t tokens[] = {1, 5, 63, 2 * VGQ_KEYS + 1, TOKENS};
    const vgq_attention_kernels *const kernels = &vgq_context_now().kernels->attention;
    for (int a = 0; a < 3; a++)
        if (kernels->values[a])
            test_groups(kernels->values[a], bounds[a]);
    vgq_set_threads(1);
    for (int mode = 0; mode < 9; mode += 4) {
        if (!kernels->scores[mode / 4]) /* bfloat16 is float32 then */
            continue;
        for (size_t i = 0; i < sizeof(tokens) / sizeof(tokens[0]); i++)
            test_softmax(mode, tokens[i]);
        memcpy(before, y, sizeof(before)); /* of TOKENS tokens */
        for (size_t part = 0; part < 3; part++) {
            test_spoiled(mode, 7, part, NAN, 1, part > 0);
            test_spoiled(mode, TOKENS - 2, part, -INFINITY, 1, part > 0);
        }
        test_spoiled(mode, 40, 1, 0x1p105f, mode == 8, mode == 8); /* of an INT8 key: too large */
        test_far(mode);
    }
    vgq_set_threads(0);
}
