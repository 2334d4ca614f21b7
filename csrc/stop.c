/* SPDX-License-Identifier: Apache-2.0
 * How a call is stopped: its thread puts the caller's question now and then. */
#define _GNU_SOURCE
#include "kernels.h"

#include <time.h>

int omp_get_thread_num(void); /* of openmp.c */

enum { ASKED_EVERY = 50 /* milliseconds */ };

/* Who may end this thread's work; in a worker, the work of the thread that it serves. */
static _Thread_local vgq_stop *watched;

static int64_t milliseconds(void)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC_COARSE, &now); /* a few nanoseconds; right to one tick */
    return (int64_t)now.tv_sec * 1000 + now.tv_nsec / 1000000;
}

vgq_stop *vgq_watched(void) { return watched; }

vgq_stop *vgq_watch(vgq_stop *stop)
{
    vgq_stop *const before = watched;
    watched = stop;
    return before;
}

/* Only the calling thread, which is the team's first, asks; the others see its answer. */
int vgq_stopped(void)
{
    vgq_stop *const stop = watched;
    if (!stop)
        return 0;
    if (omp_get_thread_num() == 0) {
        const int64_t now = milliseconds();
        if (!stop->asked)
            stop->asked = now;
        if (now - stop->asked >= ASKED_EVERY) {
            stop->asked = now;
            if (stop->ask(stop->data))
                __atomic_store_n(&stop->stopped, 1, __ATOMIC_RELAXED);
        }
    }
    return __atomic_load_n(&stop->stopped, __ATOMIC_RELAXED);
}
