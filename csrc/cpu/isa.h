/* SPDX-License-Identifier: Apache-2.0
 * ISA_BEGIN("avx2,fma") ... ISA_END: everything between is compiled for that instruction set.
 * No build flag a file is needed, so `cc csrc/.../x.c` works anywhere, and no scalar code can pick
 * up instructions that the machine may lack. The instruction sets are listed in kernels.h. */
#ifndef VGQ_ISA_H
#define VGQ_ISA_H

#define VGQ_PRAGMA(text) _Pragma(#text)
#if defined(__clang__)
#define ISA_BEGIN(features) \
    VGQ_PRAGMA(clang attribute push(__attribute__((target(features))), apply_to = function))
#define ISA_END VGQ_PRAGMA(clang attribute pop)
#else
#define ISA_BEGIN(features) VGQ_PRAGMA(GCC push_options) VGQ_PRAGMA(GCC target(features))
#define ISA_END VGQ_PRAGMA(GCC pop_options)
#endif

#endif
