/* SPDX-License-Identifier: Apache-2.0
 * Attention for AVX2 and FMA, in float and in INT8. Tiles are 6 x 16: 12 sums, each a variable of
 * its own. k is cut into blocks of 16 keys, v into blocks of 16 channels, [channel or key][16], as
 * float; INT8 is multiplied as int16, two channels or two keys at a time (vpmaddwd): k
 * [channel / 2][16][2], p a code of two bytes, v [key / 2][16][2]. */
#include "../kernels.h"

#if defined(__x86_64__)

#include "isa.h"

ISA_BEGIN("avx2,fma,f16c")

#include "attention_avx2.h"

static void prepare_avx2(const vgq_rows *rows, size_t first, size_t n, float *to)
{
    vgq_rows known = *rows; /* VGGT's heads: with lengths that the compiler sees */
    if (rows->dim == 64 && (!rows->cos || rows->rope_width == 32)) {
        known.dim = known.depth = 64;
        known.rope_width = 32;
    }
    prepare_rows(&known, first, n, to);
}

/* ---- softmax ----------------------------------------------------------------------------------
 */

static void softmax_f32_avx2(size_t rows, size_t n, float *s, const float *r, vgq_gathered to,
                             float *kept, float *added, void *weights)
{
    float peaks[VGQ_GROUP_MOST];
    begin_rows(rows, n, s, r, to.top, peaks, kept, added);
    for (size_t m = 0; m < rows; m++, s += VGQ_KEYS) {
        float *const p = (float *)weights + m * VGQ_KEYS;
        const __m256 peak = _mm256_set1_ps(peaks[m]);
        const __m256 factor = _mm256_set1_ps(r[m]);
        __m256 low = _mm256_setzero_ps(), high = low;
        for (size_t j = 0; j < vgq_round_up(n, VGQ_PANEL); j += 16) {
            __m256 a = exp2_floats(_mm256_loadu_ps(s + j), factor, peak);
            __m256 b = exp2_floats(_mm256_loadu_ps(s + j + 8), factor, peak);
            if (j + 16 > n) {
                a = _mm256_and_ps(a, first_lanes(j < n ? n - j : 0));
                b = _mm256_and_ps(b, first_lanes(j + 8 < n ? n - j - 8 : 0));
            }
            low = _mm256_add_ps(low, a);
            high = _mm256_add_ps(high, b);
            _mm256_storeu_ps(p + j, a);
            _mm256_storeu_ps(p + j + 8, b);
        }
        gather_lanes(to.lanes[m], low, high, kept[m], added[m]);
    }
}

static void softmax_i16_avx2(size_t rows, size_t n, float *s, const float *r, vgq_gathered to,
                             float *kept, float *added, void *weights)
{
    float peaks[VGQ_GROUP_MOST];
    begin_rows(rows, n, s, r, to.top, peaks, kept, added);
    for (size_t m = 0; m < rows; m++, s += VGQ_KEYS) {
        int16_t *const p = (int16_t *)weights + m * VGQ_KEYS;
        const __m256 peak = _mm256_set1_ps(peaks[m]);
        const __m256 factor = _mm256_set1_ps(r[m]);
        __m256 low = _mm256_setzero_ps(), high = low;
        for (size_t j = 0; j < vgq_round_up(n, VGQ_PANEL); j += 16) {
            __m256 a = exp2_codes(_mm256_loadu_ps(s + j), factor, peak);
            __m256 b = exp2_codes(_mm256_loadu_ps(s + j + 8), factor, peak);
            if (j + 16 > n) {
                a = _mm256_and_ps(a, first_lanes(j < n ? n - j : 0));
                b = _mm256_and_ps(b, first_lanes(j + 8 < n ? n - j - 8 : 0));
            }
            low = _mm256_add_ps(low, a);
            high = _mm256_add_ps(high, b);
            const __m256i codes =
                _mm256_min_epi16(_mm256_packs_epi32(_mm256_cvtps_epi32(a), _mm256_cvtps_epi32(b)),
                                 _mm256_set1_epi16(255));
            _mm256_storeu_si256((void *)(p + j), _mm256_permute4x64_epi64(codes, 0xd8));
        }
        if (r[m] != r[m]) /* what integers were added to need be no NaN any more */
            low = _mm256_set1_ps(NAN);
        gather_lanes(to.lanes[m], low, high, kept[m], added[m]);
    }
}

/* ---- float ------------------------------------------------------------------------------------
 */

static int pack_keys_f32_avx2(size_t n, size_t depth, const float *x, void *panel, float *scale)
{
    float all[VGQ_PANEL * VGQ_WIDEST];
    memcpy(all, x, n * depth * sizeof(*x));
    memset(all + n * depth, 0, (VGQ_PANEL - n) * depth * sizeof(*x));
    transpose_panel(all, depth, panel);
    for (size_t i = 0; i < VGQ_PANEL; i++)
        scale[i] = 1;
    return not_finite(n * depth, x);
}

#define ZERO(r) __m256 a##r##0 = _mm256_setzero_ps(), a##r##1 = a##r##0;
#define STEP(r)                                               \
    {                                                         \
        const __m256 x = _mm256_broadcast_ss(q + (r)*ld + i); \
        a##r##0 = _mm256_fmadd_ps(w0, x, a##r##0);            \
        a##r##1 = _mm256_fmadd_ps(w1, x, a##r##1);            \
    }
#define SAVE(r)                                  \
    _mm256_storeu_ps(s + (r)*VGQ_KEYS, a##r##0); \
    _mm256_storeu_ps(s + (r)*VGQ_KEYS + 8, a##r##1);

/* s[6][16] of 16 keys. */
__attribute__((noinline, noclone)) static void tile_scores_f32_6x16_avx2(size_t ld, const float *q,
                                                                         const float *w, float *s)
{
    EACH_6(ZERO)
    for (size_t i = 0; i < ld; i++, w += BLOCK) {
        const __m256 w0 = _mm256_loadu_ps(w), w1 = _mm256_loadu_ps(w + 8);
        EACH_6(STEP)
    }
    EACH_6(SAVE)
}

static void scores_f32_avx2(size_t keys, size_t depth, const void *q, const int32_t *first,
                            const void *panels, const float *scale, float *s)
{
    const float *k = panels;
    (void)first, (void)scale;
    for (size_t j = 0; j < keys; j += BLOCK, s += BLOCK, k += depth * BLOCK)
        for (size_t m = 0; m < GROUP; m += ROWS)
            tile_scores_f32_6x16_avx2(depth, (const float *)q + m * depth, k, s + m * VGQ_KEYS);
}
#undef SAVE

#define SAVE(r)                                         \
    {                                                   \
        const __m256 now = _mm256_set1_ps(added[r]);    \
        join(o + (r)*depth, a##r##0, kept[r], now);     \
        join(o + (r)*depth + 8, a##r##1, kept[r], now); \
    }
/* o[rows][16] = o * kept + q w * added */
#define TILE(rows, EACH)                                                                           \
    __attribute__((noinline, noclone)) static void tile_values_f32_##rows##x16_avx2(               \
        size_t n, const float *q, const float *w, const float *kept, const float *added, float *o, \
        size_t depth)                                                                              \
    {                                                                                              \
        enum { ld = VGQ_KEYS };                                                                    \
        EACH(ZERO)                                                                                 \
        for (size_t i = 0; i < n; i++, w += BLOCK) {                                               \
            const __m256 w0 = _mm256_loadu_ps(w), w1 = _mm256_loadu_ps(w + 8);                     \
            EACH(STEP)                                                                             \
        }                                                                                          \
        EACH(SAVE)                                                                                 \
    }
TILE(6, EACH_6)
TILE(2, EACH_2)
TILE(1, EACH_1)
#undef TILE
#undef SAVE
#undef STEP
#undef ZERO

static void values_f32_avx2(size_t rows, size_t keys, size_t depth, const void *weights,
                            const void *block, const float *scale, const float *kept,
                            const float *added, float *o)
{
    const float *const p = weights, *v = block;
    (void)scale;
    for (size_t c = 0; c < depth; c += BLOCK, v += keys * BLOCK)
        for (size_t m = 0, n; m < rows; m += n) {
            n = rows - m >= 6 ? 6 : rows - m >= 2 ? 2 : 1;
            (n == 6   ? tile_values_f32_6x16_avx2
             : n == 2 ? tile_values_f32_2x16_avx2
                      : tile_values_f32_1x16_avx2)(keys, p + m * VGQ_KEYS, v, kept + m, added + m,
                                                   o + m * depth + c, depth);
        }
}

/* ---- INT8 -------------------------------------------------------------------------------------
 */

static void code_queries_i16_avx2(size_t n, size_t depth, const float *x, float factor, void *q,
                                  float *r, int32_t *first)
{
    int32_t codes[VGQ_WIDEST];
    int16_t *to = q;
    for (size_t m = 0; m < n; m++, to += depth) {
        r[m] = code_row(depth, x + m * depth, codes) * factor;
        first[m] = 0;
        for (size_t i = 0; i < depth; i++)
            to[i] = (int16_t)codes[i];
    }
}

static int pack_keys_i16_avx2(size_t n, size_t depth, const float *x, void *panel, float *scale)
{
    int16_t all[VGQ_PANEL * VGQ_WIDEST];
    int32_t codes[VGQ_WIDEST];
    int finite = 1;
    for (size_t j = 0; j < n; j++) {
        scale[j] = key_scale(code_row(depth, x + j * depth, codes));
        finite &= scale[j] == scale[j];
        for (size_t i = 0; i < depth; i++)
            all[j * depth + i] = (int16_t)codes[i];
    }
    memset(all + n * depth, 0, (VGQ_PANEL - n) * depth * sizeof(*all));
    for (size_t j = n; j < VGQ_PANEL; j++)
        scale[j] = 0;
    transpose_panel(all, depth / 2, panel);
    return !finite;
}

static inline __m256i two_codes(const int16_t *q)
{
    int32_t bits;
    memcpy(&bits, q, sizeof(bits));
    return _mm256_set1_epi32(bits);
}

/* Items are taken in pairs. */
#define ZERO(r) __m256i a##r##0 = _mm256_setzero_si256(), a##r##1 = a##r##0;
#define STEP(r)                                                        \
    {                                                                  \
        const __m256i x = two_codes(q + (r)*ld + i);                   \
        a##r##0 = _mm256_add_epi32(a##r##0, _mm256_madd_epi16(w0, x)); \
        a##r##1 = _mm256_add_epi32(a##r##1, _mm256_madd_epi16(w1, x)); \
    }
#define SAVE(r) store_scores(s + (r)*VGQ_KEYS, a##r##0, a##r##1, k0, k1);

__attribute__((noinline, noclone)) static void
tile_scores_i16_6x16_avx2(size_t ld, const int16_t *q, const int16_t *w, const float *scale,
                          float *s)
{
    EACH_6(ZERO)
    for (size_t i = 0; i < ld; i += 2, w += 2 * BLOCK) {
        const __m256i w0 = _mm256_loadu_si256((const void *)w);
        const __m256i w1 = _mm256_loadu_si256((const void *)(w + 16));
        EACH_6(STEP)
    }
    EACH_6(PIN)
    const __m256 k0 = _mm256_loadu_ps(scale), k1 = _mm256_loadu_ps(scale + 8);
    EACH_6(SAVE)
}
#undef SAVE

static void scores_i16_avx2(size_t keys, size_t depth, const void *q, const int32_t *first,
                            const void *panels, const float *scale, float *s)
{
    const int16_t *k = panels;
    (void)first;
    for (size_t j = 0; j < keys; j += BLOCK, s += BLOCK, k += depth * BLOCK)
        for (size_t m = 0; m < GROUP; m += ROWS)
            tile_scores_i16_6x16_avx2(depth, (const int16_t *)q + m * depth, k, scale + j,
                                      s + m * VGQ_KEYS);
}

#define SAVE(r) join_sums(o + (r)*depth, a##r##0, a##r##1, scale, kept[r], added[r]);
#define TILE(rows, EACH)                                                                     \
    __attribute__((noinline, noclone)) static void tile_values_i16_##rows##x16_avx2(         \
        size_t n, const int16_t *q, const int16_t *w, const float *scale, const float *kept, \
        const float *added, float *o, size_t depth)                                          \
    {                                                                                        \
        enum { ld = VGQ_KEYS };                                                              \
        EACH(ZERO)                                                                           \
        for (size_t i = 0; i < n; i += 2, w += 2 * BLOCK) {                                  \
            const __m256i w0 = _mm256_loadu_si256((const void *)w);                          \
            const __m256i w1 = _mm256_loadu_si256((const void *)(w + 16));                   \
            EACH(STEP)                                                                       \
        }                                                                                    \
        EACH(PIN) EACH(SAVE)                                                                 \
    }
TILE(6, EACH_6)
TILE(2, EACH_2)
TILE(1, EACH_1)
#undef TILE
#undef SAVE
#undef STEP
#undef ZERO

/* v: [channel / 16][key / 2][16][2] */
static int pack_values_i16_avx2(size_t n, size_t depth, const float *x, void *block, float *scale)
{
    float inverse[VGQ_WIDEST];
    const int finite = column_scales(n, depth, x, scale, inverse);
    uint32_t *v = block;
    for (size_t c = 0; c < depth; c += BLOCK)
        for (size_t j = 0; j < vgq_round_up(n, VGQ_PANEL); j += 2, v += BLOCK)
            for (size_t i = 0; i < BLOCK; i++) {
                const float *const at = x + j * depth + c + i;
                const int32_t first = j < n ? code_value(at[0], inverse[c + i]) : 0;
                const int32_t second = j + 1 < n ? code_value(at[depth], inverse[c + i]) : 0;
                v[i] = ((uint32_t)first & 0xffffu) | (uint32_t)second << 16;
            }
    return !finite;
}

static void values_i16_avx2(size_t rows, size_t keys, size_t depth, const void *weights,
                            const void *block, const float *scale, const float *kept,
                            const float *added, float *o)
{
    const int16_t *const p = weights, *v = block;
    for (size_t c = 0; c < depth; c += BLOCK, v += keys * BLOCK)
        for (size_t m = 0, n; m < rows; m += n) {
            n = rows - m >= 6 ? 6 : rows - m >= 2 ? 2 : 1;
            (n == 6   ? tile_values_i16_6x16_avx2
             : n == 2 ? tile_values_i16_2x16_avx2
                      : tile_values_i16_1x16_avx2)(keys, p + m * VGQ_KEYS, v, scale + c, kept + m,
                                                   added + m, o + m * depth + c, depth);
        }
}

ISA_END

static const vgq_scores_gemm scores_f32 = {.rows = GROUP,
                                           .q_nbytes = sizeof(float),
                                           .k_nbytes = sizeof(float),
                                           .code_queries = code_queries_f32,
                                           .pack_keys = pack_keys_f32_avx2,
                                           .tile = scores_f32_avx2};
static const vgq_values_gemm values_f32 = {.p_nbytes = sizeof(float),
                                           .v_nbytes = sizeof(float),
                                           .pack_values = pack_blocks_f32,
                                           .softmax = softmax_f32_avx2,
                                           .tile = values_f32_avx2};
static const vgq_scores_gemm scores_i8 = {.rows = GROUP,
                                          .q_nbytes = sizeof(int16_t),
                                          .k_nbytes = sizeof(int16_t),
                                          .code_queries = code_queries_i16_avx2,
                                          .pack_keys = pack_keys_i16_avx2,
                                          .tile = scores_i16_avx2};
static const vgq_values_gemm values_i8 = {.p_nbytes = sizeof(int16_t),
                                          .v_nbytes = sizeof(int16_t),
                                          .pack_values = pack_values_i16_avx2,
                                          .softmax = softmax_i16_avx2,
                                          .tile = values_i16_avx2};

const vgq_attention_kernels vgq_attention_avx2 = {
    .prepare = prepare_avx2,
    .scores = {[VGQ_FLOAT_ACTIVATIONS] = &scores_f32, [VGQ_INT8_ACTIVATIONS] = &scores_i8},
    .values = {[VGQ_FLOAT_ACTIVATIONS] = &values_f32, [VGQ_INT8_ACTIVATIONS] = &values_i8},
};

#endif
