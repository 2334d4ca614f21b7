/* SPDX-License-Identifier: Apache-2.0
 * How a weight lies in GPU memory: plain C, read by the packer (csrc/pack_cuda.c) and by the
 * kernels (linear.cuh).
 *
 *      header | scale | column | panel 0 | panel 1 | ...     64 outputs a panel, the last one
 * padded
 *
 *      scale    floats [columns], or [groups][columns] with VGQ_PER_GROUP
 *      column   what makes integers of codes.
 *               INT8, asymmetric: the zero points, int32 [columns]
 *               INT4: uint16 [groups][panels][8 rows][8 units], factor | shift << 8 with
 *               shift = 128 - factor * (zero + 8), so that factor * (code + 8) + shift is the
 *               integer + 128, a byte
 *      panel    [depth / 64][8 units] units of 8 outputs x 64 inputs
 *
 * A unit is what a warp reads at once: each lane its own 16 bytes (INT8) or 8 (INT4), which are the
 * B fragments of two products mma.m16n8k32, ready. Lane 4 r + t has of row r
 *
 *      INT8   inputs 4t..4t+3, 16 + those, 32 + those, 48 + those
 *      INT4   a word a product: code + 8; low nibbles inputs 4t..4t+3, high ones 16 + those
 *
 * Which output is row r of unit u? A lane of the product owns columns 2t and 2t+1 of every unit,
 * and these shall be neighbours in y: four units interleave, so that a lane owns 8 outputs in a
 * row,
 *
 *      output of the panel = 32 (u / 4) + 8 (r / 2) + 2 (u % 4) + r % 2
 *
 * With groups, each starts at a new product: inputs are padded to a multiple of 32 in every group,
 * and the codes of the activations likewise. */
#ifndef VGQ_LINEAR_LAYOUT_H
#define VGQ_LINEAR_LAYOUT_H

#include "../vgq.h"

#if defined(__CUDACC__)
#define VGQ_LAYOUT static inline __host__ __device__
#else
#define VGQ_LAYOUT static inline
#endif

enum {
    VGQ_CUDA_HEADER = 128,
    VGQ_CUDA_PANEL = 64, /* outputs */
    VGQ_CUDA_STEP = 32,  /* inputs of a product */
    VGQ_CUDA_DEPTH = 64, /* inputs of a unit */
    VGQ_CUDA_UNIT_I8 = 512,
    VGQ_CUDA_UNIT_I4 = 256
};

/* First bytes of the header, as a little-endian number: "vgqcuda2". */
#define VGQ_CUDA_MAGIC 0x3261647563716776ull

/* Counts, and where the parts begin, in bytes. */
typedef struct vgq_cuda_layout {
    size_t groups, group_steps; /* of a row; products of a group */
    int straight;               /* no group but the last is padded: input i lies where i does */
    size_t depth;               /* inputs, padded */
    size_t columns, panels;     /* outputs, padded */
    size_t column, codes, unit_nbytes, panel_nbytes, nbytes;
} vgq_cuda_layout;

/* Of a weight as vgq_check_weight leaves it. */
VGQ_LAYOUT vgq_cuda_layout vgq_cuda_layout_of(const vgq_weight *w)
{
    vgq_cuda_layout at;
    at.groups = (w->k + w->group - 1) / w->group;
    at.group_steps = (w->group + VGQ_CUDA_STEP - 1) / VGQ_CUDA_STEP;
    at.straight = at.groups == 1 || w->group % VGQ_CUDA_STEP == 0;
    at.depth = (at.groups * at.group_steps + 1) / 2 * VGQ_CUDA_DEPTH;
    at.panels = (w->n + VGQ_CUDA_PANEL - 1) / VGQ_CUDA_PANEL;
    at.columns = at.panels * VGQ_CUDA_PANEL;
    at.column =
        VGQ_CUDA_HEADER + at.columns * (w->scales == VGQ_PER_GROUP ? at.groups : 1) * sizeof(float);
    at.codes = at.column;
    if (w->format == VGQ_I4)
        at.codes += at.columns * at.groups * sizeof(uint16_t);
    else if (w->asymmetric)
        at.codes += at.columns * sizeof(int32_t);
    at.unit_nbytes = w->format == VGQ_I4 ? VGQ_CUDA_UNIT_I4 : VGQ_CUDA_UNIT_I8;
    at.panel_nbytes = at.depth / VGQ_CUDA_DEPTH * 8 * at.unit_nbytes;
    at.nbytes = at.codes + at.panels * at.panel_nbytes;
    return at;
}

/* The output of a panel that is row r of unit u; and back. */
VGQ_LAYOUT unsigned vgq_cuda_output(unsigned u, unsigned r)
{
    return 32 * (u / 4) + 8 * (r / 2) + 2 * (u % 4) + r % 2;
}

VGQ_LAYOUT unsigned vgq_cuda_unit(unsigned output) { return output / 32 * 4 + output / 2 % 4; }
VGQ_LAYOUT unsigned vgq_cuda_row(unsigned output) { return output / 8 % 4 * 2 + output % 2; }

#undef VGQ_LAYOUT
#endif
