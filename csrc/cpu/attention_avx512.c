/* SPDX-License-Identifier: Apache-2.0
 * Attention in float for AVX-512. k is [channel][VGQ_PANEL keys], v a row a key; both tiles are 6 x
 * 64, 24 sums, each a variable of its own, because gcc keeps an array of them in memory. */
#include "../kernels.h"

#if defined(__x86_64__)

#include "isa.h"

ISA_BEGIN("avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,f16c")

#include "attention_avx512.h"

/* Several tiles, so that a panel of k that is in L1 serves all of them. */
enum { GROUP = 4 * ROWS };

/* ---- rows: prepare_rows, a row of 4 or 8 registers at a time ----------------------------------
 */

/* The tree of tree_sum. */
static inline float sum_of(__m512 lanes)
{
    const __m256 eight =
        _mm256_add_ps(_mm512_castps512_ps256(lanes), _mm512_extractf32x8_ps(lanes, 1));
    const __m128 four = _mm_add_ps(_mm256_castps256_ps128(eight), _mm256_extractf128_ps(eight, 1));
    const __m128 two = _mm_add_ps(four, _mm_movehl_ps(four, four));
    return _mm_cvtss_f32(_mm_add_ss(two, _mm_movehdup_ps(two)));
}

static inline __m512 load_values(const vgq_rows *rows, const void *from, size_t c, __mmask16 mask)
{
    if (rows->dtype == VGQ_F32)
        return _mm512_maskz_loadu_ps(mask, (const float *)from + c);
    const __m256i half = _mm256_maskz_loadu_epi16(mask, (const uint16_t *)from + c);
    if (rows->dtype == VGQ_F16)
        return _mm512_cvtph_ps(half);
    return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(half), 16));
}

static inline void normalize_registers(const vgq_rows *rows, size_t parts, const __mmask16 *mask,
                                       __m512 *x)
{
    __m512 lanes = _mm512_setzero_ps();
    for (size_t i = 0; i < parts; i++)
        lanes = _mm512_add_ps(lanes, x[i]);
    const __m512 mean = _mm512_set1_ps(sum_of(lanes) / (float)rows->dim);
    lanes = _mm512_setzero_ps();
    for (size_t i = 0; i < parts; i++) {
        x[i] = _mm512_maskz_sub_ps(mask[i], x[i], mean);
        lanes = _mm512_fmadd_ps(x[i], x[i], lanes);
    }
    const __m512 inverse =
        _mm512_set1_ps(1.0f / sqrtf(sum_of(lanes) / (float)rows->dim + rows->norm.eps));
    for (size_t i = 0; i < parts; i++) {
        const __m512 weight = _mm512_maskz_loadu_ps(mask[i], rows->norm.weight + 16 * i);
        x[i] = _mm512_mul_ps(x[i], inverse);
        x[i] = rows->norm.bias
                   ? _mm512_fmadd_ps(x[i], weight,
                                     _mm512_maskz_loadu_ps(mask[i], rows->norm.bias + 16 * i))
                   : _mm512_mul_ps(x[i], weight);
    }
}

/* Where whole registers turn together. */
static inline void rotate_registers(const vgq_rows *rows, size_t token, size_t parts, __m512 *x)
{
    const size_t at = token % rows->rope_tokens * rows->dim, half = rows->rope_width / 32;
    const float *const cosine = rows->cos + at, *const sine = rows->sin + at;
    __m512 turned[VGQ_WIDEST / 16];
    for (size_t i = 0; i < parts; i++) {
        const int is_first = i / half % 2 == 0;
        const __m512 c = _mm512_loadu_ps(cosine + 16 * i), s = _mm512_loadu_ps(sine + 16 * i);
        const __m512 own = _mm512_mul_ps(x[i], c);
        turned[i] =
            is_first ? _mm512_fnmadd_ps(x[i + half], s, own) : _mm512_fmadd_ps(x[i - half], s, own);
    }
    for (size_t i = 0; i < parts; i++)
        x[i] = turned[i];
}

static inline void prepare_registers(const vgq_rows *rows, size_t first, size_t n, size_t parts,
                                     float *to)
{
    const size_t step = rows->stride * vgq_dtype_nbytes(rows->dtype);
    /* rope_tokens of whole registers only: dim is a multiple of 16 then */
    const int whole = rows->cos && rows->rope_width % 32 == 0;
    const char *from = (const char *)rows->x + first * step;
    __mmask16 mask[VGQ_WIDEST / 16];
    for (size_t i = 0; i < parts; i++)
        mask[i] = first_lanes(16 * i < rows->dim ? rows->dim - 16 * i : 0);
    for (size_t t = first; t < first + n; t++, from += step, to += 16 * parts) {
        __m512 x[VGQ_WIDEST / 16];
        for (size_t i = 0; i < VGQ_WIDEST / 16; i++)
            x[i] = _mm512_setzero_ps(); /* gcc does not see that the others are not read */
        fetch_ahead(rows, from);
        for (size_t i = 0; i < parts; i++)
            x[i] = load_values(rows, from, 16 * i, mask[i]);
        if (rows->norm.weight)
            normalize_registers(rows, parts, mask, x);
        if (whole)
            rotate_registers(rows, t, rows->dim / 16, x);
        for (size_t i = 0; i < parts; i++)
            _mm512_storeu_ps(to + 16 * i, x[i]);
        if (rows->cos && !whole)
            rotate(rows, t, to);
    }
}

static void prepare_avx512(const vgq_rows *rows, size_t first, size_t n, float *to)
{
    if (rows->depth == 64)
        prepare_registers(rows, first, n, 4, to);
    else
        prepare_registers(rows, first, n, 8, to);
}

/* ---- products ---------------------------------------------------------------------------------
 */

static int pack_keys_f32_avx512(size_t n, size_t depth, const float *x, void *panel, float *scale)
{
    float rest[VGQ_PANEL * VGQ_WIDEST];
    const float *rows = x;
    if (n < VGQ_PANEL) {
        memcpy(rest, x, n * depth * sizeof(*x));
        memset(rest + n * depth, 0, (VGQ_PANEL - n) * depth * sizeof(*x));
        rows = rest;
    }
    transpose_panel(rows, depth, panel);
    for (size_t i = 0; i < VGQ_PANEL; i++)
        scale[i] = 1;
    return not_finite(n * depth, x);
}

#define ZERO(r) \
    __m512 a##r##0 = _mm512_setzero_ps(), a##r##1 = a##r##0, a##r##2 = a##r##0, a##r##3 = a##r##0;
#define STEP(r)                                      \
    {                                                \
        const __m512 x = _mm512_set1_ps(at[r * ld]); \
        a##r##0 = _mm512_fmadd_ps(x, w0, a##r##0);   \
        a##r##1 = _mm512_fmadd_ps(x, w1, a##r##1);   \
        a##r##2 = _mm512_fmadd_ps(x, w2, a##r##2);   \
        a##r##3 = _mm512_fmadd_ps(x, w3, a##r##3);   \
    }
#define FOUR(from)                                                              \
    const __m512 w0 = _mm512_loadu_ps(from), w1 = _mm512_loadu_ps((from) + 16), \
                 w2 = _mm512_loadu_ps((from) + 32), w3 = _mm512_loadu_ps((from) + 48);
#define SAVE(r)                                        \
    _mm512_storeu_ps(to + (r)*VGQ_KEYS, a##r##0);      \
    _mm512_storeu_ps(to + (r)*VGQ_KEYS + 16, a##r##1); \
    _mm512_storeu_ps(to + (r)*VGQ_KEYS + 32, a##r##2); \
    _mm512_storeu_ps(to + (r)*VGQ_KEYS + 48, a##r##3);

static void tile_scores_f32_6x64_avx512(size_t keys, size_t depth, const void *queries,
                                        const int32_t *first, const void *panels,
                                        const float *scale, float *s)
{
    const size_t ld = depth;
    const float *panel = panels;
    (void)first, (void)scale;
    for (size_t j = 0; j < keys; j += VGQ_PANEL, panel += depth * VGQ_PANEL)
        for (size_t m = 0; m < GROUP; m += ROWS) {
            const float *at = (const float *)queries + m * depth, *k = panel;
            float *const to = s + m * VGQ_KEYS + j;
            EACH_6(ZERO)
            for (size_t i = 0; i < depth; i++, at++, k += VGQ_PANEL) {
                FOUR(k)
                EACH_6(STEP)
            }
            EACH_6(SAVE)
        }
}

#undef SAVE

static void softmax_f32_avx512(size_t rows, size_t n, float *s, const float *r, vgq_gathered to,
                               float *kept, float *added, void *weights)
{
    const size_t padded = vgq_round_up(n, VGQ_PANEL);
    float peaks[VGQ_GROUP_MOST];
    begin_rows(rows, n, s, r, to.top, peaks, kept, added);
    for (size_t m = 0; m < rows; m++, s += VGQ_KEYS) {
        float *const p = (float *)weights + m * VGQ_KEYS;
        const __m512 peak = _mm512_set1_ps(peaks[m]), factor = _mm512_set1_ps(r[m]);
        __m512 sum = _mm512_setzero_ps();
        for (size_t j = 0; j < padded; j += 16) {
            const __mmask16 mask = first_lanes(j < n ? n - j : 0);
            const __m512 e = exp2_floats(_mm512_loadu_ps(s + j), factor, peak, mask);
            sum = _mm512_add_ps(sum, e);
            _mm512_storeu_ps(p + j, e);
        }
        gather_lanes(to.lanes[m], sum, kept[m], added[m]);
    }
}

#define SAVE(r)                             \
    _mm512_store_ps(sums[r], a##r##0);      \
    _mm512_store_ps(sums[r] + 16, a##r##1); \
    _mm512_store_ps(sums[r] + 32, a##r##2); \
    _mm512_store_ps(sums[r] + 48, a##r##3);
#define TILE(rows, EACH)                                                                       \
    static void tile_values_f32_##rows##x64_avx512(size_t keys, size_t depth, const float *at, \
                                                   const float *v, const float *kept,          \
                                                   const float *added, float *o)               \
    {                                                                                          \
        enum { ld = VGQ_KEYS };                                                                \
        EACH(ZERO)                                                                             \
        for (size_t j = 0; j < keys; j++, at++, v += depth) {                                  \
            FOUR(v)                                                                            \
            EACH(STEP)                                                                         \
        }                                                                                      \
        _Alignas(64) float sums[rows][64];                                                     \
        EACH(SAVE)                                                                             \
        join_floats(rows, depth, sums[0], kept, added, o);                                     \
    }
TILE(6, EACH_6)
TILE(2, EACH_2)
TILE(1, EACH_1)
#undef TILE
#undef SAVE
#undef FOUR
#undef STEP
#undef ZERO

static void values_f32_avx512(size_t rows, size_t keys, size_t depth, const void *weights,
                              const void *block, const float *scale, const float *kept,
                              const float *added, float *o)
{
    const float *const p = weights;
    (void)scale;
    for (size_t m = 0, n; m < rows; m += n) {
        n = rows - m >= 6 ? 6 : rows - m >= 2 ? 2 : 1;
        for (size_t c = 0; c < depth; c += 64)
            (n == 6   ? tile_values_f32_6x64_avx512
             : n == 2 ? tile_values_f32_2x64_avx512
                      : tile_values_f32_1x64_avx512)(keys, depth, p + m * VGQ_KEYS,
                                                     (const float *)block + c, kept + m, added + m,
                                                     o + m * depth + c);
    }
}

ISA_END

static const vgq_scores_gemm scores_f32 = {.rows = GROUP,
                                           .q_nbytes = sizeof(float),
                                           .k_nbytes = sizeof(float),
                                           .code_queries = code_queries_f32,
                                           .pack_keys = pack_keys_f32_avx512,
                                           .tile = tile_scores_f32_6x64_avx512};
static const vgq_values_gemm values_f32 = {.p_nbytes = sizeof(float),
                                           .v_nbytes = sizeof(float),
                                           .pack_values = pack_values_f32,
                                           .softmax = softmax_f32_avx512,
                                           .tile = values_f32_avx512};

const vgq_attention_kernels vgq_attention_avx512 = {
    .prepare = prepare_avx512,
    .scores = {[VGQ_FLOAT_ACTIVATIONS] = &scores_f32},
    .values = {[VGQ_FLOAT_ACTIVATIONS] = &values_f32},
};

#endif
