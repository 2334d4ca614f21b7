/* SPDX-License-Identifier: Apache-2.0
 * Private: the slots of the attention kernels (included by kernels.h).
 *
 * The keys of a head are taken VGQ_KEYS at a time. For each such block and each group of rows of q:
 *
 *      scores->tile     s[rows][VGQ_KEYS] = q k^T
 *      values->softmax  p[rows][VGQ_KEYS] = 2^(s r - peak), peak: the largest s r of the row and
 *                       block
 *      values->tile     o[rows][depth] = o * kept + p v * added
 *
 * A row's sums are kept in units of 2^top, top: the smallest integer that no peak so far is above.
 * So `kept`, which brings the blocks before to a new top, is a power of two, and exact. `added`
 * brings this block to it: 2^(peak - top). The block's length and the operations on floats are part
 * of what docs/conventions.md says; layouts of q, k, p and v are each table's own. */
#ifndef VGQ_KERNELS_ATTENTION_H
#define VGQ_KERNELS_ATTENTION_H

enum {
    VGQ_KEYS = 256,      /* of a block */
    VGQ_GROUP_MOST = 32, /* rows of a group */
    VGQ_DEPTH = 64       /* rows of floats are padded to a multiple of this with zeros */
};

/* Where rows of q, k or v come from. */
typedef struct vgq_rows {
    const void *x; /* of token 0 */
    size_t stride; /* elements from a token to the next */
    vgq_dtype dtype;
    size_t dim, depth;
    vgq_norm norm;
    const float *cos, *sin; /* as in vgq_attention_call */
    size_t rope_tokens, rope_width;
} vgq_rows;

/* to[n][depth]: rows first.. of `rows`, widened, normalized, rotated, padded with zeros. */
typedef void vgq_prepare_fn(const vgq_rows *rows, size_t first, size_t n, float *to);

/* q, [n][depth] in the table's form, from rows x[n][depth]. r[n]: what the scores of each row are
 * multiplied with, its own scale times `factor`; NaN for a row that is not finite. first[n]: what
 * integer sums begin with. */
typedef void vgq_code_queries_fn(size_t n, size_t depth, const float *x, float factor, void *q,
                                 float *r, int32_t *first);
/* A panel of VGQ_PANEL keys in the table's form, from n rows, zeros after them; a scale a key.
 * Whether a value is not finite. */
typedef int vgq_pack_keys_fn(size_t n, size_t depth, const float *x, void *panel, float *scale);
/* A block of v in the table's form, from n rows, zeros after them up to a multiple of VGQ_PANEL; a
 * scale a channel. Whether a value is not finite. */
typedef int vgq_pack_values_fn(size_t n, size_t depth, const float *x, void *block, float *scale);

/* What rows of q have gathered from the blocks before: for each its top, and 16 sums of p. */
typedef struct vgq_gathered {
    float *top;                /* [rows] */
    float (*lanes)[VGQ_LANES]; /* [rows] */
} vgq_gathered;

/* p of n keys, zeros after them up to a multiple of VGQ_PANEL. s is scratch then. */
typedef void vgq_weigh_fn(size_t rows, size_t n, float *s, const float *r, vgq_gathered to,
                          float *kept, float *added, void *p);

/* How q and k are multiplied. */
typedef struct vgq_scores_gemm {
    size_t rows;     /* of a group; at most VGQ_GROUP_MOST */
    size_t q_nbytes; /* of a channel of an operand */
    size_t k_nbytes;
    vgq_code_queries_fn *code_queries;
    vgq_pack_keys_fn *pack_keys;
    /* s[rows][VGQ_KEYS] of whole panels; keys: a multiple of VGQ_PANEL. */
    void (*tile)(size_t keys, size_t depth, const void *q, const int32_t *first, const void *panels,
                 const float *scale, float *s);
} vgq_scores_gemm;

/* How the softmax and v are multiplied. */
typedef struct vgq_values_gemm {
    size_t p_nbytes, v_nbytes;
    vgq_pack_values_fn *pack_values;
    vgq_weigh_fn *softmax;
    /* keys: a multiple of VGQ_PANEL; rows: any up to VGQ_GROUP_MOST. */
    void (*tile)(size_t rows, size_t keys, size_t depth, const void *p, const void *block,
                 const float *scale, const float *kept, const float *added, float *o);
} vgq_values_gemm;

/* Indexed by vgq_activations; NULL for those of 16 bits, and in any table for bfloat16. */
typedef struct vgq_attention_kernels {
    vgq_prepare_fn *prepare;
    const vgq_scores_gemm *scores[VGQ_ACTIVATIONS];
    const vgq_values_gemm *values[VGQ_ACTIVATIONS];
} vgq_attention_kernels;

#if defined(__x86_64__) /* of the table for VNNI, for AMX too */
vgq_code_queries_fn vgq_code_queries_i8_avx512vnni;
vgq_pack_keys_fn vgq_pack_keys_i8_avx512vnni;
vgq_pack_values_fn vgq_pack_values_i8_avx512vnni;
vgq_weigh_fn vgq_softmax_u8_avx512vnni;
#endif

/* ---- what every table computes alike ----------------------------------------------------------
 */

#define VGQ_LOG2E 1.44269504f
/* Scores, in units of log2 e, are taken between these. */
#define VGQ_SCORE_MOST 0x1p21f
#define VGQ_TOP_LEAST -0x1p23f
/* 2^f, |f| <= 1/2, with a relative error of 1.02e-4, times 255, exact at 0; Horner, the highest
 * power first. */
#define VGQ_EXP2_CODES(TERM) TERM(61.7637978f) TERM(176.78714f) TERM(255.0f)
#define VGQ_EXP2_CODES_FIRST 14.0272789f
/* The same with 9.2e-8, times 1. */
#define VGQ_EXP2_FLOATS(TERM) \
    TERM(0.00967151299f) TERM(0.0555073358f) TERM(0.240222424f) TERM(0.693147004f) TERM(1.0f)
#define VGQ_EXP2_FLOATS_FIRST 0.00132647273f

/* 2^e, 0 below 2^-126: an integer e <= 0, exact. */
VGQ_INLINE float vgq_power(float e)
{
    return e < -126.0f ? 0.0f : vgq_float_of_bits((uint32_t)(127 + (int)e) << 23);
}

/* The same of any x <= 1, by VGQ_EXP2_FLOATS; a NaN stays one. */
VGQ_INLINE float vgq_exp2(float x)
{
    if (!(x >= -126.0f))
        return x != x ? x : 0;
    const float whole = rintf(x), f = x - whole;
    float p = VGQ_EXP2_FLOATS_FIRST;
#define TERM(t) p = fmaf(p, f, t);
    VGQ_EXP2_FLOATS(TERM)
#undef TERM
    return p * vgq_float_of_bits((uint32_t)(127 + (int)whole) << 23);
}

/* The peak of a row of scores, of which max is the largest: max * r. Scores that leave the range of
 * VGQ_SCORE_MOST, which only the largest can say, are brought to its ends first. r NaN: any peak; p
 * are NaN. */
VGQ_INLINE float vgq_row_peak(size_t n, float *s, float max, float r)
{
    const float peak = max * r;
    if (peak >= -VGQ_SCORE_MOST && peak <= VGQ_SCORE_MOST)
        return peak;
    if (r != r)
        return 0.0f;
    const float most = VGQ_SCORE_MOST / r;
    for (size_t i = 0; i < n; i++)
        s[i] = s[i] > most ? most : s[i] < -most ? -most : s[i];
    return peak > 0 ? VGQ_SCORE_MOST : -VGQ_SCORE_MOST;
}

/* Bring a row's top to one that is not below the peak of its next block. */
VGQ_INLINE void vgq_join_top(float peak, float *top, float *kept, float *added)
{
    const float before = *top, own = ceilf(peak);
    *top = own > before ? own : before;
    *kept = vgq_power(before - *top);
    *added = vgq_exp2(peak - *top);
}

#endif
