/* SPDX-License-Identifier: Apache-2.0
 * Quantize kernels in plain C: the definition of right for every other table. */
#include "../formats.h"
#include "../kernels.h"

static void load_f16_scalar(size_t n, const void *src, float *dst)
{
    const uint16_t *h = src;
    for (size_t i = 0; i < n; i++)
        dst[i] = vgq_float_of_f16(h[i]);
}

static void load_bf16_scalar(size_t n, const void *src, float *dst)
{
    const uint16_t *h = src;
    for (size_t i = 0; i < n; i++)
        dst[i] = vgq_float_of_bf16(h[i]);
}

static void store_f32_scalar(size_t n, const float *src, void *dst)
{
    memcpy(dst, src, n * sizeof(*src));
}

static void store_f16_scalar(size_t n, const float *src, void *dst)
{
    uint16_t *h = dst;
    for (size_t i = 0; i < n; i++)
        h[i] = vgq_f16_of_float(src[i]);
}

static void store_bf16_scalar(size_t n, const float *src, void *dst)
{
    uint16_t *h = dst;
    for (size_t i = 0; i < n; i++)
        h[i] = vgq_bf16_of_float(src[i]);
}

static size_t span_scalar(size_t n, const float *x, float *lo, float *hi)
{
    float low = *lo, high = *hi;
    size_t nonfinite = 0;
    for (size_t i = 0; i < n; i++) {
        nonfinite += (vgq_bits_of_float(x[i]) & 0x7f800000u) == 0x7f800000u;
        low = x[i] < low ? x[i] : low;
        high = x[i] > high ? x[i] : high;
    }
    *lo = low;
    *hi = high;
    return nonfinite;
}

static void encode_scalar(size_t n, const float *x, vgq_map map, int8_t *codes)
{
    for (size_t i = 0; i < n; i++)
        codes[i] = vgq_encode(x[i], map.scale, map.zero, map.lowest, map.highest);
}

static void decode_scalar(size_t n, const int8_t *codes, vgq_map map, float *x)
{
    for (size_t i = 0; i < n; i++)
        x[i] = vgq_decode(codes[i], map.scale, map.zero);
}

static void error_scalar(size_t n, const float *x, vgq_map map, double lanes[VGQ_LANES])
{
    for (size_t i = 0; i < n; i++) {
        const int8_t code = vgq_encode(x[i], map.scale, map.zero, map.lowest, map.highest);
        const double e = x[i] - vgq_decode(code, map.scale, map.zero);
        lanes[i % VGQ_LANES] += e * e;
    }
}

static void pack4_scalar(size_t n, const int8_t *codes, uint8_t *q)
{
    for (size_t i = 0; i < n; i += 2) {
        const int high = i + 1 < n ? codes[i + 1] & 15 : 0;
        q[i / 2] = (uint8_t)((codes[i] & 15) | high << 4);
    }
}

static void unpack4_scalar(size_t n, const uint8_t *q, int8_t *codes)
{
    for (size_t i = 0; i < n; i++) {
        const int nibble = i % 2 ? q[i / 2] >> 4 : q[i / 2] & 15;
        codes[i] = (int8_t)((nibble ^ 8) - 8);
    }
}

const vgq_quantize_kernels vgq_quantize_scalar = {
    .load = {[VGQ_F16] = load_f16_scalar, [VGQ_BF16] = load_bf16_scalar},
    .store = {[VGQ_F32] = store_f32_scalar,
              [VGQ_F16] = store_f16_scalar,
              [VGQ_BF16] = store_bf16_scalar},
    .span = span_scalar,
    .encode = encode_scalar,
    .decode = decode_scalar,
    .error = error_scalar,
    .pack4 = pack4_scalar,
    .unpack4 = unpack4_scalar,
};
