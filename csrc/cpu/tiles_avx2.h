/* SPDX-License-Identifier: Apache-2.0
 * What AVX2's tiles of 16 columns share: the sums of row r are a<r>0 and a<r>1. Include between
 * ISA_BEGIN and ISA_END. */
#ifndef VGQ_TILES_AVX2_H
#define VGQ_TILES_AVX2_H

#include "../kernels.h"
#include "tiles.h"

#include <immintrin.h>
#include <string.h>

/* Four codes of a byte, or two of two, in every lane. */
static inline __m256i four_codes(const void *q)
{
    int32_t bits;
    memcpy(&bits, q, sizeof(bits));
    return _mm256_set1_epi32(bits);
}

#define ZERO(r) __m256i a##r##0 = _mm256_setzero_si256(), a##r##1 = a##r##0;
#define SAVE(r)                                                  \
    _mm256_storeu_si256((void *)(acc + (r)*VGQ_PANEL), a##r##0); \
    _mm256_storeu_si256((void *)(acc + (r)*VGQ_PANEL + 8), a##r##1);

#endif
