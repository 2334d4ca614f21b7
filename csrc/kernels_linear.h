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

enum { VGQ_PANEL = 64 };

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
} vgq_float_gemm;

/* The largest magnitude of x, as the integer that its bits are: a NaN is above infinity, and that
 * above all numbers. */
typedef uint32_t vgq_largest_fn(size_t k, const float *x);
/* codes[0..padded) of one token, vgq_encode_token of each x, zeros from k on, as one byte each,
 * signed, or as the product that has a code_row of its own reads them; the sum of the codes. */
typedef int32_t vgq_code_row_fn(size_t k, size_t padded, const float *x, float inverse,
                                void *codes);

/* How an instruction set multiplies codes. */
typedef struct vgq_int_gemm {
    size_t mr;                 /* rows of a tile */
    size_t code_nbytes;        /* of an activation's code */
    size_t weight_nbytes;      /* of an operand's element; 1: the panel's bytes are the operand */
    vgq_code_row_fn *code_row; /* NULL: the table's */
    /* bytes of a panel to the operand, k multiple of 8; NULL: nothing to do */
    void (*widen)(size_t k, const uint8_t *bytes, void *operand);
    /* acc[rows][64] = codes w, where w may lack the 128 (see offset). rows <= mr, k multiple of 8.
     */
    void (*tile)(size_t rows, size_t k, const void *codes, size_t ld, const void *operand,
                 int32_t *acc);
    int32_t offset; /* what the operand's elements stand above the weights: 128 or 0 */
    /* For few rows, that widening would cost more than: the tile from the panel's bytes, whose
     * offset is 128. rows <= bytes_mr. NULL: none. */
    void (*bytes_tile)(size_t rows, size_t k, const void *codes, size_t ld, const void *bytes,
                       int32_t *acc);
    size_t bytes_mr;
    const struct vgq_int4_gemm *int4; /* a faster way for symmetric two-level W4, or NULL */
    const struct vgq_few_gemm *few;   /* one for few rows of two-level W4, or NULL */
} vgq_int_gemm;

/* For instruction sets whose 8-bit products are narrow: factors stay out of the weights, which are
 * then small enough for sums of 16 bits, and come in where those are widened. */
typedef struct vgq_int4_gemm {
    size_t mr;
    vgq_code_row_fn *code_row; /* codes of one byte each: code + 128 */
    /* Nibbles of a panel to the operand, and sums[64] of factor * code. k multiple of 8, group of
     * VGQ_INT4_CHUNK unless it is k. */
    void (*expand)(size_t k, size_t group, const uint8_t *nibbles, const uint8_t *factor,
                   int8_t *operand, int32_t *sums);
    /* acc[rows][64] = (codes + 128) (factor * weight). rows <= mr. Up to a chunk of codes is read
     * past k, to no effect. */
    void (*tile)(size_t rows, size_t k, const uint8_t *codes, size_t ld, const int8_t *operand,
                 int32_t *acc);
} vgq_int4_gemm;

/* An operand's inputs are cut into chunks, the last one padded with zeros; a chunk has a byte a
 * weight and its factors in 32 bits a column. */
enum { VGQ_INT4_CHUNK = 32, VGQ_INT4_CHUNK_NBYTES = VGQ_PANEL * (VGQ_INT4_CHUNK + 4) };

/* Two-level W4 from the packed panel, for so few rows that expanding it would cost more than the
 * product. Codes are the table's: one byte, signed. */
typedef struct vgq_few_weight {
    size_t k, group, groups; /* k multiple of 8; the last group ends with it */
    const uint8_t *nibbles, *factor;
    const int8_t *zero; /* NULL: symmetric */
} vgq_few_weight;
typedef struct vgq_few_gemm {
    size_t mr;
    /* acc[rows][64] = codes w. sums[rows][groups]: of the codes. */
    void (*tile)(size_t rows, const vgq_few_weight *w, const int8_t *codes, size_t ld,
                 const int32_t *sums, int32_t *acc);
} vgq_few_gemm;

/* What a panel's columns share: integers above the weights, scales, bias. */
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

typedef struct vgq_linear_kernels {
    vgq_expand4_fn *expand4;
    const vgq_float_gemm *float_gemm;
    const vgq_float_gemm *bf16_gemm; /* or NULL, in any table */
    vgq_largest_fn *largest;
    vgq_code_row_fn *code_row;
    const vgq_int_gemm *int_gemm;
    vgq_finish_fn *finish;
    vgq_finish16_fn *finish16;
    vgq_flush_fn *flush;
    vgq_flush16_fn *flush16;
} vgq_linear_kernels;

#if defined(__x86_64__)
extern const vgq_int4_gemm vgq_int4_gemm_avx2;
extern const vgq_few_gemm vgq_few_gemm_avx2;
vgq_code_row_fn vgq_code_row_u8_avx2;
#endif

/* Rows of a float tile: every table's is this or handles this. */
enum { VGQ_FLOAT_ROWS = 6 };

#endif
