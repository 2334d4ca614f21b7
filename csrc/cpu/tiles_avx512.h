/* SPDX-License-Identifier: Apache-2.0
 * What AVX-512's tiles of 64 columns share: the sums of row r are a<r>0 to a<r>3. Include between
 * ISA_BEGIN and ISA_END. */
#ifndef VGQ_TILES_AVX512_H
#define VGQ_TILES_AVX512_H

#include "../kernels.h"
#include "tiles.h"

#include <immintrin.h>
#include <string.h>

/* Four codes of a byte in every lane. */
static inline __m512i four_codes(const void *q)
{
    int32_t bits;
    memcpy(&bits, q, sizeof(bits));
    return _mm512_set1_epi32(bits);
}

#define ZERO(r)                                                                     \
    __m512i a##r##0 = _mm512_setzero_si512(), a##r##1 = a##r##0, a##r##2 = a##r##0, \
            a##r##3 = a##r##0;
#define SAVE(r)                                             \
    _mm512_storeu_si512(acc + (r)*VGQ_PANEL, a##r##0);      \
    _mm512_storeu_si512(acc + (r)*VGQ_PANEL + 16, a##r##1); \
    _mm512_storeu_si512(acc + (r)*VGQ_PANEL + 32, a##r##2); \
    _mm512_storeu_si512(acc + (r)*VGQ_PANEL + 48, a##r##3);

/* The same of floats, whose sums go on from acc. */
#define LOAD_FLOATS(r)                                                                             \
    __m512 a##r##0 = _mm512_setzero_ps(), a##r##1 = a##r##0, a##r##2 = a##r##0, a##r##3 = a##r##0; \
    if (accumulate) {                                                                              \
        a##r##0 = _mm512_loadu_ps(acc + (r)*VGQ_PANEL);                                            \
        a##r##1 = _mm512_loadu_ps(acc + (r)*VGQ_PANEL + 16);                                       \
        a##r##2 = _mm512_loadu_ps(acc + (r)*VGQ_PANEL + 32);                                       \
        a##r##3 = _mm512_loadu_ps(acc + (r)*VGQ_PANEL + 48);                                       \
    }
#define SAVE_FLOATS(r)                                   \
    _mm512_storeu_ps(acc + (r)*VGQ_PANEL, a##r##0);      \
    _mm512_storeu_ps(acc + (r)*VGQ_PANEL + 16, a##r##1); \
    _mm512_storeu_ps(acc + (r)*VGQ_PANEL + 32, a##r##2); \
    _mm512_storeu_ps(acc + (r)*VGQ_PANEL + 48, a##r##3);

#endif
