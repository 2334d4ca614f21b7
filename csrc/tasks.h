/* SPDX-License-Identifier: Apache-2.0
 * Private: the parallel part of a call that is cut into tasks. Each thread has a queue of
 * neighbouring tasks, and then helps the others with theirs. */
#ifndef VGQ_TASKS_H
#define VGQ_TASKS_H

#include "kernels.h"

enum { VGQ_ALIGN = 64 }; /* a cache line */

typedef struct vgq_queue {
    _Atomic size_t next;
    size_t end;
    unsigned char apart[VGQ_ALIGN - 2 * sizeof(size_t)];
} vgq_queue;

/* The threads of a call and what each owns. Fill in team and own_nbytes (a multiple of VGQ_ALIGN),
 * reserve vgq_crew_nbytes of the call's scratch, then place the crew there. */
typedef struct vgq_crew {
    int team;
    size_t own_nbytes;
    vgq_queue *queues;  /* [team] */
    unsigned char *own; /* [team][own_nbytes] */
} vgq_crew;

size_t vgq_crew_nbytes(const vgq_crew *crew);
/* at: aligned to VGQ_ALIGN. */
void vgq_crew_place(vgq_crew *crew, unsigned char *at);

/* own: own_nbytes that only the calling thread uses; what a task leaves there, the thread's next
 * task finds. */
typedef void vgq_task_fn(const void *job, size_t task, unsigned char *own);

/* Runs each of the tasks 0..count-1 once, on at most `team` threads of the crew, in the default
 * floating-point mode. A thread begins with its share of neighbouring tasks in their order. Asks
 * vgq_stopped before each task; VGQ_ESTOPPED: some were left out. */
vgq_status vgq_run_tasks(const vgq_crew *crew, int team, size_t count, vgq_task_fn *run,
                         const void *job);

#endif
