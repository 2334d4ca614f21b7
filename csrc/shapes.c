/* SPDX-License-Identifier: Apache-2.0
 * Sizes, limits and messages: what both the CPU's and CUDA's fronts say without computing. */
#include "kernels.h"

#define FORMAT(ID, tag, bits_, lowest_, highest_) [VGQ_##ID] = {bits_, lowest_, highest_},
const vgq_range_of_codes vgq_formats[VGQ_FORMATS] = {
#include "formats.def"
};
#undef FORMAT

size_t vgq_row_groups(vgq_shape shape)
{
    return shape.group ? shape.cols / shape.group + (shape.cols % shape.group != 0) : 0;
}

size_t vgq_row_nbytes(vgq_format format, size_t cols)
{
    return vgq_formats[format].bits == 4 ? cols / 2 + cols % 2 : cols;
}

int vgq_bad_shape(vgq_dtype dtype, vgq_shape shape)
{
    return (unsigned)dtype >= VGQ_DTYPES ||
           (shape.cols && (!shape.group || shape.group > shape.cols)) ||
           (shape.cols && shape.rows > SIZE_MAX / sizeof(float) / shape.cols);
}

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

const char *vgq_message(vgq_status status)
{
    static const char *const messages[VGQ_STATUSES] = {
        [VGQ_OK] = "ok",
        [VGQ_EINVAL] =
            "a null pointer, an unknown format or dtype, or sizes that do not fit together",
        [VGQ_EISA] = "an instruction set that is unknown or does not run on this machine",
        [VGQ_EPACKED] = "no packed weights, or cut short; pack the weight again",
        [VGQ_ELAYOUT] = "packed weights of another version or layout; pack the weight again",
        [VGQ_ECUDA] = "CUDA refused the launch",
        [VGQ_EDEPTH] = "a row too long for exact 32-bit sums",
        [VGQ_ESTOPPED] = "stopped by its caller",
    };
    return (unsigned)status < VGQ_STATUSES ? messages[status] : "unknown status";
}

vgq_status vgq_check_weight(const vgq_weight *given, vgq_weight *weight)
{
    const vgq_weight *const w = given;
    if (!w || (unsigned)w->format >= VGQ_FORMATS || (unsigned)w->scales >= VGQ_SCALES || !w->n ||
        !w->k || (w->scales == VGQ_PER_ROW) != (w->format == VGQ_I8) ||
        (w->scales != VGQ_PER_ROW && (!w->group || (w->group < w->k && w->group % 8))) ||
        w->n > SIZE_MAX / 8 / VGQ_DEEPEST)
        return VGQ_EINVAL;
    if (w->k > VGQ_DEEPEST)
        return VGQ_EDEPTH;
    *weight = *w;
    if (w->group > w->k || w->scales == VGQ_PER_ROW)
        weight->group = w->k;
    return VGQ_OK;
}
