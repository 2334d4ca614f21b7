/* SPDX-License-Identifier: Apache-2.0
 * Attention for AMX, in INT8 and in bfloat16: 32 rows of q a group, two halves of 16, in 2 x 2
 * tiles of sums. A step of an operand is 32 bits: four codes or two values of bfloat16. k is
 * [step][64 keys], v is [step of keys][channel]; INT8 stands as in attention_avx512vnni.c, whose
 * softmax and packing these are. Sums of floats have the order of the instruction: bits may differ
 * from those of other tables, in bfloat16 alone.
 *
 * With VGQ_MODELS, the header that it names has the tiles' instructions in plain C, for CPUs that
 * lack them. */
#include "../kernels.h"

#if defined(__x86_64__)

#include "isa.h"

#if defined(VGQ_MODELS)
ISA_BEGIN("avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx512bf16,avx2,fma,f16c")
#include VGQ_MODELS
#else
#include <immintrin.h>
ISA_BEGIN("amx-tile,amx-int8,amx-bf16,avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx512bf16,"
          "avx2,fma,f16c")
#define tile_configure(shapes) _tile_loadconfig(shapes)
#define tile_release() _tile_release()
#define tile_zero(tile) _tile_zero(tile)
#define tile_load(tile, from, stride) _tile_loadd(tile, from, stride)
#define tile_store(tile, to, stride) _tile_stored(tile, to, stride)
#define tile_multiply(sums, a, b) _tile_dpbsud(sums, a, b)
#define tile_multiply_unsigned(sums, a, b) _tile_dpbusd(sums, a, b)
#define tile_multiply_bf16(sums, a, b) _tile_dpbf16ps(sums, a, b)
#endif

#include "attention_avx512.h"

enum { HALF = 16, GROUP = 2 * HALF, STRIPE = 64 /* bytes of a tile's row */ };

/* Tiles 0..3: sums, [half][block of 16 columns]; 4, 5: rows of q or p; 6, 7: k or v. */
typedef struct tile_shapes {
    uint8_t palette, start_row, reserved[14];
    uint16_t row_nbytes[16];
    uint8_t rows[16];
} tile_shapes;

static tile_shapes shapes_of(size_t rows)
{
    const uint8_t first = rows < HALF ? (uint8_t)rows : HALF, second = (uint8_t)(rows - first);
    tile_shapes shapes = {.palette = 1, .rows = {first, first, second, second, first, second}};
    shapes.rows[6] = shapes.rows[7] = HALF;
    for (int tile = 0; tile < 8; tile++)
        shapes.row_nbytes[tile] = shapes.rows[tile] ? STRIPE : 0;
    return shapes;
}

/* sums[rows][32] = a b: `steps` times 64 bytes of each row of a, rows a_ld bytes apart, and 16
 * steps of b, b_ld bytes apart. Sums are begun at `from`, or at 0. */
#define PRODUCT(name, multiply)                                                                \
    static inline void name(int both, size_t steps, const char *a, size_t a_ld, const char *b, \
                            size_t b_ld, void *sums, size_t sums_ld)                           \
    {                                                                                          \
        tile_zero(0);                                                                          \
        tile_zero(1);                                                                          \
        if (both) {                                                                            \
            tile_zero(2);                                                                      \
            tile_zero(3);                                                                      \
        }                                                                                      \
        for (size_t i = 0; i < steps; i++, a += STRIPE, b += HALF * b_ld) {                    \
            tile_load(4, a, a_ld);                                                             \
            tile_load(6, b, b_ld);                                                             \
            tile_load(7, b + STRIPE, b_ld);                                                    \
            multiply(0, 4, 6);                                                                 \
            multiply(1, 4, 7);                                                                 \
            if (both) {                                                                        \
                tile_load(5, a + HALF * a_ld, a_ld);                                           \
                multiply(2, 5, 6);                                                             \
                multiply(3, 5, 7);                                                             \
            }                                                                                  \
        }                                                                                      \
        tile_store(0, sums, sums_ld);                                                          \
        tile_store(1, (char *)sums + STRIPE, sums_ld);                                         \
        if (both) {                                                                            \
            tile_store(2, (char *)sums + HALF * sums_ld, sums_ld);                             \
            tile_store(3, (char *)sums + HALF * sums_ld + STRIPE, sums_ld);                    \
        }                                                                                      \
    }
PRODUCT(product_codes, tile_multiply) /* uncovered: scores have both halves of rows */
PRODUCT(product_unsigned, tile_multiply_unsigned)
PRODUCT(product_bf16, tile_multiply_bf16)
#undef PRODUCT

/* ---- INT8 -------------------------------------------------------------------------------------
 */

/* s[GROUP][64], integers, times the scales of their keys; a row ends before the next begins, since
 * rows lie a power of two apart, where a load would wait for stores of other rows. */
static inline void scale_panel(const int32_t *first, const float *scale, float *s)
{
    __m512 by[4], high[4];
    for (size_t c = 0; c < 4; c++) {
        by[c] = _mm512_loadu_ps(scale + 16 * c);
        high[c] = _mm512_mul_ps(by[c], _mm512_set1_ps(-ABOVE));
    }
    for (size_t r = 0; r < GROUP; r++, s += VGQ_KEYS) {
        const __m512i begin = _mm512_set1_epi32(first[r]);
        for (size_t c = 0; c < 4; c++) {
            const __m512i sum = _mm512_add_epi32(_mm512_loadu_si512(s + 16 * c), begin);
            _mm512_storeu_ps(s + 16 * c, _mm512_fmadd_ps(_mm512_castsi512_ps(sum), by[c], high[c]));
        }
    }
}

/* A panel's sums are scaled while the tiles of the next panel are multiplied. */
static void scores_i8_amx(size_t keys, size_t depth, const void *q, const int32_t *first,
                          const void *panels, const float *scale, float *s)
{
    const tile_shapes shapes = shapes_of(GROUP);
    const char *k = panels;
    tile_configure(&shapes);
    for (size_t j = 0; j < keys; j += VGQ_PANEL, k += depth * VGQ_PANEL) {
        for (size_t half = 0; half < 2; half++)
            product_codes(1, depth / 64, q, depth, k + 2 * half * STRIPE, 4 * VGQ_PANEL,
                          s + j + 2 * half * 16, VGQ_KEYS * sizeof(*s));
        if (j)
            scale_panel(first, scale + j - VGQ_PANEL, s + j - VGQ_PANEL);
    }
    tile_release(); /* or the system would save 8 KB at each switch of threads */
    scale_panel(first, scale + keys - VGQ_PANEL, s + keys - VGQ_PANEL);
}

static void values_i8_amx(size_t rows, size_t keys, size_t depth, const void *p, const void *block,
                          const float *scale, const float *kept, const float *added, float *o)
{
    const tile_shapes shapes = shapes_of(rows);
    for (size_t c = 0; c < depth; c += 64) {
        _Alignas(64) int32_t sums[GROUP * 64];
        tile_configure(&shapes);
        for (size_t half = 0; half < 2; half++)
            product_unsigned(rows > HALF, keys / 64, p, VGQ_KEYS,
                             (const char *)block + 4 * c + 2 * half * STRIPE, 4 * depth,
                             sums + 2 * half * 16, 64 * sizeof(*sums));
        tile_release();
        join_sums(rows, depth, sums, scale + c, kept, added, o + c);
    }
}

/* ---- bfloat16 ---------------------------------------------------------------------------------
 */

static inline void store_bf16(void *to, const float *x)
{
    const __m512bh both = _mm512_cvtne2ps_pbh(_mm512_loadu_ps(x + 16), _mm512_loadu_ps(x));
    _mm512_storeu_si512(to, (__m512i)both);
}

static void code_queries_bf16_amx(size_t n, size_t depth, const float *x, float factor, void *q,
                                  float *r, int32_t *first)
{
    for (size_t i = 0; i < n; i++) {
        r[i] = not_finite(depth, x + i * depth) ? NAN : factor;
        first[i] = 0;
    }
    for (size_t i = 0; i < n * depth; i += 32)
        store_bf16((uint16_t *)q + i, x + i);
}

static int pack_keys_bf16_amx(size_t n, size_t depth, const float *x, void *panel, float *scale)
{
    uint16_t all[VGQ_PANEL * VGQ_WIDEST];
    for (size_t i = 0; i < n * depth; i += 32)
        store_bf16(all + i, x + i);
    memset(all + n * depth, 0, (VGQ_PANEL - n) * depth * sizeof(*all));
    transpose_panel(all, depth / 2, panel);
    for (size_t i = 0; i < VGQ_PANEL; i++)
        scale[i] = 1;
    return not_finite(n * depth, x);
}

static void scores_bf16_amx(size_t keys, size_t depth, const void *q, const int32_t *first,
                            const void *panels, const float *scale, float *s)
{
    const tile_shapes shapes = shapes_of(GROUP);
    const char *k = panels;
    (void)first, (void)scale;
    tile_configure(&shapes);
    for (size_t j = 0; j < keys; j += VGQ_PANEL, k += 2 * depth * VGQ_PANEL)
        for (size_t half = 0; half < 2; half++)
            product_bf16(1, depth / 32, q, 2 * depth, k + 2 * half * STRIPE, 4 * VGQ_PANEL,
                         s + j + 2 * half * 16, VGQ_KEYS * sizeof(*s));
    tile_release();
}

static int pack_values_bf16_amx(size_t n, size_t depth, const float *x, void *block, float *scale)
{
    const __m512i pairs =
        _mm512_set_epi16(31, 15, 30, 14, 29, 13, 28, 12, 27, 11, 26, 10, 25, 9, 24, 8, 23, 7, 22, 6,
                         21, 5, 20, 4, 19, 3, 18, 2, 17, 1, 16, 0);
    uint16_t *v = block;
    for (size_t j = 0; j < vgq_round_up(n, VGQ_PANEL); j += 2)
        for (size_t c = 0; c < depth; c += 16, v += 32) {
            const __m512 zero = _mm512_setzero_ps();
            const __m512 even = j < n ? _mm512_loadu_ps(x + j * depth + c) : zero;
            const __m512 odd = j + 1 < n ? _mm512_loadu_ps(x + (j + 1) * depth + c) : zero;
            _mm512_storeu_si512(
                v, _mm512_permutexvar_epi16(pairs, (__m512i)_mm512_cvtne2ps_pbh(odd, even)));
        }
    for (size_t c = 0; c < depth; c++)
        scale[c] = 1;
    return not_finite(n * depth, x);
}

static void softmax_bf16_amx(size_t rows, size_t n, float *s, const float *r, vgq_gathered to,
                             float *kept, float *added, void *weights)
{
    float peaks[VGQ_GROUP_MOST];
    begin_rows(rows, n, s, r, to.top, peaks, kept, added);
    for (size_t m = 0; m < rows; m++, s += VGQ_KEYS) {
        uint16_t *const p = (uint16_t *)weights + m * VGQ_KEYS;
        const __m512 peak = _mm512_set1_ps(peaks[m]), factor = _mm512_set1_ps(r[m]);
        __m512 sum = _mm512_setzero_ps();
        for (size_t j = 0; j < vgq_round_up(n, VGQ_PANEL); j += 32) {
            const __mmask16 first = first_lanes(j < n ? n - j : 0);
            const __mmask16 second = first_lanes(j + 16 < n ? n - j - 16 : 0);
            const __m512 a = exp2_codes(_mm512_loadu_ps(s + j), factor, peak, first);
            const __m512 b = exp2_codes(_mm512_loadu_ps(s + j + 16), factor, peak, second);
            sum = _mm512_add_ps(_mm512_add_ps(sum, a), b);
            _mm512_storeu_si512(p + j, (__m512i)_mm512_cvtne2ps_pbh(b, a));
        }
        gather_lanes(to.lanes[m], sum, kept[m], added[m]);
    }
}

static void values_bf16_amx(size_t rows, size_t keys, size_t depth, const void *p,
                            const void *block, const float *scale, const float *kept,
                            const float *added, float *o)
{
    const tile_shapes shapes = shapes_of(rows);
    (void)scale;
    for (size_t c = 0; c < depth; c += 64) {
        _Alignas(64) float sums[GROUP * 64];
        tile_configure(&shapes);
        for (size_t half = 0; half < 2; half++)
            product_bf16(rows > HALF, keys / 32, p, 2 * VGQ_KEYS,
                         (const char *)block + 4 * c + 2 * half * STRIPE, 4 * depth,
                         sums + 2 * half * 16, 64 * sizeof(*sums));
        tile_release();
        join_floats(rows, depth, sums, kept, added, o + c);
    }
}

ISA_END

static const vgq_scores_gemm scores_i8 = {.rows = GROUP,
                                          .q_nbytes = 1,
                                          .k_nbytes = 1,
                                          .code_queries = vgq_code_queries_i8_avx512vnni,
                                          .pack_keys = vgq_pack_keys_i8_avx512vnni,
                                          .tile = scores_i8_amx};
static const vgq_values_gemm values_i8 = {.p_nbytes = 1,
                                          .v_nbytes = 1,
                                          .pack_values = vgq_pack_values_i8_avx512vnni,
                                          .softmax = vgq_softmax_u8_avx512vnni,
                                          .tile = values_i8_amx};
static const vgq_scores_gemm scores_bf16 = {.rows = GROUP,
                                            .q_nbytes = 2,
                                            .k_nbytes = 2,
                                            .code_queries = code_queries_bf16_amx,
                                            .pack_keys = pack_keys_bf16_amx,
                                            .tile = scores_bf16_amx};
static const vgq_values_gemm values_bf16 = {.p_nbytes = 2,
                                            .v_nbytes = 2,
                                            .pack_values = pack_values_bf16_amx,
                                            .softmax = softmax_bf16_amx,
                                            .tile = values_bf16_amx};

const vgq_attention_kernels vgq_attention_amx = {
    .scores = {[VGQ_BF16_ACTIVATIONS] = &scores_bf16, [VGQ_INT8_ACTIVATIONS] = &scores_i8},
    .values = {[VGQ_BF16_ACTIVATIONS] = &values_bf16, [VGQ_INT8_ACTIVATIONS] = &values_i8},
};

#endif
