/* SPDX-License-Identifier: Apache-2.0
 * The convolution's passes as plain loops, and the table of them. A file of an instruction set
 * defines CONV_ISA and includes this between ISA_BEGIN and ISA_END, so that the compiler makes
 * vectors of that set of them. Nothing here depends on the order of additions, but for `project`,
 * whose lanes are written out: every set gives the same bits. */
#include "../formats.h"
#include "../kernels.h"

#define JOINED(name, isa) name##_##isa
#define NAMED(name, isa) JOINED(name, isa)
#define OWN(name) NAMED(name, CONV_ISA)

static void OWN(lerp)(size_t n, const float *restrict a, const float *restrict b, float weight,
                      float *restrict out)
{
    for (size_t i = 0; i < n; i++)
        out[i] = a[i] + weight * (b[i] - a[i]);
}

static void OWN(add)(size_t n, const float *restrict added, float *restrict x)
{
    for (size_t i = 0; i < n; i++)
        x[i] += added[i];
}

/* A float far below 2^23 that is added to 1.5 * 2^23 loses what stands behind the point, ties to
 * even. Both comparisons are false for a NaN, which the first makes 0. */
static void OWN(code_unsigned)(size_t n, const float *restrict x, float inverse,
                               float *restrict codes)
{
    const float large = 0x1.8p23f;
    for (size_t i = 0; i < n; i++) {
        const float quotient = x[i] * inverse, positive = quotient > 0 ? quotient : 0;
        const float least = positive < 254.0f ? positive : 254.0f;
        codes[i] = ((least + large) - large) - 127.0f;
    }
}

/* Unsigned: partial sums may pass 2^31; the true one does not. */
static void OWN(finish)(size_t rows, size_t segments, size_t apart, const int32_t *acc,
                        const vgq_conv_columns *columns, const int32_t *sums, float x_scale,
                        float *restrict y, size_t ldy)
{
    for (size_t r = 0; r < rows; r++) {
        const uint32_t extra = (uint32_t)columns->offset * (uint32_t)sums[r];
        uint32_t total[VGQ_PANEL];
        for (size_t c = 0; c < VGQ_PANEL; c++)
            total[c] = (uint32_t)columns->correction[c] - extra;
        for (size_t s = 0; s < segments; s++) {
            const int32_t *const from = acc + s * apart + r * VGQ_PANEL;
            for (size_t c = 0; c < VGQ_PANEL; c++)
                total[c] += (uint32_t)from[c];
        }
        for (size_t c = 0; c < VGQ_PANEL; c++)
            y[r * ldy + c] =
                (float)(int32_t)total[c] * x_scale * columns->scale[c] + columns->bias[c];
    }
}

static inline void OWN(rectify)(size_t n, float *x)
{
    for (size_t i = 0; i < n; i++)
        x[i] = x[i] <= 0 ? 0 : x[i]; /* a NaN stays one */
}

/* A positive float's bits are a positive integer, a negative one's a negative. */
static inline void OWN(look)(size_t n, const float *restrict y, vgq_conv_most *restrict most)
{
    for (size_t i = 0; i < n; i++) {
        const int32_t bits = (int32_t)vgq_bits_of_float(y[i]), magnitude = bits & 0x7fffffff;
        most->magnitude[i] = magnitude > most->magnitude[i] ? magnitude : most->magnitude[i];
        most->positive[i] = bits > most->positive[i] ? bits : most->positive[i];
    }
}

static void OWN(last)(size_t pixels, size_t n, float *y, size_t ldy, int relu,
                      const float *residual, int relu_sum, vgq_conv_most *most)
{
    for (size_t pixel = 0; pixel < pixels; pixel++, y += ldy) {
        if (relu)
            OWN(rectify)(n, y);
        if (residual) {
            OWN(add)(n, residual, y);
            residual += ldy;
        }
        if (relu_sum)
            OWN(rectify)(n, y);
        OWN(look)(n, y, most);
    }
}

static void OWN(project)(size_t outputs, const float *restrict y, const float *restrict weight,
                         const float *restrict bias, float *restrict out)
{
    for (size_t o = 0; o < outputs; o++) {
        const float *const w = weight + o * VGQ_PANEL;
        float lane[VGQ_LANES];
        for (size_t i = 0; i < VGQ_LANES; i++)
            lane[i] = y[i] * w[i];
        for (size_t j = VGQ_LANES; j < VGQ_PANEL; j += VGQ_LANES)
            for (size_t i = 0; i < VGQ_LANES; i++)
                lane[i] += y[j + i] * w[j + i];
        for (size_t half = VGQ_LANES / 2; half; half /= 2)
            for (size_t i = 0; i < half; i++)
                lane[i] += lane[i + half];
        out[o] = lane[0] + bias[o];
    }
}

#define CONV_TABLE                                                               \
    {                                                                            \
        .lerp = OWN(lerp), .add = OWN(add), .code_unsigned = OWN(code_unsigned), \
        .finish = OWN(finish), .last = OWN(last), .project = OWN(project)        \
    }
