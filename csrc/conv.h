/* SPDX-License-Identifier: Apache-2.0
 * Private: pictures and one convolution, cut up. resize.c reads pictures and resizes them,
 * conv_plan.c checks a convolution and makes its plan, conv.c computes it. */
#ifndef VGQ_CONV_H
#define VGQ_CONV_H

#include "packed.h"
#include "tasks.h"

#include <stdatomic.h>

/* Pictures as they are read: resized where the sizes differ. */
typedef struct vgq_pictures {
    const vgq_kernels *kernels;
    const void *x;
    vgq_dtype dtype;
    size_t height, width, channels, source_height, source_width;
} vgq_pictures;

/* Floats of scratch for vgq_source_floats. */
size_t vgq_source_length(const vgq_pictures *p);

/* Row y of a picture as it is stored. buffer: source_width * channels floats; the result is there
 * or in x. */
const float *vgq_stored_row(const vgq_pictures *p, size_t picture, size_t y, float *buffer);

/* Row y of a picture, of the source's width. buffer: vgq_source_length floats. */
const float *vgq_source_floats(const vgq_pictures *p, size_t picture, size_t y, float *buffer);

/* Pixel x of a row of vgq_source_floats. buffer: `channels` floats; the result is there or in row.
 */
const float *vgq_pixel_floats(const vgq_pictures *p, const float *row, size_t x, float *buffer);

/* Whether a size is 0 or the product of all could overflow. */
int vgq_too_many(size_t a, size_t b, size_t c, size_t d);

typedef struct vgq_conv_plan {
    vgq_weight w;
    vgq_layout at;
    vgq_conv_call call;
    vgq_pictures pictures;
    const vgq_kernels *kernels;
    const vgq_product *product;
    vgq_code_row_fn *code_row;
    const unsigned char *panels;
    size_t pixel;            /* codes of a pixel */
    size_t line;             /* pixels of a row of codes, padding included */
    size_t segment;          /* inputs of a row of the kernel */
    size_t block_rows;       /* output rows whose codes are made at once */
    size_t task_rows, tasks; /* tasks of a picture */
    int joined;              /* whether tiles run on from a row to the next */
    size_t codes_nbytes, sums_nbytes, windows_nbytes, floats_nbytes, operand_nbytes, acc_nbytes;
    vgq_crew crew;
    _Atomic uint32_t *largest; /* [pictures][2] of y, as bits */
    uint32_t *x_largest;       /* [pictures][2] */
} vgq_conv_plan;

/* Input rows that `rows` output rows are made of. */
size_t vgq_conv_input_rows(const vgq_conv_plan *plan, size_t rows);

/* Whether the call or its weight is none that vgq_conv2d takes; arrays are not looked at. */
int vgq_bad_conv(const vgq_weight *w, const vgq_conv_call *c);

/* The plan of a call that is not bad; arrays of scratch are not placed. */
vgq_conv_plan vgq_conv_plan_of(const vgq_weight *w, const vgq_conv_call *call);

/* Bytes of `largest` and of `x_largest`, each. */
size_t vgq_conv_largest_nbytes(const vgq_conv_plan *plan);

/* Bytes of scratch. */
size_t vgq_conv_plan_nbytes(const vgq_conv_plan *plan);

#endif
