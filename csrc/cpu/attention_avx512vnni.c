/* SPDX-License-Identifier: Apache-2.0
 * INT8 attention for AVX-512 VNNI. k is [channel / 4][VGQ_PANEL keys][4], each byte the code + 128;
 * v is [key / 4][channel][4], signed, its keys in the order of p (below). vpdpbusd wraps, so that
 * every sum is exact modulo 2^32 and the true one fits. Tiles are 6 x 64, as in attention_avx512.c.
 *
 * Sums of scores begin with the bits of 1.5 * 2^23, and with what the 128 will have added too much.
 * They end as floats that stand 1.5 * 2^23 too high, which the fused multiply-add that brings a
 * key's scale in takes off exactly. */
#include "../kernels.h"

#if defined(__x86_64__)

#include "isa.h"

ISA_BEGIN("avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx2,fma,f16c")

#include "attention_avx512.h"
#include "tiles_avx512.h"

/* A row's codes, its scale and what it is multiplied by. */
static inline float code_row_bytes(size_t depth, const float *x, int8_t *codes)
{
    __m512i largest = _mm512_setzero_si512();
    const __m512i magnitude = _mm512_set1_epi32(0x7fffffff);
    for (size_t i = 0; i < depth; i += 16)
        largest = _mm512_max_epu32(largest, _mm512_and_si512(magnitude, _mm512_loadu_si512(x + i)));
    float inverse;
    const float scale =
        vgq_token_scale(_mm512_reduce_max_epu32(largest), VGQ_INT8_HIGHEST, &inverse);
    /* NaN and infinities: whatever they become is multiplied by the scale, a NaN */
    for (size_t i = 0; i < depth; i += 16) {
        const __m512 y = _mm512_mul_ps(_mm512_loadu_ps(x + i), _mm512_set1_ps(inverse));
        _mm_storeu_si128((void *)(codes + i), _mm512_cvtsepi32_epi8(_mm512_cvtps_epi32(y)));
    }
    return scale;
}

void vgq_code_queries_i8_avx512vnni(size_t n, size_t depth, const float *x, float factor, void *q,
                                    float *r, int32_t *first)
{
    const __m512i ones = _mm512_set1_epi8(1);
    for (size_t m = 0; m < n; m++) {
        int8_t *const codes = (int8_t *)q + m * depth;
        r[m] = code_row_bytes(depth, x + m * depth, codes) * factor;
        __m512i sum = _mm512_setzero_si512();
        for (size_t i = 0; i < depth; i += 64)
            sum = _mm512_dpbusd_epi32(sum, ones, _mm512_loadu_si512(codes + i));
        first[m] = ABOVE_BITS - 128 * _mm512_reduce_add_epi32(sum);
    }
}

int vgq_pack_keys_i8_avx512vnni(size_t n, size_t depth, const float *x, void *panel, float *scale)
{
    int8_t codes[VGQ_PANEL * VGQ_WIDEST];
    int finite = 1;
    for (size_t j = 0; j < n; j++) {
        scale[j] = key_scale(code_row_bytes(depth, x + j * depth, codes + j * depth));
        finite &= scale[j] == scale[j];
    }
    memset(codes + n * depth, 0, (VGQ_PANEL - n) * depth);
    for (size_t j = n; j < VGQ_PANEL; j++)
        scale[j] = 0;
    const __m512i above = _mm512_set1_epi8(-128);
    for (size_t i = 0; i < VGQ_PANEL * depth; i += 64)
        _mm512_storeu_si512(codes + i, _mm512_xor_si512(above, _mm512_loadu_si512(codes + i)));
    transpose_panel(codes, depth / 4, panel);
    return !finite;
}

#define COLUMNS(X, r) X(r, 0) X(r, 1) X(r, 2) X(r, 3)
#define BEGIN(r)                                                                         \
    __m512i a##r##0 = _mm512_set1_epi32(first[r]), a##r##1 = a##r##0, a##r##2 = a##r##0, \
            a##r##3 = a##r##0;
#define STEP(r)                                          \
    {                                                    \
        const __m512i x = four_codes(q + (r)*depth + i); \
        a##r##0 = _mm512_dpbusd_epi32(a##r##0, w0, x);   \
        a##r##1 = _mm512_dpbusd_epi32(a##r##1, w1, x);   \
        a##r##2 = _mm512_dpbusd_epi32(a##r##2, w2, x);   \
        a##r##3 = _mm512_dpbusd_epi32(a##r##3, w3, x);   \
    }
#define STORE_ONE(r, c)                           \
    _mm512_storeu_ps(s + (r)*VGQ_KEYS + 16 * (c), \
                     _mm512_fmadd_ps(_mm512_castsi512_ps(a##r##c), k##c, high##c));
#define STORE(r) COLUMNS(STORE_ONE, r)
#define SCALE(r, c)                                        \
    const __m512 k##c = _mm512_loadu_ps(scale + 16 * (c)); \
    const __m512 high##c = _mm512_mul_ps(k##c, _mm512_set1_ps(-ABOVE));

static void tile_scores_i8_6x64_avx512vnni(size_t keys, size_t depth, const void *queries,
                                           const int32_t *first, const void *panels,
                                           const float *scale, float *s)
{
    const int8_t *const q = queries;
    const uint8_t *k = panels;
    for (size_t j = 0; j < keys; j += VGQ_PANEL, s += VGQ_PANEL, scale += VGQ_PANEL) {
        EACH_6(BEGIN)
        for (size_t i = 0; i < depth; i += 4, k += 4 * VGQ_PANEL) {
            const __m512i w0 = _mm512_loadu_si512(k), w1 = _mm512_loadu_si512(k + 64);
            const __m512i w2 = _mm512_loadu_si512(k + 128), w3 = _mm512_loadu_si512(k + 192);
            EACH_6(STEP)
        }
        COLUMNS(SCALE, 0)
        EACH_6(STORE)
    }
}

#undef SCALE
#undef STORE
#undef STORE_ONE
#undef STEP
#undef BEGIN

/* ---- softmax and v ----------------------------------------------------------------------------
 *
 * The codes of 64 keys come from four registers, whose lanes are packed 128 bits at a time: the
 * groups of four keys stand in the order 0, 4, 8, 12, 1, 5, ... */
static inline size_t key_of_group(size_t group) { return 16 * (group % 4) + 4 * (group / 4); }

int vgq_pack_values_i8_avx512vnni(size_t n, size_t depth, const float *x, void *block, float *scale)
{
    float inverse[VGQ_WIDEST];
    const int finite = column_scales(n, depth, x, scale, inverse);
    const __m512i by_channel =
        _mm512_broadcast_i32x4(_mm_setr_epi8(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15));
    int8_t *v = block;
    for (size_t j = 0; j < n; j += VGQ_PANEL)
        for (size_t g = 0; g < VGQ_PANEL / 4; g++) {
            const size_t key = j + key_of_group(g);
            for (size_t c = 0; c < depth; c += 16, v += 64) {
                const __m512 by = _mm512_loadu_ps(inverse + c);
                __m512i code[4];
                for (size_t i = 0; i < 4; i++)
                    code[i] = key + i < n ? _mm512_cvtps_epi32(_mm512_mul_ps(
                                                _mm512_loadu_ps(x + (key + i) * depth + c), by))
                                          : _mm512_setzero_si512();
                const __m512i codes = _mm512_packs_epi16(_mm512_packs_epi32(code[0], code[1]),
                                                         _mm512_packs_epi32(code[2], code[3]));
                _mm512_storeu_si512(v, _mm512_shuffle_epi8(codes, by_channel));
            }
        }
    return !finite;
}

/* Lanes of p below 2^-126 may be anything that small: their codes are 0, and beside the lane of the
 * largest, which is above 127, they are lost. */
static inline __m512 codes_of_64(const float *s, __m512 r, __m512 peak, size_t n, __m512 sum,
                                 uint8_t *to)
{
    __m512i code[4];
    for (size_t i = 0; i < 4; i++) {
        const __mmask16 mask = first_lanes(16 * i < n ? n - 16 * i : 0);
        const __m512 p = exp2_codes(_mm512_loadu_ps(s + 16 * i), r, peak, mask);
        sum = _mm512_add_ps(sum, p);
        code[i] = _mm512_cvtps_epi32(p);
    }
    _mm512_storeu_si512(to, _mm512_packus_epi16(_mm512_packus_epi32(code[0], code[1]),
                                                _mm512_packus_epi32(code[2], code[3])));
    return sum;
}

void vgq_softmax_u8_avx512vnni(size_t rows, size_t n, float *s, const float *r, vgq_gathered to,
                               float *kept, float *added, void *weights)
{
    float peaks[VGQ_GROUP_MOST];
    begin_rows(rows, n, s, r, to.top, peaks, kept, added);
    for (size_t m = 0; m < rows; m++, s += VGQ_KEYS) {
        uint8_t *const codes = (uint8_t *)weights + m * VGQ_KEYS;
        const __m512 peak = _mm512_set1_ps(peaks[m]), factor = _mm512_set1_ps(r[m]);
        __m512 sum = _mm512_setzero_ps();
        size_t j = 0;
        for (; j + 64 <= n; j += 64)
            sum = codes_of_64(s + j, factor, peak, 64, sum, codes + j);
        if (j < n)
            sum = codes_of_64(s + j, factor, peak, n - j, sum, codes + j);
        gather_lanes(to.lanes[m], sum, kept[m], added[m]);
    }
}

#define STEP(r)                                             \
    {                                                       \
        const __m512i x = four_codes(p + (r)*VGQ_KEYS + j); \
        a##r##0 = _mm512_dpbusd_epi32(a##r##0, x, w0);      \
        a##r##1 = _mm512_dpbusd_epi32(a##r##1, x, w1);      \
        a##r##2 = _mm512_dpbusd_epi32(a##r##2, x, w2);      \
        a##r##3 = _mm512_dpbusd_epi32(a##r##3, x, w3);      \
    }
#define STORE_ONE(r, c) _mm512_store_si512(sums[r] + 16 * (c), a##r##c);
#define STORE(r) COLUMNS(STORE_ONE, r)
#define TILE(rows, EACH)                                                                      \
    static void tile_values_i8_##rows##x64_avx512vnni(                                        \
        size_t keys, size_t depth, const uint8_t *p, const int8_t *v, const float *scale,     \
        const float *kept, const float *added, float *o)                                      \
    {                                                                                         \
        EACH(ZERO)                                                                            \
        for (size_t j = 0; j < keys; j += 4, v += 4 * depth) {                                \
            const __m512i w0 = _mm512_loadu_si512(v), w1 = _mm512_loadu_si512(v + 64);        \
            const __m512i w2 = _mm512_loadu_si512(v + 128), w3 = _mm512_loadu_si512(v + 192); \
            EACH(STEP)                                                                        \
        }                                                                                     \
        _Alignas(64) int32_t sums[rows][64];                                                  \
        EACH(STORE)                                                                           \
        join_sums(rows, depth, sums[0], scale, kept, added, o);                               \
    }
TILE(6, EACH_6)
TILE(2, EACH_2)
TILE(1, EACH_1)

static void values_i8_avx512vnni(size_t rows, size_t keys, size_t depth, const void *weights,
                                 const void *block, const float *scale, const float *kept,
                                 const float *added, float *o)
{
    const uint8_t *const p = weights;
    for (size_t m = 0, n; m < rows; m += n) {
        n = rows - m >= 6 ? 6 : rows - m >= 2 ? 2 : 1;
        for (size_t c = 0; c < depth; c += 64)
            (n == 6   ? tile_values_i8_6x64_avx512vnni
             : n == 2 ? tile_values_i8_2x64_avx512vnni
                      : tile_values_i8_1x64_avx512vnni)(keys, depth, p + m * VGQ_KEYS,
                                                        (const int8_t *)block + 4 * c, scale + c,
                                                        kept + m, added + m, o + m * depth + c);
    }
}

ISA_END

static const vgq_scores_gemm scores_i8 = {.rows = ROWS,
                                          .q_nbytes = 1,
                                          .k_nbytes = 1,
                                          .code_queries = vgq_code_queries_i8_avx512vnni,
                                          .pack_keys = vgq_pack_keys_i8_avx512vnni,
                                          .tile = tile_scores_i8_6x64_avx512vnni};
static const vgq_values_gemm values_i8 = {.p_nbytes = 1,
                                          .v_nbytes = 1,
                                          .pack_values = vgq_pack_values_i8_avx512vnni,
                                          .softmax = vgq_softmax_u8_avx512vnni,
                                          .tile = values_i8_avx512vnni};

const vgq_attention_kernels vgq_attention_avx512vnni = {
    .scores = {[VGQ_INT8_ACTIVATIONS] = &scores_i8},
    .values = {[VGQ_INT8_ACTIVATIONS] = &values_i8},
};

#endif
