/* SPDX-License-Identifier: Apache-2.0
 * Compares a table of kernels with the scalar one on a few fixed products, for tables that are not
 * yet confirmed on hardware. Takes some tens of milliseconds. */
#include "kernels.h"

#include <string.h>

enum { N = 70, K = 200, M = 37, GROUP = 40, GROUPS = K / GROUP };
enum { TOKENS = VGQ_KEYS + 4, DIM = 64 };                          /* attention over two blocks */
enum { HEIGHT = 6, WIDTH = 9, CHANNELS = 16, OUT = 24, SIDE = 3 }; /* a convolution */

/* The tables are composed once, by one thread, so these are nobody else's. */
static float x[M * K], scale[N * GROUPS], bias[N], want[TOKENS * DIM], got[TOKENS * DIM];
static uint8_t q[N * K], factor[N * GROUPS], codes[2][M * K];
static int8_t zero[N * GROUPS];
static _Alignas(float) unsigned char packed[1 << 16];
static _Alignas(64) unsigned char scratch[1 << 19];

static void fill(void)
{
    uint32_t state = 2463534242u;
    for (size_t i = 0; i < M * K; i++) {
        state = state * 1664525u + 1013904223u;
        x[i] = (float)(int32_t)state * 0x1p-30f;
    }
    for (size_t i = 0; i < N * K; i++)
        q[i] = (uint8_t)(vgq_bits_of_float(x[i % (M * K)]) * 2654435761u >> 24);
    for (size_t i = 0; i < N * GROUPS; i++) {
        scale[i] = 0.001f + (float)(q[i] & 63) * 0x1p-12f;
        factor[i] = (uint8_t)(1 + q[i] % 8);
        zero[i] = (int8_t)(q[i] % 16 - 8);
    }
    for (size_t i = 0; i < N; i++)
        bias[i] = x[i];
}

/* Whether both tables multiply m rows of activations with the weight to the same bits. */
static int same_product(const vgq_kernels *const tables[2], const vgq_weight *w, size_t m,
                        vgq_activations activations)
{
    const size_t nbytes = vgq_packed_nbytes(w);
    float *const outputs[2] = {want, got};
    for (int t = 0; t < 2; t++) {
        const vgq_context alone = {tables[t], 1};
        const vgq_linear_call call = {.activations = activations,
                                      .m = m,
                                      .x = x,
                                      .bias = bias,
                                      .y = outputs[t],
                                      .gelu = w->asymmetric,
                                      .context = &alone};
        /* uncovered: there is room for these sizes, and calls with them are right */
        if (nbytes > sizeof(packed) || vgq_linear_nbytes(w, &call) > sizeof(scratch) ||
            vgq_linear(packed, nbytes, &call, scratch, sizeof(scratch)) != VGQ_OK)
            return 0; /* uncovered: likewise */
    }
    return memcmp(want, got, m * w->n * sizeof(float)) == 0;
}

static int same_linear(const vgq_kernels *const tables[2])
{
    static const size_t rows[] = {1, 2, 7, M};
    static const struct {
        vgq_format format;
        vgq_scales scales;
    } kinds[] = {{VGQ_I8, VGQ_PER_ROW}, {VGQ_I4, VGQ_TWO_LEVEL}, {VGQ_I4, VGQ_PER_GROUP}};
    for (size_t kind = 0; kind < 3; kind++)
        for (int asymmetric = 0; asymmetric < 2; asymmetric++) {
            vgq_weight w = {kinds[kind].format,
                            kinds[kind].scales,
                            N,
                            K,
                            GROUP,
                            asymmetric,
                            q,
                            scale,
                            factor,
                            zero};
            /* uncovered: a weight that is right */
            if (vgq_pack(&w, packed, vgq_packed_nbytes(&w)) != VGQ_OK)
                return 0; /* uncovered: likewise */
            for (size_t r = 0; r < sizeof(rows) / sizeof(rows[0]); r++)
                for (int a = VGQ_INT8_ACTIVATIONS; a <= VGQ_INT16_ACTIVATIONS; a++)
                    if (!same_product(tables, &w, rows[r], (vgq_activations)a))
                        return 0;
        }
    return 1;
}

static int same_codes(const vgq_kernels *const tables[2])
{
    for (int t = 0; t < 2; t++) {
        const vgq_map map = {0.01f, 3, -128, 127};
        tables[t]->quantize.encode(M * K, x, map, (int8_t *)codes[t]);
    }
    return memcmp(codes[0], codes[1], sizeof(codes[0])) == 0;
}

/* INT8 attention, with LayerNorm and rotation; rows of qkv overlap, since x is short. */
static int same_attention(const vgq_kernels *const tables[2])
{
    float *const outputs[2] = {want, got};
    for (int t = 0; t < 2; t++) {
        const vgq_context alone = {tables[t], 1};
        const vgq_attention_call call = {.scores = VGQ_INT8_ACTIVATIONS,
                                         .values = VGQ_INT8_ACTIVATIONS,
                                         .batch = 1,
                                         .tokens = TOKENS,
                                         .heads = 1,
                                         .dim = DIM,
                                         .qkv = x,
                                         .strides = {0, 16, 900, 0},
                                         .q_norm = {x, bias, 1e-5f},
                                         .cos = x,
                                         .sin = x + 100,
                                         .rope_tokens = 50,
                                         .rope_width = DIM / 2,
                                         .scale = 0.25f,
                                         .y = outputs[t],
                                         .context = &alone};
        /* uncovered: there is room for these sizes, and calls with them are right */
        if (vgq_attention_nbytes(&call) > sizeof(scratch) ||
            vgq_attention(&call, scratch, sizeof(scratch)) != VGQ_OK)
            return 0; /* uncovered: likewise */
    }
    return memcmp(want, got, sizeof(want)) == 0;
}

static int same_conv(const vgq_kernels *const tables[2])
{
    const vgq_weight w = {VGQ_I8, VGQ_PER_ROW, OUT, SIDE * SIDE * CHANNELS, 0, 0, q,
                          scale,  NULL,        NULL};
    const size_t nbytes = vgq_packed_nbytes(&w);
    float *const outputs[2] = {want, got};
    /* uncovered: there is room for it, and it is right */
    if (nbytes > sizeof(packed) || vgq_pack(&w, packed, nbytes) != VGQ_OK)
        return 0; /* uncovered: likewise */
    for (int t = 0; t < 2; t++) {
        const vgq_context alone = {tables[t], 1};
        const vgq_conv_call call = {.pictures = 1,
                                    .height = HEIGHT,
                                    .width = WIDTH,
                                    .channels = CHANNELS,
                                    .source_height = HEIGHT - 2,
                                    .source_width = WIDTH - 3,
                                    .kernel_height = SIDE,
                                    .kernel_width = SIDE,
                                    .stride_height = 1,
                                    .stride_width = 1,
                                    .padding_height = 1,
                                    .padding_width = 1,
                                    .out_height = HEIGHT,
                                    .out_width = WIDTH,
                                    .x = x,
                                    .bias = bias,
                                    .residual = x + 1000,
                                    .y = outputs[t],
                                    .context = &alone};
        /* uncovered: likewise */
        if (vgq_conv2d_nbytes(&w, &call) > sizeof(scratch) ||
            vgq_conv2d(packed, nbytes, &call, scratch, sizeof(scratch)) != VGQ_OK)
            return 0; /* uncovered: likewise */
    }
    return memcmp(want, got, HEIGHT * WIDTH * OUT * sizeof(*want)) == 0;
}

int vgq_agrees(const vgq_kernels *table, const vgq_kernels *scalar)
{
    const vgq_kernels *const tables[2] = {scalar, table};
    vgq_stop *const before = vgq_watch(NULL);
    fill();
    /* uncovered: the kernels that code, and those of convolutions, are of tables that are
     * confirmed */
    const int same =
        same_codes(tables) && same_linear(tables) && same_attention(tables) && same_conv(tables);
    vgq_watch(before);
    return same;
}
