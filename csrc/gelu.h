/* SPDX-License-Identifier: Apache-2.0
 * GELU as one list of float operations, for the CPU and the GPU alike. */
#ifndef VGQ_GELU_H
#define VGQ_GELU_H

#include "formats.h"

#include <math.h>

/* With z = |x|, GELU(x) = max(x, 0) - z erfc(z / sqrt 2) / 2. Beyond z = VGQ_GELU_END the last term
 * is below 6.1e-8 and left out. Up to there, erfc(z / sqrt 2) / 2 / (VGQ_GELU_END - z) is a
 * polynomial of u = 2 z / VGQ_GELU_END - 1, fitted to the least error of GELU: VGQ_GELU_FIRST is
 * the coefficient of u^15, TERM gets those of u^14 to u^0. */
#define VGQ_GELU_END 5.6f
#define VGQ_GELU_FIRST -9.603364e-04f
#define VGQ_GELU_TERMS(TERM) \
    TERM(2.2673104e-03f)     \
    TERM(3.7202598e-03f)     \
    TERM(-1.2393911e-02f)    \
    TERM(-5.897979e-04f)     \
    TERM(2.7105723e-02f)     \
    TERM(-2.2385031e-02f)    \
    TERM(-1.9116344e-02f)    \
    TERM(4.864929e-02f)      \
    TERM(-2.9561091e-02f)    \
    TERM(-1.9361263e-02f)    \
    TERM(5.14038e-02f)       \
    TERM(-4.671242e-02f)     \
    TERM(2.4025394e-02f)     \
    TERM(-7.003038e-03f)     \
    TERM(9.125484e-04f)

/* x (1 + erf(x / sqrt 2)) / 2, within 1.3e-7 max(1, |x|) of exact; 0 of minus infinity. */
VGQ_INLINE float vgq_gelu(float x)
{
    const float size = fabsf(x), z = size < VGQ_GELU_END ? size : VGQ_GELU_END;
    const float u = fmaf(z, 2.0f / VGQ_GELU_END, -1.0f);
    float p = VGQ_GELU_FIRST;
#define TERM(c) p = fmaf(p, u, c);
    VGQ_GELU_TERMS(TERM)
#undef TERM
    return fmaf(z * (z - VGQ_GELU_END), p, x < 0 ? 0 : x); /* a NaN stays one */
}

#endif
