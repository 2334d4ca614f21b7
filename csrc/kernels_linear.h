/* SPDX-License-Identifier: Apache-2.0
 * Private: the slots of the linear kernels (included by kernels.h).
 *
 * A panel is 64 outputs (columns here) wide. Its INT8 form, `bytes`, is what packed W8 holds and
 * what a W4 panel is expanded to: [k / 4][64 columns][4 inputs], each byte the integer weight plus
 * 128.
 *
 *      byte  0 1 2 3 | 4 5 6 7 | ...          column 0: inputs 0..3 | column 1: inputs 0..3 | ...
 *      byte  256...                           inputs 4..7 of the 64 columns
 *
 * A packed W4 panel has two such steps in one: [k / 8][64][4], low nibbles inputs 0..3, high
 * ones 4..7, each nibble the code plus 8. */
#ifndef VGQ_KERNELS_LINEAR_H
#define VGQ_KERNELS_LINEAR_H

enum { VGQ_PANEL = 64, VGQ_TILE_ROWS = 32 /* most rows of a tile of codes */ };

/* k inputs (multiple of 8) that share a group: bytes = factor * (code - zero) + 128. factor and
 * zero: one a column. */
typedef void vgq_expand4_fn(size_t k, const uint8_t *nibbles, const uint8_t *factor,
                            const int8_t *zero, uint8_t *bytes);
/* How an instruction set multiplies floats, or bfloat16 in pairs: w[k / 2][64][2]. */
typedef struct vgq_float_gemm {
    size_t nbytes; /* of an input and of a weight: 4 or 2 */
    /* w = (byte - offset) * scale, rounded to its dtype. k multiple of 4; offset and scale: one a
     * column. */
    void (*decode)(size_t k, const uint8_t *bytes, const int32_t *offset, const float *scale,
                   void *w);
    /* acc[rows][64] (+)= x[rows][k] w, one chain of additions an output, in the order of
     * docs/conventions.md. rows <= VGQ_FLOAT_ROWS; k is even but in the last call of a row. */
    void (*tile)(size_t rows, size_t k, const void *x, size_t ldx, const void *w, float *acc,
                 int accumulate);
    /* tile of one row of floats with the weights that decode would give, which go through no
     * memory; NULL: decode and tile. */
    void (*row)(size_t k, const float *x, const uint8_t *bytes, const int32_t *offset,
                const float *scale, float *acc, int accumulate);
} vgq_float_gemm;

/* The largest magnitude of x, as the integer that its bits are: a NaN is above infinity, and that
 * above all numbers. */
typedef uint32_t vgq_largest_fn(size_t k, const float *x);
/* codes[0..padded) of one token, vgq_encode_token of each x, zeros from k on, as one byte each,
 * signed, or as the product that has a code_row of its own reads them; the sum of the codes. */
typedef int32_t vgq_code_row_fn(size_t k, size_t padded, const float *x, float inverse,
                                void *codes);

/* A panel of packed weights; k is padded to a multiple of 8, and the last group ends with it. */
typedef struct vgq_panel {
    vgq_format format;
    size_t k, group, groups;
    const float *scale;    /* [64], or [groups][64] with VGQ_PER_GROUP */
    const int8_t *zero;    /* [groups][64]; NULL: symmetric */
    const uint8_t *factor; /* [groups][64]; NULL: all 1 */
    const uint8_t *codes;  /* W8: bytes; W4: nibbles */
} vgq_panel;

/* What a tile multiplies with: k inputs of a panel, in the form that its product prepares. */
typedef struct vgq_operand {
    size_t k; /* a multiple of 8 */
    const void *data;
    const vgq_panel *panel;
} vgq_operand;

/* Rows of a task that are multiplied and finished together, 8-bit codes with a scale a row. */
typedef struct vgq_strip {
    size_t rows;
    const void *codes; /* [rows][ld] */
    size_t ld;
    const int32_t *sum;   /* [rows] */
    const float *x_scale; /* [rows] */
    const struct vgq_columns *columns;
    void *y; /* [rows][ldy]: float32 or bfloat16 */
    size_t ldy;
    vgq_dtype dtype;
    int gelu;                 /* whether GELU follows the bias */
    const float *layer_scale; /* [64]: then multiplied by this; or NULL */
    const void *residual;     /* [rows][ldy] of y's dtype: then this is added; or NULL */
    int fetch_y;              /* whether y is to be asked for before it is written */
    const char *next;         /* next_nbytes of weights, the thread's next task's: asked for on the
                                 way (vgq_fetch_next) */
    size_t next_nbytes;
} vgq_strip;
enum {
    VGQ_STRIP_ROWS = 64,      /* most whose floats go to scratch, a multiple of every mr */
    VGQ_CACHED_Y = 24 << 20,  /* bytes of a whole y up to which asking for it costs more than it
                               * gains: 930 x 3,072 floats lost 2 %, 2,748 x 4,096 gained 4 % */
    VGQ_NEXT_ROWS = 96,       /* rows of a task for which it comes while they are computed: at 4 it
                               * was waited for, and lost 20 %; at 128 it gained 2 % */
    VGQ_NEXT_MOST = 128 << 10 /* bytes of a panel from which on the next one drives codes out of L2:
                               * AMX lost 2 % at 4,096 inputs, gained 1 to 2 % at 1,024 */
};

/* With rows m..m + rows of a strip: their share of the next task's weights comes to L2. */
static inline void vgq_fetch_next(const vgq_strip *strip, size_t m, size_t rows)
{
    const size_t lines = strip->next_nbytes / 64;
    for (size_t i = lines * m / strip->rows; i < lines * (m + rows) / strip->rows; i++)
        __builtin_prefetch(strip->next + 64 * i, 0, 2);
}

/* One way to multiply codes with a panel. An instruction set lists its ways, each for the cases in
 * which it is the fastest; the first one that applies is taken. */
typedef struct vgq_product {
    /* Whether it can multiply so many lines of codes with that weight; NULL: always. */
    int (*applies)(const vgq_weight *weight, size_t lines);
    size_t mr;                 /* most rows of a tile */
    size_t most_nbytes;        /* of a task's codes, which have to stay in L2; 0: any */
    size_t code_nbytes;        /* of an activation's code */
    vgq_code_row_fn *code_row; /* NULL: the table's */
    int group_sums;            /* 1: tile reads the sums of the codes over each group */
    int nibbles;               /* 1: it reads the packed panel; 0: the panel's bytes */
    int32_t offset;            /* what the operand's elements stand above the weights */
    int whole_offset;          /* 1: prepare's offsets are subtracted as they are; 0: times the sum
                                  of the row's codes */
    size_t weight_nbytes;      /* of an element of an operand that may be cut between inputs; 0: it
                                  may not be, or is never for groups with scales of their own */
    /* Bytes of the operand in scratch, and how it is made from the panel and its bytes (those NULL
     * with `nibbles`); offset holds `offset` and may be changed. NULL: the operand is what the
     * product reads. */
    size_t (*operand_nbytes)(size_t k);
    void (*prepare)(const vgq_panel *panel, const uint8_t *bytes, void *operand,
                    int32_t offset[VGQ_PANEL]);
    /* acc[rows][64] = codes w. Lines of codes lie ld codes apart and can be read up to the next
     * multiple of 64; sums as vgq_tokens has them. */
    void (*tile)(size_t rows, const vgq_operand *w, const void *codes, size_t ld,
                 const int32_t *sums, int32_t *acc);
    /* A whole strip of rows at once, finished: where that is faster; NULL: tiles alone. */
    void (*strip)(const vgq_operand *w, const vgq_strip *strip);
} vgq_product;

/* applies: two-level W4 for so few lines that expanding the panel would cost more than the product;
 * bytes of W8 or of two-level W4 for so few. */
enum { VGQ_FEW_LINES = 16 };
static inline int vgq_few_nibbles(const vgq_weight *w, size_t lines)
{
    return w->scales == VGQ_TWO_LEVEL && lines <= VGQ_FEW_LINES;
}
static inline int vgq_few_bytes(const vgq_weight *w, size_t lines)
{
    return w->scales != VGQ_PER_GROUP && lines <= VGQ_FEW_LINES;
}

/* What a panel's columns share: offsets as vgq_product says, scales, bias. */
typedef struct vgq_columns {
    int32_t offset[VGQ_PANEL];
    float bias[VGQ_PANEL];
    const float *scale;
} vgq_columns;

/* y[r][64] = ((float)(acc[r] - offset * sum[r]) * x_scale[r]) * scale + bias; y's rows lie ldy
 * apart, acc's 64. */
typedef void vgq_finish_fn(size_t rows, const int32_t *acc, const vgq_columns *columns,
                           const int32_t *sum, const float *x_scale, float *y, size_t ldy);
/* The same of 16-bit codes, of which acc and sum have two rows each, the high digit's first: the
 * exact 255 * high + low becomes a float by one rounding. rows: of y. */
typedef vgq_finish_fn vgq_finish16_fn;
/* total[64] += (float)(acc - offset * sum) * scale */
typedef void vgq_flush_fn(const int32_t *acc, int32_t offset, int32_t sum, const float *scale,
                          float *total);

/* The same of 16-bit codes: acc[2][64] and sum[2] are the digits'. */
typedef void vgq_flush16_fn(const int32_t *acc, int32_t offset, const int32_t *sum,
                            const float *scale, float *total);

/* x[i] = GELU(x[i]), by the operations of gelu.h. */
typedef void vgq_gelu_fn(size_t n, float *x);

typedef struct vgq_linear_kernels {
    vgq_expand4_fn *expand4;
    const vgq_float_gemm *float_gemm;
    const vgq_float_gemm *bf16_gemm; /* or NULL, in any table */
    vgq_largest_fn *largest;
    vgq_code_row_fn *code_row;
    const vgq_product *const *products; /* ended by NULL; the last one applies always */
    vgq_finish_fn *finish;
    vgq_finish16_fn *finish16;
    vgq_flush_fn *flush;
    vgq_flush16_fn *flush16;
    vgq_gelu_fn *gelu;
} vgq_linear_kernels;

#if defined(__x86_64__)
extern const vgq_product vgq_product_int4_avx2, vgq_product_few_avx2;
extern const vgq_product vgq_product_avx512vnni, vgq_product_few_avx512vnni;
vgq_largest_fn vgq_largest_avx2;
vgq_code_row_fn vgq_code_row_i8_avx2, vgq_code_row_i16_avx2, vgq_code_row_u8_avx2;
#endif

/* Rows of a float tile: every table's is this or handles this. */
enum { VGQ_FLOAT_ROWS = 6 };

#endif
