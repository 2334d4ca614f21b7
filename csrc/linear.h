/* SPDX-License-Identifier: Apache-2.0
 * Private: one call of the Linear, cut up. linear_plan.c makes the plan, linear.c multiplies
 * codes, linear_float.c floats. */
#ifndef VGQ_LINEAR_H
#define VGQ_LINEAR_H

#include "epilogue.h"
#include "packed.h"
#include "tasks.h"
#include "tokens.h"

/* Made once a call, from what the call's context says. Scratch: codes (or floats, where the float
 * product does not read x itself), a scale a token and sums a line, then the crew; a thread owns
 * the bytes and the operand of a panel and its accumulators. */
typedef struct vgq_plan {
    const vgq_kernels *kernels;
    vgq_weight w;
    vgq_layout at;
    vgq_linear_call call;
    const unsigned char *panels;
    const vgq_product *product;       /* what multiplies codes; NULL: floats are multiplied */
    const vgq_float_gemm *float_gemm; /* what multiplies floats, and inputs that it takes a slice */
    size_t float_depth;
    int strips;          /* whether the product works by strips of rows, not by tiles */
    size_t lines, mr;    /* rows of codes or floats; most rows of a tile */
    size_t rows, blocks; /* lines of a task; blocks of them */
    int coders;          /* threads of the activations' pass, before the product */
    vgq_tokens tokens;   /* that pass; codes that were given are read where they are */
    vgq_epilogue epilogue;
    vgq_crew crew;
    unsigned char *floats; /* [m][k] as the float product reads them */
    size_t codes_nbytes, scale_nbytes, sum_nbytes, floats_nbytes; /* of the scratch */
    size_t bytes_nbytes, operand_nbytes, acc_nbytes;              /* of what a thread owns */
} vgq_plan;

/* One task: lines start..end against panel p, with this thread's scratch. */
typedef struct vgq_task {
    size_t start, end, p;
    unsigned char *own;
} vgq_task;

/* Whether a call, or the codes that it gives for k inputs, cannot be served; m is not 0 for codes.
 */
int vgq_bad_call(const vgq_linear_call *call);
int vgq_bad_codes(const vgq_linear_call *call, size_t k);
/* weight: as vgq_check_weight leaves it. */
vgq_plan vgq_plan_of(const vgq_weight *weight, const vgq_linear_call *call);
size_t vgq_plan_nbytes(const vgq_plan *plan);
/* Lays the plan's scratch out from `at` on. */
void vgq_plan_place(vgq_plan *plan, unsigned char *at);

vgq_panel vgq_panel_at(const vgq_plan *plan, size_t p);

/* Inputs start..start+depth of a panel as bytes: those packed, or W4 expanded into `bytes`.
 * start and depth are multiples of 8. */
const uint8_t *vgq_bytes_of(const vgq_plan *plan, const vgq_panel *panel, size_t start,
                            size_t depth, uint8_t *bytes);

/* Sizes of the float product in the plan. */
void vgq_plan_floats(vgq_plan *plan);
/* Whether rows of x are copied before the float product, and the copy of row m. */
int vgq_copies_floats(const vgq_plan *plan);
void vgq_copy_token(const vgq_plan *plan, size_t m, float *buffer);
/* A task of the float product. */
void vgq_float_task(const vgq_plan *plan, const vgq_task *task);

#endif
