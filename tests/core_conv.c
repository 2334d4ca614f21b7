/* SPDX-License-Identifier: Apache-2.0
 * Convolutions of random shapes said another way: one output at a time, in 64-bit integers. Arrays
 * are exactly as large as the contract says, so that the address sanitizer sees every step beyond.
 */
#include "core.h"

#include "../csrc/formats.h"

#include <math.h>
#include <string.h>

static uint64_t state = 88172645463325252u;
static size_t below(size_t n)
{
    state ^= state << 13;
    state ^= state >> 7;
    state ^= state << 17;
    return (size_t)(state >> 33) % n;
}

static float a_number(void) { return numbers[below(CORE_NUMBERS)]; }

static float *floats(size_t n)
{
    float *const x = malloc(n * sizeof(*x));
    for (size_t i = 0; i < n; i++)
        x[i] = a_number();
    return x;
}

/* One convolution and all that its call points at. */
typedef struct scene {
    vgq_conv_call call;
    vgq_weight w;
    int8_t *codes; /* [n][kernel][kernel][padded channels] */
    float *scale, *x, *y, *residual, *bias, *columns, *rows, *last_weight, *last_bias;
    float *largest, *y_largest; /* [4] */
    int32_t *sums;
    unsigned char *packed, *scratch;
    size_t packed_nbytes, scratch_nbytes;
} scene;

static scene a_scene(size_t channels, size_t n, size_t kernel, size_t stride, int relu, int more)
{
    scene s = {.call = {.pictures = 2,
                        .height = 1 + below(9),
                        .width = 1 + below(15),
                        .channels = channels,
                        .kernel_height = kernel,
                        .kernel_width = kernel,
                        .stride_height = stride,
                        .stride_width = more & 32 ? 3 - stride : stride,
                        .padding_height = kernel / 2,
                        .padding_width = kernel / 2,
                        .relu_x = relu,
                        .relu_y = more & 1,
                        .relu_sum = more >> 1 & 1}};
    vgq_conv_call *const c = &s.call;
    c->source_height = more & 4 ? 1 + below(6) : c->height;
    c->source_width = more & 4 ? 1 + below(6) : c->width;
    c->out_height = (c->height + 2 * c->padding_height - kernel) / stride + 1;
    c->out_width = (c->width + 2 * c->padding_width - kernel) / c->stride_width + 1;
    const size_t padded = vgq_conv_channels(channels), k = kernel * kernel * padded;
    s.codes = calloc(n * k, 1);
    s.sums = calloc(n, sizeof(*s.sums));
    for (size_t o = 0; o < n; o++)
        for (size_t t = 0; t < kernel * kernel; t++)
            for (size_t i = 0; i < channels; i++) {
                const int code = (int)below(255) - 127;
                s.codes[o * k + t * padded + i] = (int8_t)code;
                s.sums[o] += code;
            }
    s.scale = floats(n);
    for (size_t o = 0; o < n; o++)
        s.scale[o] = fabsf(s.scale[o]) + 0x1p-10f;
    s.bias = floats(n);
    s.w = (vgq_weight){
        .format = VGQ_I8, .n = n, .k = k, .group = k, .q = (uint8_t *)s.codes, .scale = s.scale};
    s.packed_nbytes = vgq_packed_nbytes(&s.w);
    s.packed = malloc(s.packed_nbytes);
    CHECK(vgq_pack(&s.w, s.packed, s.packed_nbytes) == VGQ_OK, " ");
    const size_t pixels = c->pictures * c->out_height * c->out_width;
    s.x = floats(c->pictures * c->source_height * c->source_width * channels);
    s.y = malloc(pixels * (more & 8 ? 3 : n) * sizeof(float));
    s.residual = floats(pixels * n);
    s.columns = floats(c->width * (channels / 2));
    s.rows = floats(c->height * (channels / 2));
    s.last_weight = floats((size_t)3 * 64);
    s.last_bias = floats(3);
    c->x = s.x;
    c->y = s.y;
    c->bias = more & 64 ? NULL : s.bias;
    c->weight_sums = s.sums;
    c->y_largest = s.y_largest = floats(4);
    s.largest = floats(4);
    if (more & 2)
        c->residual = s.residual;
    if (more & 4 && channels % 2 == 0) {
        c->column_embedding = s.columns;
        c->row_embedding = s.rows;
    }
    if (more & 8) {
        c->outputs = 3;
        c->last_weight = s.last_weight;
        c->last_bias = s.last_bias;
    }
    if (more & 16) {
        for (size_t i = 0; i < 4; i++)
            s.largest[i] = 1.5f;
        c->x_largest = s.largest;
    }
    static vgq_context now;
    now = vgq_context_now();
    c->context = more & 64 ? &now : NULL;
    s.scratch_nbytes = vgq_conv2d_nbytes(&s.w, c);
    s.scratch = malloc(s.scratch_nbytes);
    CHECK(s.scratch_nbytes > 0, " ");
    return s;
}

static void free_scene(scene *s)
{
    void *const all[] = {s->codes,   s->scale,     s->x,    s->y,           s->residual,
                         s->bias,    s->columns,   s->rows, s->last_weight, s->last_bias,
                         s->largest, s->y_largest, s->sums, s->packed,      s->scratch};
    for (size_t i = 0; i < sizeof(all) / sizeof(*all); i++)
        free(all[i]);
}

static float lerp(float a, float b, float weight) { return a + weight * (b - a); }

/* The input that the convolution sees; outside 0. */
static float input_at(const scene *s, size_t picture, ptrdiff_t y, ptrdiff_t x, size_t channel)
{
    const vgq_conv_call *const c = &s->call;
    if (y < 0 || x < 0 || y >= (ptrdiff_t)c->height || x >= (ptrdiff_t)c->width)
        return 0;
    const size_t high = c->source_height, wide = c->source_width, half = c->channels / 2;
    const double v = c->height > 1 ? (double)y * (double)(high - 1) / (double)(c->height - 1) : 0;
    const double h = c->width > 1 ? (double)x * (double)(wide - 1) / (double)(c->width - 1) : 0;
    const size_t top = (size_t)v, left = (size_t)h;
    const size_t under = top + 1 < high ? top + 1 : high - 1;
    const size_t right = left + 1 < wide ? left + 1 : wide - 1;
    const float down = (float)(v - (double)top), across = (float)(h - (double)left);
#define AT(i, j) s->x[((picture * high + (i)) * wide + (j)) * c->channels + channel]
    float value = lerp(lerp(AT(top, left), AT(under, left), down),
                       lerp(AT(top, right), AT(under, right), down), across);
#undef AT
    if (c->column_embedding)
        value += channel < half ? s->columns[(size_t)x * half + channel]
                                : s->rows[(size_t)y * half + channel - half];
    return value;
}

/* The codes of a picture with its padding, and what they are multiplied with. */
typedef struct coded_picture {
    int16_t *codes; /* [height + padding][width + padding][channels] */
    size_t width;
    float scale;
} coded_picture;

static coded_picture codes_of(const scene *s, size_t picture)
{
    const vgq_conv_call *const c = &s->call;
    const size_t n = c->source_height * c->source_width * c->channels;
    float largest = c->x_largest ? s->largest[0] : 0, added = 0;
    for (size_t i = 0; i < n && !c->x_largest; i++) {
        const float value = s->x[picture * n + i];
        largest = fmaxf(largest, c->relu_x ? value : fabsf(value));
    }
    for (size_t i = 0; c->column_embedding && i < c->width * (c->channels / 2); i++)
        added = fmaxf(added, fabsf(s->columns[i]));
    for (size_t i = 0; c->column_embedding && i < c->height * (c->channels / 2); i++)
        added = fmaxf(added, fabsf(s->rows[i]));
    largest += added;
    const float highest = c->relu_x ? 254.0f : 127.0f;
    const float inverse = largest > 0 ? highest / largest : 0;
    const size_t height = c->height + 2 * c->padding_height;
    coded_picture coded = {.width = c->width + 2 * c->padding_width,
                           .scale = largest > 0 ? largest / highest : 0};
    int16_t *to = coded.codes = malloc(height * coded.width * c->channels * sizeof(*to));
    for (size_t y = 0; y < height; y++)
        for (size_t x = 0; x < coded.width; x++)
            for (size_t k = 0; k < c->channels; k++) {
                const float value = input_at(s, picture, (ptrdiff_t)(y - c->padding_height),
                                             (ptrdiff_t)(x - c->padding_width), k);
                const float code = rintf((c->relu_x ? fmaxf(value, 0) : value) * inverse);
                *to++ = (int16_t)fmaxf(fminf(code, highest), -127);
            }
    return coded;
}

static float output_at(const scene *s, const coded_picture *x, size_t picture, size_t i, size_t j,
                       size_t o)
{
    const vgq_conv_call *const c = &s->call;
    const size_t padded = vgq_conv_channels(c->channels);
    int64_t acc = 0;
    for (size_t u = 0; u < c->kernel_height; u++)
        for (size_t v = 0; v < c->kernel_width; v++) {
            const size_t pixel = (i * c->stride_height + u) * x->width + j * c->stride_width + v;
            const int8_t *const w = s->codes + o * s->w.k + (u * c->kernel_width + v) * padded;
            for (size_t k = 0; k < c->channels; k++)
                acc += x->codes[pixel * c->channels + k] * w[k];
        }
    float y = (float)acc * x->scale;
    y = y * s->scale[o];
    y = y + (c->bias ? s->bias[o] : 0);
    y = c->relu_y && y < 0 ? 0 : y;
    if (c->residual)
        y += s->residual[((picture * c->out_height + i) * c->out_width + j) * s->w.n + o];
    return c->relu_sum && y < 0 ? 0 : y;
}

static float projected(const scene *s, const float *y, size_t o)
{
    float lane[16];
    for (size_t i = 0; i < 64; i++) {
        const float product = (i < s->w.n ? y[i] : 0) * s->last_weight[o * 64 + i];
        lane[i % 16] = i < 16 ? product : lane[i % 16] + product;
    }
    for (size_t half = 8; half; half /= 2)
        for (size_t i = 0; i < half; i++)
            lane[i] += lane[i + half];
    return lane[0] + s->last_bias[o];
}

static void test_scene(size_t channels, size_t n, size_t kernel, size_t stride, int relu, int more)
{
    scene s = a_scene(channels, n, kernel, stride, relu, more);
    const vgq_conv_call *const c = &s.call;
    CHECK(vgq_conv2d(s.packed, s.packed_nbytes, c, s.scratch, s.scratch_nbytes) == VGQ_OK, " ");
    for (size_t picture = 0, at = 0; picture < c->pictures; picture++) {
        const coded_picture x = codes_of(&s, picture);
        float most[2] = {0, 0}, one[64];
        for (size_t i = 0; i < c->out_height; i++)
            for (size_t j = 0; j < c->out_width; j++) {
                for (size_t o = 0; o < n; o++) {
                    const float want = output_at(&s, &x, picture, i, j, o);
                    most[0] = fmaxf(most[0], fabsf(want));
                    most[1] = fmaxf(most[1], want);
                    if (c->outputs)
                        one[o] = want;
                    else
                        CHECK(s.y[at] == want, "%zu %zu %zu: %g, not %g", i, j, o, (double)s.y[at],
                              (double)want);
                    at += !c->outputs;
                }
                for (size_t o = 0; o < c->outputs; o++, at++)
                    CHECK(s.y[at] == projected(&s, one, o), "%zu %zu %zu", i, j, o);
            }
        CHECK(memcmp(most, s.y_largest + 2 * picture, sizeof(most)) == 0, "%zu", picture);
        free(x.codes);
    }
    free_scene(&s);
}

/* What a call may get wrong, one thing at a time. */
static void test_wrong_calls(void)
{
    scene s = a_scene(6, 5, 3, 1, 1, 8);
    const vgq_conv_call right = s.call;
#define REFUSED(change)                                                                         \
    do {                                                                                        \
        vgq_conv_call c = right;                                                                \
        change;                                                                                 \
        CHECK(vgq_conv2d(s.packed, s.packed_nbytes, &c, s.scratch, s.scratch_nbytes) != VGQ_OK, \
              #change);                                                                         \
    } while (0)
    REFUSED(c.x = NULL);
    REFUSED(c.y = NULL);
    REFUSED(c.weight_sums = NULL);
    REFUSED(c.last_weight = NULL);
    REFUSED(c.last_bias = NULL);
    REFUSED(c.pictures = 0);
    REFUSED(c.height = SIZE_MAX / 2);
    REFUSED(c.width = 0);
    REFUSED(c.channels = 9);
    REFUSED(c.source_height = 0);
    REFUSED(c.source_width = SIZE_MAX);
    REFUSED(c.kernel_height = 0);
    REFUSED(c.kernel_height = 2);
    REFUSED(c.kernel_width = 4);
    REFUSED(c.stride_height = 0);
    REFUSED(c.stride_width = 0);
    REFUSED(c.stride_height = SIZE_MAX);
    REFUSED(c.stride_width = SIZE_MAX);
    REFUSED(c.out_height = 0);
    REFUSED(c.out_width = SIZE_MAX / 2);
    REFUSED(c.x_dtype = VGQ_DTYPES);
    REFUSED(c.y_dtype = VGQ_DTYPES);
    REFUSED(c.folded = 1);
    REFUSED(c.column_embedding = s.columns);
    REFUSED(c.row_embedding = s.rows);
    REFUSED(c.kernel_height = VGQ_DEEPEST + 1);
    REFUSED(c.kernel_width = VGQ_DEEPEST + 1);
    REFUSED(c.out_height = (size_t)1 << 30; c.out_width = (size_t)1 << 26);
    REFUSED(c.out_height = (size_t)1 << 30; c.out_width = (size_t)1 << 20;
            c.stride_height = c.stride_width = VGQ_DEEPEST);
    REFUSED(c.channels = 5; c.column_embedding = c.row_embedding = s.columns);
#undef REFUSED
    CHECK(vgq_conv2d(s.packed, s.packed_nbytes, NULL, s.scratch, s.scratch_nbytes) == VGQ_EINVAL,
          " ");
    CHECK(vgq_conv2d(s.packed, s.packed_nbytes, &right, NULL, s.scratch_nbytes) == VGQ_EINVAL, " ");
    CHECK(vgq_conv2d(s.packed, s.packed_nbytes, &right, s.scratch, 63) == VGQ_EINVAL, " ");
    CHECK(vgq_conv2d(s.packed, 5, &right, s.scratch, s.scratch_nbytes) == VGQ_EPACKED, " ");
    CHECK(vgq_conv2d_nbytes(NULL, &right) == 0 && vgq_conv2d_nbytes(&s.w, NULL) == 0, " ");
    free_scene(&s);
}

/* Weights that are a Linear's but no convolution's, with a call whose sizes they fit. */
static void test_wrong_weights(void)
{
    enum { PANEL = 64, K = 9 * 8, N = PANEL + 2 };
    static uint8_t q[N * (K + 3)], factor[N * K / 8];
    static int8_t zero[N * K / 8];
    static float scale[N * K / 8], x[6], y[N], last[3 * PANEL];
    static unsigned char scratch[1 << 20];
    static uint32_t packed[1 << 14];
    const vgq_conv_call right = {.pictures = 1,
                                 .height = 1,
                                 .width = 1,
                                 .channels = 6,
                                 .source_height = 1,
                                 .source_width = 1,
                                 .kernel_height = 3,
                                 .kernel_width = 3,
                                 .stride_height = 1,
                                 .stride_width = 1,
                                 .padding_height = 1,
                                 .padding_width = 1,
                                 .out_height = 1,
                                 .out_width = 1,
                                 .x = x,
                                 .y = y};
    memset(factor, 1, sizeof(factor));
    for (size_t i = 0; i < sizeof(scale) / sizeof(*scale); i++)
        scale[i] = 1;
    const vgq_weight plain = {.n = N, .k = K, .group = K, .q = q, .scale = scale};
    for (int wrong = 0; wrong < 7; wrong++) {
        vgq_weight w = plain;
        vgq_conv_call call = right;
        if (wrong == 1)
            w = (vgq_weight){VGQ_I4, VGQ_TWO_LEVEL, N, K, 8, 0, q, scale, factor, NULL};
        if (wrong == 2)
            w = (vgq_weight){VGQ_I8, VGQ_PER_ROW, N, K, K, 1, q, scale, NULL, zero};
        w.k = wrong == 3 ? K + 3 : w.k; /* three more than nine pixels' */
        w.n = wrong == 5 ? N - 1 : wrong == 6 ? PANEL - 1 : w.n;
        call.outputs = wrong == 4 ? 3 : 0;
        call.folded = wrong >= 5;
        call.last_weight = call.last_bias = last;
        const size_t nbytes = vgq_packed_nbytes(&w);
        CHECK(nbytes <= sizeof(packed) && vgq_pack(&w, packed, nbytes) == VGQ_OK, " ");
        CHECK(vgq_conv2d(packed, nbytes, &call, scratch, sizeof(scratch)) ==
                  (wrong ? VGQ_EINVAL : VGQ_OK),
              "weight %d", wrong);
        CHECK(!wrong == !!vgq_conv2d_nbytes(&w, &call), "weight %d", wrong);
    }
}

/* Two parts of a weight: the second half of the outputs is added to the first. */
static void test_folded(void)
{
    scene s = a_scene(8, 64, 3, 1, 0, 16);
    const size_t pixels = s.call.pictures * s.call.out_height * s.call.out_width;
    float *const apart = malloc(pixels * 64 * sizeof(*apart));
    CHECK(vgq_conv2d(s.packed, s.packed_nbytes, &s.call, s.scratch, s.scratch_nbytes) == VGQ_OK,
          " ");
    memcpy(apart, s.y, pixels * 64 * sizeof(*apart));
    s.call.folded = 1;
    CHECK(vgq_conv2d(s.packed, s.packed_nbytes, &s.call, s.scratch, s.scratch_nbytes) == VGQ_OK,
          " ");
    for (size_t i = 0; i < pixels; i++)
        for (size_t o = 0; o < 32; o++)
            CHECK(s.y[i * 32 + o] == apart[i * 64 + o] + apart[i * 64 + 32 + o], "%zu %zu", i, o);
    memcpy(apart, s.y, pixels * 32 * sizeof(*apart));
    s.call.y_largest = NULL; /* not told: the same outputs */
    CHECK(vgq_conv2d(s.packed, s.packed_nbytes, &s.call, s.scratch, s.scratch_nbytes) == VGQ_OK,
          " ");
    CHECK(memcmp(s.y, apart, pixels * 32 * sizeof(*apart)) == 0, " ");
    free(apart);
    free_scene(&s);
    s = a_scene(8, 66, 3, 1, 0, 0);
    s.call.folded = 1;
    CHECK(vgq_conv2d_nbytes(&s.w, &s.call) == 0, " ");
    free_scene(&s);
}

/* An output of bfloat16 is the float rounded, its residual the float that it stands for; a panel
 * and a part of one. */
static void test_rounded(void)
{
    enum { N = 70 };
    scene s = a_scene(8, N, 3, 1, 0, 2);
    const size_t count = s.call.pictures * s.call.out_height * s.call.out_width * N;
    uint16_t *const want = malloc(count * sizeof(*want)), *const residual =
                                                              malloc(count * sizeof(*residual));
    for (size_t i = 0; i < count; i++) {
        residual[i] = vgq_bf16_of_float(s.residual[i]);
        s.residual[i] = vgq_float_of_bf16(residual[i]);
    }
    CHECK(vgq_conv2d(s.packed, s.packed_nbytes, &s.call, s.scratch, s.scratch_nbytes) == VGQ_OK,
          " ");
    for (size_t i = 0; i < count; i++)
        want[i] = vgq_bf16_of_float(s.y[i]);
    s.call.y_dtype = VGQ_BF16;
    s.call.residual = residual;
    CHECK(vgq_conv2d_nbytes(&s.w, &s.call) <= s.scratch_nbytes, " ");
    CHECK(vgq_conv2d(s.packed, s.packed_nbytes, &s.call, s.scratch, s.scratch_nbytes) == VGQ_OK,
          " ");
    CHECK(memcmp(want, s.y, count * sizeof(*want)) == 0, " ");
    free(want);
    free(residual);
    free_scene(&s);
}

/* An output that is NaN is the largest, and so is its relu, whatever its sign. */
static void test_nan(void)
{
    for (int sign = 0; sign < 2; sign++) {
        scene s = a_scene(8, 5, 3, 1, 0, 0);
        s.bias[3] = sign ? -NAN : NAN;
        CHECK(vgq_conv2d(s.packed, s.packed_nbytes, &s.call, s.scratch, s.scratch_nbytes) == VGQ_OK,
              " ");
        for (size_t i = 0; i < 2 * s.call.pictures; i++)
            CHECK(isnan(s.y_largest[i]), "%zu", i);
        free_scene(&s);
    }
}

static void test_resizing(void)
{
    enum { HIGH = 3, WIDE = 5, CHANNELS = 7, TO_HIGH = 4, TO_WIDE = 9 };
    float *const x = floats((size_t)HIGH * WIDE * CHANNELS);
    float *const added = floats((size_t)TO_HIGH * TO_WIDE * CHANNELS);
    float *const y = malloc((size_t)TO_HIGH * TO_WIDE * CHANNELS * sizeof(*y));
    const vgq_resize_call call = {.pictures = 1,
                                  .channels = CHANNELS,
                                  .source_height = HIGH,
                                  .source_width = WIDE,
                                  .height = TO_HIGH,
                                  .width = TO_WIDE,
                                  .x = x,
                                  .added = added,
                                  .y = y};
    const scene s = {.call = {.channels = CHANNELS,
                              .height = TO_HIGH,
                              .width = TO_WIDE,
                              .source_height = HIGH,
                              .source_width = WIDE},
                     .x = x};
    const size_t nbytes = vgq_resize_nbytes(&call);
    void *const scratch = malloc(nbytes);
    CHECK(vgq_resize(&call, scratch, nbytes) == VGQ_OK, " ");
    for (size_t i = 0, at = 0; i < TO_HIGH; i++)
        for (size_t j = 0; j < TO_WIDE; j++)
            for (size_t k = 0; k < CHANNELS; k++, at++)
                CHECK(y[at] == input_at(&s, 0, (ptrdiff_t)i, (ptrdiff_t)j, k) + added[at], " ");
    float *const resized = malloc(sizeof(float) * TO_HIGH * TO_WIDE * CHANNELS);
    vgq_resize_call other = call; /* nothing is added, and the tables of this moment are given */
    const vgq_context now = vgq_context_now();
    other.added = NULL;
    other.y = resized;
    other.context = &now;
    CHECK(vgq_resize(&other, scratch, nbytes) == VGQ_OK, " ");
    for (size_t i = 0; i < (size_t)TO_HIGH * TO_WIDE * CHANNELS; i++)
        CHECK(y[i] == resized[i] + added[i], " ");
    other.x = resized; /* of one size: a sum */
    other.added = added;
    other.y = y;
    other.source_height = TO_HIGH;
    other.source_width = TO_WIDE;
    memset(y, 0, sizeof(float) * TO_HIGH * TO_WIDE * CHANNELS);
    CHECK(vgq_resize_nbytes(&other) <= nbytes && vgq_resize(&other, scratch, nbytes) == VGQ_OK,
          " ");
    for (size_t i = 0; i < (size_t)TO_HIGH * TO_WIDE * CHANNELS; i++)
        CHECK(y[i] == resized[i] + added[i], " ");
    free(resized);
    CHECK(vgq_resize_nbytes(NULL) == 0 && vgq_resize(NULL, scratch, nbytes) == VGQ_EINVAL, " ");
    CHECK(vgq_resize(&call, scratch, 63) == VGQ_EINVAL, " ");
    CHECK(vgq_resize(&call, NULL, nbytes) == VGQ_EINVAL, " ");
#define REFUSED(change)                                                \
    do {                                                               \
        vgq_resize_call c = call;                                      \
        change;                                                        \
        CHECK(vgq_resize(&c, scratch, nbytes) == VGQ_EINVAL, #change); \
        CHECK(!c.x || !c.y || vgq_resize_nbytes(&c) == 0, #change);    \
    } while (0)
    REFUSED(c.x = NULL);
    REFUSED(c.y = NULL);
    REFUSED(c.x_dtype = VGQ_DTYPES);
    REFUSED(c.y_dtype = VGQ_DTYPES);
    REFUSED(c.pictures = 0);
    REFUSED(c.height = 0);
    REFUSED(c.width = 0);
    REFUSED(c.channels = 0);
    REFUSED(c.source_height = 0);
    REFUSED(c.source_width = 0);
    REFUSED(c.pictures = SIZE_MAX / 16);
    REFUSED(c.width = SIZE_MAX / 64);
    REFUSED(c.channels = SIZE_MAX / 1024);
#undef REFUSED
    free(x);
    free(added);
    free(y);
    free(scratch);
}

void test_convolutions(void)
{
    static const size_t channels[] = {1, 3, 8, 13, 24}, outputs[] = {1, 5, 64, 67};
    for (int more = 0; more < 128; more += more < 31 ? 1 : 32) { /* 31, 63, 95, 127 at the end */
        const int projects = more & 8;
        test_scene(channels[below(5)], outputs[below(projects ? 3 : 4)], 1 + below(4), 1 + below(2),
                   more & 1, more);
        test_scene(16, projects ? 20 : 70, 3, 1, !(more & 1), more);
    }
    test_folded();
    test_rounded();
    test_nan();
    test_wrong_calls();
    test_wrong_weights();
    test_resizing();
}
