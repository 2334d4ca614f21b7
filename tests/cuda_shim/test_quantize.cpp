/* SPDX-License-Identifier: Apache-2.0
 * csrc/cuda/quantize.cu on the host shim: every kernel, the same bits as the scalar core. */
#include "harness.h"

/* Shape, format, dtype and symmetry of a case. */
struct trial {
    vgq_shape shape;
    vgq_format format;
    vgq_dtype dtype;
    bool asymmetric;
    size_t offset; /* elements and bytes that x and q begin after an aligned address */
    size_t elements() const { return shape.rows * shape.cols; }
    size_t groups() const { return shape.rows * vgq_row_groups(shape); }
};

static void codes(const trial &t)
{
    const std::vector<uint8_t> source = elements(t.dtype, numbers(t.elements(), true));
    std::vector<float> scales(t.groups());
    std::vector<int8_t> zeros(t.groups());
    for (size_t i = 0; i < t.groups(); i++) {
        scales[i] = (float)(1 + next_random() % 100) / 1000.0f;
        zeros[i] = (int8_t)((int)(next_random() % 16) - 8);
    }
    std::vector<uint8_t> q_want(t.shape.rows * vgq_row_nbytes(t.format, t.shape.cols));
    std::vector<uint8_t> x_want(source.size());
    const size_t skipped = t.offset * dtype_nbytes(t.dtype);
    const buffer<uint8_t> x_bytes(skipped + source.size()), q_bytes(t.offset + q_want.size());
    const buffer<uint8_t> back_bytes(skipped + source.size());
    uint8_t *const x = x_bytes.at + skipped, *const q = q_bytes.at + t.offset;
    uint8_t *const back = back_bytes.at + skipped;
    memcpy(x, source.data(), source.size());
    const buffer<float> scale(t.groups(), scales.data());
    const buffer<int8_t> zero(t.groups(), zeros.data());
    const int8_t *const z = t.asymmetric ? (int8_t *)zero : NULL;
    CHECK(vgq_quantize(t.format, t.dtype, t.shape, x, scale, z, q_want.data()) == VGQ_OK);
    CHECK(vgq_quantize_cuda(t.format, t.dtype, t.shape, x, scale, z, q, NULL) == VGQ_OK);
    CHECK(memcmp(q, q_want.data(), q_want.size()) == 0);
    CHECK(vgq_dequantize(t.format, t.dtype, t.shape, q, scale, z, x_want.data()) == VGQ_OK);
    CHECK(vgq_dequantize_cuda(t.format, t.dtype, t.shape, q, scale, z, back, NULL) == VGQ_OK);
    CHECK(memcmp(back, x_want.data(), x_want.size()) == 0);
}

static void ranges(const trial &t)
{
    const std::vector<uint8_t> source = elements(t.dtype, numbers(t.elements()));
    const std::vector<uint8_t> hard_source = elements(t.dtype, numbers(t.elements(), true));
    std::vector<float> lo_want(t.groups()), hi_want(t.groups()), scale_want(t.groups());
    std::vector<uint64_t> bad_want(t.shape.rows);
    std::vector<int8_t> zero_want(t.groups());
    const buffer<uint8_t> x(source.size(), source.data()), hard(source.size(), hard_source.data());
    const buffer<float> lo(t.groups()), hi(t.groups()), scale(t.groups());
    const buffer<uint64_t> bad(t.shape.rows);
    const buffer<int8_t> zero(t.groups());
    CHECK(vgq_range(t.dtype, t.shape, hard, lo_want.data(), hi_want.data(), bad_want.data()) ==
          VGQ_OK);
    CHECK(vgq_range_cuda(t.dtype, t.shape, hard, lo, hi, bad, NULL) == VGQ_OK);
    CHECK(bad.equals(bad_want));
    CHECK(vgq_range(t.dtype, t.shape, x, lo_want.data(), hi_want.data(), bad_want.data()) ==
          VGQ_OK);
    CHECK(vgq_range_cuda(t.dtype, t.shape, x, lo, hi, bad, NULL) == VGQ_OK);
    CHECK(bad.equals(bad_want) && lo.equals(lo_want) && hi.equals(hi_want));
    int8_t *const z = t.asymmetric ? (int8_t *)zero : NULL;
    CHECK(vgq_parameters(t.format, t.groups(), lo, hi, scale_want.data(),
                         z ? zero_want.data() : NULL) == VGQ_OK);
    CHECK(vgq_parameters_cuda(t.format, t.groups(), lo, hi, scale, z, NULL) == VGQ_OK);
    CHECK(scale.equals(scale_want) && (!z || zero.equals(zero_want)));
}

static void two_level(const trial &t)
{
    const std::vector<uint8_t> source = elements(t.dtype, numbers(t.elements()));
    std::vector<float> scale_want(t.shape.rows);
    std::vector<uint8_t> factor_want(t.groups());
    std::vector<int8_t> zero_want(t.groups());
    std::vector<double> error_want(2 * t.shape.rows);
    const buffer<uint8_t> x(source.size(), source.data()), factor(t.groups());
    const buffer<float> scale(t.shape.rows);
    const buffer<int8_t> zero(t.groups());
    const buffer<double> error(2 * t.shape.rows);
    const bool z = t.asymmetric;
    CHECK(vgq_two_level(t.dtype, t.shape, x, scale_want.data(), factor_want.data(),
                        z ? zero_want.data() : NULL, error_want.data()) == VGQ_OK);
    CHECK(vgq_two_level_cuda(t.dtype, t.shape, x, scale, factor, z ? (int8_t *)zero : NULL, error,
                             NULL) == VGQ_OK);
    CHECK(scale.equals(scale_want) && factor.equals(factor_want) && error.equals(error_want));
    CHECK(!z || zero.equals(zero_want));
}

static void refusals()
{
    const vgq_shape good = {2, 8, 4}, bad = {2, 8, 9}, empty = {3, 0, 1};
    float x[16] = {0}, scale[4] = {1, 1, 1, 1};
    uint64_t nonfinite[3] = {7, 7, 7};
    uint8_t q[16];
    CHECK(vgq_quantize_cuda(VGQ_I8, VGQ_F32, bad, x, scale, NULL, q, NULL) == VGQ_EINVAL);
    CHECK(vgq_quantize_cuda(VGQ_I8, VGQ_F32, good, x, NULL, NULL, q, NULL) == VGQ_EINVAL);
    CHECK(vgq_dequantize_cuda(VGQ_FORMATS, VGQ_F32, good, q, scale, NULL, x, NULL) == VGQ_EINVAL);
    CHECK(vgq_range_cuda(VGQ_DTYPES, good, x, scale, scale, nonfinite, NULL) == VGQ_EINVAL);
    CHECK(vgq_parameters_cuda(VGQ_I8, 1, NULL, scale, scale, NULL, NULL) == VGQ_EINVAL);
    CHECK(vgq_quantize_cuda(VGQ_I4, VGQ_F32, empty, NULL, NULL, NULL, NULL, NULL) == VGQ_OK);
    CHECK(vgq_range_cuda(VGQ_F32, empty, NULL, NULL, NULL, nonfinite, NULL) == VGQ_OK);
    CHECK(!nonfinite[0] && !nonfinite[1] && !nonfinite[2]);
    CHECK(vgq_range_cuda(VGQ_F32, empty, NULL, NULL, NULL, NULL, NULL) == VGQ_EINVAL);
    double error[6] = {7, 7, 7, 7, 7, 7}, want[6] = {7, 7, 7, 7, 7, 7};
    float channel[3] = {7, 7, 7};
    CHECK(vgq_two_level_cuda(VGQ_F32, empty, NULL, NULL, NULL, NULL, error, NULL) == VGQ_EINVAL);
    CHECK(vgq_two_level_cuda(VGQ_F32, empty, NULL, scale, NULL, NULL, error, NULL) == VGQ_OK);
    CHECK(vgq_two_level(VGQ_F32, empty, NULL, channel, NULL, NULL, want) == VGQ_OK);
    CHECK(!memcmp(scale, channel, sizeof(channel)) && !memcmp(error, want, sizeof(want)));
    CHECK(vgq_cuda_devices() == 1);
}

int main()
{
    CHECK(vgq_use("scalar") == VGQ_OK);
    static const size_t cols[] = {1, 2, 7, 8, 9, 31, 33, 64, 100, 257, 2049};
    for (size_t c : cols)
        for (int kind = 0; kind < 6; kind++) {
            const size_t wanted = kind % 3 == 0 ? c : kind % 3 == 1 ? 8 : 5;
            const vgq_shape shape = {1 + c % 3, c, wanted < c ? wanted : c};
            for (int format = 0; format < VGQ_FORMATS; format++) {
                const vgq_dtype dtype = (vgq_dtype)((c + (size_t)(kind + format)) % 3);
                const trial t = {shape, (vgq_format)format, dtype, kind >= 3, kind % 2 ? 0u : 1u};
                DOING("%zu x %zu by %zu, format %d, dtype %d, kind %d", shape.rows, shape.cols,
                      shape.group, format, dtype, kind);
                codes(t);
                ranges(t);
                if (format == VGQ_I4)
                    two_level(t);
            }
        }
    refusals();
    return all_passed("quantize");
}
