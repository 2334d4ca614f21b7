/* SPDX-License-Identifier: Apache-2.0
 * INT8 attention for AVX-VNNI: vpdpbusd on 256 bits, of CPUs without AVX-512. Tiles are 6 x 16. k
 * is cut into blocks of 16 keys, [channel / 4][16][4], each byte the code + 128; v is cut into
 * blocks of 16 channels, [key / 4][16][4], signed. vpdpbusd wraps, so that every sum is exact
 * modulo 2^32 and the true one fits. Sums of scores begin with what the 128 will have added too
 * much. */
#include "../kernels.h"

#if defined(__x86_64__)

#include "isa.h"

#if defined(VGQ_MODELS)
ISA_BEGIN("avx2,fma,f16c")
#include <immintrin.h>
#include VGQ_MODELS
#else
#include <immintrin.h>
ISA_BEGIN("avx2,fma,f16c,avxvnni")
#define dot4(acc, w, x) _mm256_dpbusd_avx_epi32(acc, w, x)
#endif

#include "attention_avx2.h"
#include "tiles_avx2.h"

static void code_queries_i8_avxvnni(size_t n, size_t depth, const float *x, float factor, void *q,
                                    float *r, int32_t *first)
{
    int32_t codes[VGQ_WIDEST];
    int8_t *to = q;
    for (size_t m = 0; m < n; m++, to += depth) {
        int32_t sum = 0;
        r[m] = code_row(depth, x + m * depth, codes) * factor;
        for (size_t i = 0; i < depth; i++) {
            to[i] = (int8_t)codes[i];
            sum += codes[i];
        }
        first[m] = -128 * sum;
    }
}

static int pack_keys_i8_avxvnni(size_t n, size_t depth, const float *x, void *panel, float *scale)
{
    uint8_t all[VGQ_PANEL * VGQ_WIDEST];
    int32_t codes[VGQ_WIDEST];
    int finite = 1;
    for (size_t j = 0; j < n; j++) {
        scale[j] = key_scale(code_row(depth, x + j * depth, codes));
        finite &= scale[j] == scale[j];
        for (size_t i = 0; i < depth; i++)
            all[j * depth + i] = (uint8_t)(codes[i] + 128);
    }
    memset(all + n * depth, 128, (VGQ_PANEL - n) * depth);
    for (size_t j = n; j < VGQ_PANEL; j++)
        scale[j] = 0;
    transpose_panel(all, depth / 4, panel);
    return !finite;
}

#define BEGIN(r) __m256i a##r##0 = _mm256_set1_epi32(first[r]), a##r##1 = a##r##0;
#define STEP(r)                                          \
    {                                                    \
        const __m256i x = four_codes(q + (r)*depth + i); \
        a##r##0 = dot4(a##r##0, w0, x);                  \
        a##r##1 = dot4(a##r##1, w1, x);                  \
    }
#define STORE(r) store_scores(s + (r)*VGQ_KEYS, a##r##0, a##r##1, k0, k1);

/* s[6][16] = (first + q k) * scale of 16 keys. */
__attribute__((noinline, noclone)) static void
tile_scores_i8_6x16_avxvnni(size_t depth, const int8_t *q, const int32_t *first, const uint8_t *k,
                            const float *scale, float *s)
{
    EACH_6(BEGIN)
    for (size_t i = 0; i < depth; i += 4, k += 4 * BLOCK) {
        const __m256i w0 = _mm256_loadu_si256((const void *)k);
        const __m256i w1 = _mm256_loadu_si256((const void *)(k + 32));
        EACH_6(STEP)
    }
    EACH_6(PIN)
    const __m256 k0 = _mm256_loadu_ps(scale), k1 = _mm256_loadu_ps(scale + 8);
    EACH_6(STORE)
}

#undef STORE
#undef STEP
#undef BEGIN

static void scores_i8_avxvnni(size_t keys, size_t depth, const void *q, const int32_t *first,
                              const void *panels, const float *scale, float *s)
{
    const uint8_t *k = panels;
    for (size_t j = 0; j < keys; j += BLOCK, s += BLOCK, k += depth * BLOCK)
        for (size_t m = 0; m < GROUP; m += ROWS)
            tile_scores_i8_6x16_avxvnni(depth, (const int8_t *)q + m * depth, first + m, k,
                                        scale + j, s + m * VGQ_KEYS);
}

static int pack_values_i8_avxvnni(size_t n, size_t depth, const float *x, void *block, float *scale)
{
    float inverse[VGQ_WIDEST];
    const int finite = column_scales(n, depth, x, scale, inverse);
    static const float zeros[VGQ_WIDEST];
    uint32_t *v = block;
    for (size_t b = 0; b < depth; b += BLOCK)
        for (size_t j = 0; j < vgq_round_up(n, VGQ_PANEL); j += 4, v += BLOCK) {
            const float *row[4];
            for (size_t i = 0; i < 4; i++)
                row[i] = j + i < n ? x + (j + i) * depth + b : zeros;
            for (size_t c = 0; c < BLOCK; c++)
                v[c] = ((uint32_t)code_value(row[0][c], inverse[b + c]) & 0xffu) |
                       ((uint32_t)code_value(row[1][c], inverse[b + c]) & 0xffu) << 8 |
                       ((uint32_t)code_value(row[2][c], inverse[b + c]) & 0xffu) << 16 |
                       (uint32_t)code_value(row[3][c], inverse[b + c]) << 24;
        }
    return !finite;
}

static void softmax_u8_avxvnni(size_t rows, size_t n, float *s, const float *r, vgq_gathered to,
                               float *kept, float *added, void *weights)
{
    const __m256i in_order = _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7);
    float peaks[VGQ_GROUP_MOST];
    begin_rows(rows, n, s, r, to.top, peaks, kept, added);
    for (size_t m = 0; m < rows; m++, s += VGQ_KEYS) {
        uint8_t *const p = (uint8_t *)weights + m * VGQ_KEYS;
        const __m256 peak = _mm256_set1_ps(peaks[m]), factor = _mm256_set1_ps(r[m]);
        __m256 low = _mm256_setzero_ps(), high = low;
        for (size_t j = 0; j < vgq_round_up(n, VGQ_PANEL); j += 32) {
            __m256 e[4];
            for (size_t i = 0; i < 4; i++) {
                e[i] = exp2_codes(_mm256_loadu_ps(s + j + 8 * i), factor, peak);
                if (j + 32 > n)
                    e[i] = _mm256_and_ps(e[i], first_lanes(j + 8 * i < n ? n - j - 8 * i : 0));
            }
            low = _mm256_add_ps(_mm256_add_ps(low, e[0]), e[2]);
            high = _mm256_add_ps(_mm256_add_ps(high, e[1]), e[3]);
            const __m256i codes = _mm256_packus_epi16(
                _mm256_packs_epi32(_mm256_cvtps_epi32(e[0]), _mm256_cvtps_epi32(e[1])),
                _mm256_packs_epi32(_mm256_cvtps_epi32(e[2]), _mm256_cvtps_epi32(e[3])));
            _mm256_storeu_si256((void *)(p + j), _mm256_permutevar8x32_epi32(codes, in_order));
        }
        if (r[m] != r[m]) /* what integers were added to need be no NaN any more */
            low = _mm256_set1_ps(NAN);
        gather_lanes(to.lanes[m], low, high, kept[m], added[m]);
    }
}

#define STEP(r)                                             \
    {                                                       \
        const __m256i x = four_codes(p + (r)*VGQ_KEYS + j); \
        a##r##0 = dot4(a##r##0, x, w0);                     \
        a##r##1 = dot4(a##r##1, x, w1);                     \
    }
#define STORE(r) join_sums(o + (r)*depth, a##r##0, a##r##1, scale, kept[r], added[r]);
#define TILE(rows, EACH)                                                                       \
    __attribute__((noinline, noclone)) static void tile_values_i8_##rows##x16_avxvnni(         \
        size_t keys, const uint8_t *p, const int8_t *v, const float *scale, const float *kept, \
        const float *added, float *o, size_t depth)                                            \
    {                                                                                          \
        EACH(ZERO)                                                                             \
        for (size_t j = 0; j < keys; j += 4, v += 4 * BLOCK) {                                 \
            const __m256i w0 = _mm256_loadu_si256((const void *)v);                            \
            const __m256i w1 = _mm256_loadu_si256((const void *)(v + 32));                     \
            EACH(STEP)                                                                         \
        }                                                                                      \
        EACH(PIN) EACH(STORE)                                                                  \
    }
TILE(6, EACH_6)
TILE(1, EACH_1)
#undef TILE
#undef STEP
#undef STORE

static void values_i8_avxvnni(size_t rows, size_t keys, size_t depth, const void *weights,
                              const void *block, const float *scale, const float *kept,
                              const float *added, float *o)
{
    const uint8_t *const p = weights;
    const int8_t *v = block;
    for (size_t c = 0; c < depth; c += BLOCK, v += keys * BLOCK)
        for (size_t m = 0, n; m < rows; m += n) {
            n = rows - m >= ROWS ? ROWS : 1;
            (n == ROWS ? tile_values_i8_6x16_avxvnni : tile_values_i8_1x16_avxvnni)(
                keys, p + m * VGQ_KEYS, v, scale + c, kept + m, added + m, o + m * depth + c,
                depth);
        }
}

ISA_END

static const vgq_scores_gemm scores_i8 = {.rows = GROUP,
                                          .q_nbytes = 1,
                                          .k_nbytes = 1,
                                          .code_queries = code_queries_i8_avxvnni,
                                          .pack_keys = pack_keys_i8_avxvnni,
                                          .tile = scores_i8_avxvnni};
static const vgq_values_gemm values_i8 = {.p_nbytes = 1,
                                          .v_nbytes = 1,
                                          .pack_values = pack_values_i8_avxvnni,
                                          .softmax = softmax_u8_avxvnni,
                                          .tile = values_i8_avxvnni};

const vgq_attention_kernels vgq_attention_avxvnni = {
    .scores = {[VGQ_INT8_ACTIVATIONS] = &scores_i8},
    .values = {[VGQ_INT8_ACTIVATIONS] = &values_i8},
};

#endif
