/* SPDX-License-Identifier: Apache-2.0
 * The host shim's machine: fibers, barriers and what a warp shows itself. See cuda_shim.h. */
#include "cuda_shim.h"

#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <ucontext.h>
#if defined(VGQ_ADDRESS_SANITIZER) /* of the sources; this file itself is built without */
#include <sanitizer/common_interface_defs.h>
#endif

namespace shim
{
indices running_at;

enum state { READY, AT_BLOCK, AT_WARP, DONE };
enum { STACK = 128 * 1024 };

struct fiber {
    void *context[5]; /* of __builtin_setjmp */
    void *stack, *fake_stack;
    dim3 index;
    state where;
    unsigned mask;
    alignas(16) unsigned char shown[EXCHANGED];
};

static fiber fibers[LARGEST_BLOCK];
static void *scheduler[5];
static void *scheduler_fake_stack;
static const void *scheduler_stack;
static size_t scheduler_stack_nbytes;
static volatile unsigned current;
static unsigned threads;
static bool inside;
static uint32_t block_serial, launch_first, block_epoch, warp_epochs[LARGEST_BLOCK / WARP];
static entry *kernel_entry;
static const void *kernel_closure;
static unsigned char *dynamic;

void fail(const char *format, ...)
{
    va_list args;
    va_start(args, format);
    printf("cuda shim: ");
    vprintf(format, args);
    va_end(args);
    printf(" [block (%u, %u, %u) of (%u, %u, %u), thread %u of %u]\n", running_at.block.x,
           running_at.block.y, running_at.block.z, running_at.grid_size.x, running_at.grid_size.y,
           running_at.grid_size.z, current, threads);
    fflush(stdout);
    _Exit(3);
}

/* The address sanitizer wants to know which stack it is on. */
static void before_switch(void **fake_stack, const void *stack, size_t nbytes)
{
#if defined(VGQ_ADDRESS_SANITIZER)
    __sanitizer_start_switch_fiber(fake_stack, stack, nbytes);
#else
    (void)fake_stack, (void)stack, (void)nbytes;
#endif
}

static void after_switch(void *fake_stack, const void **stack, size_t *nbytes)
{
#if defined(VGQ_ADDRESS_SANITIZER)
    __sanitizer_finish_switch_fiber(fake_stack, stack, nbytes);
#else
    (void)fake_stack, (void)stack, (void)nbytes;
#endif
}

/* Saves this stack's place in `from` and goes on at `to`. swapcontext would do, but asks the kernel
 * for signal masks each time. */
static __attribute__((noinline)) void jump(void **to) { __builtin_longjmp(to, 1); }
static __attribute__((noinline)) void change(void **from, void **to)
{
    if (!__builtin_setjmp(from))
        jump(to);
}

static void to_scheduler()
{
    fiber *const self = &fibers[current];
    before_switch(&self->fake_stack, scheduler_stack, scheduler_stack_nbytes);
    change(self->context, scheduler);
    after_switch(self->fake_stack, &scheduler_stack, &scheduler_stack_nbytes);
}

/* A fiber's life: one thread of one block after the other. */
static void body()
{
    after_switch(NULL, &scheduler_stack, &scheduler_stack_nbytes);
    for (;;) {
        kernel_entry(kernel_closure);
        fibers[current].where = DONE;
        to_scheduler();
    }
}

/* Onto a fiber's stack for the first time. */
static __attribute__((noinline)) void give_birth(fiber *f)
{
    ucontext_t context;
    getcontext(&context);
    context.uc_stack.ss_sp = f->stack;
    context.uc_stack.ss_size = STACK;
    context.uc_link = NULL;
    makecontext(&context, body, 0);
    if (!__builtin_setjmp(scheduler))
        setcontext(&context);
}

static void go_on(unsigned i)
{
    fiber *const f = &fibers[i];
    const bool born = f->stack != NULL;
    current = i;
    running_at.thread = f->index;
    inside = true;
    if (!born) {
        f->stack = mmap(NULL, STACK, PROT_READ | PROT_WRITE,
                        MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
        if (f->stack == MAP_FAILED)
            fail("no memory for stacks");
    }
    before_switch(&scheduler_fake_stack, f->stack, STACK);
    if (born)
        change(scheduler, f->context);
    else
        give_birth(f);
    after_switch(scheduler_fake_stack, NULL, NULL);
    inside = false;
}

/* Lets those go on who wait for nobody any more; whether there were any. */
static bool release()
{
    bool released = false;
    for (unsigned first = 0; first < threads; first += WARP)
        for (unsigned lane = 0; lane < WARP; lane++) {
            const fiber *const f = &fibers[first + lane];
            if (f->where != AT_WARP || !(f->mask >> lane & 1))
                continue;
            const unsigned mask = f->mask;
            bool all = true;
            for (unsigned other = 0; other < WARP; other++)
                if (mask >> other & 1)
                    all &= fibers[first + other].where == AT_WARP &&
                           fibers[first + other].mask == mask;
            if (!all)
                continue;
            for (unsigned other = 0; other < WARP; other++)
                if (mask >> other & 1)
                    fibers[first + other].where = READY;
            warp_epochs[first / WARP]++;
            released = true;
        }
    unsigned waiting = 0;
    for (unsigned i = 0; i < threads; i++)
        waiting += fibers[i].where == AT_BLOCK;
    if (waiting == threads) {
        for (unsigned i = 0; i < threads; i++)
            fibers[i].where = READY;
        block_epoch++;
        released = true;
    }
    return released;
}

static void run_block(dim3 block)
{
    block_serial++;
    for (unsigned i = 0; i < threads; i++) {
        fibers[i].index = dim3(i % block.x, i / block.x % block.y, i / block.x / block.y);
        fibers[i].where = READY;
    }
    for (;;) {
        bool ran = false;
        unsigned done = 0;
        for (unsigned i = 0; i < threads; i++) {
            if (fibers[i].where == READY) {
                go_on(i);
                ran = true;
            }
            done += fibers[i].where == DONE;
        }
        if (done == threads)
            return;
        if (!release() && !ran)
            fail("a barrier that not all reach: %u of %u threads are done, the others wait", done,
                 threads);
    }
}

void run(dim3 grid, dim3 block, size_t shared_nbytes, entry *kernel, const void *closure)
{
    threads = block.x * block.y * block.z;
    running_at.grid_size = grid;
    running_at.block_size = block;
    if (threads % WARP || !threads || threads > LARGEST_BLOCK)
        fail("a block of %u threads; a multiple of 32 up to 1024 is wanted", threads);
    if (grid.y > 65535 || grid.z > 65535 || grid.x > 0x7fffffffu)
        fail("a grid of %u x %u x %u blocks", grid.x, grid.y, grid.z);
    if (shared_nbytes > 227 * 1024)
        fail("%zu bytes of dynamic shared memory", shared_nbytes);
    kernel_entry = kernel;
    kernel_closure = closure;
    launch_first = block_serial + 1;
    for (unsigned z = 0; z < grid.z; z++)
        for (unsigned y = 0; y < grid.y; y++)
            for (unsigned x = 0; x < grid.x; x++) {
                running_at.block = dim3(x, y, z);
                void *bytes;
                if (posix_memalign(&bytes, 128, shared_nbytes ? shared_nbytes : 1))
                    fail("no memory for shared memory");
                dynamic = (unsigned char *)bytes;
                memset(dynamic, 0xa5, shared_nbytes);
                forget_shared(dynamic, shared_nbytes);
                run_block(block);
                free(dynamic);
                dynamic = NULL;
            }
}

unsigned char *dynamic_shared() { return dynamic; }
unsigned lane() { return current % WARP; }
bool running() { return inside; }
uint32_t first_block_of_launch() { return launch_first; }
stamp now() { return {block_serial, current, block_epoch, warp_epochs[current / WARP]}; }

void block_barrier()
{
    fibers[current].where = AT_BLOCK;
    to_scheduler();
}

void warp_barrier(unsigned mask)
{
    if (!(mask >> lane() & 1))
        fail("a warp barrier of lanes %08x, which lane %u is not among", mask, lane());
    fibers[current].mask = mask;
    fibers[current].where = AT_WARP;
    to_scheduler();
}

void warp_exchange(unsigned mask, const void *bytes, size_t nbytes)
{
    if (nbytes > EXCHANGED)
        fail("%zu bytes to show a warp", nbytes);
    memcpy(fibers[current].shown, bytes, nbytes);
    warp_barrier(mask);
}

const void *warp_sees(unsigned i) { return fibers[current / WARP * WARP + i].shown; }
void warp_done(unsigned mask) { warp_barrier(mask); }
} // namespace shim
