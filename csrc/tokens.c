/* SPDX-License-Identifier: Apache-2.0
 * Codes rows of activations: docs/conventions.md, "Activations". */
#include "tokens.h"

#include <string.h>

/* The sums of a line's codes, of a byte each, over each group of the weights. */
static void group_sums(const vgq_tokens *tokens, const unsigned char *codes, int32_t *sums)
{
    for (size_t g = 0; g < tokens->sums; g++) {
        const size_t start = g * tokens->group, end = vgq_min(start + tokens->group, tokens->k);
        int32_t sum = 0;
        for (size_t i = start; i < end; i++)
            sum += (int8_t)codes[i];
        sums[g] = sum;
    }
}

/* The codes rint(x * inverse) as 255 * high + low, both -127..127. The quotient is never near a
 * tie, since 255 is odd. A float far below 2^23 that is added to 1.5 * 2^23 loses what stands
 * behind the point, ties to even. A static scale may be small for x: codes saturate. A NaN stays
 * one. */
static void split_digits(size_t k, const float *x, float inverse, float *high, float *low)
{
    const float large = 0x1.8p23f, most = VGQ_INT16_HIGHEST;
    for (size_t i = 0; i < k; i++) {
        const float scaled = x[i] * inverse, below = scaled > most ? most : scaled;
        const float code = ((below < -most ? -most : below) + large) - large;
        high[i] = (code * (1.0f / 255.0f) + large) - large;
        low[i] = code - 255.0f * high[i];
    }
}

/* A line of codes and its sums. */
static void code_line(const vgq_tokens *tokens, size_t line, const float *x, float inverse)
{
    unsigned char *const codes = tokens->codes + line * tokens->pitch * tokens->code_nbytes;
    int32_t *const sums = tokens->sum + line * tokens->sums;
    sums[0] = tokens->code_row(tokens->k, tokens->pitch, x, inverse, codes);
    if (tokens->sums > 1)
        group_sums(tokens, codes, sums);
}

/* A token as floats, and its digits. */
size_t vgq_token_floats(const vgq_tokens *tokens) { return (2 * tokens->digits - 1) * tokens->k; }

void vgq_code_token(const vgq_tokens *tokens, size_t m, float *buffer)
{
    const size_t k = tokens->k;
    const vgq_coded *const coded = tokens->coded;
    if (coded) {
        for (size_t i = 0; i < k; i++)
            buffer[i] = coded->codes[m * coded->pitch + i];
        tokens->scale[m] = coded->scale[m];
        code_line(tokens, m, buffer, 1); /* rint(code * 1) is the code */
        return;
    }
    const float *x = vgq_floats(tokens->kernels, tokens->dtype, tokens->x, m * k, k, buffer);
    if (tokens->norm.weight) {
        tokens->kernels->rows.norm_row(k, x, &tokens->norm, buffer);
        x = buffer;
    }
    if (tokens->affine.weight) {
        tokens->kernels->rows.affine_row(k, x, &tokens->affine, buffer);
        x = buffer;
    }
    const float highest = tokens->digits == 1 ? VGQ_INT8_HIGHEST : VGQ_INT16_HIGHEST;
    float inverse;
    if (tokens->x_scale > 0) {
        tokens->scale[m] = tokens->x_scale;
        inverse = 1 / tokens->x_scale;
    } else
        tokens->scale[m] =
            vgq_token_scale(tokens->kernels->linear.largest(k, x), highest, &inverse);
    if (tokens->digits == 1) {
        code_line(tokens, m, x, inverse);
        return;
    }
    split_digits(k, x, inverse, buffer + k, buffer + 2 * k);
    code_line(tokens, 2 * m, buffer + k, 1);
    code_line(tokens, 2 * m + 1, buffer + 2 * k, 1);
}
