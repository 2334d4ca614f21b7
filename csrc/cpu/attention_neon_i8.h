/* SPDX-License-Identifier: Apache-2.0
 * INT8 attention of 64-bit Arm but for its two products, which the file that includes this has
 * defined: sums_of_scores of signed codes, and sums_of_values of p's unsigned codes and v's codes +
 * ABOVE. sums[TILE][BLOCK] = rows w, of n items of each of TILE rows, which are ld apart; a product
 * takes ITEMS channels or keys at a time. Tiles are 4 x 16; k is cut into blocks of 16 keys,
 * [channel / ITEMS][16][ITEMS], v into blocks of 16 channels, [key / ITEMS][16][ITEMS]. */
#ifndef VGQ_ATTENTION_NEON_I8_H
#define VGQ_ATTENTION_NEON_I8_H

#include "attention_neon.h"

static int pack_keys_i8(size_t n, size_t depth, const float *x, void *panel, float *scale)
{
    int32_t codes[VGQ_WIDEST];
    int finite = 1;
    memset(panel, 0, VGQ_PANEL * depth);
    for (size_t j = 0; j < VGQ_PANEL; j++)
        scale[j] = 0;
    for (size_t j = 0; j < n; j++) {
        int8_t *to = (int8_t *)panel + j / BLOCK * BLOCK * depth + j % BLOCK * ITEMS;
        scale[j] = key_scale(code_row(depth, x + j * depth, codes));
        finite &= scale[j] == scale[j];
        for (size_t i = 0; i < depth; i += ITEMS, to += BLOCK * ITEMS)
            for (size_t k = 0; k < ITEMS; k++)
                to[k] = (int8_t)codes[i + k];
    }
    return !finite;
}

static int pack_values_i8(size_t n, size_t depth, const float *x, void *block, float *scale)
{
    const size_t padded = vgq_round_up(n, VGQ_PANEL);
    float inverse[VGQ_WIDEST];
    const int finite = column_scales(n, depth, x, scale, inverse);
    memset(block, ABOVE, padded * depth);
    for (size_t j = 0; j < n; j++)
        for (size_t c = 0; c < depth; c++) {
            uint8_t *const to = (uint8_t *)block + c / BLOCK * BLOCK * padded;
            to[(j / ITEMS * BLOCK + c % BLOCK) * ITEMS + j % ITEMS] =
                (uint8_t)(code_value(x[j * depth + c], inverse[c]) + ABOVE);
        }
    return !finite;
}

static void scores_i8(size_t keys, size_t depth, const void *q, const int32_t *first,
                      const void *panels, const float *scale, float *s)
{
    (void)first;
    const int8_t *k = panels;
    for (size_t j = 0; j < keys; j += BLOCK, k += BLOCK * depth)
        for (size_t m = 0; m < GROUP; m += TILE) {
            int32_t sums[TILE * BLOCK];
            sums_of_scores(depth, (const int8_t *)q + m * depth, depth, k, sums);
            for (size_t i = 0; i < TILE * BLOCK; i += 4)
                vst1q_f32(s + (m + i / BLOCK) * VGQ_KEYS + j + i % BLOCK,
                          vmulq_f32(vcvtq_f32_s32(vld1q_s32(sums + i)),
                                    vld1q_f32(scale + j + i % BLOCK)));
        }
}

static void values_i8(size_t rows, size_t keys, size_t depth, const void *weights,
                      const void *block, const float *scale, const float *kept, const float *added,
                      float *o)
{
    for (size_t m = 0; m < rows; m += TILE) {
        const size_t count = vgq_min(TILE, rows - m);
        const uint8_t *p = (const uint8_t *)weights + m * VGQ_KEYS;
        uint8_t whole[TILE * VGQ_KEYS] = {0};
        if (count < TILE)
            p = memcpy(whole, p, count * VGQ_KEYS);
        for (size_t c = 0; c < depth; c += BLOCK) {
            int32_t sums[TILE * BLOCK];
            sums_of_values(keys, p, VGQ_KEYS, (const uint8_t *)block + c * keys, sums);
            for (size_t i = 0; i < count * BLOCK; i += 4) {
                const size_t r = m + i / BLOCK, at = c + i % BLOCK;
                float *const to = o + r * depth + at;
                const float32x4_t before = vmulq_n_f32(vld1q_f32(to), kept[r]);
                vst1q_f32(to, vfmaq_f32(before, vcvtq_f32_s32(vld1q_s32(sums + i)),
                                        vmulq_n_f32(vld1q_f32(scale + at), added[r])));
            }
        }
    }
}

static const vgq_scores_gemm scores_gemm_i8 = {.rows = GROUP,
                                               .q_nbytes = 1,
                                               .k_nbytes = 1,
                                               .code_queries = code_queries_i8,
                                               .pack_keys = pack_keys_i8,
                                               .tile = scores_i8};
static const vgq_values_gemm values_gemm_i8 = {.p_nbytes = 1,
                                               .v_nbytes = 1,
                                               .pack_values = pack_values_i8,
                                               .softmax = softmax_u8,
                                               .tile = values_i8};

#endif
