/* SPDX-License-Identifier: Apache-2.0
 * Private: the slots of the linear kernels (included by kernels.h). */
#ifndef VGQ_KERNELS_LINEAR_H
#define VGQ_KERNELS_LINEAR_H

typedef struct vgq_linear_kernels {
    void (*placeholder)(void);
} vgq_linear_kernels;

#endif
