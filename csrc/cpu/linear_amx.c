/* SPDX-License-Identifier: Apache-2.0
 * The integer product for AMX: tdpbsud multiplies 16 rows x 64 inputs of codes (signed) by 64
 * inputs x 16 columns of a panel's bytes (weight + 128, unsigned) and wraps, so that every sum is
 * exact modulo 2^32 and the true one fits. A panel is its operand as it is: a row of a tile is one
 * step of four inputs, and steps lie 256 bytes apart. A call is 32 rows x 64 columns: two halves of
 * 2 x 2 tiles of sums.
 *
 * With VGQ_MODELS, the header that it names has the instructions in plain C, for CPUs that lack
 * them. */
#include "../kernels.h"

#if defined(__x86_64__)

#include "isa.h"

#include <string.h>

#if defined(VGQ_MODELS)
ISA_BEGIN("sse2")
#include VGQ_MODELS
#else
#include <immintrin.h>
ISA_BEGIN("amx-tile,amx-int8")
#define tile_configure(shapes) _tile_loadconfig(shapes)
#define tile_release() _tile_release()
#define tile_zero(tile) _tile_zero(tile)
#define tile_load(tile, from, stride) _tile_loadd(tile, from, stride)
#define tile_store(tile, to, stride) _tile_stored(tile, to, stride)
#define tile_multiply(sums, codes, bytes) _tile_dpbsud(sums, codes, bytes)
#endif

enum { ROWS = 16, STRIPE = 64 /* bytes of a tile's row */, STEP = 4 * VGQ_PANEL };

/* Tiles 0..3: sums, [row block][column block]; 4, 5: codes; 6, 7: a panel's bytes. */
typedef struct tile_shapes {
    uint8_t palette, start_row, reserved[14];
    uint16_t row_nbytes[16];
    uint8_t rows[16];
} tile_shapes;

static tile_shapes shapes_of(size_t rows)
{
    const uint8_t first = rows < ROWS ? (uint8_t)rows : ROWS, second = (uint8_t)(rows - first);
    tile_shapes shapes = {.palette = 1, .rows = {first, first, second, second, first, second}};
    shapes.rows[6] = shapes.rows[7] = ROWS;
    for (int tile = 0; tile < 8; tile++)
        shapes.row_nbytes[tile] = shapes.rows[tile] ? STRIPE : 0;
    return shapes;
}

/* 64 inputs of both row blocks (of one where `both` is not) and of 32 columns. */
static inline void multiply(int both, const int8_t *q, size_t ld, const uint8_t *bytes,
                            size_t stride)
{
    tile_load(4, q, ld);
    tile_load(6, bytes, stride);
    tile_load(7, bytes + STRIPE, stride);
    tile_multiply(0, 4, 6);
    tile_multiply(1, 4, 7);
    if (both) {
        tile_load(5, q + ROWS * ld, ld);
        tile_multiply(2, 5, 6);
        tile_multiply(3, 5, 7);
    }
}

static void tile_i8_amx(size_t rows, const vgq_operand *w, const void *codes, size_t ld,
                        const int32_t *unused, int32_t *acc)
{
    const size_t whole = w->k / STRIPE * STRIPE, rest = w->k - whole;
    const int both = rows > ROWS;
    int8_t last[2 * ROWS * STRIPE]; /* the inputs after the last 64, and zeros */
    uint8_t bytes[ROWS * 2 * STRIPE];
    (void)unused;
    memset(last, 0, rest ? sizeof(last) : 0);
    memset(bytes, 0, rest ? sizeof(bytes) : 0);
    for (size_t r = 0; r < rows && rest; r++)
        memcpy(last + r * STRIPE, (const int8_t *)codes + r * ld + whole, rest);
    const tile_shapes shapes = shapes_of(rows);
    tile_configure(&shapes);
    for (size_t half = 0; half < 2; half++) {
        const uint8_t *const panel = (const uint8_t *)w->data + half * 2 * STRIPE;
        tile_zero(0);
        tile_zero(1);
        if (both) {
            tile_zero(2);
            tile_zero(3);
        }
        for (size_t i = 0; i < whole; i += STRIPE)
            multiply(both, (const int8_t *)codes + i, ld, panel + i * VGQ_PANEL, STEP);
        if (rest) {
            for (size_t s = 0; s < rest / 4; s++)
                memcpy(bytes + s * 2 * STRIPE, panel + whole * VGQ_PANEL + s * STEP, 2 * STRIPE);
            multiply(both, last, STRIPE, bytes, 2 * STRIPE);
        }
        int32_t *const sums = acc + half * 2 * ROWS;
        tile_store(0, sums, VGQ_PANEL * sizeof(int32_t));
        tile_store(1, sums + ROWS, VGQ_PANEL * sizeof(int32_t));
        if (both) {
            tile_store(2, sums + ROWS * VGQ_PANEL, VGQ_PANEL * sizeof(int32_t));
            tile_store(3, sums + ROWS * VGQ_PANEL + ROWS, VGQ_PANEL * sizeof(int32_t));
        }
    }
    tile_release(); /* or the system would save 8 KB at each switch of threads */
}

ISA_END

static const vgq_product product_amx = {
    .mr = 2 * ROWS,
    .code_nbytes = 1,
    .weight_nbytes = 1,
    .offset = 128,
    .tile = tile_i8_amx,
};

static const vgq_product *const products_amx[] = {&product_amx, NULL};

const vgq_linear_kernels vgq_linear_amx = {.products = products_amx};

#endif
