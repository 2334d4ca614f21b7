/* SPDX-License-Identifier: Apache-2.0
 * vggtquant's C library: quantize, compare, multiply. No Python, no allocation, no I/O.
 *
 * Every formula (rounding, ranges, scales, zero points, edge values, nibble order, metrics) is
 * stated once, in docs/conventions.md; contracts here say shapes, aliasing and errors. Arrays are
 * row-major, of any alignment, and must not overlap unless said. Sizes count elements; `nbytes`
 * counts bytes. After an error nothing has been written. */
#ifndef VGQ_H
#define VGQ_H

#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

typedef enum vgq_status {
    VGQ_OK = 0,
    VGQ_EINVAL,  /* a null pointer, an unknown format or dtype, sizes that do not fit together */
    VGQ_EISA,    /* an instruction set that is unknown or does not run here */
    VGQ_EPACKED, /* packed weights that another instruction set laid out, or no packed weights */
    VGQ_EDEPTH,  /* a row too long for exact 32-bit sums */
    VGQ_STATUSES
} vgq_status;

typedef enum vgq_dtype { VGQ_F32 = 0, VGQ_F16, VGQ_BF16, VGQ_DTYPES } vgq_dtype;

#define FORMAT(ID, tag, bits, lowest, highest) VGQ_##ID,
typedef enum vgq_format {
#include "formats.def"
    VGQ_FORMATS
} vgq_format;
#undef FORMAT

/* rows x cols values; each `group` neighbours of a row share a scale, a row's last group may be
 * shorter. Per channel: group = cols. Per tensor: rows = 1 and group = cols = all. */
typedef struct vgq_shape {
    size_t rows, cols, group;
} vgq_shape;

/* One line for a person. */
const char *vgq_message(vgq_status status);

/* ---- instruction sets (dispatch.c) ---------------------------------------------------------- */

/* Use the named table and what weaker ones add to it; NULL means the best that runs here.
 * VGQ_EISA: the name is unknown or this machine cannot run it; the old choice stays. */
vgq_status vgq_use(const char *isa);
/* The chosen one's name. */
const char *vgq_isa(void);
/* The index-th instruction set that runs here, weakest first; NULL past the last. */
const char *vgq_isa_here(size_t index);

/* ---- threads (threads.c) -------------------------------------------------------------------- */

/* At most n threads from now on; 0: as many as the OpenMP runtime of the process says. */
void vgq_set_threads(int n);
/* How many a large call would use now. */
int vgq_threads(void);
/* The file name of the OpenMP runtime in use, or "none". */
const char *vgq_openmp(void);

/* ---- quantize (quantize.c) ------------------------------------------------------------------ */

/* Groups of a row, and of the whole matrix. */
size_t vgq_row_groups(vgq_shape shape);
/* Bytes of a row of codes: cols for 8 bits, ceil(cols / 2) for 4. */
size_t vgq_row_nbytes(vgq_format format, size_t cols);

/* lo[group] <= 0 <= hi[group]: each group's range, widened to hold zero; nonfinite[row]: how many
 * of the row are NaN or infinite (its lo and hi are unspecified where there are any). */
vgq_status vgq_range(vgq_dtype dtype, vgq_shape shape, const void *x, float *lo, float *hi,
                     uint64_t *nonfinite);

/* Scale and zero point of each of n ranges. zero NULL: symmetric. */
vgq_status vgq_parameters(vgq_format format, size_t n, const float *lo, const float *hi,
                          float *scale, int8_t *zero);

/* Codes. scale (and zero, NULL: all 0): one a group. q: vgq_row_nbytes a row. */
vgq_status vgq_quantize(vgq_format format, vgq_dtype dtype, vgq_shape shape, const void *x,
                        const float *scale, const int8_t *zero, uint8_t *q);

/* The values that codes stand for, rounded once to dtype. */
vgq_status vgq_dequantize(vgq_format format, vgq_dtype dtype, vgq_shape shape, const uint8_t *q,
                          const float *scale, const int8_t *zero, void *x);

/* Two-level scales for INT4: group scale = channel_scale[row] * factor[group], both chosen by
 * squared error. zero NULL: symmetric, factors 1..15; else factors 1..8 and a zero point a group.
 * error[row][0]: the row's squared error with them; error[row][1]: with float group scales.
 * x must be finite (vgq_range tells). */
vgq_status vgq_two_level(vgq_dtype dtype, vgq_shape shape, const void *x, float *channel_scale,
                         uint8_t *factor, int8_t *zero, double *error);

#include "vgq_metrics.h"
#include "vgq_linear.h"

#ifdef __cplusplus
}
#endif

#endif
