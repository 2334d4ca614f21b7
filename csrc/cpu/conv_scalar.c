/* SPDX-License-Identifier: Apache-2.0
 * The convolution's passes in plain C: the definition of right for every other table. */
#define CONV_ISA scalar
#include "conv_loops.h"

const vgq_conv_kernels vgq_conv_scalar = CONV_TABLE;
