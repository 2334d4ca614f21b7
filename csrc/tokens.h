/* SPDX-License-Identifier: Apache-2.0
 * Private: rows of activations (tokens) as INT8 codes with a scale a row, as integer products read
 * them. */
#ifndef VGQ_TOKENS_H
#define VGQ_TOKENS_H

#include "kernels.h"

/* Rows of x, and where their codes, scales and sums go. A token has one line of codes, or two where
 * its codes have 16 bits: digits of base 255, the high one's line first. */
typedef struct vgq_tokens {
    const vgq_kernels *kernels;
    vgq_dtype dtype;
    const void *x;          /* [m][k] */
    vgq_norm norm;          /* of each row, before it is coded */
    vgq_affine affine;      /* then this */
    float x_scale;          /* of every row; 0: each row's own */
    const vgq_coded *coded; /* its codes take another form; NULL: x is coded */
    size_t k;
    vgq_code_row_fn *code_row; /* the form of the codes */
    size_t code_nbytes;        /* of a code: 1, or 2 for int16 */
    size_t digits;             /* lines a token: 1 or 2 */
    size_t pitch;              /* codes from a line to the next; those after k are zeros */
    size_t sums, group;        /* sums a line: 1, or one for each group of so many codes */
    unsigned char *codes;      /* [m * digits][pitch] */
    float *scale;              /* [m] */
    int32_t *sum;              /* [m * digits][sums] */
} vgq_tokens;

/* Floats of buffer that vgq_code_token wants. */
size_t vgq_token_floats(const vgq_tokens *tokens);
/* Codes token m. Two threads may code two tokens at the same time. */
void vgq_code_token(const vgq_tokens *tokens, size_t m, float *buffer);

#endif
