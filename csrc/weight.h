/* SPDX-License-Identifier: Apache-2.0
 * Private: what a weight may be. The packers, the products, CUDA and the bindings all ask here. */
#ifndef VGQ_WEIGHT_H
#define VGQ_WEIGHT_H

#include "vgq.h"

#ifdef __cplusplus
extern "C" {
#endif

/* Whether the weight can be packed (its pointers are not read): format and kind of scales fit each
 * other, sizes are neither zero nor too large, the group is a multiple of 8. *weight becomes a copy
 * with its group set: k where the given one is longer or there is none.
 * VGQ_EDEPTH: k above VGQ_DEEPEST. */
vgq_status vgq_check_weight(const vgq_weight *given, vgq_weight *weight);

/* Whether each part that the weight has is there: q, scale, factor, zero. */
int vgq_has_parts(const vgq_weight *weight);

/* Whether the values of its scales, factors and zero points are ones that a product can take: OK,
 * VGQ_ESCALE, VGQ_EFACTOR or VGQ_EZERO. weight: as vgq_check_weight leaves it, with its parts. */
vgq_status vgq_check_values(const vgq_weight *weight);

#ifdef __cplusplus
}
#endif

#endif
