/* SPDX-License-Identifier: Apache-2.0
 * e^x and ln x in double, each a fixed list of correctly rounded operations: no libm, whose last
 * bit differs between machines. SIMD twins repeat the list of vgq_exp_one operation by operation.
 */
#ifndef VGQ_EXP_LOG_H
#define VGQ_EXP_LOG_H

#include "formats.h"

/* ln 2 in two parts, the first of 32 bits, so that its product with an exponent is exact. */
#define VGQ_LN2_HIGH 0x1.62e42feep-1
#define VGQ_LN2_LOW 0x1.a39ef35793c76p-33
/* 1.5 * 2^52: adding it rounds to an integer, which then stands in the low bits. */
#define VGQ_ROUNDER 0x1.8p52
#define VGQ_EXP_LOWEST -708.0
#define VGQ_EXP_HIGHEST 709.0

/* e^x = 2^k * e^y with |y| <= ln 2 / 2; e^y by its Taylor series, whose first missing term is below
 * 2^-57. Horner's TERM(1 / i!), i from 13 down to 2. */
#define VGQ_EXP_TAYLOR(TERM) \
    TERM(1.0 / 479001600)    \
    TERM(1.0 / 39916800)     \
    TERM(1.0 / 3628800)      \
    TERM(1.0 / 362880)       \
    TERM(1.0 / 40320)        \
    TERM(1.0 / 5040)         \
    TERM(1.0 / 720)          \
    TERM(1.0 / 120)          \
    TERM(1.0 / 24)           \
    TERM(1.0 / 6)            \
    TERM(1.0 / 2)
#define VGQ_EXP_TAYLOR_FIRST (1.0 / 6227020800)

VGQ_INLINE double vgq_exp_one(double x)
{
    if (x != x)
        return x;
    if (x < VGQ_EXP_LOWEST)
        return 0;
    if (x > VGQ_EXP_HIGHEST)
        return INFINITY;
    const double shifted = x * 0x1.71547652b82fep0 /* 1 / ln 2 */ + VGQ_ROUNDER;
    const double k = shifted - VGQ_ROUNDER;
    const double y = (x - k * VGQ_LN2_HIGH) - k * VGQ_LN2_LOW;
    double p = VGQ_EXP_TAYLOR_FIRST;
#define TERM(t) p = p * y + t;
    VGQ_EXP_TAYLOR(TERM)
#undef TERM
    p = 1 + (y + y * y * p);
    uint64_t exponent, bits;
    memcpy(&exponent, &shifted, sizeof(exponent));
    memcpy(&bits, &p, sizeof(bits));
    bits += exponent << 52;
    memcpy(&p, &bits, sizeof(p));
    return p;
}

/* x = 2^k * m with m in [sqrt(1/2), sqrt(2)); ln m = 2 atanh(s), s = (m - 1) / (m + 1), by its
 * series. The sum is arranged as in FreeBSD's e_log.c, so that m - 1, which is exact, comes in
 * last. */
VGQ_INLINE double vgq_log_one(double x)
{
    uint64_t bits;
    memcpy(&bits, &x, sizeof(bits));
    if (!(x >= 0x1p-1022 && x < INFINITY)) /* tiny counts as 0 */
        return x == INFINITY ? x : x < 0 || x != x ? NAN : -INFINITY;
    const uint64_t root_half = 0x3fe6a09e667f3bcd; /* the bits of sqrt(1/2) */
    const double k = (double)(int)((int64_t)(bits - root_half) >> 52);
    bits -= (uint64_t)(int64_t)k << 52;
    double m;
    memcpy(&m, &bits, sizeof(m));
    const double f = m - 1, s = f / (2 + f), z = s * s, half_square = 0.5 * f * f;
    double series = 2.0 / 23;
    for (int i = 21; i >= 3; i -= 2)
        series = series * z + 2.0 / i;
    return k * VGQ_LN2_HIGH -
           ((half_square - (s * (half_square + z * series) + k * VGQ_LN2_LOW)) - f);
}

#endif
