/* SPDX-License-Identifier: Apache-2.0
 * Inputs of the host-shim programs. */
#include "harness.h"
#include "../../csrc/formats.h"

size_t checks;
char doing[256];

uint32_t next_random()
{
    static uint64_t state = 88172645463325252u;
    state ^= state << 13;
    state ^= state >> 7;
    state ^= state << 17;
    return (uint32_t)(state >> 16);
}

std::vector<float> numbers(size_t n, bool hard)
{
    static const float odd[] = {NAN, INFINITY, -INFINITY, 0.0f, -0.0f, 1e-45f, 1e38f, -3e38f};
    std::vector<float> x(n);
    for (size_t i = 0; i < n; i++)
        x[i] = hard && i % 5 == 0 ? odd[next_random() % 8]
                                  : (float)(next_random() % 20001) / 10000.0f - 1.0f;
    return x;
}

std::vector<uint8_t> elements(vgq_dtype dtype, const std::vector<float> &x)
{
    std::vector<uint8_t> bytes(x.size() * dtype_nbytes(dtype));
    for (size_t i = 0; i < x.size(); i++) {
        const uint16_t half = dtype == VGQ_F16 ? vgq_f16_of_float(x[i]) : vgq_bf16_of_float(x[i]);
        if (dtype == VGQ_F32)
            memcpy(&bytes[4 * i], &x[i], 4);
        else
            memcpy(&bytes[2 * i], &half, 2);
    }
    return bytes;
}

int all_passed(const char *subject)
{
    printf("%s: %zu checks: all passed\n", subject, checks);
    return 0;
}
