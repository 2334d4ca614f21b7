/* SPDX-License-Identifier: Apache-2.0
 * For the thread sanitizer: three threads call every front at once while a fourth chooses
 * instruction sets, each with a team of four (tsan_team.c), one of them under a vgq_stop that ends
 * some of its calls. */
#include "../csrc/vgq.h"

#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { ROWS = 32, COLS = 2048, N = ROWS * COLS, GROUP = 64, GROUPS = N / GROUP, CALLERS = 3 };
static float x[N];
static int wrong;

static int sometimes(void *data) { return ++*(int *)data % 3 == 0; }

static void *room(size_t nbytes)
{
    void *const p = calloc(nbytes, 1);
    if (!p)
        abort();
    return p;
}

/* Attention of x as 96 tokens, with each kind of scores. */
static vgq_status attend(float *y)
{
    enum { HEADS = 3, DIM = 64, ROW = 3 * HEADS * DIM };
    vgq_status status = VGQ_OK;
    for (int a = 0; a <= VGQ_INT8_ACTIVATIONS; a++) {
        const vgq_context now = vgq_context_now();
        const vgq_attention_call call = {.scores = (vgq_activations)a,
                                         .values = (vgq_activations)a,
                                         .batch = 1,
                                         .tokens = 96,
                                         .heads = HEADS,
                                         .dim = DIM,
                                         .qkv = x,
                                         .strides = {0, ROW, HEADS * DIM, DIM},
                                         .scale = 0.125f,
                                         .y = y,
                                         .context = &now};
        const size_t nbytes = vgq_attention_nbytes(&call);
        void *const scratch = room(nbytes);
        status |= vgq_attention(&call, scratch, nbytes);
        free(scratch);
    }
    return status;
}

/* A convolution of two pictures of x, 3 x 3, and its outputs resized. */
static vgq_status convolve(const uint8_t *q, const float *scale, float *y)
{
    enum { SIDE = 24, CHANNELS = 16, TO = 20 };
    const vgq_context now = vgq_context_now();
    const vgq_weight w = {.n = CHANNELS,
                          .k = 9 * CHANNELS,
                          .group = 9 * CHANNELS,
                          .q = (uint8_t *)(uintptr_t)q,
                          .scale = (float *)(uintptr_t)scale};
    float largest[4];
    const vgq_conv_call call = {.pictures = 2,
                                .height = SIDE,
                                .width = SIDE,
                                .channels = CHANNELS,
                                .source_height = SIDE,
                                .source_width = SIDE,
                                .kernel_height = 3,
                                .kernel_width = 3,
                                .stride_height = 1,
                                .stride_width = 1,
                                .padding_height = 1,
                                .padding_width = 1,
                                .out_height = SIDE,
                                .out_width = SIDE,
                                .x = x,
                                .y = y,
                                .y_largest = largest,
                                .context = &now};
    const vgq_resize_call resize = {.pictures = 2,
                                    .channels = CHANNELS,
                                    .source_height = SIDE,
                                    .source_width = SIDE,
                                    .height = TO,
                                    .width = TO,
                                    .x = x,
                                    .y = y,
                                    .context = &now};
    const size_t packed_nbytes = vgq_packed_nbytes(&w), nbytes = vgq_conv2d_nbytes(&w, &call);
    const size_t resize_nbytes = vgq_resize_nbytes(&resize);
    void *const packed = room(packed_nbytes), *const scratch = room(nbytes + resize_nbytes);
    vgq_status status = vgq_pack(&w, packed, packed_nbytes);
    if (status == VGQ_OK)
        status = vgq_conv2d(packed, packed_nbytes, &call, scratch, nbytes);
    status |= vgq_resize(&resize, scratch, resize_nbytes);
    free(packed), free(scratch);
    return status;
}

static int done;

/* Chooses another instruction set and another number of threads all the time: calls that have begun
 * keep theirs. */
static void *choices(void *argument)
{
    (void)argument;
    for (size_t i = 0; !__atomic_load_n(&done, __ATOMIC_RELAXED); i++) {
        if (!vgq_isa_here(i))
            i = 0;
        vgq_use(vgq_isa_here(i));
        vgq_set_threads(i % 2 ? 0 : 2);
    }
    return vgq_use(NULL) == VGQ_OK ? NULL : &wrong;
}

static void *calls(void *argument)
{
    const vgq_shape shape = {ROWS, COLS, GROUP};
    float *const lo = room(GROUPS * 4), *const hi = room(GROUPS * 4), *const scale = room(N * 4);
    float *const y = room(N * 4), *const ones = room(N * 4);
    uint64_t *const bad = room(ROWS * 8);
    uint8_t *const q = room(N), *const factor = room(GROUPS);
    double *const parts = room(N * 8);
    int asked = 0;
    vgq_stop stop = {sometimes, &asked, 1, 0};
    const int stops = argument != NULL;
    for (int round = 0; round < 4; round++) {
        stop.asked = 1;
        stop.stopped = 0;
        vgq_watch(stops ? &stop : NULL);
        vgq_status status = vgq_range(VGQ_F32, shape, x, lo, hi, bad);
        status |= vgq_parameters(VGQ_I4, GROUPS, lo, hi, scale, NULL);
        status |= vgq_quantize(VGQ_I4, VGQ_F32, shape, x, scale, NULL, q);
        status |= vgq_dequantize(VGQ_I4, VGQ_F32, shape, q, scale, NULL, y);
        status |= vgq_two_level(VGQ_F32, shape, x, scale, factor, NULL, parts);
        status |= vgq_compare(N, VGQ_F32, x, VGQ_F32, y, (vgq_moments *)(void *)parts);
        status |=
            vgq_cross_entropy(ROWS, COLS, VGQ_F32, x, VGQ_F32, y, (vgq_entropy *)(void *)parts);
        status |= vgq_ssim((vgq_images){1, ROWS, COLS, 1}, VGQ_F32, x, VGQ_F32, y, 2, 0, parts);
        vgq_weight w = {VGQ_I4, VGQ_TWO_LEVEL, ROWS, COLS, GROUP, 0, q, scale, factor, NULL};
        const size_t nbytes = vgq_packed_nbytes(&w);
        unsigned char *const packed = room(nbytes);
        status |= vgq_pack(&w, packed, nbytes);
        for (int a = 0; a < VGQ_ACTIVATIONS; a++) {
            const vgq_context now = vgq_context_now();
            vgq_linear_call call = {
                .activations = (vgq_activations)a, .m = ROWS, .x = x, .y = y, .context = &now};
            const size_t scratch_nbytes = vgq_linear_nbytes(&w, &call);
            void *const scratch = room(scratch_nbytes);
            if (scratch_nbytes)
                status |= vgq_linear(packed, nbytes, &call, scratch, scratch_nbytes);
            free(scratch);
        }
        status |= vgq_unpack(packed, nbytes, &w);
        status |= attend(y);
        status |= convolve(q, scale, y);
        vgq_watch(NULL);
        free(packed);
        if (status != VGQ_OK && !stops)
            __atomic_store_n(&wrong, status, __ATOMIC_RELAXED);
    }
    free(lo), free(hi), free(scale), free(y), free(ones), free(bad), free(q), free(factor);
    free(parts);
    return NULL;
}

int main(void)
{
    pthread_t threads[CALLERS], chooser;
    for (size_t i = 0; i < N; i++)
        x[i] = (float)(i * 2654435761u % 1000) / 500 - 1;
    if (vgq_use(NULL) != VGQ_OK)
        return 2;
    if (pthread_create(&chooser, NULL, choices, NULL))
        return 2;
    for (size_t i = 0; i < CALLERS; i++)
        if (pthread_create(&threads[i], NULL, calls, i ? NULL : &wrong))
            return 2;
    for (size_t i = 0; i < CALLERS; i++)
        pthread_join(threads[i], NULL);
    __atomic_store_n(&done, 1, __ATOMIC_RELAXED);
    pthread_join(chooser, NULL);
    printf("threads: %d callers, teams of %d, %s, status %d: no race\n", CALLERS, vgq_threads(),
           vgq_openmp(), wrong);
    return wrong != 0;
}
