/* SPDX-License-Identifier: Apache-2.0
 * The convolution's passes for AVX-512. */
#include "../formats.h"
#include "../kernels.h"

#if defined(__x86_64__)

#include "isa.h"

ISA_BEGIN("avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,f16c")

#define CONV_ISA avx512
#include "conv_loops.h"

ISA_END

const vgq_conv_kernels vgq_conv_avx512 = CONV_TABLE;

#endif
