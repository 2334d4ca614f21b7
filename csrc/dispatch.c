/* SPDX-License-Identifier: Apache-2.0
 * The tables of kernels: one for each instruction set that runs here, composed once and constant
 * from then on. The choice among them is one atomic pointer, which each call reads once. */
#define _GNU_SOURCE
#include "kernels.h"

#include <pthread.h>
#include <stdatomic.h>
#include <string.h>
#if defined(__x86_64__)
#include <cpuid.h>
#include <sys/syscall.h>
#include <unistd.h>

/* clang 14 knows no such word for __builtin_cpu_supports; that of AVX2 has asked the system
 * already. */
int vgq_has_f16c(void)
{
    unsigned a, b, c = 0, d;
    /* uncovered: every x86-64 CPU answers this question */
    return __get_cpuid(1, &a, &b, &c, &d) && c & bit_F16C;
}

#if defined(VGQ_MODELS) /* a build of the tests: the instructions are modelled, so they are here \
                         */
int vgq_has_avxvnni(void) { return 1; }
/* uncovered: a CPU has these or not; they are not modelled, and attention_amx.c uses them */
int vgq_has_amx(void) { return VGQ_HAS_VNNI && VGQ_HAS_BF16; }
#else
int vgq_has_avxvnni(void)
{
    unsigned a = 0, b, c, d;
    /* uncovered: no emulator that we run has the instruction */
    return __get_cpuid_count(7, 1, &a, &b, &c, &d) && a & 1u << 4;
}

/* The tiles' state is large, so Linux wants to be asked before a process may use it. */
int vgq_has_amx(void)
{
    enum {
        OSXSAVE = 1 << 27,
        TILES = 3 << 24 | 1 << 22 /* tiles, INT8, BF16 */,
        TILE_STATE = 3 << 17
    };
    enum { ARCH_REQ_XCOMP_PERM = 0x1023, XTILEDATA = 18 };
    unsigned a, b, c = 0, d = 0, low, high;
    /* uncovered: no emulator that we run has tiles */
    if (!__get_cpuid(1, &a, &b, &c, &d) || !(c & OSXSAVE) ||
        !__get_cpuid_count(7, 0, &a, &b, &c, &d) || (d & TILES) != TILES)
        return 0;
    /* uncovered: likewise */
    __asm__ volatile("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
    /* uncovered: likewise */
    return (low & TILE_STATE) == TILE_STATE &&
           syscall(SYS_arch_prctl, ARCH_REQ_XCOMP_PERM, XTILEDATA) == 0;
}
#endif
#endif

#if defined(__aarch64__)
#include <sys/auxv.h>

int vgq_has_dotprod(void) { return (getauxval(AT_HWCAP) & 1ul << 20) != 0; } /* HWCAP_ASIMDDP */
int vgq_has_i8mm(void) { return (getauxval(AT_HWCAP2) & 1ul << 13) != 0; }   /* HWCAP2_I8MM */
#endif

#define X(name, runs_here, confirmed) ISA_##name,
enum { VGQ_ISAS(X) ISAS };
#undef X

#define X(name, runs_here, confirmed) #name,
static const char *const names[ISAS] = {VGQ_ISAS(X)};
#undef X
#define X(name, runs_here, confirmed) confirmed,
static const int is_confirmed[ISAS] = {VGQ_ISAS(X)};
#undef X

/* Written once, before any call, by compose(). */
static vgq_kernels tables[ISAS];
static enum { ABSENT, HERE, REFUSED } states[ISAS];
static pthread_once_t composed = PTHREAD_ONCE_INIT;

static const vgq_kernels *_Atomic chosen; /* of tables */

/* Asks the CPU and, through XCR0, the operating system. */
static int runs_here(int isa)
{
#if defined(__x86_64__)
    __builtin_cpu_init();
#endif
#define X(name, condition, confirmed) \
    case ISA_##name:                  \
        return condition;
    switch (isa) { /* uncovered: the callers' loops end with the last */
        /* uncovered: which of them are there is one CPU's affair */
        VGQ_ISAS(X)
    }
#undef X
    return 0; /* uncovered: after a switch over all */
}

typedef void vgq_slot(void);

/* Every member of a table is a pointer, so a table is an array of slots; a filled slot replaces. */
static void overlay(void *onto, const void *table, size_t nbytes)
{
    for (size_t i = 0; i < nbytes; i += sizeof(vgq_slot *)) {
        vgq_slot *slot;
        memcpy(&slot, (const char *)table + i, sizeof(slot));
        if (slot)
            memcpy((char *)onto + i, &slot, sizeof(slot));
    }
}

/* Every table that runs here, each laid over the weaker ones that do. */
static void compose(void)
{
    for (int isa = 0; isa < ISAS; isa++) {
        /* uncovered: a CPU that has all */
        if (!runs_here(isa))
            continue; /* uncovered: likewise */
        states[isa] = HERE;
#define X(subject, name)                                 \
    if (ISA_##name <= isa && states[ISA_##name] == HERE) \
        overlay(&tables[isa].subject, &vgq_##subject##_##name, sizeof(tables[isa].subject));
        /* uncovered: a CPU with gaps in the list, and the list's ends, whose comparisons are
         * constant */
        VGQ_TABLES(X)
#undef X
        if (!is_confirmed[isa] && !vgq_agrees(&tables[isa], &tables[ISA_scalar]))
            states[isa] = REFUSED;
    }
}

/* The index-th table in that state. */
static const char *name_in_state(int state, size_t index)
{
    pthread_once(&composed, compose);
    for (int isa = 0; isa < ISAS; isa++)
        if ((int)states[isa] == state && index-- == 0)
            return names[isa];
    return NULL;
}

vgq_status vgq_use(const char *isa)
{
    pthread_once(&composed, compose);
    int last = ISAS - 1;
    /* uncovered: likewise */
    while (last >= 0 && (states[last] != HERE || (isa && strcmp(isa, names[last]) != 0)))
        last--;
    if (last < 0)
        return VGQ_EISA;
    chosen = &tables[last];
    return VGQ_OK;
}

static const vgq_kernels *choice(void)
{
    if (!chosen)
        vgq_use(NULL); /* scalar runs everywhere */
    return chosen;
}

const char *vgq_isa(void) { return names[choice() - tables]; }

const char *vgq_isa_here(size_t index) { return name_in_state(HERE, index); }

const char *vgq_isa_refused(size_t index) { return name_in_state(REFUSED, index); }

vgq_context vgq_context_now(void) { return (vgq_context){choice(), vgq_threads()}; }

/* Of the tables that hold the chosen slot, the weakest: a stronger one may only refer to it. */
#define FOUND_linear(name)                                                                  \
    if (ints ? vgq_linear_##name.products == kernels->products                              \
             : vgq_linear_##name.float_gemm == gemm || vgq_linear_##name.bf16_gemm == gemm) \
        return names[ISA_##name];
#define FOUND_quantize(name)
#define FOUND_metrics(name)
#define FOUND_rows(name)
#define FOUND_attention(name)
#define FOUND_conv(name)
#define X(subject, name) FOUND_##subject(name)

const char *vgq_linear_isa(vgq_activations *activations)
{
    const vgq_linear_kernels *const kernels = &choice()->linear;
    const int ints = *activations == VGQ_INT8_ACTIVATIONS || *activations == VGQ_INT16_ACTIVATIONS;
    const vgq_float_gemm *gemm = kernels->float_gemm;
    if (*activations == VGQ_BF16_ACTIVATIONS && kernels->bf16_gemm)
        gemm = kernels->bf16_gemm;
    else if (!ints)
        *activations = VGQ_FLOAT_ACTIVATIONS;
    /* uncovered: one of them holds the chosen slot, so nothing is left for the end */
    VGQ_TABLES(X)
    return vgq_isa();
}

#undef FOUND_linear
#undef FOUND_attention
#define FOUND_linear(name)
#define FOUND_attention(name)                                                                   \
    if (of_values ? vgq_attention_##name.values[*activations] == kernels->values[*activations]  \
                  : vgq_attention_##name.scores[*activations] == kernels->scores[*activations]) \
        return names[ISA_##name];

const char *vgq_attention_isa(int of_values, vgq_activations *activations)
{
    const vgq_attention_kernels *const kernels = &choice()->attention;
    if (of_values ? !kernels->values[*activations] : !kernels->scores[*activations])
        *activations = VGQ_FLOAT_ACTIVATIONS;
    /* uncovered: likewise */
    VGQ_TABLES(X)
    return vgq_isa(); /* uncovered: likewise */
}
#undef X
