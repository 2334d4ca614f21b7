/* SPDX-License-Identifier: Apache-2.0
 * The C core's values against arithmetic said another way: fields of numbers, tables by hand, the
 * C library. (core.c compares instruction sets with each other.) */
#define _GNU_SOURCE
#include "core.h"
#include "../csrc/kernels.h"

#include <math.h>
#include <string.h>

/* The number that 16 bits stand for, from its fields. */
static double number_of(vgq_dtype dtype, uint16_t bits)
{
    const int fraction_bits = dtype == VGQ_F16 ? 10 : 7, bias = dtype == VGQ_F16 ? 15 : 127;
    const int fraction = bits & ((1 << fraction_bits) - 1);
    const int exponent = (bits & 0x7fff) >> fraction_bits, most = 2 * bias + 1;
    const double sign = bits & 0x8000 ? -1 : 1;
    if (exponent == most)
        return fraction ? NAN : sign * INFINITY;
    if (exponent == 0)
        return sign * ldexp(fraction, 1 - bias - fraction_bits);
    return sign * ldexp(fraction + (1 << fraction_bits), exponent - bias - fraction_bits);
}

/* Every one of the 65,536 values of 16 bits, widened, as ranges of one element show it. */
static void test_widening(void)
{
    enum { ALL = 1 << 16 };
    static uint16_t every[ALL];
    static float lo[ALL], hi[ALL];
    for (int i = 0; i < ALL; i++)
        every[i] = (uint16_t)i;
    for (int d = VGQ_F16; d < VGQ_DTYPES; d++) {
        uint64_t nonfinite;
        const vgq_shape shape = {1, ALL, 1};
        CHECK(vgq_range((vgq_dtype)d, shape, every, lo, hi, &nonfinite) == VGQ_OK, " ");
        CHECK(nonfinite == (d == VGQ_F16 ? 2 << 10 : 2 << 7), "%zu", (size_t)nonfinite);
        for (int i = 0; i < ALL; i++) {
            const double x = number_of((vgq_dtype)d, every[i]);
            CHECK(!isfinite(x) || (lo[i] == fmin(x, 0) && hi[i] == fmax(x, 0)), "%d", i);
        }
    }
}

/* Codes of the 65,536 values, with a scale of 1: an infinity saturates, a NaN codes as 0. */
static void test_widened_codes(void)
{
    enum { ALL = 1 << 16 };
    static uint16_t every[ALL];
    static uint8_t q[ALL];
    const float one = 1;
    for (int i = 0; i < ALL; i++)
        every[i] = (uint16_t)i;
    for (int d = VGQ_F16; d < VGQ_DTYPES; d++) {
        const vgq_shape shape = {1, ALL, ALL};
        CHECK(vgq_quantize(VGQ_I8, (vgq_dtype)d, shape, every, &one, NULL, q) == VGQ_OK, " ");
        for (int i = 0; i < ALL; i++) {
            const double x = number_of((vgq_dtype)d, every[i]);
            CHECK((int8_t)q[i] == (isnan(x) ? 0 : fmin(fmax(rint(x), -128), 127)), "%d", i);
        }
    }
    /* Every NaN counts, whatever its payload. */
    const uint32_t nans[] = {0x7f800001, 0x7fc00001, 0xff800001, 0x7fffffff, 0x3f800001};
    float x[5], lo, hi;
    uint64_t nonfinite;
    memcpy(x, nans, sizeof(x));
    CHECK(vgq_range(VGQ_F32, (vgq_shape){1, 5, 5}, x, &lo, &hi, &nonfinite) == VGQ_OK, " ");
    CHECK(nonfinite == 4, "%zu", (size_t)nonfinite);
}

static uint16_t narrowed(vgq_dtype dtype, float x, int8_t code)
{
    uint16_t bits = 0x5555;
    const vgq_shape one = {1, 1, 1};
    const uint8_t q = (uint8_t)code;
    CHECK(vgq_dequantize(VGQ_I8, dtype, one, &q, &x, NULL, &bits) == VGQ_OK, " ");
    return bits;
}

/* What is exact, what lies half way (to the even neighbour), and what lies beside that. */
static void test_narrowing(void)
{
    for (int d = VGQ_F16; d < VGQ_DTYPES; d++) {
        const vgq_dtype dtype = (vgq_dtype)d;
        const uint16_t infinite = d == VGQ_F16 ? 0x7c00 : 0x7f80;
        for (uint16_t i = 0; i < infinite; i++) {
            const double here = number_of(dtype, i);
            const double above = i + 1 < infinite ? number_of(dtype, (uint16_t)(i + 1))
                                                  : 2 * here - number_of(dtype, (uint16_t)(i - 1));
            const double middle = (here + above) / 2;
            const uint16_t even = (uint16_t)(i + (i & 1));
            CHECK(narrowed(dtype, (float)here, 1) == i, "%d", i);
            if ((double)(float)middle != middle) /* between bfloat16's smallest there is no float */
                continue;
            CHECK(narrowed(dtype, (float)middle, 1) == even, "%d", i);
            CHECK(narrowed(dtype, (float)middle, -1) == (even | 0x8000), "%d", i);
            if (middle < 0x1p-126)
                continue;
            CHECK(narrowed(dtype, nextafterf((float)middle, 0), 1) == i, "%d", i);
            CHECK(narrowed(dtype, nextafterf((float)middle, INFINITY), 1) == i + 1, "%d", i);
        }
        CHECK(narrowed(dtype, INFINITY, 1) == infinite, " ");
        CHECK(narrowed(dtype, INFINITY, -1) == (infinite | 0x8000), " ");
        CHECK(narrowed(dtype, 3e38f, 127) == infinite, " ");
        CHECK(isnan(number_of(dtype, narrowed(dtype, NAN, 1))), " ");
        CHECK(narrowed(dtype, 0x1p-149f, 1) == 0, " ");
    }
}

static void test_code_table(void)
{
    static const struct {
        float x, scale;
        int8_t zero, i8, i4;
    } rows[] = {
        {0, 1, 0, 0, 0},
        {0.5f, 1, 0, 0, 0},
        {1.5f, 1, 0, 2, 2},
        {-0.5f, 1, 0, 0, 0},
        {-1.5f, 1, 0, -2, -2},
        {2.5f, 1, 0, 2, 2},
        {2.5f, 1, 3, 5, 5},
        {3.5f, 1, 3, 7, 7},
        {1000, 1, 0, 127, 7},
        {-1000, 1, 0, -128, -8},
        {NAN, 1, 5, 5, 5},
        {INFINITY, 1, -7, 127, 7},
        {-INFINITY, 1, 7, -128, -8},
        {3, 0.5f, 0, 6, 6},
        {1, 3, 0, 0, 0},
        {-3, 0.5f, 1, -5, -5},
        {1e38f, 1e-30f, 0, 127, 7},
        {1e-45f, 1, 2, 2, 2},
        {126.4f, 1, 0, 126, 7},
        {-7.4f, 1, 0, -7, -7},
        {-8.4f, 1, 0, -8, -8},
    };
    const vgq_shape one = {1, 1, 1};
    for (size_t i = 0; i < sizeof(rows) / sizeof(rows[0]); i++) {
        uint8_t q;
        float back;
        CHECK(vgq_quantize(VGQ_I8, VGQ_F32, one, &rows[i].x, &rows[i].scale, &rows[i].zero, &q) ==
                      VGQ_OK &&
                  (int8_t)q == rows[i].i8,
              "row %zu: %d", i, (int8_t)q);
        CHECK(vgq_dequantize(VGQ_I8, VGQ_F32, one, &q, &rows[i].scale, &rows[i].zero, &back) ==
                      VGQ_OK &&
                  back == (float)(rows[i].i8 - rows[i].zero) * rows[i].scale,
              "row %zu", i);
        CHECK(vgq_quantize(VGQ_I4, VGQ_F32, one, &rows[i].x, &rows[i].scale, &rows[i].zero, &q) ==
                      VGQ_OK &&
                  q == (rows[i].i4 & 15),
              "row %zu: %d", i, q);
    }
}

static void test_parameter_table(void)
{
    static const struct {
        vgq_format format;
        float lo, hi, symmetric, asymmetric;
        int8_t zero;
    } rows[] = {
        {VGQ_I8, -1, 2, 2.0f / 127, (float)(3.0 / 255), -43},
        {VGQ_I4, -1, 2, 2.0f / 7, (float)(3.0 / 15), -3},
        {VGQ_I8, -5, 0, 5.0f / 127, (float)(5.0 / 255), 127},
        {VGQ_I8, 0, 5, 5.0f / 127, (float)(5.0 / 255), -128},
        {VGQ_I4, -3, 1, 3.0f / 7, (float)(4.0 / 15), 3},
        {VGQ_I4, 0, 0, 0x1p-126f, 0x1p-126f, -8},
        {VGQ_I8, 0, 0, 0x1p-126f, 0x1p-126f, -128},
        {VGQ_I8, -1e-40f, 0, 0x1p-126f, 0x1p-126f, -128},
        {VGQ_I8, -3e38f, 3e38f, 3e38f / 127, (float)(2 * (double)3e38f / 255), 0},
    };
    for (size_t i = 0; i < sizeof(rows) / sizeof(rows[0]); i++) {
        float scale;
        int8_t zero;
        CHECK(vgq_parameters(rows[i].format, 1, &rows[i].lo, &rows[i].hi, &scale, NULL) == VGQ_OK &&
                  scale == rows[i].symmetric,
              "row %zu: %a", i, (double)scale);
        CHECK(vgq_parameters(rows[i].format, 1, &rows[i].lo, &rows[i].hi, &scale, &zero) ==
                      VGQ_OK &&
                  scale == rows[i].asymmetric && zero == rows[i].zero,
              "row %zu: %a, %d", i, (double)scale, zero);
    }
}

static double error_with(const float *x, size_t n, float scale, int zero)
{
    double sum = 0;
    for (size_t i = 0; i < n; i++) {
        const float code = fminf(fmaxf(rintf(x[i] / scale), (float)(-8 - zero)), (float)(7 - zero));
        const double e = x[i] - code * scale;
        sum += e * e;
    }
    return sum;
}

/* The search for two-level scales as docs/conventions.md tells it. */
static void test_two_level_search(void)
{
    enum { GROUP = 24, GROUPS = 9, N = GROUP * GROUPS };
    for (int round = 0; round < 40; round++) {
        const int asymmetric = round % 2, most = asymmetric ? 8 : 15;
        float x[N], channel, widest = 0, covering[GROUPS], low[GROUPS];
        uint8_t factor[GROUPS];
        int8_t zero[GROUPS];
        double error[2], want[2] = {0, 0};
        for (size_t i = 0; i < N;
             i++) /* groups of very different sizes, some with one large value */
            x[i] = numbers[(i + 997 * (size_t)round) % CORE_NUMBERS] *
                   (float)(1 << (i / GROUP) % 6) * (i % 19 == 3 ? 3.0f : 1.0f);
        for (size_t g = 0; g < GROUPS; g++) {
            float lo = 0, hi = 0;
            for (size_t i = g * GROUP; i < (g + 1) * GROUP; i++) {
                lo = fminf(lo, x[i]);
                hi = fmaxf(hi, x[i]);
            }
            low[g] = lo;
            covering[g] = asymmetric ? (float)(((double)hi - lo) / 15) : fmaxf(-lo, hi) / 7;
            widest = fmaxf(widest, covering[g]);
        }
        const vgq_shape shape = {1, N, GROUP};
        CHECK(vgq_two_level(VGQ_F32, shape, x, &channel, factor, asymmetric ? zero : NULL, error) ==
                  VGQ_OK,
              " ");
        const float exact = widest / (float)most;
        CHECK(fabsf(channel - exact) <= exact * 0x1p-17f, "channel scale");
        CHECK(ldexpf(rintf(ldexpf(channel, 16 - ilogbf(channel))), ilogbf(channel) - 16) == channel,
              "17 bits");
        for (size_t g = 0; g < GROUPS; g++) {
            const int cover = (int)fminf(floorf(covering[g] / channel), (float)most);
            double best = INFINITY;
            int chosen = 0, chosen_zero = 0;
            for (int f = cover - 4 > 1 ? cover - 4 : 1; f <= cover + 1 && f <= most; f++) {
                const float scale = channel * (float)f;
                const double z = rint(-8 - (double)low[g] / scale);
                const int of_f = asymmetric ? (int)fmin(fmax(z, -8), 7) : 0;
                const double e = error_with(x + g * GROUP, GROUP, scale, of_f);
                if (e < best * (1 - 1e-12)) {
                    best = e;
                    chosen = f;
                    chosen_zero = of_f;
                }
            }
            CHECK(factor[g] == chosen, "group %zu: %d, not %d", g, factor[g], chosen);
            CHECK(!asymmetric || zero[g] == chosen_zero, "group %zu", g);
            want[0] += best;
            const double z = rint(-8 - (double)low[g] / covering[g]);
            want[1] += error_with(x + g * GROUP, GROUP, covering[g],
                                  asymmetric ? (int)fmin(fmax(z, -8), 7) : 0);
        }
        for (int i = 0; i < 2; i++)
            CHECK(fabs(error[i] - want[i]) <= 1e-12 * want[i], "error %d", i);
    }
}

/* No more than four factors below the one that covers are tried, even where the fifth is better:
 * multiples of ten steps, and one value that is far out. */
static void test_two_level_reach(void)
{
    enum { N = 256, COVER = 15, CLIPPED = 4 };
    float x[N], channel;
    uint8_t factor;
    double error[2], least = INFINITY;
    int best = 0;
    for (int i = 0; i < N; i++)
        x[i] = (float)(10 * (i % 15 - 7));
    x[0] = 7 * COVER;
    CHECK(vgq_two_level(VGQ_F32, (vgq_shape){1, N, N}, x, &channel, &factor, NULL, error) == VGQ_OK,
          " ");
    CHECK(channel == 1, "%a", (double)channel);
    for (int f = COVER - CLIPPED; f <= COVER; f++)
        if (error_with(x, N, (float)f, 0) < least)
            least = error_with(x, N, (float)(best = f), 0);
    CHECK(error_with(x, N, COVER - CLIPPED - 1, 0) < least, "the example is none");
    CHECK(factor == best && error[0] == least, "%d, not %d", factor, best);
}

/* e^x and ln x within one unit in the last place of the C library's, which is that good itself. */
static void test_exp_and_log(void)
{
    enum { COUNT = 4000 };
    static double x[COUNT], y[COUNT];
    for (int i = 0; i < COUNT; i++)
        x[i] = (i - COUNT / 2) * (1400.0 / COUNT) + numbers[i];
    CHECK(vgq_exp(COUNT, x, y) == VGQ_OK, " ");
    for (int i = 0; i < COUNT; i++)
        CHECK(fabs(y[i] - exp(x[i])) <= 1.5 * (nextafter(exp(x[i]), INFINITY) - exp(x[i])), "%a",
              x[i]);
    for (int i = 0; i < COUNT; i++)
        x[i] = i % 3 ? 1 + numbers[i] / 2 : exp(700.0 * (double)numbers[i]);
    CHECK(vgq_log(COUNT, x, y) == VGQ_OK, " ");
    for (int i = 0; i < COUNT; i++) {
        const double want = log(x[i]);
        CHECK(fabs(y[i] - want) <= 1.5 * (nextafter(fabs(want), INFINITY) - fabs(want)), "%a",
              x[i]);
    }
    static const double of[][3] = {/* x, e^x, ln x; NaN stands for itself */
                                   {0, 1, -INFINITY},
                                   {1, M_E, 0},
                                   {-1, 1 / M_E, NAN},
                                   {-708.5, 0, NAN},
                                   {-INFINITY, 0, NAN},
                                   {709.5, INFINITY, 0},
                                   {INFINITY, INFINITY, INFINITY},
                                   {NAN, NAN, NAN},
                                   {0x1p-1023, 1, -INFINITY}};
    for (size_t i = 0; i < sizeof(of) / sizeof(of[0]); i++) {
        double both[2];
        vgq_exp(1, &of[i][0], &both[0]);
        vgq_log(1, &of[i][0], &both[1]);
        CHECK(both[0] == of[i][1] || fabs(both[0] / of[i][1] - 1) < 1e-15 ||
                  (isnan(both[0]) && isnan(of[i][1])),
              "e^%g is %g", of[i][0], both[0]);
        CHECK(i == 5 || both[1] == of[i][2] || (isnan(both[1]) && isnan(of[i][2])), "ln %g is %g",
              of[i][0], both[1]);
    }
    const double edges[] = {-708, 709, 0x1p-1022};
    double at[3];
    vgq_exp(2, edges, at);
    CHECK(at[0] > 0 && isfinite(at[1]), "the ends of the range");
    vgq_log(1, edges + 2, at + 2);
    CHECK(fabs(at[2] - log(0x1p-1022)) < 1e-12, "the smallest normal number");
    const double beyond[] = {nextafter(-708, -INFINITY), nextafter(709, INFINITY)};
    vgq_exp(2, beyond, at);
    CHECK(at[0] == 0 && at[1] == INFINITY, "just beyond them");
}

/* GELU of x, seen through a Linear of one weight that is 1. */
static void gelu_of(size_t n, const float *x, float *y)
{
    static unsigned char scratch[1 << 20];
    const uint8_t code = 1;
    float one = 1;
    uint32_t packed[1024];
    const vgq_weight w = {.format = VGQ_I8,
                          .scales = VGQ_PER_ROW,
                          .n = 1,
                          .k = 1,
                          .group = 1,
                          .q = (uint8_t *)(uintptr_t)&code,
                          .scale = &one};
    const vgq_linear_call call = {
        .activations = VGQ_FLOAT_ACTIVATIONS, .m = n, .x = x, .y = y, .gelu = 1};
    CHECK(vgq_packed_nbytes(&w) <= sizeof(packed) &&
              vgq_linear_nbytes(&w, &call) <= sizeof(scratch),
          " ");
    CHECK(vgq_pack(&w, packed, vgq_packed_nbytes(&w)) == VGQ_OK, " ");
    CHECK(vgq_linear(packed, vgq_packed_nbytes(&w), &call, scratch, sizeof(scratch)) == VGQ_OK,
          " ");
}

static void test_gelu(void)
{
    enum { COUNT = 4000 };
    static float x[COUNT], y[COUNT];
    for (int i = 0; i < COUNT; i++)
        x[i] = (float)(i - COUNT / 2) / 140 + numbers[i] / 50;
    gelu_of(COUNT, x, y);
    for (int i = 0; i < COUNT; i++) {
        const double want = 0.5 * x[i] * erfc(-(double)x[i] * M_SQRT1_2);
        CHECK(fabs(y[i] - want) <= 1.3e-7 * fmax(1, fabs((double)x[i])), "%a: %a", (double)x[i],
              (double)y[i]);
    }
    const float ends[] = {0, -0.0f, 5.7f, -5.7f, 1e30f, -1e30f, INFINITY, -INFINITY, NAN};
    enum { ENDS = sizeof(ends) / sizeof(ends[0]) };
    gelu_of(ENDS, ends, y);
    for (int i = 0; i < ENDS; i++)
        CHECK(i < 8 ? y[i] == (i % 2 ? 0 : ends[i]) : isnan(y[i]), "of %g: %g", (double)ends[i],
              (double)y[i]);
    for (float v = 5.5995f; v < 5.6005f; v = nextafterf(v, INFINITY)) { /* the polynomial's end */
        const float both[] = {v, -v};
        gelu_of(2, both, y);
        CHECK(fabsf(y[0] - v) <= 6e-7f && fabsf(y[1]) <= 7e-8f && (y[1] == 0) == (v >= 5.6f),
              "of %a: %a, %a", (double)v, (double)y[0], (double)y[1]);
    }
}

/* Products of every kind of weight and activation against sums in double: within what coding the
 * activations costs, half a step of a token's scale. */
static void test_products(void)
{
    enum { M = 5, N = 3, K = 42, GROUP = 8, GROUPS = (K + GROUP - 1) / GROUP };
    static const struct {
        vgq_format format;
        vgq_scales scales;
        int asymmetric;
    } kinds[] = {{VGQ_I8, VGQ_PER_ROW, 0},   {VGQ_I8, VGQ_PER_ROW, 1},
                 {VGQ_I4, VGQ_TWO_LEVEL, 0}, {VGQ_I4, VGQ_TWO_LEVEL, 1},
                 {VGQ_I4, VGQ_PER_GROUP, 0}, {VGQ_I4, VGQ_PER_GROUP, 1}};
    static const double steps[VGQ_ACTIVATIONS] = {0x1p-20, 0x1p-7, 0.51 / 127, 0.51 / 32512};
    static unsigned char scratch[1 << 20];
    static uint32_t packed[1 << 14];
    float x[M * K], y[M * N], scale[N * GROUPS];
    uint8_t q[N * K], factor[N * GROUPS];
    int8_t zero[N * GROUPS];
    for (int i = 0; i < M * K; i++)
        x[i] = 3.7f * numbers[i];
    for (int i = 0; i < N * K; i++)
        q[i] = (uint8_t)(i * 89 + i / 7);
    for (int i = 0; i < N * GROUPS; i++) {
        scale[i] = 0.01f + 0.002f * (float)(i % 5);
        factor[i] = (uint8_t)(1 + i % 8);
        zero[i] = (int8_t)(i % 15 - 7);
    }
    for (size_t kind = 0; kind < sizeof(kinds) / sizeof(kinds[0]); kind++)
        for (int a = 0; a < VGQ_ACTIVATIONS; a++) {
            const int rows = kinds[kind].scales == VGQ_PER_ROW;
            const vgq_weight w = {.format = kinds[kind].format,
                                  .scales = kinds[kind].scales,
                                  .n = N,
                                  .k = K,
                                  .group = rows ? K : GROUP,
                                  .asymmetric = kinds[kind].asymmetric,
                                  .q = q,
                                  .scale = scale,
                                  .factor = factor,
                                  .zero = zero};
            vgq_linear_call call = {.activations = (vgq_activations)a, .m = M, .x = x, .y = y};
            const size_t nbytes = vgq_packed_nbytes(&w);
            CHECK(nbytes <= sizeof(packed) && vgq_linear_nbytes(&w, &call) <= sizeof(scratch), " ");
            CHECK(vgq_pack(&w, packed, nbytes) == VGQ_OK, " ");
            CHECK(vgq_linear(packed, nbytes, &call, scratch, sizeof(scratch)) == VGQ_OK, " ");
            for (int m = 0; m < M; m++) { /* a row alone has the same bits */
                float alone[N];
                call.m = 1;
                call.x = x + m * K;
                call.y = alone;
                CHECK(vgq_linear(packed, nbytes, &call, scratch, sizeof(scratch)) == VGQ_OK, " ");
                CHECK(memcmp(alone, y + m * N, sizeof(alone)) == 0,
                      "kind %zu, activations %d: row %d alone", kind, a, m);
            }
            for (int m = 0; m < M; m++)
                for (int n = 0; n < N; n++) {
                    double sum = 0, size = 0, largest = 0;
                    for (int k = 0; k < K; k++) {
                        const int g = n * GROUPS + k / GROUP, at = n * K + k;
                        const int nibble = q[at / 2] >> at % 2 * 4 & 15;
                        const int code = w.format == VGQ_I8 ? (int8_t)q[at] : (nibble ^ 8) - 8;
                        const double s = scale[w.scales == VGQ_PER_GROUP ? g : n] *
                                         (w.scales == VGQ_TWO_LEVEL ? factor[g] : 1.0);
                        const double v = s * (code - (w.asymmetric ? zero[rows ? n : g] : 0));
                        sum += v * x[m * K + k];
                        size += fabs(v);
                        largest = fmax(largest, fabs((double)x[m * K + k]));
                    }
                    CHECK(fabs(y[m * N + n] - sum) <= size * largest * steps[a],
                          "kind %zu, activations %d: %g, not %g", kind, a, (double)y[m * N + n],
                          sum);
                }
        }
}

/* A token is coded from 2^-120 on (2^-112 with 16 bits), and counts as zeros below. */
/* A tile of floats in two parts, which goes on with the sums of the first, is the whole one. */
static void test_float_tiles(void)
{
    enum { K = 8, HALF = K / 2 };
    float x[VGQ_FLOAT_ROWS * K], w[K * VGQ_PANEL];
    float whole[VGQ_FLOAT_ROWS * VGQ_PANEL], parts[VGQ_FLOAT_ROWS * VGQ_PANEL];
    for (size_t i = 0; i < VGQ_FLOAT_ROWS * K; i++)
        x[i] = 1.0f / (float)(i + 3);
    for (size_t i = 0; i < K * VGQ_PANEL; i++)
        w[i] = (float)(i % 23) / 7 - 1;
    const vgq_float_gemm *const gemm = vgq_context_now().kernels->linear.float_gemm;
    for (size_t rows = 1; rows <= VGQ_FLOAT_ROWS; rows++) {
        gemm->tile(rows, K, x, K, w, whole, 0);
        gemm->tile(rows, HALF, x, K, w, parts, 0);
        gemm->tile(rows, HALF, x + HALF, K, w + HALF * VGQ_PANEL, parts, 1);
        CHECK(memcmp(whole, parts, rows * VGQ_PANEL * sizeof(float)) == 0, "%zu rows", rows);
    }
}

static void test_smallest_token(void)
{
    static unsigned char scratch[1 << 16];
    uint32_t packed[1024];
    uint8_t code = 127;
    float one = 1;
    const vgq_weight w = {.format = VGQ_I8, .n = 1, .k = 1, .group = 1, .q = &code, .scale = &one};
    CHECK(vgq_pack(&w, packed, vgq_packed_nbytes(&w)) == VGQ_OK, " ");
    for (int a = VGQ_INT8_ACTIVATIONS; a <= VGQ_INT16_ACTIVATIONS; a++) {
        const float least = a == VGQ_INT8_ACTIVATIONS ? 0x1p-120f : 0x1p-112f;
        const float x[2] = {least, nextafterf(least, 0)};
        float y[2];
        const vgq_linear_call call = {.activations = (vgq_activations)a, .m = 2, .x = x, .y = y};
        CHECK(vgq_linear(packed, vgq_packed_nbytes(&w), &call, scratch, sizeof(scratch)) == VGQ_OK,
              " ");
        CHECK(fabs(y[0] / least - 127) < 1e-3 && y[1] == 0, "%a, %a", (double)y[0], (double)y[1]);
    }
}

/* One scale for all rows: 16 bits are rint(x / scale), saturated; a NaN counts as 0. */
static void test_static_words(void)
{
    enum { COUNT = 9 };
    static unsigned char scratch[1 << 16];
    uint32_t packed[1024];
    uint8_t code = 1;
    float one = 1, y[COUNT];
    const vgq_weight w = {.format = VGQ_I8, .n = 1, .k = 1, .group = 1, .q = &code, .scale = &one};
    const float scale = 0x1p-10f, most = 32512 * scale;
    const float x[COUNT] = {0,        scale,     -3 * scale, 0.4f * scale, most,
                            2 * most, -2 * most, NAN,        -INFINITY};
    const float want[COUNT] = {0, scale, -3 * scale, 0, most, most, -most, 0, -most};
    CHECK(vgq_pack(&w, packed, vgq_packed_nbytes(&w)) == VGQ_OK, " ");
    const vgq_linear_call call = {
        .activations = VGQ_INT16_ACTIVATIONS, .m = COUNT, .x = x, .y = y, .x_scale = scale};
    CHECK(vgq_linear(packed, vgq_packed_nbytes(&w), &call, scratch, sizeof(scratch)) == VGQ_OK,
          " ");
    for (int i = 0; i < COUNT; i++)
        CHECK(y[i] == want[i], "%g gives %g", (double)x[i], (double)y[i]);
}

/* Entropies against softmax in double; equal rows diverge by exactly nothing. */
static void test_entropies(void)
{
    enum { ROWS = 3, COLS = 50 };
    float r[ROWS * COLS], c[ROWS * COLS];
    vgq_entropy got[ROWS];
    double cross = 0, kl = 0;
    for (int i = 0; i < ROWS * COLS; i++) {
        r[i] = 2 * numbers[i];
        c[i] = r[i] + numbers[i + 1000] / 5;
    }
    for (int row = 0; row < ROWS; row++) {
        double sum_r = 0, sum_c = 0;
        for (int i = row * COLS; i < (row + 1) * COLS; i++) {
            sum_r += exp(r[i]);
            sum_c += exp(c[i]);
        }
        for (int i = row * COLS; i < (row + 1) * COLS; i++) {
            const double p = exp(r[i]) / sum_r;
            cross -= p * log(exp(c[i]) / sum_c) / ROWS;
            kl += p * log(p / (exp(c[i]) / sum_c)) / ROWS;
        }
    }
    CHECK(vgq_cross_entropy(ROWS, COLS, VGQ_F32, r, VGQ_F32, c, got) == VGQ_OK, " ");
    CHECK(fabs(got->cross_entropy - cross) < 1e-12 && fabs(got->kl_divergence - kl) < 1e-12 &&
              kl > 1e-4 && kl < 1,
          "%.17g %.17g, not %.17g %.17g", got->cross_entropy, got->kl_divergence, cross, kl);
    CHECK(vgq_cross_entropy(ROWS, COLS, VGQ_F32, r, VGQ_F32, r, got) == VGQ_OK, " ");
    CHECK(got->kl_divergence == 0, "%g", got->kl_divergence);
}

/* Bits that every machine must have. The checks above say that the numbers are right; these, that
 * they stay. FNV-1a. */
static uint64_t digest(uint64_t hash, const void *data, size_t nbytes)
{
    const unsigned char *const p = data;
    for (size_t i = 0; i < nbytes; i++)
        hash = (hash ^ p[i]) * 0x100000001b3;
    return hash;
}

static void test_bits(void)
{
    enum { COUNT = 1 << 16, AT_ONCE = 1 << 11 };
    static double x[COUNT], y[COUNT], parts[COUNT];
    static float a[COUNT], b[COUNT];
    const uint64_t empty = 0xcbf29ce484222325;
    uint64_t state = 1, of_gelu = empty;
    for (int i = 0; i < COUNT; i++) { /* bits from an integer sequence: no rounding of a compiler */
        state = state * 6364136223846793005u + 1442695040888963407u;
        x[i] = ldexp((double)(int64_t)state, -53 - i % 8);
        a[i] = (float)ldexp((double)(int64_t)state, -60);
        b[i] = (float)ldexp((double)(int64_t)(state << 17), -61 - i % 3);
    }
    CHECK(vgq_exp(COUNT, x, y) == VGQ_OK, " ");
    const uint64_t of_exp = digest(empty, y, sizeof(y));
    for (int i = 0; i < COUNT; i++)
        x[i] = fabs(x[i]);
    CHECK(vgq_log(COUNT, x, y) == VGQ_OK, " ");
    const uint64_t of_log = digest(empty, y, sizeof(y));
    for (size_t i = 0; i < COUNT; i += AT_ONCE) {
        float g[AT_ONCE];
        gelu_of(AT_ONCE, a + i, g);
        of_gelu = digest(of_gelu, g, sizeof(g));
    }
    CHECK(vgq_compare(COUNT, VGQ_F32, a, VGQ_F32, b, (vgq_moments *)(void *)parts) == VGQ_OK, " ");
    const uint64_t of_moments = digest(empty, parts, sizeof(vgq_moments));
    CHECK(vgq_cross_entropy(64, COUNT / 64, VGQ_F32, a, VGQ_F32, b, (vgq_entropy *)(void *)parts) ==
              VGQ_OK,
          " ");
    const uint64_t of_entropy = digest(empty, parts, sizeof(vgq_entropy));
    const vgq_images shape = {1, 128, COUNT / 128 / 2, 2};
    CHECK(vgq_ssim_parts(shape) <= COUNT &&
              vgq_ssim(shape, VGQ_F32, a, VGQ_F32, b, 4, 0.5, parts) == VGQ_OK,
          " ");
    const uint64_t of_ssim = digest(empty, parts, sizeof(double));
#define BITS(what, want) CHECK(of_##what == want, "%s: %#llx", #what, (unsigned long long)of_##what)
    BITS(exp, 0x99e7b303c0393d9d);
    BITS(log, 0xfa7f8eb75c2395fa);
    BITS(gelu, 0xaf5bb176392ee378);
    BITS(moments, 0x355997856e67e37);
    BITS(entropy, 0x1d78af06b09cf139);
    BITS(ssim, 0x2c68d45f42d9607);
#undef BITS
}

void test_values(void)
{
    test_widening();
    test_widened_codes();
    test_narrowing();
    test_code_table();
    test_parameter_table();
    test_two_level_search();
    test_two_level_reach();
    test_exp_and_log();
    test_gelu();
    test_products();
    test_float_tiles();
    test_smallest_token();
    test_static_words();
    test_entropies();
    test_bits();
}
