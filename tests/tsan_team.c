/* SPDX-License-Identifier: Apache-2.0
 * A small OpenMP runtime of plain pthreads, for the thread sanitizer: gcc's own is not built with
 * it, so its hand-overs would look like races. csrc/openmp.c finds it as libgomp.so.1. */
#include <pthread.h>
#include <stdlib.h>

typedef struct member {
    void (*fn)(void *);
    void *data;
    int number, count;
} member;

static _Thread_local member here = {NULL, NULL, 0, 1};

static void *work(void *argument)
{
    here = *(member *)argument;
    here.fn(here.data);
    return NULL;
}

void GOMP_parallel(void (*fn)(void *), void *data, unsigned count, unsigned flags);
int omp_get_thread_num(void);
int omp_get_num_threads(void);
int omp_get_max_threads(void);
int omp_in_parallel(void);

void GOMP_parallel(void (*fn)(void *), void *data, unsigned count, unsigned flags)
{
    enum { MOST = 8 };
    pthread_t threads[MOST];
    member members[MOST];
    const unsigned team = count == 0 || count > MOST ? MOST : count;
    const member before = here;
    (void)flags;
    for (unsigned i = 0; i < team; i++)
        members[i] = (member){fn, data, (int)i, (int)team};
    for (unsigned i = 1; i < team; i++)
        if (pthread_create(&threads[i], NULL, work, &members[i]))
            abort();
    work(&members[0]);
    here = before;
    for (unsigned i = 1; i < team; i++)
        pthread_join(threads[i], NULL);
}

int omp_get_thread_num(void) { return here.number; }
int omp_get_num_threads(void) { return here.count; }
int omp_get_max_threads(void) { return 4; }
int omp_in_parallel(void) { return here.count > 1; }
