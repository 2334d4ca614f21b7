/* SPDX-License-Identifier: Apache-2.0
 * What every front of the C core refuses, argument by argument, and values at the edges of what it
 * takes. */
#include "core.h"

#include <float.h>
#include <math.h>
#include <string.h>

#define REFUSED(call) CHECK((call) == VGQ_EINVAL, " ")

static const vgq_shape good = {2, 8, 4};
static float x[64], lo[64], hi[64], scale[64];
static uint8_t q[64], factor[64];
static uint64_t bad[64];
static double values[512];

static void test_quantize_fronts(void)
{
    const vgq_format none = VGQ_FORMATS;
    const vgq_dtype no_dtype = VGQ_DTYPES;
    memset(q, 7, sizeof(q));
    memset(scale, 7, sizeof(scale));
    REFUSED(vgq_range(no_dtype, good, x, lo, hi, bad));
    REFUSED(vgq_range(VGQ_F32, good, NULL, lo, hi, bad));
    REFUSED(vgq_range(VGQ_F32, good, x, NULL, hi, bad));
    REFUSED(vgq_range(VGQ_F32, good, x, lo, NULL, bad));
    REFUSED(vgq_range(VGQ_F32, good, x, lo, hi, NULL));
    REFUSED(vgq_parameters(none, 1, lo, hi, scale, NULL));
    REFUSED(vgq_parameters(VGQ_I4, 1, NULL, hi, scale, NULL));
    REFUSED(vgq_parameters(VGQ_I4, 1, lo, NULL, scale, NULL));
    REFUSED(vgq_parameters(VGQ_I4, 1, lo, hi, NULL, NULL));
    REFUSED(vgq_quantize(none, VGQ_F32, good, x, scale, NULL, q));
    REFUSED(vgq_quantize(VGQ_I8, no_dtype, good, x, scale, NULL, q));
    REFUSED(vgq_quantize(VGQ_I8, VGQ_F32, good, NULL, scale, NULL, q));
    REFUSED(vgq_quantize(VGQ_I8, VGQ_F32, good, x, NULL, NULL, q));
    REFUSED(vgq_quantize(VGQ_I8, VGQ_F32, good, x, scale, NULL, NULL));
    REFUSED(vgq_dequantize(none, VGQ_F32, good, q, scale, NULL, x));
    REFUSED(vgq_dequantize(VGQ_I8, no_dtype, good, q, scale, NULL, x));
    REFUSED(vgq_dequantize(VGQ_I8, VGQ_F32, good, NULL, scale, NULL, x));
    REFUSED(vgq_dequantize(VGQ_I8, VGQ_F32, good, q, NULL, NULL, x));
    REFUSED(vgq_dequantize(VGQ_I8, VGQ_F32, good, q, scale, NULL, NULL));
    REFUSED(vgq_two_level(no_dtype, good, x, scale, factor, NULL, values));
    REFUSED(vgq_two_level(VGQ_F32, good, NULL, scale, factor, NULL, values));
    REFUSED(vgq_two_level(VGQ_F32, good, x, NULL, factor, NULL, values));
    REFUSED(vgq_two_level(VGQ_F32, good, x, scale, NULL, NULL, values));
    REFUSED(vgq_two_level(VGQ_F32, good, x, scale, factor, NULL, NULL));
    const vgq_shape no_columns = {2, 0, 1}; /* what is a row's is written all the same */
    REFUSED(vgq_range(VGQ_F32, no_columns, NULL, NULL, NULL, NULL));
    REFUSED(vgq_two_level(VGQ_F32, no_columns, NULL, NULL, NULL, NULL, values));
    REFUSED(vgq_two_level(VGQ_F32, no_columns, NULL, scale, NULL, NULL, NULL));
    const vgq_shape shapes[] = {
        {2, 8, 0}, {2, 8, 9}, {SIZE_MAX / 8, 8, 4}, {SIZE_MAX, SIZE_MAX, 1}};
    for (size_t i = 0; i < sizeof(shapes) / sizeof(shapes[0]); i++) {
        REFUSED(vgq_range(VGQ_F32, shapes[i], x, lo, hi, bad));
        REFUSED(vgq_quantize(VGQ_I8, VGQ_F32, shapes[i], x, scale, NULL, q));
        REFUSED(vgq_dequantize(VGQ_I8, VGQ_F32, shapes[i], q, scale, NULL, x));
        REFUSED(vgq_two_level(VGQ_F32, shapes[i], x, scale, factor, NULL, values));
    }
    for (size_t i = 0; i < sizeof(scale); i++)
        CHECK(q[i % sizeof(q)] == 7 && ((unsigned char *)scale)[i] == 7, "an error has written");
}

static void test_metric_fronts(void)
{
    vgq_moments *const m = (vgq_moments *)(void *)values;
    vgq_entropy *const e = (vgq_entropy *)(void *)values;
    REFUSED(vgq_compare(3, VGQ_DTYPES, x, VGQ_F32, x, m));
    REFUSED(vgq_compare(3, VGQ_F32, x, VGQ_DTYPES, x, m));
    REFUSED(vgq_compare(3, VGQ_F32, NULL, VGQ_F32, x, m));
    REFUSED(vgq_compare(3, VGQ_F32, x, VGQ_F32, NULL, m));
    REFUSED(vgq_compare(3, VGQ_F32, x, VGQ_F32, x, NULL));
    REFUSED(vgq_cross_entropy(SIZE_MAX / 2, 3, VGQ_F32, x, VGQ_F32, x, e));
    REFUSED(vgq_cross_entropy(0, 3, VGQ_F32, x, VGQ_F32, x, e));
    REFUSED(vgq_cross_entropy(1, 3, VGQ_DTYPES, x, VGQ_F32, x, e));
    REFUSED(vgq_cross_entropy(1, 3, VGQ_F32, x, VGQ_F32, NULL, e));
    REFUSED(vgq_cross_entropy(1, 3, VGQ_F32, x, VGQ_F32, x, NULL));
    const vgq_images images[] = {
        {1, 12, 10, 1},
        {1, 10, 12, 1},
        {0, 12, 12, 1},
        {1, 12, 12, 0},
        {1, 12, 12, 17},
        {1, SIZE_MAX / 4, 12, 1},
        {SIZE_MAX / 100, 12, 12, 1},
        {1, 12, SIZE_MAX / 16 + 1, 16}, /* width * channels alone is 2^64, so 0 */
    };
    for (size_t i = 0; i < sizeof(images) / sizeof(images[0]); i++) {
        CHECK(vgq_ssim_parts(images[i]) == 0, "%zu", i);
        REFUSED(vgq_ssim(images[i], VGQ_F32, x, VGQ_F32, x, 1, 0, values));
    }
    const vgq_images one = {1, 11, 11, 1};
    CHECK(vgq_ssim_parts(one) == 1, " ");
    REFUSED(vgq_ssim(one, VGQ_DTYPES, numbers, VGQ_F32, numbers, 1, 0, values));
    REFUSED(vgq_ssim(one, VGQ_F32, numbers, VGQ_F32, NULL, 1, 0, values));
    REFUSED(vgq_ssim(one, VGQ_F32, numbers, VGQ_F32, numbers, 0, 0, values));
    REFUSED(vgq_ssim(one, VGQ_F32, numbers, VGQ_F32, numbers, NAN, 0, values));
    REFUSED(vgq_ssim(one, VGQ_F32, numbers, VGQ_F32, numbers, 1, 0, NULL));
    REFUSED(vgq_exp(1, NULL, values));
    REFUSED(vgq_exp(1, values, NULL));
    REFUSED(vgq_log(1, NULL, values));
    REFUSED(vgq_log(1, values, NULL));
    const vgq_metric_parts parts = {1, 2, 3, 4};
    REFUSED(vgq_metric_values(NULL, &parts, values));
    REFUSED(vgq_metric_values(m, NULL, values));
    REFUSED(vgq_metric_values(m, &parts, NULL));
}

static double metric(const char *name, size_t n, const float *r, const float *c, double range)
{
    vgq_moments m;
    double all[64];
    const vgq_metric_parts parts = {range, 0.25, 0.5, 0.75};
    CHECK(vgq_compare(n, VGQ_F32, r, VGQ_F32, c, &m) == VGQ_OK, " ");
    CHECK(vgq_metric_values(&m, &parts, all) == VGQ_OK, " ");
    for (size_t i = 0; vgq_metric_row(i); i++)
        if (strcmp(vgq_metric_row(i)->name, name) == 0)
            return all[i];
    CHECK(0, "no metric %s", name);
    return NAN;
}

/* Where formulas have no value, or one by convention. */
static void test_metric_edges(void)
{
    static const float ones[] = {1, 1, 1, 1}, twos[] = {2, 2, 2, 2}, none[4];
    static const float odd[][4] = {{1, NAN, 1, 1}, {1, 1, INFINITY, 1}, {-INFINITY, 1, 1, 1}};
    for (size_t i = 0; i < 3; i++) {
        vgq_moments m;
        CHECK(isnan(metric("mae", 4, ones, odd[i], 1)) && isnan(metric("mse", 4, odd[i], ones, 1)),
              "odd %zu", i);
        CHECK(vgq_compare(4, VGQ_F32, odd[i], VGQ_F32, ones, &m) == VGQ_OK && m.nonfinite_r == 1 &&
                  m.nonfinite_c == 0 && m.lo == 1 && m.hi == 1,
              "odd %zu", i);
        CHECK(vgq_compare(4, VGQ_F32, ones, VGQ_F32, odd[i], &m) == VGQ_OK && m.nonfinite_r == 0 &&
                  m.nonfinite_c == 1,
              "odd %zu", i);
    }
    CHECK(isnan(metric("mae", 0, none, none, 1)), "no elements");
    CHECK(metric("psnr", 4, ones, ones, 1) == INFINITY && metric("psnr", 4, ones, twos, 1) == 0,
          " ");
    CHECK(isnan(metric("psnr", 4, ones, twos, 0)), "no range");
    CHECK(isnan(metric("cosine_similarity", 4, ones, none, 1)), "a vector of zeros");
    CHECK(metric("cosine_similarity", 4, ones, twos, 1) == 1, " ");
    CHECK(isnan(metric("relative_l2", 4, none, ones, 1)), " ");
    CHECK(metric("relative_l2", 4, ones, twos, 1) == 1, " ");
    CHECK(metric("cross_entropy", 4, ones, twos, 1) == 0.25 &&
              metric("kl_divergence", 4, ones, twos, 1) == 0.5 &&
              metric("ssim", 4, ones, twos, 1) == 0.75,
          "what comes from elsewhere goes through");
}

/* ---- linear ---------------------------------------------------------------------------------- */

enum { N = 3, K = 16 };
static uint32_t packed[4096], other[4096];
static int8_t zero[64];

static vgq_weight weight_of(vgq_scales scales)
{
    return (vgq_weight){.format = scales == VGQ_PER_ROW ? VGQ_I8 : VGQ_I4,
                        .scales = scales,
                        .n = N,
                        .k = K,
                        .group = 8,
                        .asymmetric = 1,
                        .q = q,
                        .scale = scale,
                        .factor = factor,
                        .zero = zero};
}

/* Each limit of a weight's values, from inside and from outside. */
static void test_values_of(const vgq_packing *as, size_t nbytes)
{
    static const float refused_scales[] = {0, -1, NAN, INFINITY};
    const vgq_weight w = weight_of(VGQ_TWO_LEVEL);
    vgq_weight changed = w;
    for (size_t at = 0; at < N; at++) {
        float scales[N] = {1, 1, 1};
        changed.scale = scales;
        scales[at] = FLT_MAX;
        CHECK(as->pack(&changed, packed, nbytes) == VGQ_OK, "the largest scale");
        for (size_t i = 0; i < 4; i++) {
            scales[at] = refused_scales[i];
            CHECK(as->pack(&changed, packed, nbytes) == VGQ_ESCALE, "%g", (double)scales[at]);
        }
    }
    for (int symmetric = 0; symmetric < 2; symmetric++)
        for (int last = 0; last <= 16; last++) {
            uint8_t factors[2 * N] = {1, 1, 1, 1, 1, (uint8_t)last};
            changed = w;
            changed.asymmetric = !symmetric;
            changed.factor = factors;
            const int fits = last >= 1 && last <= (symmetric ? 15 : 8);
            CHECK(as->pack(&changed, other, as->nbytes(&changed)) == (fits ? VGQ_OK : VGQ_EFACTOR),
                  "factor %d", last);
        }
    for (int zero_point = -9; zero_point <= 8; zero_point += 17) {
        int8_t zeros[2 * N] = {0, 0, 0, 0, 0, (int8_t)zero_point};
        changed = w;
        changed.zero = zeros;
        CHECK(as->pack(&changed, packed, nbytes) == VGQ_EZERO, "zero point %d", zero_point);
    }
    changed = w; /* the last value counts where the last group is short */
    changed.k = 9;
    uint8_t short_factors[2 * N] = {1, 1, 1, 1, 1, 0};
    changed.factor = short_factors;
    CHECK(as->pack(&changed, other, as->nbytes(&changed)) == VGQ_EFACTOR, " ");
    int8_t edges[2 * N] = {-8, 7, -8, 7, -8, 7}, wide[N] = {-128, 127, 0};
    changed = w;
    changed.zero = edges;
    CHECK(as->pack(&changed, packed, nbytes) == VGQ_OK, " ");
    changed = weight_of(VGQ_PER_ROW); /* of 8 bits: every zero point there is */
    changed.zero = wide;
    CHECK(as->pack(&changed, other, as->nbytes(&changed)) == VGQ_OK, " ");
    CHECK(as->pack(&w, packed, nbytes) == VGQ_OK, " ");
}

static void test_weights(void)
{
    static const vgq_packing *const packings[] = {&vgq_packing_cpu, &vgq_packing_cuda};
    for (int i = 0; i < 2; i++) {
        const vgq_packing *const as = packings[i];
        vgq_weight w = weight_of(VGQ_TWO_LEVEL), told;
        const size_t nbytes = as->nbytes(&w);
        CHECK(nbytes > 0 && nbytes <= sizeof(packed), " ");
        CHECK(as->nbytes(NULL) == 0, " ");
        REFUSED(as->pack(NULL, packed, nbytes));
        REFUSED(as->pack(&w, NULL, nbytes));
        REFUSED(as->pack(&w, packed, nbytes - 4));
        for (int pointer = 0; pointer < 4; pointer++) {
            w = weight_of(VGQ_TWO_LEVEL);
            CHECK(as->pack(&w, packed, nbytes) == VGQ_OK, " ");
            w.q = pointer == 0 ? NULL : w.q;
            w.scale = pointer == 1 ? NULL : w.scale;
            w.factor = pointer == 2 ? NULL : w.factor;
            w.zero = pointer == 3 ? NULL : w.zero;
            REFUSED(as->pack(&w, packed, nbytes));
            REFUSED(as->unpack(packed, nbytes, &w));
        }
        REFUSED(as->unpack(packed, nbytes, NULL));
        CHECK(as->weight(NULL, nbytes, &told) == VGQ_EPACKED, " ");
        CHECK(as->weight(packed, nbytes, NULL) == VGQ_EPACKED, " ");
        CHECK(as->weight(packed, 20, &told) == VGQ_EPACKED, "shorter than a header");
        CHECK(as->weight(packed, nbytes - 4, &told) == VGQ_EPACKED, "cut short");
        CHECK(as->weight((const char *)packed + 1, nbytes, &told) == VGQ_EPACKED, "misaligned");
        CHECK(as->unpack(packed, nbytes - 4, &w) == VGQ_EPACKED, " ");
        CHECK(packings[!i]->weight(packed, nbytes, &told) == VGQ_EPACKED,
              "the other layout's bytes");
        for (size_t byte = 0; byte < 48; byte++) { /* every field of the header counts */
            memcpy(other, packed, nbytes);
            ((unsigned char *)other)[byte] ^= 64;
            CHECK(as->weight(other, nbytes, &told) != VGQ_OK, "byte %zu", byte);
        }
        memset((unsigned char *)other + 40, 255, 8); /* a group that is longer than any row */
        CHECK(as->weight(other, nbytes, &told) == VGQ_EPACKED, " ");
        w = weight_of(VGQ_PER_GROUP);
        w.group = 0;
        CHECK(as->nbytes(&w) == 0, "no group");
        w.group = 12;
        CHECK(as->nbytes(&w) == 0, "a group that is no multiple of 8");
        w = weight_of(VGQ_PER_ROW);
        w.k = VGQ_DEEPEST;
        CHECK(as->nbytes(&w) > VGQ_DEEPEST, "the deepest weight");
        w.n = SIZE_MAX / 8 / VGQ_DEEPEST + 1;
        CHECK(as->nbytes(&w) == 0, "more outputs than bytes can be counted of");
        w.n = N;
        w.k = VGQ_DEEPEST + 1;
        CHECK(as->pack(&w, packed, nbytes) == VGQ_EDEPTH && as->nbytes(&w) == 0, " ");
        /* No product could take these values. Bytes from elsewhere may hold a factor of 0. */
        test_values_of(as, nbytes);
        memset((unsigned char *)packed + 64, 0, nbytes - 64);
        w = weight_of(VGQ_TWO_LEVEL);
        float some_scales[N];
        uint8_t some_factors[2 * N];
        w.scale = some_scales;
        w.factor = some_factors;
        CHECK(as->unpack(packed, nbytes, &w) == VGQ_OK, " ");
    }
}

static void test_calls(void)
{
    static unsigned char scratch[1 << 16];
    static float y[64];
    const vgq_weight w = weight_of(VGQ_PER_ROW);
    const size_t nbytes = vgq_packed_nbytes(&w);
    const vgq_linear_call call = {
        .activations = VGQ_INT8_ACTIVATIONS, .m = 2, .x = numbers, .y = y};
    CHECK(vgq_pack(&w, packed, nbytes) == VGQ_OK, " ");
    CHECK(vgq_linear(packed, nbytes, &call, scratch, sizeof(scratch)) == VGQ_OK, " ");
    CHECK(vgq_linear_nbytes(NULL, &call) == 0 && vgq_linear_nbytes(&w, NULL) == 0, " ");
    for (int i = 0; i < 6; i++) {
        vgq_linear_call wrong = call;
        wrong.activations = i == 0 ? VGQ_ACTIVATIONS : call.activations;
        wrong.x_dtype = i == 1 ? VGQ_DTYPES : call.x_dtype;
        wrong.y_dtype = i == 2 ? VGQ_DTYPES : call.y_dtype;
        wrong.m = i == 3 ? SIZE_MAX / 4 : call.m;
        wrong.x = i == 4 ? NULL : call.x;
        wrong.y = i == 5 ? NULL : call.y;
        REFUSED(vgq_linear(packed, nbytes, &wrong, scratch, sizeof(scratch)));
        CHECK(i > 3 || vgq_linear_nbytes(&w, &wrong) == 0, "wrong call %d", i);
    }
    REFUSED(vgq_linear(packed, nbytes, NULL, scratch, sizeof(scratch)));
    REFUSED(vgq_linear(packed, nbytes, &call, NULL, sizeof(scratch)));
    REFUSED(vgq_linear(packed, nbytes, &call, scratch, vgq_linear_nbytes(&w, &call) - 1));
    CHECK(vgq_linear(packed, nbytes - 1, &call, scratch, sizeof(scratch)) == VGQ_EPACKED, " ");
}

/* Tokens with NaN and infinities give rows of NaN, tokens too small to code rows of the bias, on
 * integer activations; their neighbours know nothing of it. */
static void test_odd_tokens(vgq_activations activations)
{
    enum { M = 7 };
    static unsigned char scratch[1 << 16];
    static float tokens[M * K], y[M * N], bias[N] = {1, 2, 3};
    vgq_weight w = weight_of(VGQ_PER_ROW);
    const size_t nbytes = vgq_packed_nbytes(&w);
    CHECK(vgq_pack(&w, packed, nbytes) == VGQ_OK, " ");
    for (size_t i = 0; i < M * K; i++)
        tokens[i] = numbers[i];
    tokens[1 * K + 3] = NAN;
    tokens[2 * K + K - 1] = INFINITY;
    tokens[3 * K] = -INFINITY;
    for (size_t i = 0; i < K; i++) {
        tokens[4 * K + i] = i % 2 ? 0x1p-130f : 0;
        tokens[5 * K + i] = activations == VGQ_INT8_ACTIVATIONS ? 0x1p-121f : 0x1p-113f;
    }
    const vgq_linear_call call = {
        .activations = activations, .m = M, .x = tokens, .bias = bias, .y = y};
    CHECK(vgq_linear_nbytes(&w, &call) <= sizeof(scratch) &&
              vgq_linear(packed, nbytes, &call, scratch, sizeof(scratch)) == VGQ_OK,
          " ");
    for (size_t m = 0; m < M; m++)
        for (size_t n = 0; n < N; n++) {
            const float got = y[m * N + n];
            const int odd = m >= 1 && m <= 3, small = m == 4 || m == 5;
            CHECK(odd     ? isnan(got)
                  : small ? got == bias[n]
                          : isfinite(got),
                  "token %zu, output %zu: %g", m, n, (double)got);
        }
}

/* Whether it names the chosen instruction set or a weaker one. */
static int is_named(const char *isa)
{
    size_t at = 0, chosen = 0;
    while (vgq_isa_here(at) && strcmp(vgq_isa_here(at), isa) != 0)
        at++;
    while (strcmp(vgq_isa_here(chosen), vgq_isa()) != 0)
        chosen++;
    return vgq_isa_here(at) && at <= chosen;
}

/* What vgq_linear_isa and vgq_attention_isa say of the choice. */
static void test_names(void)
{
    for (int a = 0; a < VGQ_ACTIVATIONS; a++) {
        vgq_activations really = (vgq_activations)a;
        const char *isa = vgq_linear_isa(&really);
        CHECK(is_named(isa), "%s under %s", isa, vgq_isa());
        CHECK(really == (vgq_activations)a || (a == VGQ_BF16_ACTIVATIONS && really == 0), "%d", a);
        for (int of_values = 0; of_values < 2; of_values++) {
            really = (vgq_activations)a;
            isa = vgq_attention_isa(of_values, &really);
            CHECK(is_named(isa), "%s under %s", isa, vgq_isa());
            CHECK(really == 0 || (really == (vgq_activations)a && a != VGQ_INT16_ACTIVATIONS), "%d",
                  a);
            CHECK(a != VGQ_INT8_ACTIVATIONS || really == VGQ_INT8_ACTIVATIONS, " ");
        }
    }
}

void test_errors(void)
{
    test_quantize_fronts();
    for (size_t i = 0; i < 64; i++) {
        scale[i] = 1;
        factor[i] = 1;
        q[i] = (uint8_t)(i * 37);
    }
    test_metric_fronts();
    test_metric_edges();
    test_weights();
    test_calls();
    test_odd_tokens(VGQ_INT8_ACTIVATIONS);
    test_odd_tokens(VGQ_INT16_ACTIVATIONS);
    test_names();
}
