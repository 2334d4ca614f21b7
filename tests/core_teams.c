/* SPDX-License-Identifier: Apache-2.0
 * Teams of threads and what may become of them: a fork, a call from within a region of somebody
 * else's, OpenMP runtimes that appear later. The bits are always those of one thread. */
#define _GNU_SOURCE
#include "core.h"

#include <dlfcn.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

enum { COLS = 4096, ROWS = 20, ALL = ROWS * COLS };
static float x[ALL];
static const float scale[ROWS] = {1 / 64.0f, 1 / 32.0f};
static uint8_t want[ALL];

static vgq_status codes(uint8_t *q)
{
    return vgq_quantize(VGQ_I8, VGQ_F32, (vgq_shape){ROWS, COLS, COLS}, x, scale, NULL, q);
}

static int right(void)
{
    static _Thread_local uint8_t q[ALL];
    memset(q, 0x5a, sizeof(q));
    return codes(q) == VGQ_OK && memcmp(q, want, sizeof(q)) == 0;
}

/* A child has none of its parent's threads: it works alone, and says so. */
static void test_fork(void)
{
    fflush(stdout);
    const pid_t child = fork();
    if (child == 0)
        exit(right() && vgq_threads() == 1 && strcmp(vgq_openmp(), "none") == 0 ? 0 : 1);
    int status = -1;
    CHECK(child > 0 && waitpid(child, &status, 0) == child, " ");
    CHECK(WIFEXITED(status) && WEXITSTATUS(status) == 0, "status %#x", (unsigned)status);
    CHECK(right(), "the parent goes on");
}

static int wrong;
static void in_a_region(void *data)
{
    (void)data;
    if (!right())
        __atomic_store_n(&wrong, 1, __ATOMIC_RELAXED);
}

/* Our call from each thread of the caller's own region: no region within the region. */
static void test_nested(void)
{
    void *const library = dlopen("libgomp.so.1", RTLD_LAZY);
    void (*parallel)(void (*)(void *), void *, unsigned, unsigned) = NULL;
    if (library)
        *(void **)&parallel = dlsym(library, "GOMP_parallel");
    if (parallel)
        parallel(in_a_region, NULL, 2, 0);
    CHECK(!wrong, " ");
}

static int asks;
static int never(void *data)
{
    (void)data;
    return ++asks, 0;
}

/* The first question comes one interval after the call has begun, not at once. */
static void test_first_question(void)
{
    vgq_stop stop = {never, NULL, 0, 0};
    vgq_watch(&stop);
    CHECK(right() && stop.asked != 0 && !stop.stopped, " ");
    vgq_watch(NULL);
}

void test_teams(void)
{
    for (size_t i = 0; i < ALL; i++)
        x[i] = numbers[i % CORE_NUMBERS];
    vgq_set_threads(1);
    CHECK(codes(want) == VGQ_OK && right(), " ");
    vgq_set_threads(3);
    CHECK(right(), " ");
    test_first_question();
    vgq_set_threads(0);
    CHECK(right() && vgq_threads() >= 1, " ");
    test_fork();
    test_nested();
}

/* Each of the runtimes, loaded in this order; one that lies in a folder of torch's is taken. */
void test_runtimes(int count, char **paths)
{
    for (int i = 0; i < count; i++) {
        char before[256];
        snprintf(before, sizeof(before), "%s", vgq_openmp());
        CHECK(dlopen(paths[i], RTLD_NOW) != NULL, "%s", dlerror());
        const char *const name = strrchr(paths[i], '/') + 1;
        const int torch = strstr(paths[i], "/torch") && !strstr(paths[i], "empty");
        CHECK(strcmp(vgq_openmp(), torch ? name : before) == 0, "%s after %s", vgq_openmp(), name);
        CHECK(right(), "with %s", name);
    }
}
