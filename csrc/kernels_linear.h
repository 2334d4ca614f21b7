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
/* w[k][64] = (byte - offset) * scale. k multiple of 4; offset and scale: one a column. */
typedef void vgq_decode_panel_fn(size_t k, const uint8_t *bytes, const int32_t *offset,
                                 const float *scale, float *w);

/* acc[rows][64] (+)= x[rows][k] w[k][64], one chain of additions an output, k ascending. rows <=
 * mr. */
typedef void vgq_float_tile_fn(size_t rows, size_t k, const float *x, size_t ldx, const float *w,
                               float *acc, int accumulate);

/* One token: codes[0..padded), zeros from k on, in the type that this table's product reads; its
 * scale (NaN where x is not finite, 0 where it is all but zero) and the sum of its codes. */
typedef float vgq_code_row_fn(size_t k, size_t padded, const float *x, void *codes, int32_t *sum);

/* How an instruction set multiplies codes. */
typedef struct vgq_int_gemm {
    size_t mr;            /* rows of a tile */
    size_t code_nbytes;   /* of an activation's code */
    size_t weight_nbytes; /* of an operand's element; 1: the panel's bytes are the operand */
    vgq_code_row_fn *code_row;
    /* bytes of a panel to the operand, k multiple of 4; NULL: nothing to do */
    void (*widen)(size_t k, const uint8_t *bytes, void *operand);
    /* acc[rows][64] = codes w, where w may lack the 128 (see offset). rows <= mr, k multiple of 4.
     */
    void (*tile)(size_t rows, size_t k, const void *codes, size_t ld, const void *operand,
                 int32_t *acc);
    int32_t offset; /* what the operand's elements stand above the weights: 128 or 0 */
    const struct vgq_int4_gemm *int4; /* a faster way for symmetric two-level W4, or NULL */
} vgq_int_gemm;

/* For instruction sets whose 8-bit products are narrow: factors stay out of the weights, which are
 * then small enough for sums of 16 bits, and come in where those are widened. */
typedef struct vgq_int4_gemm {
    size_t mr;
    vgq_code_row_fn *code_row; /* codes of one byte each: code + 128 */
    /* Nibbles of a panel to signed bytes in the panel's order, and sums[64] of factor * code. k and
     * group multiples of 8. */
    void (*expand)(size_t k, size_t group, const uint8_t *nibbles, const uint8_t *factor,
                   int8_t *operand, int32_t *sums);
    /* acc[rows][64] = (codes + 128) (factor * weight). rows <= mr. */
    void (*tile)(size_t rows, size_t k, size_t group, const uint8_t *codes, size_t ld,
                 const int8_t *operand, const uint8_t *factor, int32_t *acc);
} vgq_int4_gemm;

/* y[64] = ((float)(acc - offset * sum) * x_scale) * scale + bias */
typedef void vgq_finish_fn(const int32_t *acc, const int32_t *offset, int32_t sum, float x_scale,
                           const float *scale, const float *bias, float *y);
/* total[64] += (float)(acc - offset * sum) * scale */
typedef void vgq_flush_fn(const int32_t *acc, int32_t offset, int32_t sum, const float *scale,
                          float *total);

typedef struct vgq_linear_kernels {
    vgq_expand4_fn *expand4;
    vgq_decode_panel_fn *decode_panel;
    vgq_float_tile_fn *float_tile;
    const vgq_int_gemm *int_gemm;
    vgq_finish_fn *finish;
    vgq_flush_fn *flush;
} vgq_linear_kernels;

/* Shared by the AVX-512 tables. */
#if defined(__x86_64__)
vgq_code_row_fn vgq_code_row_avx512;
#endif

/* Rows of a float tile: every table's is this or handles this. */
enum { VGQ_FLOAT_ROWS = 6 };

#endif
