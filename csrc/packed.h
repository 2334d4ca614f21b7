/* SPDX-License-Identifier: Apache-2.0
 * Private: what pack.c writes and linear.c reads. Packed bytes, the same on every machine:
 *
 *      header | panel 0 | panel 1 | ...                   64 outputs a panel, the last one padded
 *      panel:   scale   floats  [64], or [groups][64] with VGQ_PER_GROUP
 *               zero    int8    [64], or [groups][64] with INT4; absent where symmetric
 *               factor  uint8   [groups][64], VGQ_TWO_LEVEL only
 *               codes   as kernels_linear.h draws them: code + 128, or two nibbles of code + 8 */
#ifndef VGQ_PACKED_H
#define VGQ_PACKED_H

#include "tasks.h"

typedef struct vgq_header {
    char magic[8];
    uint32_t format, scales, asymmetric, panel;
    uint64_t n, k, group;
    unsigned char reserved[16];
} vgq_header;

_Static_assert(sizeof(vgq_header) == 64, "the header is 64 bytes, so that panels stay aligned");

/* Where the parts of a panel begin, in bytes. */
typedef struct vgq_layout {
    size_t groups, panels, depth; /* depth: k padded to whole steps */
    size_t zero, factor, codes, panel_nbytes;
} vgq_layout;

/* Of a weight as vgq_check_weight leaves it. */
vgq_layout vgq_layout_of(const vgq_weight *weight);

#endif
