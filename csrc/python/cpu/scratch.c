/* SPDX-License-Identifier: Apache-2.0
 * Scratch of calls: the memory of a thread's last call is kept for its next one. */
#define _GNU_SOURCE
#include "binding.h"

#include <pthread.h>
#include <stdlib.h>
#include <sys/mman.h>

enum { HUGE_PAGE = 2 << 20, MOST_KEPT = 32 << 20, LEAST = 64 << 10 };

static _Thread_local vgq_scratch kept;
static pthread_key_t at_exit;
static pthread_once_t made = PTHREAD_ONCE_INIT;

static void make_key(void) { pthread_key_create(&at_exit, free); }

static void keep(vgq_scratch scratch)
{
    kept = scratch;
    pthread_once(&made, make_key);
    pthread_setspecific(at_exit, scratch.data); /* freed when the thread ends */
}

int vgq_take_scratch(vgq_scratch *scratch, size_t nbytes)
{
    *scratch = kept; /* taken: a signal's handler may make a call of its own meanwhile */
    keep((vgq_scratch){0});
    if (scratch->data && scratch->nbytes >= nbytes)
        return 1;
    free(scratch->data);
    void *data = NULL;
    nbytes = nbytes < LEAST ? LEAST : nbytes;
    if (posix_memalign(&data, nbytes < HUGE_PAGE ? 64 : HUGE_PAGE, nbytes) != 0) {
        PyErr_NoMemory();
        return 0;
    }
    if (nbytes >= HUGE_PAGE) /* what the system says to it does not matter */
        madvise(data, nbytes / HUGE_PAGE * HUGE_PAGE, MADV_HUGEPAGE);
    *scratch = (vgq_scratch){data, nbytes};
    return 1;
}

void vgq_give_scratch(vgq_scratch *scratch)
{
    if (kept.data || scratch->nbytes > MOST_KEPT)
        free(scratch->data);
    else
        keep(*scratch);
}
