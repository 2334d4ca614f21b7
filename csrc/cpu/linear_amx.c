/* SPDX-License-Identifier: Apache-2.0
 * The integer product for AMX: tdpbsud multiplies 16 rows x 64 inputs of codes (signed) by 64
 * inputs x 16 columns of a panel's bytes (weight + 128, unsigned) and wraps, so that every sum is
 * exact modulo 2^32 and the true one fits. A block of sums is 32 rows x 32 columns, 2 x 2 tiles.
 *
 * A block's sums are finished (scaled, stored) by vector instructions between the tile instructions
 * of the next block, which leave most of the core idle.
 *
 * With VGQ_MODELS, the header that it names has the instructions in plain C, for CPUs that lack
 * them. */
#include "../kernels.h"

#if defined(__x86_64__)

#include "isa.h"

#include <string.h>

#if defined(VGQ_MODELS)
#include "../gelu.h"
ISA_BEGIN("sse2")
#include VGQ_MODELS
#else
#include <immintrin.h>
ISA_BEGIN("amx-tile,amx-int8,avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,f16c")
#include "epilogue_avx512.h"
#define tile_configure(shapes) _tile_loadconfig(shapes)
#define tile_release() _tile_release()
#define tile_zero(tile) _tile_zero(tile)
#define tile_load(tile, from, stride) _tile_loadd(tile, from, stride)
#define tile_store(tile, to, stride) _tile_stored(tile, to, stride)
#define tile_multiply(sums, codes, bytes) _tile_dpbsud(sums, codes, bytes)
#endif

enum {
    ROWS = 16,            /* of a tile */
    STRIPE = 64,          /* bytes of a tile's row: inputs of codes, 16 columns' sums */
    TILE = ROWS * STRIPE, /* bytes */
    BLOCK = 2 * ROWS,     /* rows and columns of a block */
    ACC_STRIDE = BLOCK * sizeof(int32_t)
};

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

/* ---- finishing --------------------------------------------------------------------------------
 */

/* Rows of a block whose sums are complete, and 32 columns of a panel. */
typedef struct finishing {
    size_t row, end;    /* of the strip; those before `row` are done */
    size_t column;      /* of the panel */
    const int32_t *acc; /* of `row` */
} finishing;

#if defined(VGQ_MODELS)
static inline void finish_rows(const vgq_strip *strip, size_t row, size_t rows, size_t column,
                               const int32_t *sums)
{
    const vgq_columns *const columns = strip->columns;
    for (size_t i = 0; i < rows * BLOCK; i++) {
        const size_t r = row + i / BLOCK, n = i % BLOCK, c = column + n, at = r * strip->ldy + c;
        const uint32_t extra = (uint32_t)columns->offset[c] * (uint32_t)strip->sum[r];
        const int32_t exact = (int32_t)((uint32_t)sums[(r - row) * BLOCK + n] - extra);
        float v = (float)exact * strip->x_scale[r] * columns->scale[c] + columns->bias[c];
        if (strip->gelu)
            v = vgq_gelu(v);
        if (strip->layer_scale)
            v *= strip->layer_scale[c];
        if (strip->residual)
            v += strip->dtype == VGQ_F32
                     ? ((const float *)strip->residual)[at]
                     : vgq_float_of_bf16(((const uint16_t *)strip->residual)[at]);
        if (strip->dtype == VGQ_F32)
            ((float *)strip->y)[at] = v;
        else
            ((uint16_t *)strip->y)[at] = vgq_bf16_of_float(v);
    }
}
#else
static inline void finish_rows(const vgq_strip *strip, size_t row, size_t rows, size_t column,
                               const int32_t *sums)
{
    for (size_t r = 0; r < rows; r++)
        vgq_finish_avx512(strip, row + r, column, BLOCK / 16, sums + r * BLOCK);
}
#endif

static inline void finish_some(const vgq_strip *strip, finishing *f, size_t rows)
{
    rows = vgq_min(rows, f->end - f->row);
    if (!rows)
        return;
    finish_rows(strip, f->row, rows, f->column, f->acc);
    f->row += rows;
    f->acc += rows * BLOCK;
}

/* ---- the product ------------------------------------------------------------------------------
 */

enum { STEP = 4 * VGQ_PANEL /* bytes of a panel's four inputs */ };

/* `stripes` stripes of inputs of both row blocks (of one where `both` is not) and of 32 columns,
 * which `bytes` has `stride` apart; with each stripe `rows` rows of what is left of f. */
static inline void stripes_of_block(int both, size_t stripes, const int8_t *q, size_t ld,
                                    const uint8_t *bytes, size_t stride, const vgq_strip *strip,
                                    finishing *f, size_t rows)
{
    for (size_t i = 0; i < stripes; i++, q += STRIPE, bytes += ROWS * stride) {
        tile_load(6, bytes, stride);
        tile_load(4, q, ld);
        tile_multiply(0, 4, 6);
        tile_load(7, bytes + STRIPE, stride);
        tile_multiply(1, 4, 7);
        if (both) {
            tile_load(5, q + ROWS * ld, ld);
            tile_multiply(2, 5, 6);
            tile_multiply(3, 5, 7);
        }
        finish_some(strip, f, rows);
    }
}

/* The inputs of an operand after its last whole stripe, and zeros, of each half of the columns: a
 * stripe of its own, so that what the codes have there takes no part. */
typedef struct last_stripe {
    uint8_t bytes[2][ROWS * 2 * STRIPE];
} last_stripe;

static void last_of(const vgq_operand *w, last_stripe *last)
{
    const size_t whole = w->k / STRIPE * STRIPE, rest = w->k - whole;
    if (!rest)
        return;
    memset(last, 0, sizeof(*last));
    for (size_t s = 0; s < rest / 4; s++) {
        const uint8_t *const from = (const uint8_t *)w->data + whole * VGQ_PANEL + s * STEP;
        memcpy(last->bytes[0] + s * 2 * STRIPE, from, 2 * STRIPE);
        memcpy(last->bytes[1] + s * 2 * STRIPE, from + 2 * STRIPE, 2 * STRIPE);
    }
}

/* The sums of a block in acc, whose rows lie acc_stride bytes apart; meanwhile all of f. */
static inline void block(int both, const vgq_operand *w, size_t half, const last_stripe *last,
                         const int8_t *q, size_t ld, int32_t *acc, size_t acc_stride,
                         const vgq_strip *strip, finishing *f)
{
    const size_t stripes = w->k / STRIPE;
    const size_t rows = stripes ? (f->end - f->row + stripes - 1) / stripes : BLOCK;
    tile_zero(0);
    tile_zero(1);
    if (both) {
        tile_zero(2);
        tile_zero(3);
    }
    stripes_of_block(both, stripes, q, ld, (const uint8_t *)w->data + half * 2 * STRIPE, STEP,
                     strip, f, rows);
    if (w->k % STRIPE)
        stripes_of_block(both, 1, q + stripes * STRIPE, ld, last->bytes[half], 2 * STRIPE, strip, f,
                         rows);
    tile_store(0, acc, acc_stride);
    tile_store(1, acc + ROWS, acc_stride);
    if (both) {
        int32_t *const second = acc + ROWS * acc_stride / sizeof(int32_t);
        tile_store(2, second, acc_stride);
        tile_store(3, second + ROWS, acc_stride);
    }
}

static void strip_amx(const vgq_operand *w, const vgq_strip *strip)
{
    const int8_t *const codes = strip->codes;
    const size_t ld = strip->ld;
    const tile_shapes whole = shapes_of(BLOCK), rest = shapes_of((strip->rows - 1) % BLOCK + 1);
    const tile_shapes *configured = NULL;
    int32_t acc[2][BLOCK * BLOCK]; /* of the block that is multiplied and of the one before */
    size_t turn = 0;
    last_stripe last;
    last_of(w, &last);
    finishing f = {0, 0, 0, NULL};
    for (size_t m = 0; m < strip->rows; m += BLOCK) {
        const size_t rows = vgq_min(BLOCK, strip->rows - m);
        const tile_shapes *const shapes = rows == BLOCK ? &whole : &rest;
        if (shapes != configured)
            tile_configure(configured = shapes);
        vgq_fetch_next(strip, m, rows);
        for (size_t half = 0; half < 2; half++, turn ^= 1) {
            if (rows > ROWS)
                block(1, w, half, &last, codes + m * ld, ld, acc[turn], ACC_STRIDE, strip, &f);
            else
                block(0, w, half, &last, codes + m * ld, ld, acc[turn], ACC_STRIDE, strip, &f);
            f = (finishing){m, m + rows, half * BLOCK, acc[turn]};
        }
    }
    finish_some(strip, &f, BLOCK);
    tile_release(); /* or the system would save 8 KB at each switch of threads */
}

static void tile_amx(size_t rows, const vgq_operand *w, const void *codes, size_t ld,
                     const int32_t *sums, int32_t *acc)
{
    const tile_shapes shapes = shapes_of(rows);
    finishing none = {0, 0, 0, NULL};
    last_stripe last;
    (void)sums;
    last_of(w, &last);
    tile_configure(&shapes);
    for (size_t half = 0; half < 2; half++) {
        int32_t *const to = acc + half * BLOCK;
        if (rows > ROWS)
            block(1, w, half, &last, codes, ld, to, VGQ_PANEL * sizeof(int32_t), NULL, &none);
        else
            block(0, w, half, &last, codes, ld, to, VGQ_PANEL * sizeof(int32_t), NULL, &none);
    }
    tile_release();
}

ISA_END

/* For fewer lines, half-empty tiles would cost more than they gain; W4 is then multiplied without
 * being expanded. */
static int many_lines(const vgq_weight *w, size_t lines)
{
    return lines > (w->scales == VGQ_TWO_LEVEL ? 9 : 5);
}

static const vgq_product product_amx = {
    .applies = many_lines,
    .mr = BLOCK,
    .most_nbytes = 1 << 20,
    .code_nbytes = 1,
    .weight_nbytes = 1,
    .offset = 128,
    .tile = tile_amx,
    .strip = strip_amx,
};

static const vgq_product *const products_amx[] = {&product_amx, &vgq_product_few_avx512vnni,
                                                  &vgq_product_avx512vnni, NULL};

const vgq_linear_kernels vgq_linear_amx = {.products = products_amx};

#endif
