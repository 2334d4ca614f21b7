/* SPDX-License-Identifier: Apache-2.0
 * Symmetric two-level W4 for AVX2. Codes of -8..7 times activations of 0..255 are small enough
 * that 16 products of each sign fit a 16-bit lane (255 * 8 * 16 = 32640), so vpmaddubsw cannot
 * saturate and sums stay 16 bits wide for 32 inputs. vpmaddwd then widens them, and multiplies by
 * the group's factor while at it.
 *
 * The tile is assembly because gcc, given intrinsics, keeps its sums in memory: 100 against 176
 * GMAC/s on one core. It fills the 16 registers: 3 rows x 16 columns of 32-bit sums, as many of 16
 * bits, two of weights, an activation, a product. */
#include "../kernels.h"

#if defined(__x86_64__)

#include "isa.h"

ISA_BEGIN("avx2,fma,f16c")
#include "tiles_avx2.h"

enum {
    CHUNK = 32,              /* inputs that share a step of factors */
    BLOCK = 16,              /* columns of a tile */
    STEP_NBYTES = 4 * BLOCK, /* 4 inputs */
    STEPS = CHUNK / 4,       /* of a chunk, then a step of factors */
    BLOCK_NBYTES = (VGQ_PANEL * (CHUNK + 4)) * BLOCK / VGQ_PANEL, /* of a chunk */
    FEW_ROWS = 16
};
_Static_assert(BLOCK_NBYTES == 576 && STEPS == 8, "what the assembly says");

/* Eight columns' factor, twice in each 32-bit lane. */
static inline __m256i factor_pairs(const uint8_t *factor)
{
    const __m256i f = _mm256_cvtepu8_epi32(_mm_loadl_epi64((const void *)factor));
    return _mm256_or_si256(f, _mm256_slli_epi32(f, 16));
}

/* 32 inputs, or the last ones and zeros, of eight columns; adds factor * code to *total. */
static inline void expand_chunk(size_t n, const uint8_t *nibbles, const uint8_t *factor, int8_t *to,
                                __m256i *total)
{
    const __m256i low = _mm256_set1_epi8(15), eight = _mm256_set1_epi8(8);
    const __m256i ones = _mm256_set1_epi8(1), pairs = factor_pairs(factor);
    __m256i sum = _mm256_setzero_si256();
    for (size_t i = 0; i < CHUNK; i += 8, to += 2 * STEP_NBYTES) {
        __m256i first = _mm256_setzero_si256(), second = first;
        if (i < n) {
            const __m256i b = _mm256_loadu_si256((const void *)(nibbles + i / 2 * VGQ_PANEL));
            first = _mm256_sub_epi8(_mm256_and_si256(b, low), eight);
            second = _mm256_sub_epi8(_mm256_and_si256(_mm256_srli_epi16(b, 4), low), eight);
        }
        _mm256_storeu_si256((void *)to, first);
        _mm256_storeu_si256((void *)(to + STEP_NBYTES), second);
        sum = _mm256_add_epi16(sum, _mm256_add_epi16(_mm256_maddubs_epi16(ones, first),
                                                     _mm256_maddubs_epi16(ones, second)));
    }
    _mm256_storeu_si256((void *)to, pairs);
    *total = _mm256_add_epi32(*total, _mm256_madd_epi16(sum, pairs));
}

/* Nibbles of a panel to the operand; offset: what the activations' 128 adds, 128 times the sums of
 * factor * code. */
static void expand_i4_avx2(const vgq_panel *panel, const uint8_t *bytes, void *to,
                           int32_t offset[VGQ_PANEL])
{
    const size_t k = panel->k;
    const size_t group = (panel->group + 7) / 8 * 8; /* one group of all inputs ends with k */
    const uint8_t *const nibbles = panel->codes, *const factor = panel->factor;
    int8_t *operand = to;
    (void)bytes;
    for (size_t column = 0; column < VGQ_PANEL; column += BLOCK) {
        __m256i total0 = _mm256_setzero_si256(), total1 = total0;
        for (size_t i = 0; i < k; i += CHUNK, operand += BLOCK_NBYTES) {
            const size_t n = vgq_min(CHUNK, k - i);
            const uint8_t *const from = nibbles + i / 2 * VGQ_PANEL + 4 * column;
            const uint8_t *const f = factor + i / group * VGQ_PANEL + column;
            expand_chunk(n, from, f, operand, &total0);
            expand_chunk(n, from + 32, f + 8, operand + 32, &total1);
        }
        _mm256_storeu_si256((void *)(offset + column), _mm256_slli_epi32(total0, 7));
        _mm256_storeu_si256((void *)(offset + column + 8), _mm256_slli_epi32(total1, 7));
    }
}

/* A row's registers: its place in q, its two 16-bit sums s, its two 32-bit sums a. ymm12, ymm13:
 * weights, then factors. */
#define REGISTERS_3(X)               \
    X(0, "(%[q])", 6, 7, 0, 1)       \
    X(1, "(%[q],%[ld])", 8, 9, 2, 3) \
    X(2, "(%[q],%[ld],2)", 10, 11, 4, 5)
#define REGISTERS_2(X) X(0, "(%[q])", 6, 7, 0, 1) X(1, "(%[q],%[ld])", 8, 9, 2, 3)
#define REGISTERS_1(X) X(0, "(%[q])", 6, 7, 0, 1)
#define CLEAR(r, at, s0, s1, a0, a1)                     \
    "vpxor %%xmm" #a0 ", %%xmm" #a0 ", %%xmm" #a0 "\n\t" \
    "vpxor %%xmm" #a1 ", %%xmm" #a1 ", %%xmm" #a1 "\n\t"
#define WEIGHTS(step)                         \
    "vmovdqu " #step "*64(%[w]), %%ymm12\n\t" \
    "vmovdqu " #step "*64+32(%[w]), %%ymm13\n\t"
/* The first four inputs of a chunk begin its sums, the others add to them. */
#define BEGIN(r, at, s0, s1, a0, a1)                \
    "vpbroadcastd " at ", %%ymm14\n\t"              \
    "vpmaddubsw %%ymm12, %%ymm14, %%ymm" #s0 "\n\t" \
    "vpmaddubsw %%ymm13, %%ymm14, %%ymm" #s1 "\n\t"
#define ADD(offset, at, s0, s1)                      \
    "vpbroadcastd " #offset at ", %%ymm14\n\t"       \
    "vpmaddubsw %%ymm12, %%ymm14, %%ymm15\n\t"       \
    "vpmaddubsw %%ymm13, %%ymm14, %%ymm14\n\t"       \
    "vpaddw %%ymm15, %%ymm" #s0 ", %%ymm" #s0 "\n\t" \
    "vpaddw %%ymm14, %%ymm" #s1 ", %%ymm" #s1 "\n\t"
#define ADD_1(r, at, s0, s1, a0, a1) ADD(4, at, s0, s1)
#define ADD_2(r, at, s0, s1, a0, a1) ADD(8, at, s0, s1)
#define ADD_3(r, at, s0, s1, a0, a1) ADD(12, at, s0, s1)
#define ADD_4(r, at, s0, s1, a0, a1) ADD(16, at, s0, s1)
#define ADD_5(r, at, s0, s1, a0, a1) ADD(20, at, s0, s1)
#define ADD_6(r, at, s0, s1, a0, a1) ADD(24, at, s0, s1)
#define ADD_7(r, at, s0, s1, a0, a1) ADD(28, at, s0, s1)
#define WIDEN(r, at, s0, s1, a0, a1)                      \
    "vpmaddwd %%ymm12, %%ymm" #s0 ", %%ymm" #s0 "\n\t"    \
    "vpmaddwd %%ymm13, %%ymm" #s1 ", %%ymm" #s1 "\n\t"    \
    "vpaddd %%ymm" #s0 ", %%ymm" #a0 ", %%ymm" #a0 "\n\t" \
    "vpaddd %%ymm" #s1 ", %%ymm" #a1 ", %%ymm" #a1 "\n\t"
#define WRITE(r, at, s0, s1, a0, a1)               \
    "vmovdqu %%ymm" #a0 ", " #r "*256(%[acc])\n\t" \
    "vmovdqu %%ymm" #a1 ", " #r "*256+32(%[acc])\n\t"

#define TILE(rows, EACH)                                                                         \
    static void tile_i4_##rows##x16_avx2(size_t chunks, const uint8_t *q, size_t ld,             \
                                         const int8_t *w, int32_t *acc)                          \
    {                                                                                            \
        __asm__ volatile(                                                                        \
            EACH(CLEAR) "1:\n\t" WEIGHTS(0) EACH(BEGIN) WEIGHTS(1) EACH(ADD_1) WEIGHTS(2)        \
                EACH(ADD_2) WEIGHTS(3) EACH(ADD_3) WEIGHTS(4) EACH(ADD_4) WEIGHTS(5) EACH(ADD_5) \
                    WEIGHTS(6) EACH(ADD_6) WEIGHTS(7) EACH(ADD_7) WEIGHTS(8)                     \
                        EACH(WIDEN) "add $32, %[q]\n\t"                                          \
                                    "add $576, %[w]\n\t"                                         \
                                    "dec %[chunks]\n\t"                                          \
                                    "jnz 1b\n\t" EACH(WRITE) "vzeroupper"                        \
            : [q] "+r"(q), [w] "+r"(w), [chunks] "+r"(chunks)                                    \
            : [ld] "r"(ld), [acc] "r"(acc)                                                       \
            : "memory", "xmm0", "xmm1", "xmm2", "xmm3", "xmm4", "xmm5", "xmm6", "xmm7", "xmm8",  \
              "xmm9", "xmm10", "xmm11", "xmm12", "xmm13", "xmm14", "xmm15");                     \
    }

TILE(3, REGISTERS_3)
TILE(2, REGISTERS_2)
TILE(1, REGISTERS_1)

/* Up to a chunk of codes is read past k, to no effect. */
static void tile_i4_avx2(size_t rows, const vgq_operand *w, const void *lines, size_t ld,
                         const int32_t *sums, int32_t *acc)
{
    const uint8_t *const codes = lines;
    const int8_t *operand = w->data;
    (void)sums;
    static void (*const tiles[])(size_t, const uint8_t *, size_t, const int8_t *, int32_t *) = {
        NULL, tile_i4_1x16_avx2, tile_i4_2x16_avx2, tile_i4_3x16_avx2};
    const size_t chunks = (w->k + CHUNK - 1) / CHUNK;
    for (size_t column = 0; column < VGQ_PANEL; column += BLOCK) {
        for (size_t r = 0, n; r < rows; r += n) {
            n = rows - r == 4 ? 2 : vgq_min(3, rows - r);
            tiles[n](chunks, codes + r * ld, ld, operand, acc + r * VGQ_PANEL + column);
        }
        operand += chunks * BLOCK_NBYTES;
    }
}

/* ---- few rows, straight from the nibbles ------------------------------------------------------
 */

/* What a chunk's sums begin with: the 8 that a nibble stands above its code, times a lane's codes,
 * negative. */
static inline __m128i first_sums(const int8_t *q)
{
    const __m256i codes = _mm256_loadu_si256((const void *)q);
    const __m256i pairs = _mm256_maddubs_epi16(_mm256_set1_epi8(1), codes);
    __m128i sum = _mm_add_epi16(_mm256_castsi256_si128(pairs), _mm256_extracti128_si256(pairs, 1));
    sum = _mm_add_epi16(sum, _mm_shuffle_epi32(sum, 0x4e));
    sum = _mm_add_epi16(sum, _mm_shuffle_epi32(sum, 0xb1));
    return _mm_sub_epi16(_mm_setzero_si128(), _mm_slli_epi16(sum, 3));
}

/* What a chunk of 8 columns of the panel has, each nibble a byte, named w0 to w7. The empty
 * assembly keeps gcc from loading each of them twice. */
#define NIBBLES(i, even, odd)                                                  \
    __m256i even = _mm256_loadu_si256((const void *)(at + 4 * (i)*VGQ_PANEL)); \
    __asm__("" : "+x"(even));                                                  \
    const __m256i odd = _mm256_and_si256(_mm256_srli_epi16(even, 4), low);     \
    even = _mm256_and_si256(even, low);
#define DOT(w, q) s = _mm256_add_epi16(s, _mm256_maddubs_epi16(w, q));

static inline void add_chunk(__m256i sum, __m256i factor, int32_t *acc)
{
    const __m256i before = _mm256_loadu_si256((const void *)acc);
    _mm256_storeu_si256((void *)acc, _mm256_add_epi32(before, _mm256_madd_epi16(sum, factor)));
}

/* A chunk of the panel against every row: acc[rows][64] += factor * (nibble - 8) * code. A 16-bit
 * lane sums 16 products of -8..7 and -127..127. The weights of 8 columns fill the registers; sums
 * wait in acc, which stays in L1. */
__attribute__((noinline)) static void tile_nibbles_avx2(size_t rows, const uint8_t *nibbles,
                                                        const __m256i *factor, const int8_t *codes,
                                                        size_t ld, int32_t *acc)
{
    const __m256i low = _mm256_set1_epi8(15);
    int32_t first[FEW_ROWS];
    for (size_t r = 0; r < rows; r++)
        first[r] = _mm_cvtsi128_si32(first_sums(codes + r * ld));
    for (size_t c = 0; c < VGQ_PANEL / 8; c++) {
        const uint8_t *const at = nibbles + 32 * c;
        const int8_t *q = codes;
        int32_t *to = acc + 8 * c;
        NIBBLES(0, w0, w1)
        NIBBLES(1, w2, w3)
        NIBBLES(2, w4, w5)
        NIBBLES(3, w6, w7)
        for (size_t r = 0; r < rows; r++, q += ld, to += VGQ_PANEL) {
            __m256i s = _mm256_set1_epi32(first[r]);
            DOT(w0, four_codes(q))
            DOT(w1, four_codes(q + 4))
            DOT(w2, four_codes(q + 8))
            DOT(w3, four_codes(q + 12))
            DOT(w4, four_codes(q + 16))
            DOT(w5, four_codes(q + 20))
            DOT(w6, four_codes(q + 24))
            DOT(w7, four_codes(q + 28))
            add_chunk(s, factor[c], to);
        }
    }
}

/* The same for one row, whose codes stay in registers, which leaves six: the empty assembly keeps
 * gcc from adding pairwise, which would take more. */
#define BOTH(i, q, r)                                \
    {                                                \
        NIBBLES(i, w0, w1)                           \
        DOT(w0, q) DOT(w1, r) __asm__("" : "+x"(s)); \
    }
__attribute__((noinline)) static void
tile_nibbles_1_avx2(const uint8_t *nibbles, const __m256i *factor, const int8_t *q, int32_t *acc)
{
    const __m256i low = _mm256_set1_epi8(15);
    const __m256i first = _mm256_broadcastd_epi32(first_sums(q));
    const __m256i q0 = four_codes(q), q1 = four_codes(q + 4), q2 = four_codes(q + 8);
    const __m256i q3 = four_codes(q + 12), q4 = four_codes(q + 16), q5 = four_codes(q + 20);
    const __m256i q6 = four_codes(q + 24), q7 = four_codes(q + 28);
    for (size_t c = 0; c < VGQ_PANEL / 8; c++) {
        const uint8_t *const at = nibbles + 32 * c;
        __m256i s = first;
        BOTH(0, q0, q1)
        BOTH(1, q2, q3)
        BOTH(2, q4, q5)
        BOTH(3, q6, q7)
        add_chunk(s, factor[c], acc + 8 * c);
    }
}

#undef BOTH
#undef DOT
#undef NIBBLES

/* The last inputs of a group, less than a chunk: with codes of 0 up to one. */
static void tile_tail(size_t n, size_t rows, const uint8_t *nibbles, const __m256i *factor,
                      const int8_t *codes, size_t ld, int32_t *acc)
{
    uint8_t w[(CHUNK / 2) * VGQ_PANEL] = {0};
    int8_t q[FEW_ROWS * CHUNK] = {0};
    memcpy(w, nibbles, n / 2 * VGQ_PANEL);
    for (size_t r = 0; r < rows; r++)
        memcpy(q + r * CHUNK, codes + r * ld, n);
    tile_nibbles_avx2(rows, w, factor, q, CHUNK, acc);
}

/* Take off what the zero points have added to each code of a group. */
static void take_zeros(size_t rows, const uint8_t *factor, const int8_t *zero, const int32_t *sums,
                       size_t groups, int32_t *acc)
{
    for (size_t c = 0; c < VGQ_PANEL; c += 8) {
        const __m256i over =
            _mm256_mullo_epi32(_mm256_cvtepi8_epi32(_mm_loadl_epi64((const void *)(zero + c))),
                               _mm256_cvtepu8_epi32(_mm_loadl_epi64((const void *)(factor + c))));
        for (size_t r = 0; r < rows; r++) {
            __m256i *const at = (__m256i *)(void *)(acc + r * VGQ_PANEL + c);
            const __m256i extra = _mm256_mullo_epi32(over, _mm256_set1_epi32(sums[r * groups]));
            _mm256_storeu_si256(at, _mm256_sub_epi32(_mm256_loadu_si256(at), extra));
        }
    }
}

static void tile_few_avx2(size_t rows, const vgq_operand *operand, const void *lines, size_t ld,
                          const int32_t *sums, int32_t *acc)
{
    const vgq_panel *const w = operand->panel;
    const int8_t *const codes = lines;
    memset(acc, 0, rows * VGQ_PANEL * sizeof(*acc));
    for (size_t i = 0, g = 0; g < w->groups; g++) {
        const size_t end = g + 1 < w->groups ? (g + 1) * w->group : w->k;
        const uint8_t *const factor = w->factor + g * VGQ_PANEL;
        __m256i pairs[VGQ_PANEL / 8];
        for (size_t c = 0; c < VGQ_PANEL / 8; c++)
            pairs[c] = factor_pairs(factor + 8 * c);
        for (size_t n; i < end; i += n) {
            const uint8_t *const nibbles = w->codes + i / 2 * VGQ_PANEL;
            n = vgq_min(CHUNK, end - i);
            if (n < CHUNK)
                tile_tail(n, rows, nibbles, pairs, codes + i, ld, acc);
            else if (rows == 1)
                tile_nibbles_1_avx2(nibbles, pairs, codes + i, acc);
            else
                tile_nibbles_avx2(rows, nibbles, pairs, codes + i, ld, acc);
        }
        if (w->zero)
            take_zeros(rows, factor, w->zero + g * VGQ_PANEL, sums + g, w->groups, acc);
    }
}

ISA_END

const vgq_product vgq_product_few_avx2 = {
    .applies = vgq_few_nibbles,
    .mr = FEW_ROWS,
    .code_nbytes = 1,
    .group_sums = 1,
    .nibbles = 1,
    .tile = tile_few_avx2,
};

/* Factors stay out of the weights, which are then small enough for sums of 16 bits, and come in
 * where those are widened: so a chunk must lie in one group. */
static int symmetric_chunks(const vgq_weight *w, size_t lines)
{
    (void)lines;
    return w->scales == VGQ_TWO_LEVEL && !w->asymmetric &&
           (w->group >= w->k || w->group % CHUNK == 0);
}

/* An operand's inputs are cut into chunks, the last one padded with zeros; a chunk has a byte a
 * weight and its factors in 32 bits a column. */
static size_t operand_nbytes_i4(size_t k)
{
    return (k + CHUNK - 1) / CHUNK * VGQ_PANEL * (CHUNK + 4);
}

const vgq_product vgq_product_int4_avx2 = {
    .applies = symmetric_chunks,
    .mr = 6,
    .code_nbytes = 1,
    .code_row = vgq_code_row_u8_avx2, /* codes + 128 */
    .nibbles = 1,
    .whole_offset = 1,
    .operand_nbytes = operand_nbytes_i4,
    .prepare = expand_i4_avx2,
    .tile = tile_i4_avx2,
};

#endif
