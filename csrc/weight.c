/* SPDX-License-Identifier: Apache-2.0
 * What a weight may be. */
#include "weight.h"
#include "scales.h"

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

vgq_status vgq_check_values(const vgq_weight *w)
{
    const size_t groups = w->n * ((w->k + w->group - 1) / w->group);
    const vgq_range_of_codes codes = vgq_formats[w->format];
    const int largest = vgq_largest_factor(w->asymmetric);
    for (size_t i = 0; i < (w->scales == VGQ_PER_GROUP ? groups : w->n); i++)
        if (!(w->scale[i] > 0 && w->scale[i] <= FLT_MAX))
            return VGQ_ESCALE;
    for (size_t i = 0; w->scales == VGQ_TWO_LEVEL && i < groups; i++)
        if (w->factor[i] < 1 || w->factor[i] > largest)
            return VGQ_EFACTOR;
    for (size_t i = 0; w->asymmetric && i < groups; i++)
        if (w->zero[i] < codes.lowest || w->zero[i] > codes.highest)
            return VGQ_EZERO;
    return VGQ_OK;
}
