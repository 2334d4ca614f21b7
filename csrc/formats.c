/* SPDX-License-Identifier: Apache-2.0
 * The table of number formats, and the sizes of a quantized matrix. */
#include "scales.h"

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
