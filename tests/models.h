/* SPDX-License-Identifier: Apache-2.0
 * Instructions that few CPUs have, in plain C from their definitions, so that the kernels made of
 * them are checked on every machine: a build with -DVGQ_MODELS names this file, and kernels include
 * it instead of the intrinsics (tests/test_core.py). */
#ifndef VGQ_TEST_MODELS_H
#define VGQ_TEST_MODELS_H

#include <immintrin.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* 1: each instruction leaves a product out, for the test of selfcheck.c. */
#if defined(VGQ_WRONG_MODELS)
#define VGQ_MODEL_FAULT 1
#else
#define VGQ_MODEL_FAULT 0
#endif

/* The models that multiply read and write their own copies alone, so that nothing is left to the
 * sanitizers, which would make them ten times as slow; what loads and stores tiles is watched. */
#if defined(__clang__)
#define MODEL_FAST __attribute__((unused, no_sanitize("address", "undefined")))
#else
#define MODEL_FAST __attribute__((unused, no_sanitize("address", "undefined"), optimize("O3")))
#endif

/* vpdpbusd: each 32-bit lane of acc gains the four products of unsigned and signed bytes, modulo
 * 2^32. */
MODEL_FAST __attribute__((target("avx2"))) static __m256i dot4(__m256i acc, __m256i bytes,
                                                               __m256i codes)
{
    uint32_t sum[8];
    uint8_t u[32];
    int8_t s[32];
    memcpy(sum, &acc, sizeof(sum));
    memcpy(u, &bytes, sizeof(u));
    memcpy(s, &codes, sizeof(s));
    for (int i = 0; i < 32 - VGQ_MODEL_FAULT; i++)
        sum[i / 4] += (uint32_t)(u[i] * s[i]);
    memcpy(&acc, sum, sizeof(sum));
    return acc;
}

/* AMX: eight tiles of up to 16 rows x 64 bytes, as the configuration says. What faults on a machine
 * ends the program. */
typedef struct model_tile {
    size_t rows, row_nbytes;
    unsigned char at[16][64];
} model_tile;
static _Thread_local struct {
    int configured;
    model_tile tile[8];
} model;

__attribute__((unused)) static void model_must(int condition, const char *what)
{
    if (!condition) {
        printf("the tile model: %s\n", what);
        abort();
    }
}

__attribute__((unused)) static model_tile *model_at(int tile)
{
    model_must(model.configured, "no configuration");
    model_must(model.tile[tile].rows && model.tile[tile].row_nbytes, "a tile that has no shape");
    return &model.tile[tile];
}

/* The 64 bytes: palette, first row, 14 zeros, bytes of a row of each tile, rows of each tile. */
__attribute__((unused)) static void tile_configure(const void *shapes)
{
    const unsigned char *const at = shapes;
    model_must(at[0] == 1 && at[1] == 0, "palette 1, from the first row");
    for (int i = 2; i < 16; i++)
        model_must(at[i] == 0, "reserved bytes");
    memset(&model, 0, sizeof(model));
    model.configured = 1;
    for (int i = 0; i < 16; i++) {
        const size_t row_nbytes = at[16 + 2 * i] + 256u * at[17 + 2 * i], rows = at[48 + i];
        model_must(i < 8 || (!rows && !row_nbytes), "palette 1 has eight tiles");
        model_must(rows <= 16 && row_nbytes <= 64 && !rows == !row_nbytes, "a tile's shape");
        if (i < 8)
            model.tile[i].rows = rows, model.tile[i].row_nbytes = row_nbytes;
    }
}

__attribute__((unused)) static void tile_release(void) { model.configured = 0; }

__attribute__((unused)) static void tile_zero(int tile)
{
    memset(model_at(tile)->at, 0, sizeof(model.tile[tile].at));
}

__attribute__((unused)) static void tile_load(int tile, const void *from, size_t stride)
{
    model_tile *const t = model_at(tile);
    memset(t->at, 0, sizeof(t->at));
    for (size_t r = 0; r < t->rows; r++)
        memcpy(t->at[r], (const unsigned char *)from + r * stride, t->row_nbytes);
}

__attribute__((unused)) static void tile_store(int tile, void *to, size_t stride)
{
    const model_tile *const t = model_at(tile);
    for (size_t r = 0; r < t->rows; r++)
        memcpy((unsigned char *)to + r * stride, t->at[r], t->row_nbytes);
}

/* Whether the tiles fit, as in every product. */
__attribute__((unused)) static void model_must_multiply(int sums, int rows, int columns)
{
    const model_tile *const c = model_at(sums), *const a = model_at(rows),
                            *const b = model_at(columns);
    model_must(a->rows == c->rows && b->row_nbytes == c->row_nbytes && a->row_nbytes == 4 * b->rows,
               "shapes that do not multiply");
    model_must(sums != rows && sums != columns && rows != columns, "a tile named twice");
}

/* sums[m][n] += the products of a[m][4 k..] and b[k][4 n..], modulo 2^32. tdpbsud: signed and
 * unsigned; tdpbusd: unsigned and signed. */
#define MODEL_PRODUCT(name, a_type, b_type)                                                       \
    MODEL_FAST static void name(int sums, int rows, int columns)                                  \
    {                                                                                             \
        model_must_multiply(sums, rows, columns);                                                 \
        model_tile *const c = model_at(sums);                                                     \
        const model_tile *const a = model_at(rows), *const b = model_at(columns);                 \
        for (size_t m = 0; m < c->rows; m++)                                                      \
            for (size_t n = 0; n < c->row_nbytes / 4; n++) {                                      \
                uint32_t sum;                                                                     \
                memcpy(&sum, &c->at[m][4 * n], sizeof(sum));                                      \
                for (size_t k = 0; k < a->row_nbytes - VGQ_MODEL_FAULT; k++)                      \
                    sum += (uint32_t)((a_type)a->at[m][k] * (b_type)b->at[k / 4][4 * n + k % 4]); \
                memcpy(&c->at[m][4 * n], &sum, sizeof(sum));                                      \
            }                                                                                     \
    }
MODEL_PRODUCT(tile_multiply, int8_t, uint8_t)
MODEL_PRODUCT(tile_multiply_unsigned, uint8_t, int8_t)
#undef MODEL_PRODUCT

/* tdpbf16ps: the even of two products first, but for its rounding: that of float, at each step. */
MODEL_FAST static void tile_multiply_bf16(int sums, int rows, int columns)
{
    model_must_multiply(sums, rows, columns);
    model_tile *const c = model_at(sums);
    const model_tile *const a = model_at(rows), *const b = model_at(columns);
    for (size_t m = 0; m < c->rows; m++)
        for (size_t n = 0; n < c->row_nbytes / 4; n++) {
            float sum;
            memcpy(&sum, &c->at[m][4 * n], sizeof(sum));
            for (size_t k = 0; k < a->row_nbytes; k += 2) {
                uint32_t bits[2] = {0};
                float x[2];
                memcpy((char *)&bits[0] + 2, &a->at[m][k], 2);
                memcpy((char *)&bits[1] + 2, &b->at[k / 4][4 * n + k % 4], 2);
                memcpy(x, bits, sizeof(x));
                sum += x[0] * x[1];
            }
            memcpy(&c->at[m][4 * n], &sum, sizeof(sum));
        }
}

#endif
