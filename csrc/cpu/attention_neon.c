/* SPDX-License-Identifier: Apache-2.0
 * Attention in float for every 64-bit Arm. Tiles are 6 x 16; k is cut into blocks of 16 keys, v
 * into blocks of 16 channels, [channel or key][16]. Without dot-product instructions INT8 is left
 * to the scalar table, which the compiler makes vectors of. */
#include "../kernels.h"

#if defined(__aarch64__)

#include "attention_neon.h"

enum { ROWS = 6 };

static void prepare_neon(const vgq_rows *rows, size_t first, size_t n, float *to)
{
    prepare_rows(rows, first, n, to);
}

static void softmax_f32_neon(size_t rows, size_t n, float *s, const float *r, vgq_gathered to,
                             float *kept, float *added, void *weights)
{
    for (size_t m = 0; m < rows; m++, s += VGQ_KEYS) {
        float *const p = (float *)weights + m * VGQ_KEYS;
        const float peak = begin_row(n, s, r[m], &to.top[m], &kept[m], &added[m]);
        const float32x4_t factor = vdupq_n_f32(r[m]), below = vdupq_n_f32(-peak);
        float32x4_t sums[4] = {vdupq_n_f32(0), vdupq_n_f32(0), vdupq_n_f32(0), vdupq_n_f32(0)};
        for (size_t j = 0; j < vgq_round_up(n, VGQ_PANEL); j += 16)
            for (size_t i = 0; i < 4; i++) {
                const float32x4_t e = exp2_floats(exponents(n, j + 4 * i, s, factor, below));
                sums[i] = vaddq_f32(sums[i], e);
                vst1q_f32(p + j + 4 * i, e);
            }
        gather_lanes(to.lanes[m], sums, kept[m], added[m]);
    }
}

static int pack_keys_f32_neon(size_t n, size_t depth, const float *x, void *panel, float *scale)
{
    float *const k = panel;
    memset(k, 0, VGQ_PANEL * depth * sizeof(*k));
    for (size_t j = 0; j < n; j++)
        for (size_t i = 0; i < depth; i++)
            k[j / BLOCK * BLOCK * depth + i * BLOCK + j % BLOCK] = x[j * depth + i];
    for (size_t j = 0; j < VGQ_PANEL; j++)
        scale[j] = 1;
    return not_finite(n * depth, x);
}

#define ZERO(r) \
    float32x4_t a##r##0 = vdupq_n_f32(0), a##r##1 = a##r##0, a##r##2 = a##r##0, a##r##3 = a##r##0;
#define STEP(r)                                \
    {                                          \
        const float v = x[(r)*ld + i];         \
        a##r##0 = vfmaq_n_f32(a##r##0, w0, v); \
        a##r##1 = vfmaq_n_f32(a##r##1, w1, v); \
        a##r##2 = vfmaq_n_f32(a##r##2, w2, v); \
        a##r##3 = vfmaq_n_f32(a##r##3, w3, v); \
    }
#define SAVE(r)                               \
    vst1q_f32(sums + (r)*BLOCK, a##r##0);     \
    vst1q_f32(sums + (r)*BLOCK + 4, a##r##1); \
    vst1q_f32(sums + (r)*BLOCK + 8, a##r##2); \
    vst1q_f32(sums + (r)*BLOCK + 12, a##r##3);
/* sums[rows][16] = x w, of n items of each row, which are ld apart. */
#define SUMS(rows, EACH)                                                                       \
    static void sums_f32_##rows##x16_neon(size_t n, const float *x, size_t ld, const float *w, \
                                          float *sums)                                         \
    {                                                                                          \
        EACH(ZERO)                                                                             \
        for (size_t i = 0; i < n; i++, w += BLOCK) {                                           \
            const float32x4_t w0 = vld1q_f32(w), w1 = vld1q_f32(w + 4);                        \
            const float32x4_t w2 = vld1q_f32(w + 8), w3 = vld1q_f32(w + 12);                   \
            EACH(STEP)                                                                         \
        }                                                                                      \
        EACH(SAVE)                                                                             \
    }
SUMS(6, EACH_6)
SUMS(1, EACH_1)
#undef SUMS
#undef SAVE
#undef STEP
#undef ZERO

static void scores_f32_neon(size_t keys, size_t depth, const void *q, const int32_t *first,
                            const void *panels, const float *scale, float *s)
{
    const float *k = panels;
    (void)first, (void)scale;
    for (size_t j = 0; j < keys; j += BLOCK, k += BLOCK * depth)
        for (size_t m = 0; m < GROUP; m += ROWS) {
            float sums[ROWS * BLOCK];
            sums_f32_6x16_neon(depth, (const float *)q + m * depth, depth, k, sums);
            for (size_t r = 0; r < ROWS; r++)
                memcpy(s + (m + r) * VGQ_KEYS + j, sums + r * BLOCK, BLOCK * sizeof(*s));
        }
}

static void values_f32_neon(size_t rows, size_t keys, size_t depth, const void *weights,
                            const void *block, const float *scale, const float *kept,
                            const float *added, float *o)
{
    const float *const p = weights, *v = block;
    (void)scale;
    for (size_t c = 0; c < depth; c += BLOCK, v += BLOCK * keys)
        for (size_t m = 0, n; m < rows; m += n) {
            float sums[ROWS * BLOCK];
            n = rows - m >= ROWS ? ROWS : 1;
            (n == ROWS ? sums_f32_6x16_neon : sums_f32_1x16_neon)(keys, p + m * VGQ_KEYS, VGQ_KEYS,
                                                                  v, sums);
            for (size_t i = 0; i < n * BLOCK; i += 4) {
                const size_t r = m + i / BLOCK;
                float *const to = o + r * depth + c + i % BLOCK;
                const float32x4_t before = vmulq_n_f32(vld1q_f32(to), kept[r]);
                vst1q_f32(to, vfmaq_n_f32(before, vld1q_f32(sums + i), added[r]));
            }
        }
}

static const vgq_scores_gemm scores_f32 = {.rows = GROUP,
                                           .q_nbytes = sizeof(float),
                                           .k_nbytes = sizeof(float),
                                           .code_queries = code_queries_f32,
                                           .pack_keys = pack_keys_f32_neon,
                                           .tile = scores_f32_neon};
static const vgq_values_gemm values_f32 = {.p_nbytes = sizeof(float),
                                           .v_nbytes = sizeof(float),
                                           .pack_values = pack_blocks_f32,
                                           .softmax = softmax_f32_neon,
                                           .tile = values_f32_neon};

const vgq_attention_kernels vgq_attention_neon = {
    .prepare = prepare_neon,
    .scores = {[VGQ_FLOAT_ACTIVATIONS] = &scores_f32},
    .values = {[VGQ_FLOAT_ACTIVATIONS] = &values_f32},
};

#endif
