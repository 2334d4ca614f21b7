/* SPDX-License-Identifier: Apache-2.0
 * The choice of kernels: the tables that run here, laid over each other, weakest first. Made once
 * at import (and by tests); never lazily, so there is no race and no first-call cost. */
#include "kernels.h"

#include <string.h>
#if defined(__x86_64__)
#include <cpuid.h>

/* clang 14 knows no such word for __builtin_cpu_supports; that of AVX2 has asked the system
 * already. */
int vgq_has_f16c(void)
{
    unsigned a, b, c = 0, d;
    return __get_cpuid(1, &a, &b, &c, &d) && c & bit_F16C;
}
#endif

#if defined(__aarch64__)
#include <sys/auxv.h>

int vgq_has_dotprod(void) { return (getauxval(AT_HWCAP) & 1ul << 20) != 0; } /* HWCAP_ASIMDDP */
#endif

typedef void vgq_slot(void);

static vgq_kernels chosen;
static const char *chosen_isa = "none";

#define X(name, runs_here) ISA_##name,
enum { VGQ_ISAS(X) ISAS };
#undef X

static const char *isa_name(int isa)
{
#define X(name, runs_here) #name,
    static const char *const names[] = {VGQ_ISAS(X)};
#undef X
    return names[isa];
}

/* Asks the CPU and, through XCR0, the operating system. */
static int runs_here(int isa)
{
#if defined(__x86_64__)
    __builtin_cpu_init();
#endif
#define X(name, condition) \
    case ISA_##name:       \
        return condition;
    switch (isa) {
        VGQ_ISAS(X)
    }
#undef X
    return 0;
}

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

vgq_status vgq_use(const char *isa)
{
    int last = ISAS - 1;
    while (last >= 0 && (!runs_here(last) || (isa && strcmp(isa, isa_name(last)) != 0)))
        last--;
    if (last < 0)
        return VGQ_EISA;
    memset(&chosen, 0, sizeof(chosen));
#define X(subject, name)                             \
    if (ISA_##name <= last && runs_here(ISA_##name)) \
        overlay(&chosen.subject, &vgq_##subject##_##name, sizeof(chosen.subject));
    VGQ_TABLES(X)
#undef X
    chosen_isa = isa_name(last);
    return VGQ_OK;
}

const char *vgq_isa(void) { return chosen_isa; }

const char *vgq_isa_here(size_t index)
{
    for (int isa = 0; isa < ISAS; isa++)
        if (runs_here(isa) && index-- == 0)
            return isa_name(isa);
    return NULL;
}

const vgq_kernels *vgq_chosen(void) { return &chosen; }
