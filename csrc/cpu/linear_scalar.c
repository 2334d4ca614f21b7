/* SPDX-License-Identifier: Apache-2.0
 * Linear kernels in plain C: the definition of right for every other table. */
#include "../formats.h"
#include "../gelu.h"
#include "../kernels.h"

static void expand4_scalar(size_t k, const uint8_t *nibbles, const uint8_t *factor,
                           const int8_t *zero, uint8_t *bytes)
{
    for (size_t step = 0; step < k / 8; step++)
        for (size_t half = 0; half < 2; half++)
            for (size_t i = 0; i < 4 * VGQ_PANEL; i++) {
                const uint8_t both = nibbles[step * 4 * VGQ_PANEL + i];
                const int code = (half ? both >> 4 : both & 15) - 8;
                const size_t column = i / 4;
                bytes[(2 * step + half) * 4 * VGQ_PANEL + i] =
                    (uint8_t)(factor[column] * (code - zero[column]) + 128);
            }
}

static void decode_panel_scalar(size_t k, const uint8_t *bytes, const int32_t *offset,
                                const float *scale, void *out)
{
    float *const w = out;
    for (size_t i = 0; i < k; i++)
        for (size_t n = 0; n < VGQ_PANEL; n++)
            w[i * VGQ_PANEL + n] =
                (float)(bytes[(i / 4 * VGQ_PANEL + n) * 4 + i % 4] - offset[n]) * scale[n];
}

static void float_tile_scalar(size_t rows, size_t k, const void *from, size_t ldx,
                              const void *panel, float *acc, int accumulate)
{
    const float *const x = from, *const w = panel;
    for (size_t m = 0; m < rows; m++) {
        float *const row = acc + m * VGQ_PANEL;
        for (size_t n = 0; n < VGQ_PANEL && !accumulate; n++)
            row[n] = 0;
        for (size_t i = 0; i < k; i++)
            for (size_t n = 0; n < VGQ_PANEL; n++)
                row[n] += x[m * ldx + i] * w[i * VGQ_PANEL + n];
    }
}

static uint32_t largest_scalar(size_t k, const float *x)
{
    uint32_t largest = 0;
    for (size_t i = 0; i < k; i++) {
        const uint32_t magnitude = vgq_bits_of_float(x[i]) & 0x7fffffffu;
        largest = magnitude > largest ? magnitude : largest;
    }
    return largest;
}

static int32_t code_row_scalar(size_t k, size_t padded, const float *x, float inverse, void *codes)
{
    int8_t *const q = codes;
    int32_t sum = 0;
    for (size_t i = 0; i < padded; i++) {
        q[i] = i < k ? vgq_encode_token(x[i], inverse) : 0;
        sum += q[i];
    }
    return sum;
}

static void tile_i8_scalar(size_t rows, const vgq_operand *w, const void *codes, size_t ld,
                           const int32_t *sums, int32_t *acc)
{
    const uint8_t *const bytes = w->data;
    (void)sums;
    for (size_t m = 0; m < rows; m++) {
        const int8_t *const q = (const int8_t *)codes + m * ld;
        int32_t *const row = acc + m * VGQ_PANEL;
        for (size_t n = 0; n < VGQ_PANEL; n++)
            row[n] = 0;
        for (size_t i = 0; i < w->k; i += 4)
            for (size_t n = 0; n < VGQ_PANEL; n++) {
                const uint8_t *const b = bytes + i * VGQ_PANEL + 4 * n;
                row[n] += q[i] * b[0] + q[i + 1] * b[1] + q[i + 2] * b[2] + q[i + 3] * b[3];
            }
    }
}

static void finish_scalar(size_t rows, const int32_t *acc, const vgq_columns *columns,
                          const int32_t *sum, const float *x_scale, float *y, size_t ldy)
{
    for (size_t r = 0; r < rows; r++)
        for (size_t n = 0; n < VGQ_PANEL; n++) {
            const int32_t exact = acc[r * VGQ_PANEL + n] - columns->offset[n] * sum[r];
            y[r * ldy + n] = (float)exact * x_scale[r] * columns->scale[n] + columns->bias[n];
        }
}

static float joined(int32_t high, int32_t low) { return (float)(255.0 * high + low); }

static void finish16_scalar(size_t rows, const int32_t *acc, const vgq_columns *columns,
                            const int32_t *sum, const float *x_scale, float *y, size_t ldy)
{
    for (size_t r = 0; r < rows; r++)
        for (size_t n = 0; n < VGQ_PANEL; n++) {
            const int32_t *const at = acc + 2 * r * VGQ_PANEL + n;
            const float v = joined(at[0] - columns->offset[n] * sum[2 * r],
                                   at[VGQ_PANEL] - columns->offset[n] * sum[2 * r + 1]);
            y[r * ldy + n] = v * x_scale[r] * columns->scale[n] + columns->bias[n];
        }
}

static void flush16_scalar(const int32_t *acc, int32_t offset, const int32_t *sum,
                           const float *scale, float *total)
{
    for (size_t n = 0; n < VGQ_PANEL; n++)
        total[n] +=
            joined(acc[n] - offset * sum[0], acc[n + VGQ_PANEL] - offset * sum[1]) * scale[n];
}

static void flush_scalar(const int32_t *acc, int32_t offset, int32_t sum, const float *scale,
                         float *total)
{
    for (size_t n = 0; n < VGQ_PANEL; n++)
        total[n] += (float)(acc[n] - offset * sum) * scale[n];
}

static void gelu_scalar(size_t n, float *x)
{
    for (size_t i = 0; i < n; i++)
        x[i] = vgq_gelu(x[i]);
}

static const vgq_float_gemm float_gemm_scalar = {
    .nbytes = sizeof(float),
    .decode = decode_panel_scalar,
    .tile = float_tile_scalar,
};

static const vgq_product product_scalar = {
    .mr = 6,
    .code_nbytes = 1,
    .weight_nbytes = 1,
    .offset = 128,
    .tile = tile_i8_scalar,
};

static const vgq_product *const products_scalar[] = {&product_scalar, NULL};

const vgq_linear_kernels vgq_linear_scalar = {
    .expand4 = expand4_scalar,
    .float_gemm = &float_gemm_scalar,
    .largest = largest_scalar,
    .code_row = code_row_scalar,
    .products = products_scalar,
    .finish = finish_scalar,
    .finish16 = finish16_scalar,
    .flush = flush_scalar,
    .flush16 = flush16_scalar,
    .gelu = gelu_scalar,
};
