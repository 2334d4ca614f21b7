/* SPDX-License-Identifier: Apache-2.0
 * OpenMP without a runtime of our own. The fronts are compiled with -fopenmp, but the module links
 * no OpenMP library: torch brings one (renamed, inside its wheel), and a second pool of threads
 * beside it costs more than any kernel gains. So the few entry points that gcc's generated code
 * calls are defined here, hidden, and handed on to whichever runtime the process has loaded,
 * torch's first. With none loaded, the system's libgomp is opened; without that, work runs on the
 * calling thread. Also here: how many threads a call uses. */
#define _GNU_SOURCE
#include "kernels.h"

#include <dlfcn.h>
#include <link.h>
#include <pthread.h>
#include <stdatomic.h>
#include <string.h>

typedef void outlined_fn(void *data);
typedef void parallel_fn(outlined_fn *fn, void *data, unsigned num_threads, unsigned flags);
typedef int count_fn(void);

typedef struct runtime {
    parallel_fn *parallel;
    count_fn *thread_num, *num_threads, *max_threads, *in_parallel;
    char name[128];
} runtime;

/* Runtimes met so far. A slot is written before `current` points to it and never again, so whoever
 * reads `current` needs no lock. */
enum { RUNTIMES = 4 };
static runtime runtimes[RUNTIMES];
static int known;
static const runtime *_Atomic current; /* NULL: none */
/* How many libraries had been loaded when we looked; 0: never. */
static _Atomic unsigned long long looked_at;
static pthread_mutex_t looking = PTHREAD_MUTEX_INITIALIZER;
static _Atomic int wanted; /* vgq_set_threads */
static _Atomic int forked;
/* Whose region this thread works in; NULL: alone. A region keeps its runtime to its end, even if
 * torch's appears meanwhile. */
static _Thread_local const runtime *region;
static _Thread_local int limit; /* vgq_limit_threads */

static const char *basename_of(const char *path)
{
    const char *slash = strrchr(path, '/');
    return slash ? slash + 1 : path;
}

/* torch's runtime is a libgomp in a folder of torch's; LLVM's and Intel's serve the same calls. */
static int rank_of(const char *path)
{
    const char *name = basename_of(path);
    const int is_runtime = !strncmp(name, "libgomp", 7) || !strncmp(name, "libomp", 6) ||
                           !strncmp(name, "libiomp5", 8);
    if (!is_runtime)
        return 0;
    return strstr(path, "/torch") ? 2 : 1;
}

typedef struct search {
    int rank;
    char path[4096];
    unsigned long long loads;
} search;

static int visit(struct dl_phdr_info *info, size_t size, void *data)
{
    search *s = data;
    (void)size;
    s->loads = info->dlpi_adds;
    const int rank = rank_of(info->dlpi_name);
    /* uncovered: the system opens no file of a longer path */
    if (rank > s->rank && strlen(info->dlpi_name) < sizeof(s->path)) {
        s->rank = rank;
        strcpy(s->path, info->dlpi_name);
    }
    return 0;
}

static int count_loads(struct dl_phdr_info *info, size_t size, void *data)
{
    (void)size;
    *(unsigned long long *)data = info->dlpi_adds;
    return 1;
}

static int bind(runtime *r, void *library, const char *path)
{
    /* ISO C has no cast from object to function pointer; POSIX defines it through memory. */
    const struct {
        const char *name;
        void **to;
    } calls[] = {{"GOMP_parallel", (void **)&r->parallel},
                 {"omp_get_thread_num", (void **)&r->thread_num},
                 {"omp_get_num_threads", (void **)&r->num_threads},
                 {"omp_get_max_threads", (void **)&r->max_threads},
                 {"omp_in_parallel", (void **)&r->in_parallel}};
    if (!library)
        return 0;
    for (size_t i = 0; i < sizeof(calls) / sizeof(calls[0]); i++)
        if (!(*calls[i].to = dlsym(library, calls[i].name)))
            return 0;
    strncpy(r->name, basename_of(path), sizeof(r->name) - 1);
    return 1;
}

/* A forked child has none of the pool's threads, and libgomp would wait for them for ever. The pool
 * may be torch's work, so forks are watched from the start. */
void vgq_forked(void) { forked = 1; }
__attribute__((constructor)) static void watch_forks(void)
{
    pthread_atfork(NULL, NULL, vgq_forked);
}

/* With the lock held. */
static void look(void)
{
    search s = {0};
    dl_iterate_phdr(visit, &s);
    looked_at = s.loads;
    runtime now = {0};
    const char *const gomp = "libgomp.so.1";
    if (!(s.rank && bind(&now, dlopen(s.path, RTLD_LAZY | RTLD_NOLOAD), s.path)) &&
        !bind(&now, dlopen(gomp, RTLD_LAZY), gomp))
        return;
    const runtime *const before = current;
    if (before && before->parallel == now.parallel)
        return;
    /* uncovered: the first of a rank stays, since we hold it, so there are two of them at most */
    if (known == RUNTIMES)
        return;
    runtimes[known] = now;
    current = &runtimes[known++];
}

/* The runtime to use, or NULL. Looks again whenever a library was loaded since, because torch may
 * be imported after us. */
static const runtime *openmp(void)
{
    if (forked)
        return NULL;
    unsigned long long loads = 0;
    dl_iterate_phdr(count_loads, &loads);
    if (loads != looked_at) {
        pthread_mutex_lock(&looking);
        look();
        pthread_mutex_unlock(&looking);
    }
    return current;
}

/* ---- what the generated code of `#pragma omp parallel` calls -------------------------------- */

void GOMP_parallel(outlined_fn *fn, void *data, unsigned num_threads, unsigned flags);
int omp_get_thread_num(void);
int omp_get_num_threads(void);

typedef struct work {
    outlined_fn *fn;
    void *data;
    const runtime *runtime;
    vgq_stop *watched;
} work;

static void share_of(void *data)
{
    const work *const w = data;
    const runtime *const outer = region;
    vgq_stop *const before = vgq_watch(w->watched);
    region = w->runtime;
    w->fn(w->data);
    region = outer;
    vgq_watch(before);
}

void GOMP_parallel(outlined_fn *fn, void *data, unsigned num_threads, unsigned flags)
{
    const runtime *const r = forked || num_threads == 1 ? NULL : current;
    work w = {fn, data, r && !r->in_parallel() ? r : NULL, vgq_watched()};
    if (w.runtime)
        w.runtime->parallel(share_of, &w, num_threads, flags);
    else
        share_of(&w);
}

int omp_get_thread_num(void) { return region ? region->thread_num() : 0; }

int omp_get_num_threads(void) { return region ? region->num_threads() : 1; }

/* ---- counts --------------------------------------------------------------------------------- */

void vgq_set_threads(int n) { wanted = n > 0 ? n : 0; }

int vgq_limit_threads(int n)
{
    const int before = limit;
    limit = n > 0 ? n : 0;
    return before;
}

int vgq_threads(void)
{
    const runtime *const r = openmp();
    const int set = wanted; /* read once: another thread may set it */
    const int most = set ? set : r ? r->max_threads() : 1;
    if (forked)
        return 1;
    return limit && limit < most ? limit : most;
}

int vgq_team(int threads, size_t elements) { return elements < 32768 ? 1 : threads; }

const char *vgq_openmp(void)
{
    const runtime *const r = openmp();
    return r ? r->name : "none";
}
