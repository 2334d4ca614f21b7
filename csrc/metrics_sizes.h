/* SPDX-License-Identifier: Apache-2.0
 * Private: how the metrics cut their arrays into parts. Nothing here touches an element. */
#ifndef VGQ_METRICS_SIZES_H
#define VGQ_METRICS_SIZES_H

#include "vgq.h"

#ifdef __cplusplus
extern "C" {
#endif

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

#ifdef __cplusplus
}
#endif

#endif
