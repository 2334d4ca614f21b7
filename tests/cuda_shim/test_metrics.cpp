/* SPDX-License-Identifier: Apache-2.0
 * csrc/cuda/metrics.cu on the host shim: every kernel, the same bits as the scalar core. */
#include "harness.h"

/* Two arrays of n elements, each of its own dtype; c is near r. */
struct pair {
    vgq_dtype r_dtype, c_dtype;
    std::vector<uint8_t> r_bytes, c_bytes;
    buffer<uint8_t> r, c;

    static std::vector<float> near(const std::vector<float> &x)
    {
        std::vector<float> y = numbers(x.size());
        for (size_t i = 0; i < x.size(); i++)
            y[i] = x[i] + 0.1f * y[i];
        return y;
    }
    pair(int r_, int c_, const std::vector<float> &x)
        : r_dtype((vgq_dtype)r_), c_dtype((vgq_dtype)c_), r_bytes(elements(r_dtype, x)),
          c_bytes(elements(c_dtype, near(x))), r(r_bytes.size(), r_bytes.data()),
          c(c_bytes.size(), c_bytes.data())
    {
    }
};

template <typename T> static bool same(const T &a, const T &b)
{
    return memcmp(&a, &b, sizeof(T)) == 0;
}

static void moments(const pair &p, size_t n)
{
    const size_t count = vgq_compare_parts(n);
    std::vector<vgq_moments> want(count);
    const buffer<vgq_moments> parts(count);
    CHECK(vgq_compare(n, p.r_dtype, p.r, p.c_dtype, p.c, want.data()) == VGQ_OK);
    CHECK(vgq_compare_cuda(n, p.r_dtype, p.r, p.c_dtype, p.c, parts, NULL) == VGQ_OK);
    CHECK(same(parts[0], want[0]));
}

static void entropy(const pair &p, size_t rows, size_t cols)
{
    std::vector<vgq_entropy> want(vgq_cross_entropy_parts(rows));
    const buffer<vgq_entropy> parts(vgq_cross_entropy_cuda_parts(rows));
    CHECK(vgq_cross_entropy(rows, cols, p.r_dtype, p.r, p.c_dtype, p.c, want.data()) == VGQ_OK);
    CHECK(vgq_cross_entropy_cuda(rows, cols, p.r_dtype, p.r, p.c_dtype, p.c, parts, NULL) ==
          VGQ_OK);
    CHECK(same(parts[0], want[0]));
}

static void ssim(vgq_images shape, int r_dtype, int c_dtype)
{
    DOING("ssim of %zu x %zu x %zu x %zu", shape.images, shape.height, shape.width, shape.channels);
    const pair p(r_dtype, c_dtype,
                 numbers(shape.images * shape.height * shape.width * shape.channels));
    std::vector<double> want(vgq_ssim_parts(shape));
    const buffer<double> parts(want.size());
    CHECK(vgq_ssim(shape, p.r_dtype, p.r, p.c_dtype, p.c, 2.0, 0.1, want.data()) == VGQ_OK);
    CHECK(vgq_ssim_cuda(shape, p.r_dtype, p.r, p.c_dtype, p.c, 2.0, 0.1, parts, NULL) == VGQ_OK);
    CHECK(same(parts[0], want[0]));
}

static void refusals()
{
    const vgq_images small = {1, 10, 40, 1};
    float x[400] = {0};
    double parts[64];
    vgq_moments m;
    vgq_entropy e[4];
    CHECK(vgq_compare_cuda(3, VGQ_DTYPES, x, VGQ_F32, x, &m, NULL) == VGQ_EINVAL);
    CHECK(vgq_compare_cuda(3, VGQ_F32, NULL, VGQ_F32, x, &m, NULL) == VGQ_EINVAL);
    CHECK(vgq_cross_entropy_cuda(0, 3, VGQ_F32, x, VGQ_F32, x, e, NULL) == VGQ_EINVAL);
    CHECK(vgq_cross_entropy_cuda(SIZE_MAX, 3, VGQ_F32, x, VGQ_F32, x, e, NULL) == VGQ_EINVAL);
    CHECK(vgq_ssim_cuda(small, VGQ_F32, x, VGQ_F32, x, 1, 0, parts, NULL) == VGQ_EINVAL);
}

int main()
{
    CHECK(vgq_use("scalar") == VGQ_OK);
    static const size_t lengths[] = {0, 1, 15, 16, 17, 33, 4095, 4096, 4097, 3 * 4096 + 5};
    for (size_t n : lengths)
        for (int dtype = 0; dtype < VGQ_DTYPES; dtype++) {
            DOING("moments of %zu, dtype %d", n, dtype);
            moments(pair(dtype, (dtype + n) % 3, numbers(n)), n);
        }
    DOING("moments with values that are not finite");
    {
        std::vector<float> x = numbers(5000, true);
        const pair p(VGQ_F32, VGQ_F16, x);
        std::vector<vgq_moments> want(2);
        const buffer<vgq_moments> parts(2);
        CHECK(vgq_compare(5000, p.r_dtype, p.r, p.c_dtype, p.c, want.data()) == VGQ_OK);
        CHECK(vgq_compare_cuda(5000, p.r_dtype, p.r, p.c_dtype, p.c, parts, NULL) == VGQ_OK);
        CHECK(parts[0].nonfinite_r > 0 && same(parts[0].nonfinite_r, want[0].nonfinite_r) &&
              same(parts[0].nonfinite_c, want[0].nonfinite_c) && same(parts[0].lo, want[0].lo) &&
              same(parts[0].hi, want[0].hi));
    }
    DOING("so many parts that they are joined in two launches");
    moments(pair(VGQ_BF16, VGQ_BF16, numbers(515 * 4096 + 1)), 515 * 4096 + 1);
    static const vgq_shape rows[] = {{1, 1, 0},  {1, 17, 0},  {3, 64, 0},
                                     {17, 5, 0}, {600, 2, 0}, {2, 4099, 0}};
    for (const vgq_shape &s : rows)
        for (int dtype = 0; dtype < VGQ_DTYPES; dtype++) {
            DOING("entropy of %zu x %zu, dtype %d", s.rows, s.cols, dtype);
            entropy(pair(dtype, (dtype + 1) % 3, numbers(s.rows * s.cols)), s.rows, s.cols);
        }
    static const vgq_images images[] = {{1, 11, 11, 1}, {2, 13, 12, 3},  {1, 27, 30, 1},
                                        {1, 28, 24, 2}, {1, 12, 300, 1}, {1, 11, 43, 16}};
    for (size_t i = 0; i < sizeof(images) / sizeof(images[0]); i++)
        ssim(images[i], (int)(i % 3), (int)(i / 2 % 3));
    refusals();
    return all_passed("metrics");
}
