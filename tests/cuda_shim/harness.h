/* SPDX-License-Identifier: Apache-2.0
 * For the programs that run the CUDA sources on the host: inputs, buffers of exactly their size
 * whose every access is checked, and comparisons bit for bit with the scalar core. */
#ifndef VGQ_CUDA_HARNESS_H
#define VGQ_CUDA_HARNESS_H

#include "cuda_shim.h"
#include "../../csrc/vgq_cuda.h"

#include <math.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <vector>

extern size_t checks;
extern char doing[256]; /* printed with a failure */

#define CHECK(condition)                                                       \
    do {                                                                       \
        checks++;                                                              \
        if (!(condition)) {                                                    \
            printf("%s:%d: %s [%s]\n", __FILE__, __LINE__, #condition, doing); \
            fflush(stdout);                                                    \
            _Exit(1);                                                          \
        }                                                                      \
    } while (0)
#define DOING(...) snprintf(doing, sizeof(doing), __VA_ARGS__)

/* n elements on the heap, exactly: the address sanitizer sees what lies beyond. `watched` ones are
 * also checked for races between threads, until release_buffers. */
template <typename T> struct buffer {
    T *at;
    size_t n;
    explicit buffer(size_t n_, const void *source = NULL) : at((T *)malloc(n_ * sizeof(T))), n(n_)
    {
        memset(at, 0xa5, n * sizeof(T));
        if (source && n)
            memcpy(at, source, n * sizeof(T));
        shim::watch(at, n * sizeof(T));
    }
    buffer(const buffer &) = delete;
    ~buffer()
    {
        shim::unwatch(at);
        free(at);
    }
    operator T *() const { return n ? at : NULL; }
    bool equals(const std::vector<T> &other) const
    {
        return other.size() == n && (!n || memcmp(at, other.data(), n * sizeof(T)) == 0);
    }
};

uint32_t next_random();
/* In -1..1; every fifth of `hard` is NaN, infinite, denormal or huge. */
std::vector<float> numbers(size_t n, bool hard = false);
/* Those as elements of dtype, rounded by the core. */
std::vector<uint8_t> elements(vgq_dtype dtype, const std::vector<float> &x);
inline size_t dtype_nbytes(int dtype) { return dtype == VGQ_F32 ? 4 : 2; }

/* Ends a program: what test_cuda_shim.py looks for. */
int all_passed(const char *subject);

#endif
