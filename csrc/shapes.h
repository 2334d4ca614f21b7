/* SPDX-License-Identifier: Apache-2.0
 * Private: what the fronts of the CPU and of CUDA know of formats and shapes, and which of them
 * they refuse. Nothing here touches an element. */
#ifndef VGQ_SHAPES_H
#define VGQ_SHAPES_H

#include "vgq.h"

#ifdef __cplusplus
extern "C" {
#endif

/* The rows of formats.def. */
typedef struct vgq_range_of_codes {
    int bits, lowest, highest;
} vgq_range_of_codes;
extern const vgq_range_of_codes vgq_formats[VGQ_FORMATS];

/* A dtype or a shape that no quantize front takes. */
int vgq_bad_shape(vgq_dtype dtype, vgq_shape shape);

/* ceil(n / size), at least 1. */
size_t vgq_parts_of(size_t n, size_t size);

/* SSIM. Channels lie side by side, so a row is one line of width * channels numbers, filtered with
 * taps `channels` apart. The map of similarities is cut into tiles of columns; a part is a row of a
 * tile. */
typedef struct vgq_tiling {
    size_t height, line, tiles, map_line, map_height, parts;
} vgq_tiling;
vgq_tiling vgq_tiling_of(vgq_images shape);
int vgq_bad_images(vgq_images shape);

/* Whether the weight can be packed, and with what group: k where it is longer or there is none. */
vgq_status vgq_check_weight(const vgq_weight *given, vgq_weight *weight);

#ifdef __cplusplus
}
#endif

#endif
