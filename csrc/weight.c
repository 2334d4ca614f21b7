/* SPDX-License-Identifier: Apache-2.0
 * What a weight may be. */
#include "weight.h"

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

int vgq_has_parts(const vgq_weight *w)
{
    return w->q && w->scale && (w->scales != VGQ_TWO_LEVEL || w->factor) &&
           (!w->asymmetric || w->zero);
}
