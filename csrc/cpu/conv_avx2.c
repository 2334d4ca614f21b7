/* SPDX-License-Identifier: Apache-2.0
 * The convolution's passes for AVX2. */
#include "../formats.h"
#include "../kernels.h"

#if defined(__x86_64__)

#include "isa.h"

ISA_BEGIN("avx2,fma,f16c")

#define CONV_ISA avx2
#include "conv_loops.h"

ISA_END

const vgq_conv_kernels vgq_conv_avx2 = CONV_TABLE;

#endif
