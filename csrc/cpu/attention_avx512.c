/* SPDX-License-Identifier: Apache-2.0
 * Attention in float for AVX-512. k is [channel][VGQ_PANEL keys], v a row a key; both tiles are 6 x
 * 64, 24 sums, each a variable of its own, because gcc keeps an array of them in memory. */
#include "../kernels.h"

#if defined(__x86_64__)

#include "isa.h"

ISA_BEGIN("avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,f16c")

#include "attention_avx512.h"

static void prepare_avx512(const vgq_rows *rows, size_t first, size_t n, float *to)
{
    prepare_rows(rows, first, n, to);
}

static void code_queries_f32_avx512(size_t n, size_t depth, const float *x, float factor, void *q,
                                    float *r, int32_t *first)
{
    memcpy(q, x, n * depth * sizeof(*x));
    for (size_t i = 0; i < n; i++) {
        r[i] = not_finite(depth, x + i * depth) ? NAN : factor;
        first[i] = 0;
    }
}

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
#define SAVE(r)                                       \
    _mm512_storeu_ps(s + (r)*VGQ_KEYS, a##r##0);      \
    _mm512_storeu_ps(s + (r)*VGQ_KEYS + 16, a##r##1); \
    _mm512_storeu_ps(s + (r)*VGQ_KEYS + 32, a##r##2); \
    _mm512_storeu_ps(s + (r)*VGQ_KEYS + 48, a##r##3);

static void scores_f32_6x64_avx512(size_t keys, size_t depth, const void *queries,
                                   const int32_t *first, const void *panels, const float *scale,
                                   float *s)
{
    const size_t ld = depth;
    const float *k = panels;
    (void)first, (void)scale;
    for (size_t j = 0; j < keys; j += VGQ_PANEL, s += VGQ_PANEL) {
        const float *at = queries;
        EACH_6(ZERO)
        for (size_t i = 0; i < depth; i++, at++, k += VGQ_PANEL) {
            FOUR(k)
            EACH_6(STEP)
        }
        EACH_6(SAVE)
    }
}

#undef SAVE

static int pack_values_f32_avx512(size_t n, size_t depth, const float *x, void *block, float *scale)
{
    const size_t padded = vgq_round_up(n, VGQ_PANEL);
    memcpy(block, x, n * depth * sizeof(*x));
    memset((float *)block + n * depth, 0, (padded - n) * depth * sizeof(*x));
    for (size_t c = 0; c < depth; c++)
        scale[c] = 1;
    return not_finite(n * depth, x);
}

static void softmax_f32_avx512(size_t rows, size_t n, float *s, const float *r, vgq_gathered to,
                               float *kept, float *added, void *weights)
{
    const size_t padded = vgq_round_up(n, VGQ_PANEL);
    for (size_t m = 0; m < rows; m++, s += VGQ_KEYS) {
        float *const p = (float *)weights + m * VGQ_KEYS;
        const __m512 top = begin_row(n, s, r[m], &to.top[m], &kept[m], &added[m]);
        const __m512 factor = _mm512_set1_ps(r[m]);
        __m512 sum = _mm512_setzero_ps();
        for (size_t j = 0; j < padded; j += 16) {
            const __mmask16 mask = first_lanes(j < n ? n - j : 0);
            const __m512 e = exp2_floats(_mm512_loadu_ps(s + j), factor, top, mask);
            sum = _mm512_add_ps(sum, e);
            _mm512_storeu_ps(p + j, e);
        }
        gather_lanes(to.lanes[m], sum, kept[m], added[m]);
    }
}

#define JOIN(r)                                                                        \
    {                                                                                  \
        const __m512 before = _mm512_set1_ps(kept[r]), now = _mm512_set1_ps(added[r]); \
        float *const to = o + (r)*depth;                                               \
        JOIN_ONE(to, a##r##0)                                                          \
        JOIN_ONE(to + 16, a##r##1)                                                     \
        JOIN_ONE(to + 32, a##r##2)                                                     \
        JOIN_ONE(to + 48, a##r##3)                                                     \
    }
#define JOIN_ONE(at, sum) \
    _mm512_storeu_ps(at, _mm512_fmadd_ps(sum, now, _mm512_mul_ps(_mm512_loadu_ps(at), before)));

#define TILE(rows, EACH)                                                                  \
    static void values_f32_##rows##x64_avx512(size_t keys, size_t depth, const float *at, \
                                              const float *v, const float *kept,          \
                                              const float *added, float *o)               \
    {                                                                                     \
        enum { ld = VGQ_KEYS };                                                           \
        EACH(ZERO)                                                                        \
        for (size_t j = 0; j < keys; j++, at++, v += depth) {                             \
            FOUR(v)                                                                       \
            EACH(STEP)                                                                    \
        }                                                                                 \
        EACH(JOIN)                                                                        \
    }
TILE(6, EACH_6)
TILE(2, EACH_2)
TILE(1, EACH_1)
#undef TILE
#undef JOIN_ONE
#undef JOIN
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
            (n == 6   ? values_f32_6x64_avx512
             : n == 2 ? values_f32_2x64_avx512
                      : values_f32_1x64_avx512)(keys, depth, p + m * VGQ_KEYS,
                                                (const float *)block + c, kept + m, added + m,
                                                o + m * depth + c);
    }
}

ISA_END

static const vgq_scores_gemm scores_f32 = {.rows = ROWS,
                                           .q_nbytes = sizeof(float),
                                           .k_nbytes = sizeof(float),
                                           .code_queries = code_queries_f32_avx512,
                                           .pack_keys = pack_keys_f32_avx512,
                                           .tile = scores_f32_6x64_avx512};
static const vgq_values_gemm values_f32 = {.p_nbytes = sizeof(float),
                                           .v_nbytes = sizeof(float),
                                           .pack_values = pack_values_f32_avx512,
                                           .softmax = softmax_f32_avx512,
                                           .tile = values_f32_avx512};

const vgq_attention_kernels vgq_attention_avx512 = {
    .prepare = prepare_avx512,
    .scores = {[VGQ_FLOAT_ACTIVATIONS] = &scores_f32},
    .values = {[VGQ_FLOAT_ACTIVATIONS] = &values_f32},
};

#endif
