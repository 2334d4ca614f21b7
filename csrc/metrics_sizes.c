/* SPDX-License-Identifier: Apache-2.0
 * How the metrics cut their arrays into parts, on the CPU and with CUDA. */
#include "kernels.h"

size_t vgq_parts_of(size_t n, size_t size) { return n > size ? (n - 1) / size + 1 : 1; }

size_t vgq_compare_parts(size_t n) { return vgq_parts_of(n, VGQ_BLOCK); }

size_t vgq_cross_entropy_parts(size_t rows) { return vgq_parts_of(rows, VGQ_ENTROPY_ROWS); }

vgq_tiling vgq_tiling_of(vgq_images shape)
{
    vgq_tiling t = {.height = shape.height, .line = shape.width * shape.channels};
    t.map_line = (shape.width - (VGQ_SSIM_SIDE - 1)) * shape.channels;
    t.map_height = shape.height - (VGQ_SSIM_SIDE - 1);
    t.tiles = vgq_parts_of(t.map_line, VGQ_SSIM_TILE);
    t.parts = shape.images * t.tiles * t.map_height;
    return t;
}

int vgq_bad_images(vgq_images shape)
{
    size_t n;
    return shape.width < VGQ_SSIM_SIDE || shape.height < VGQ_SSIM_SIDE || !shape.images ||
           !shape.channels || shape.channels > VGQ_SSIM_CHANNELS ||
           __builtin_mul_overflow(shape.width, shape.channels, &n) ||
           __builtin_mul_overflow(n, shape.height, &n) ||
           __builtin_mul_overflow(n, shape.images, &n);
}

size_t vgq_ssim_parts(vgq_images shape)
{
    return vgq_bad_images(shape) ? 0 : vgq_tiling_of(shape).parts;
}
