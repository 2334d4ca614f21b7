/* SPDX-License-Identifier: Apache-2.0
 * Teams of threads and what may become of them: a fork, a call from within a region of somebody
 * else's, OpenMP runtimes that appear later. The bits are always those of one thread. */
#define _GNU_SOURCE
#include "../csrc/tasks.h"
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

enum { TASKS = 7, CREW = 3, OWN = 64 };
static int runs[TASKS];
static void count_task(const void *job, size_t task, unsigned char *own)
{
    (void)job;
    own[0] = 1;
    __atomic_fetch_add(&runs[task], 1, __ATOMIC_RELAXED);
}

/* Each task runs once, however many threads there are for the crew's queues. */
static int once_each(void)
{
    static _Alignas(VGQ_ALIGN) unsigned char scratch[CREW * (sizeof(vgq_queue) + OWN)];
    vgq_crew crew = {.team = CREW, .own_nbytes = OWN};
    int good = vgq_crew_nbytes(&crew) == sizeof(scratch);
    vgq_crew_place(&crew, scratch);
    for (size_t count = 0; count <= TASKS; count++) {
        memset(runs, 0, sizeof(runs));
        good &= vgq_run_tasks(&crew, CREW, count, count_task, NULL) == VGQ_OK;
        for (size_t i = 0; i < TASKS; i++)
            good &= runs[i] == (i < count);
    }
    return good;
}

/* A child has none of its parent's threads: it works alone, and says so. */
static void test_fork(void)
{
    fflush(stdout);
    const pid_t child = fork();
    if (child == 0)
        exit(right() && once_each() && vgq_threads() == 1 && strcmp(vgq_openmp(), "none") == 0 ? 0
                                                                                               : 1);
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

static int expansions;
static void count_expansion(size_t k, const uint8_t *nibbles, const uint8_t *factor,
                            const int8_t *zero, uint8_t *bytes)
{
    __atomic_fetch_add(&expansions, 1, __ATOMIC_RELAXED);
    vgq_linear_scalar.expand4(k, nibbles, factor, zero, bytes);
}

/* Many threads share few panels: each panel is expanded once a task, and there are no more tasks
 * than some four a thread. */
static void test_expansions(void)
{
    enum { K = 64, PANELS = 8, THREADS = 16, M = 960, N = PANELS * VGQ_PANEL };
    static uint8_t q[N * K / 2], factor[N], packed[N * (K + 32) + 64], scratch[4 << 20];
    static int8_t zero[N];
    static float one[N], y[M * N];
    memset(factor, 1, sizeof(factor));
    for (size_t i = 0; i < N; i++)
        one[i] = 1;
    const vgq_weight w = {VGQ_I4, VGQ_TWO_LEVEL, N, K, K, 1, q, one, factor, zero};
    const size_t nbytes = vgq_packed_nbytes(&w);
    CHECK(nbytes <= sizeof(packed) && vgq_pack(&w, packed, nbytes) == VGQ_OK, " ");
    vgq_kernels table = *vgq_context_now().kernels;
    table.linear.expand4 = count_expansion;
    const vgq_context context = {&table, THREADS};
    const vgq_linear_call call = {
        .activations = VGQ_INT8_ACTIVATIONS, .m = M, .x = x, .y = y, .context = &context};
    expansions = 0;
    CHECK(vgq_linear_nbytes(&w, &call) <= sizeof(scratch) &&
              vgq_linear(packed, nbytes, &call, scratch, sizeof(scratch)) == VGQ_OK,
          " ");
    CHECK(expansions == 4 * THREADS, "%d expansions of %d panels", expansions, PANELS);
}

/* A product of many rows has the bits of its halves. */
static void test_halves(size_t m, size_t n, size_t k)
{
    const size_t half = m / 2;
    uint8_t *const q = malloc(n * k);
    float *const scales = malloc(sizeof(float) * n), *const inputs = malloc(sizeof(float) * m * k);
    float *const y = malloc(sizeof(float) * m * n), *const part = malloc(sizeof(float) * half * n);
    for (size_t i = 0; i < n * k; i++)
        q[i] = (uint8_t)(37 * i);
    for (size_t i = 0; i < n; i++)
        scales[i] = 0.01f * (float)(i + 1);
    for (size_t i = 0; i < m * k; i++)
        inputs[i] = x[i % ALL];
    const vgq_weight w = {.format = VGQ_I8, .n = n, .k = k, .group = k, .q = q, .scale = scales};
    const size_t nbytes = vgq_packed_nbytes(&w);
    void *const packed = malloc(nbytes);
    CHECK(vgq_pack(&w, packed, nbytes) == VGQ_OK, " ");
    vgq_linear_call call = {.activations = VGQ_INT8_ACTIVATIONS, .m = m, .x = inputs, .y = y};
    const size_t scratch_nbytes = vgq_linear_nbytes(&w, &call);
    void *const scratch = malloc(scratch_nbytes);
    CHECK(vgq_linear(packed, nbytes, &call, scratch, scratch_nbytes) == VGQ_OK, " ");
    call.m = half;
    call.y = part;
    for (size_t i = 0; i < 2; i++) {
        call.x = inputs + i * half * k;
        CHECK(vgq_linear(packed, nbytes, &call, scratch, scratch_nbytes) == VGQ_OK, " ");
        CHECK(memcmp(part, y + i * half * n, sizeof(float) * half * n) == 0, "%zu rows, half %zu",
              m, i);
    }
    void *const all[] = {q, scales, inputs, y, part, packed, scratch};
    for (size_t i = 0; i < sizeof(all) / sizeof(*all); i++)
        free(all[i]);
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
    CHECK(once_each(), " ");
    test_expansions();
    for (size_t isa = 0; vgq_isa_here(isa); isa++) {
        vgq_use(vgq_isa_here(isa));
        /* An output that is asked for before it is written; a next panel that is not asked for. */
        test_halves(VGQ_CACHED_Y / (4 * VGQ_PANEL) / 4 + 8, 4 * VGQ_PANEL, 8);
        test_halves(2 * VGQ_NEXT_ROWS, 2 * VGQ_PANEL, VGQ_NEXT_MOST / VGQ_PANEL + 8);
    }
    vgq_use(NULL);
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
