/* SPDX-License-Identifier: Apache-2.0
 * Private: what becomes of a product's rows on their way to y: bias, GELU, a scale for each
 * channel, a residual, one rounding. */
#ifndef VGQ_EPILOGUE_H
#define VGQ_EPILOGUE_H

#include "kernels.h"

typedef struct vgq_epilogue {
    const vgq_kernels *kernels;
    size_t n; /* of a row of y */
    vgq_dtype dtype;
    void *y;                  /* [m][n] */
    const float *bias;        /* [n], or NULL */
    int gelu;                 /* whether GELU follows */
    const float *layer_scale; /* [n]: then multiplied by this; or NULL */
    const void *residual;     /* [m][n] of y's dtype: then this is added; or NULL */
} vgq_epilogue;

/* Where row m of y has the outputs of panel p. */
static inline char *vgq_y_at(const vgq_epilogue *e, size_t m, size_t p)
{
    return (char *)e->y + (m * e->n + p * VGQ_PANEL) * vgq_dtype_nbytes(e->dtype);
}

/* The same of the residual, and panel p's scales of channels; NULL: there are none. */
static inline const char *vgq_residual_at(const vgq_epilogue *e, size_t m, size_t p)
{
    const size_t at = (m * e->n + p * VGQ_PANEL) * vgq_dtype_nbytes(e->dtype);
    return e->residual ? (const char *)e->residual + at : NULL;
}
static inline const float *vgq_layer_scale_at(const vgq_epilogue *e, size_t p)
{
    return e->layer_scale ? e->layer_scale + p * VGQ_PANEL : NULL;
}

/* Whether rows with their bias are what y holds of panel p: whole rows of floats. */
static inline int vgq_is_stored(const vgq_epilogue *e, size_t p)
{
    return e->dtype == VGQ_F32 && !e->gelu && !e->layer_scale && !e->residual &&
           (p + 1) * VGQ_PANEL <= e->n;
}

/* Whether a strip can write panel p to y, with all that follows. */
static inline int vgq_is_stored_by_strip(const vgq_epilogue *e, size_t p)
{
    return e->dtype != VGQ_F16 && (p + 1) * VGQ_PANEL <= e->n;
}

/* The bias of panel p, 0 where there is none. */
void vgq_bias_of(const vgq_epilogue *e, size_t p, float bias[VGQ_PANEL]);

/* v: row m's sums of panel p with their bias. Does what follows, and writes the outputs that are
 * there to y. v is overwritten. */
void vgq_store_row(const vgq_epilogue *e, size_t m, size_t p, float v[VGQ_PANEL]);

/* Have these rows' lines of y come to the cache. */
void vgq_fetch_rows(const vgq_epilogue *e, size_t m, size_t rows, size_t p);

#endif
