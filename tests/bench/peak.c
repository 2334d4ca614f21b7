/* SPDX-License-Identifier: Apache-2.0
 * What the integer tiles' instruction sequences reach when nothing is loaded: multiply-adds a
 * second of each, on `threads` pinned threads at once. linear.py compiles and runs this and holds
 * every figure against it.
 *
 *      cc -O2 -pthread peak.c -o peak && ./peak 2        a line for each: name GMAC/s
 */
#define _GNU_SOURCE
#include <pthread.h>
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
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

static double seconds(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

enum { TURNS = 200000, ROUNDS = 15 };
static pthread_barrier_t together;
static double best[256];
static const sequence *now;

static void *work(void *data)
{
    const int me = (int)(size_t)data;
    cpu_set_t set;
    CPU_ZERO(&set);
    CPU_SET(me, &set);
    sched_setaffinity(0, sizeof(set), &set);
    best[me] = 1e9;
    for (int i = 0; i < ROUNDS; i++) {
        pthread_barrier_wait(&together);
        const double start = seconds();
        now->run(TURNS);
        const double took = seconds() - start;
        best[me] = took < best[me] ? took : best[me];
    }
    return NULL;
}

int main(int argc, char **argv)
{
    const int threads = argc > 1 ? atoi(argv[1]) : 1;
    const sequence sequences[] = {
        {"avx512 W8A8", __builtin_cpu_supports("avx512vnni"), vnni, 2 * 24 * 64},
        {"avx512 W4A8", __builtin_cpu_supports("avx512vnni"), vnni, 2 * 24 * 64},
        {"avx512 FP32", __builtin_cpu_supports("avx512f"), fma_512, 2 * 24 * 16},
        {"avx512 BF16", __builtin_cpu_supports("avx512bf16"), bf16, 2 * 24 * 32},
        {"avx2 W8A8", __builtin_cpu_supports("avx2"), words, 2 * 12 * 16},
        {"avx2 W4A8", __builtin_cpu_supports("avx2"), bytes, 8 * 6 * 32},
        {"avx2 FP32", __builtin_cpu_supports("fma"), fma_256, 2 * 12 * 8},
    };
    if (threads < 1 || threads > 256)
        return 2;
    for (size_t s = 0; s < sizeof(sequences) / sizeof(*sequences); s++) {
        if (!sequences[s].runs_here)
            continue;
        pthread_t thread[256];
        double total = 0;
        now = &sequences[s];
        pthread_barrier_init(&together, NULL, (unsigned)threads);
        for (int t = 0; t < threads; t++)
            pthread_create(&thread[t], NULL, work, (void *)(size_t)t);
        for (int t = 0; t < threads; t++) {
            pthread_join(thread[t], NULL);
            total += now->macs * TURNS / best[t] / 1e9;
        }
        pthread_barrier_destroy(&together);
        printf("%s\t%.1f\n", now->name, total);
    }
    return 0;
}
