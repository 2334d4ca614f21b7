/* SPDX-License-Identifier: Apache-2.0
 * What the fuzz targets share: an input that is used up, buffers of exactly their size, and
 * comparisons in which NaNs count as equal. */
#ifndef VGQ_TEST_FUZZ_H
#define VGQ_TEST_FUZZ_H

#include "../csrc/vgq.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define UNUSED __attribute__((unused)) /* not every target needs all */

typedef struct input {
    const uint8_t *data;
    size_t size, at;
} input;

UNUSED static uint8_t byte(input *in) { return in->at < in->size ? in->data[in->at++] : 0; }

UNUSED static size_t below(input *in, size_t n)
{
    const size_t x = byte(in);
    return (x | (size_t)byte(in) << 8) % n;
}

void *room(size_t nbytes); /* freed after the input (fuzz_core.c) */

/* nbytes of what is left of the input, over and over; where it is used up, zeros. */
UNUSED static void *filled(input *in, size_t nbytes)
{
    uint8_t *const p = room(nbytes);
    const size_t start = in->at, left = in->size - start;
    for (size_t i = 0; i < nbytes; i++)
        p[i] = left ? in->data[start + i % left] : 0;
    in->at += left < nbytes ? left / 2 : nbytes;
    return p;
}

UNUSED static void check(int good, const char *what)
{
    if (good)
        return;
    fprintf(stderr, "%s differs from the scalar table [isa %s]\n", what, vgq_isa());
    abort();
}

UNUSED static int same_f32(const float *a, const float *b, size_t n)
{
    for (size_t i = 0; i < n; i++)
        if (memcmp(&a[i], &b[i], sizeof(*a)) != 0 && (a[i] == a[i] || b[i] == b[i]))
            return 0;
    return 1;
}

UNUSED static int same_f64(const double *a, const double *b, size_t n)
{
    for (size_t i = 0; i < n; i++)
        if (memcmp(&a[i], &b[i], sizeof(*a)) != 0 && (a[i] == a[i] || b[i] == b[i]))
            return 0;
    return 1;
}

UNUSED static int is_nan16(vgq_dtype dtype, uint16_t h)
{
    return dtype == VGQ_F16 ? (h & 0x7fff) > 0x7c00 : (h & 0x7fff) > 0x7f80;
}

UNUSED static int same_values(vgq_dtype dtype, const void *a, const void *b, size_t n)
{
    if (dtype == VGQ_F32)
        return same_f32(a, b, n);
    const uint16_t *const p = a, *const q = b;
    for (size_t i = 0; i < n; i++)
        if (p[i] != q[i] && !(is_nan16(dtype, p[i]) && is_nan16(dtype, q[i])))
            return 0;
    return 1;
}

UNUSED static const size_t width[VGQ_DTYPES] = {4, 2, 2};

/* Targets in files of their own. */
void fuzz_render(const uint8_t *data, size_t size);
void fuzz_attention(input *in, const char *isa);
void fuzz_convolution(input *in, const char *isa);
void fuzz_resize(input *in, const char *isa);

#endif
