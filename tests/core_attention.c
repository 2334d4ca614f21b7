/* SPDX-License-Identifier: Apache-2.0
 * The exponentials of attention against those of the C library in double, over every float that
 * they are taken of: from -127 to a score's rounding above 0. A row of 16 scores, of which the
 * first is 0 and so the top, leaves each p by itself in the sums. */
#include "core.h"

#include "../csrc/kernels.h"

#include <math.h>
#include <string.h>

/* The largest relative error of p / unit over every step-th float; p of floats below 2^-126 may be
 * anything that small. */
static double worst_error(const vgq_values_gemm *values, double unit, uint32_t step)
{
    enum { N = VGQ_LANES };
    const uint32_t last = vgq_bits_of_float(127.0f);
    static unsigned char p[VGQ_KEYS * sizeof(float)];
    static float s[VGQ_KEYS];
    double worst = 0;
    for (uint32_t bits = 1; bits < last;) {
        float top = VGQ_TOP_LEAST, lanes[1][VGQ_LANES] = {{0}}, kept, added, r = 1, x[N] = {0};
        for (int i = 1; i < N; i++) {
            x[i] = -vgq_float_of_bits(bits < last ? bits : last);
            /* of floats so small that 2^x is 1, a few */
            bits += bits < vgq_bits_of_float(0x1p-26f) ? 4093 * step : step;
        }
        memcpy(s, x, sizeof(x));
        values->softmax(1, N, s, &r, (vgq_gathered){&top, lanes}, &kept, &added, p);
        for (int i = 0; i < N; i++) {
            const double want = exp2(x[i]), got = lanes[0][i] / unit;
            if (x[i] < -126)
                CHECK(got >= 0 && got < 0x1p-118, "2^%a is %a", x[i], got);
            else
                worst = fmax(worst, fabs(got / want - 1));
        }
    }
    return worst;
}

void test_exponentials(uint32_t step)
{
    const vgq_kernels *const kernels = vgq_context_now().kernels;
    const vgq_values_gemm *const floats = kernels->attention.values[VGQ_FLOAT_ACTIVATIONS];
    const vgq_values_gemm *const codes = kernels->attention.values[VGQ_INT8_ACTIVATIONS];
    const uint32_t of_scalar = strcmp(vgq_isa(), "scalar") ? 1 : 61; /* it has no instruction */
    double worst = worst_error(floats, 1, step * of_scalar);
    CHECK(worst < 2.5e-7, "2^x is off by %g", worst);
    worst = worst_error(codes, 255, step * of_scalar);
    CHECK(worst < 1.03e-4, "2^x of codes is off by %g", worst);
}
