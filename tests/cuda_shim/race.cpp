/* SPDX-License-Identifier: Apache-2.0
 * The host shim's race detector. A compiler with -fsanitize=thread calls __tsan_read4 and its kin
 * for each access; linked without the sanitizer's runtime, those are the functions here. Built
 * without that flag they are never called. */
#include "cuda_shim.h"

#include <stdlib.h>

/* All static variables of the program, from the linker: among them the sources' shared arrays. */
extern "C" unsigned char __data_start[], _end[];

namespace shim
{
/* Who touched a byte: the last to write it, and up to two who read it since and are not ordered. */
struct cell {
    stamp write, read, other_read;
};

struct region {
    const unsigned char *first;
    size_t nbytes;
    cell *cells;
    bool shared;
};

enum { REGIONS = 64 };
static region regions[REGIONS];
static size_t n_regions;

static void add(const void *first, size_t nbytes, bool shared)
{
    if (n_regions == REGIONS)
        fail("more than %d buffers to watch", REGIONS);
    cell *const cells = (cell *)calloc(nbytes ? nbytes : 1, sizeof(cell));
    regions[n_regions++] = {(const unsigned char *)first, nbytes, cells, shared};
}

void watch(const void *first, size_t nbytes) { add(first, nbytes, false); }

void unwatch(const void *first)
{
    for (size_t i = 0; i < n_regions; i++)
        if (!regions[i].shared && regions[i].first == first) {
            free(regions[i].cells);
            regions[i] = regions[--n_regions];
            return;
        }
}

void forget_shared(const void *dynamic, size_t nbytes)
{
    size_t kept = 0;
    bool known = false;
    for (size_t i = 0; i < n_regions; i++) {
        const bool is_static = regions[i].first == __data_start;
        if (regions[i].shared && !is_static) {
            free(regions[i].cells);
            continue;
        }
        known |= is_static;
        regions[kept++] = regions[i];
    }
    n_regions = kept;
    if (!known)
        add(__data_start, (size_t)(_end - __data_start), true);
    if (nbytes)
        add(dynamic, nbytes, true);
}

/* Whether what `s` did is over for everybody when `t` acts. */
static bool ordered(stamp s, stamp t, bool shared)
{
    if (!s.block || s.block < first_block_of_launch())
        return true;
    if (s.block != t.block)
        return shared;
    return s.thread == t.thread || s.block_epoch != t.block_epoch ||
           (s.thread / WARP == t.thread / WARP && s.warp_epoch != t.warp_epoch);
}

static void touch_byte(region *r, size_t at, bool writes)
{
    const stamp self = now();
    cell *const c = &r->cells[at];
    const char *const where = r->shared ? "shared" : "global";
    if (!ordered(c->write, self, r->shared))
        fail(
            "race: byte %zu of %s memory is %s, and thread %u of block %u wrote it with no barrier "
            "between",
            at, where, writes ? "written" : "read", c->write.thread, c->write.block);
    if (writes) {
        const bool first = ordered(c->read, self, r->shared);
        if (!first || !ordered(c->other_read, self, r->shared))
            fail("race: byte %zu of %s memory is written, and thread %u read it with no barrier "
                 "between",
                 at, where, (first ? c->other_read : c->read).thread);
        *c = {self, {}, {}};
        return;
    }
    if (r->shared && c->write.block != self.block)
        fail("byte %zu of shared memory is read before any thread of the block wrote it", at);
    if (ordered(c->read, self, r->shared))
        c->read = self;
    else if (ordered(c->other_read, self, r->shared))
        c->other_read = self;
}

void touch(const void *first, size_t nbytes, bool writes)
{
    const unsigned char *const p = (const unsigned char *)first;
    const unsigned char *const indices = (const unsigned char *)&running_at;
    if (!running() || (p >= indices && p < indices + sizeof(running_at)))
        return;
    for (size_t i = 0; i < n_regions; i++)
        if (p + nbytes > regions[i].first && p < regions[i].first + regions[i].nbytes) {
            for (size_t k = 0; k < nbytes; k++)
                if (p + k >= regions[i].first && p + k < regions[i].first + regions[i].nbytes)
                    touch_byte(&regions[i], (size_t)(p + k - regions[i].first), writes);
            return;
        }
}
} // namespace shim

#define ACCESS(name, nbytes, writes) \
    extern "C" void __tsan_##name(const void *at) { shim::touch(at, nbytes, writes); }
#define ACCESSES(nbytes)                          \
    ACCESS(read##nbytes, nbytes, false)           \
    ACCESS(write##nbytes, nbytes, true)           \
    ACCESS(unaligned_read##nbytes, nbytes, false) \
    ACCESS(unaligned_write##nbytes, nbytes, true) \
    ACCESS(volatile_read##nbytes, nbytes, false)  \
    ACCESS(volatile_write##nbytes, nbytes, true)
ACCESSES(1)
ACCESSES(2)
ACCESSES(4)
ACCESSES(8)
ACCESSES(16)
extern "C" void __tsan_read_range(const void *at, size_t n) { shim::touch(at, n, false); }
extern "C" void __tsan_write_range(const void *at, size_t n) { shim::touch(at, n, true); }
extern "C" void __tsan_init() {}
extern "C" void __tsan_func_entry(void *) {}
extern "C" void __tsan_func_exit() {}
extern "C" void __tsan_vptr_update(void *, void *) {}
