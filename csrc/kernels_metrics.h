/* SPDX-License-Identifier: Apache-2.0
 * Private: the slots of the metrics kernels (included by kernels.h). */
#ifndef VGQ_KERNELS_METRICS_H
#define VGQ_KERNELS_METRICS_H

typedef struct vgq_metrics_kernels {
    void (*placeholder)(void);
} vgq_metrics_kernels;

#endif
