/* SPDX-License-Identifier: Apache-2.0
 * What the tiles' instruction sequences reach when nothing is loaded: multiply-adds a second of
 * each, on pinned threads. linear.py builds this as a library and lets it take turns with the calls
 * that it is held against.
 *
 *      cc -O2 -pthread -shared -fPIC peak.c -o peak.so
 */
#define _GNU_SOURCE
#include <pthread.h>
#include <sched.h>
#include <string.h>
#include <time.h>

#define EACH_12(X) X(0) X(1) X(2) X(3) X(4) X(5) X(6) X(7) X(8) X(9) X(10) X(11)
#define EACH_24(X) \
    EACH_12(X) X(12) X(13) X(14) X(15) X(16) X(17) X(18) X(19) X(20) X(21) X(22) X(23)

/* What a tile does to one of its sums a step: 4 inputs of VNNI and FMA's 1, of BF16's and
 * int16's 2.
 */
#define VNNI(r) "vpdpbusd %%zmm28, %%zmm24, %%zmm" #r "\n\t"
#define BF16(r) "vdpbf16ps %%zmm28, %%zmm24, %%zmm" #r "\n\t"
#define FMA_512(r) "vfmadd231ps %%zmm28, %%zmm24, %%zmm" #r "\n\t"
#define FMA_256(r) "vfmadd231ps %%ymm14, %%ymm12, %%ymm" #r "\n\t"
#define WORDS(r)                             \
    "vpmaddwd %%ymm14, %%ymm12, %%ymm15\n\t" \
    "vpaddd %%ymm15, %%ymm" #r ", %%ymm" #r "\n\t"
/* 32 inputs of W4 in 16-bit sums: sum s begins, takes seven more steps, and is widened into a. */
#define BEGIN(s, a) "vpmaddubsw %%ymm13, %%ymm14, %%ymm" #s "\n\t"
#define ADD(s, a)                              \
    "vpmaddubsw %%ymm13, %%ymm14, %%ymm15\n\t" \
    "vpaddw %%ymm15, %%ymm" #s ", %%ymm" #s "\n\t"
#define WIDEN(s, a)                                  \
    "vpmaddwd %%ymm12, %%ymm" #s ", %%ymm" #s "\n\t" \
    "vpaddd %%ymm" #s ", %%ymm" #a ", %%ymm" #a "\n\t"
#define EACH_SUM(X) X(6, 0) X(7, 1) X(8, 2) X(9, 3) X(10, 4) X(11, 5)
#define TWICE(text) text text
#define SEVEN_TIMES(text) text text text text text text text

#define SEQUENCE(name, text)                                                                    \
    static void name(long n)                                                                    \
    {                                                                                           \
        __asm__ volatile("1:\n\t" text "dec %0\n\tjnz 1b\n\tvzeroupper"                         \
                         : "+r"(n)::"xmm0", "xmm1", "xmm2", "xmm3", "xmm4", "xmm5", "xmm6",     \
                           "xmm7", "xmm8", "xmm9", "xmm10", "xmm11", "xmm12", "xmm13", "xmm14", \
                           "xmm15");                                                            \
    }

SEQUENCE(vnni, TWICE(EACH_24(VNNI)))
SEQUENCE(bf16, TWICE(EACH_24(BF16)))
SEQUENCE(fma_512, TWICE(EACH_24(FMA_512)))
SEQUENCE(fma_256, TWICE(EACH_12(FMA_256)))
SEQUENCE(words, TWICE(EACH_12(WORDS)))
SEQUENCE(bytes, EACH_SUM(BEGIN) SEVEN_TIMES(EACH_SUM(ADD)) EACH_SUM(WIDEN))

typedef struct sequence {
    const char *name;
    int runs_here;
    void (*run)(long n);
    double macs; /* of one turn */
} sequence;

enum { TURNS = 500000, MOST_THREADS = 256 };

typedef struct task {
    const sequence *sequence;
    pthread_barrier_t *together;
    int cpu;
    double seconds;
} task;

static double now(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

static void *work(void *data)
{
    task *mine = data;
    cpu_set_t set;
    CPU_ZERO(&set);
    CPU_SET(mine->cpu, &set);
    sched_setaffinity(0, sizeof(set), &set);
    pthread_barrier_wait(mine->together);
    const double start = now();
    mine->sequence->run(TURNS);
    mine->seconds = now() - start;
    return NULL;
}

/* Multiply-adds a second of the sequence of that name on the first CPUs, all at once, over some
 * 10 ms: the sum of what each does. -1 for a name that is unknown or that this CPU cannot run, no
 * or too many threads, or threads that cannot start.
 */
double vgq_peak(const char *name, int threads)
{
    const sequence sequences[] = {
        {"avx512 W8A8", __builtin_cpu_supports("avx512vnni"), vnni, 2 * 24 * 64},
        {"avx512 W4A8", __builtin_cpu_supports("avx512vnni"), vnni, 2 * 24 * 64},
        {"avx512 FP32", __builtin_cpu_supports("avx512f"), fma_512, 2 * 24 * 16},
        {"avx512 BF16", __builtin_cpu_supports("avx512bf16"), bf16, 2 * 24 * 32},
        {"avx2 W8A8", __builtin_cpu_supports("avx2"), words, 2 * 12 * 16},
        {"avx2 W4A8", __builtin_cpu_supports("avx2"), bytes, 8 * 6 * 32},
        {"avx2 FP32", __builtin_cpu_supports("fma"), fma_256, 2 * 12 * 8},
    };
    const sequence *wanted = NULL;
    for (size_t s = 0; s < sizeof(sequences) / sizeof(*sequences); s++)
        if (strcmp(sequences[s].name, name) == 0 && sequences[s].runs_here)
            wanted = &sequences[s];
    if (!wanted || threads < 1 || threads > MOST_THREADS)
        return -1;
    /* not on the stack: where a thread cannot start, those before it wait for it to the end */
    static task tasks[MOST_THREADS];
    static pthread_t thread[MOST_THREADS];
    static pthread_barrier_t together;
    if (pthread_barrier_init(&together, NULL, (unsigned)threads))
        return -1;
    for (int t = 0; t < threads; t++) {
        tasks[t] = (task){wanted, &together, t, 0};
        if (pthread_create(&thread[t], NULL, work, &tasks[t]))
            return -1;
    }
    double total = 0;
    for (int t = 0; t < threads; t++) {
        pthread_join(thread[t], NULL);
        total += wanted->macs * TURNS / tasks[t].seconds;
    }
    pthread_barrier_destroy(&together);
    return total;
}
