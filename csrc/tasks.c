/* SPDX-License-Identifier: Apache-2.0
 * Queues of tasks with work stealing, and the floating-point mode of the threads. */
#include "tasks.h"

#include <fenv.h>
#include <stdatomic.h>
#include <string.h>

int omp_get_thread_num(void); /* of openmp.c */

_Static_assert(sizeof(fenv_t) <= sizeof(vgq_float_mode), "vgq_float_mode must hold a fenv_t");

void vgq_float_enter(vgq_float_mode *mode)
{
    fenv_t env;
    fegetenv(&env);
    memcpy(mode, &env, sizeof(env));
    fesetenv(FE_DFL_ENV);
}

void vgq_float_leave(const vgq_float_mode *mode)
{
    fenv_t env;
    memcpy(&env, mode, sizeof(env));
    fesetenv(&env);
}

size_t vgq_crew_nbytes(const vgq_crew *crew)
{
    return (size_t)crew->team * (sizeof(vgq_queue) + crew->own_nbytes);
}

void vgq_crew_place(vgq_crew *crew, unsigned char *at)
{
    crew->queues = (vgq_queue *)(void *)at;
    crew->own = at + (size_t)crew->team * sizeof(vgq_queue);
}

vgq_status vgq_run_tasks(const vgq_crew *crew, int team, size_t count, vgq_task_fn *run,
                         const void *job)
{
    const size_t threads = (size_t)team, share = count / threads, more = count % threads;
    for (size_t t = 0; t < threads; t++) {
        atomic_init(&crew->queues[t].next, share * t + vgq_min(more, t));
        crew->queues[t].end = share * (t + 1) + vgq_min(more, t + 1);
    }
#pragma omp parallel num_threads(team)
    {
        vgq_float_mode mode;
        vgq_float_enter(&mode);
        const size_t me = (size_t)omp_get_thread_num();
        for (size_t t = 0; t < threads; t++) {
            vgq_queue *const queue = &crew->queues[(me + t) % threads];
            for (size_t i; (i = atomic_fetch_add(&queue->next, 1)) < queue->end && !vgq_stopped();)
                run(job, i, crew->own + me * crew->own_nbytes);
        }
        vgq_float_leave(&mode);
    }
    return vgq_stopped() ? VGQ_ESTOPPED : VGQ_OK;
}
