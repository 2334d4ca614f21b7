/* SPDX-License-Identifier: Apache-2.0
 * The integer product for AMX: tdpbsud multiplies 16 rows x 64 inputs of codes (signed) by 64
 * inputs x 16 columns of a panel's bytes (weight + 128, unsigned) and wraps, so that every sum is
 * exact modulo 2^32 and the true one fits. A block of sums is 32 rows x 32 columns, 2 x 2 tiles.
 *
 * The tiles of a panel's half are copied to lie one after the other, so that those of DEPTH inputs
 * stay in the L1 cache while all rows of a strip pass. A block's sums are finished (scaled, stored)
 * by vector instructions between the tile instructions of the next block, which leave most of the
 * core idle.
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
    DEPTH = 1024,         /* inputs at a time: 32 KB of a panel's half */
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

static size_t stripes_of(size_t k) { return (k + STRIPE - 1) / STRIPE; }

static size_t operand_nbytes_amx(size_t k) { return stripes_of(k) * STRIPE * VGQ_PANEL; }

/* [2 halves][k / 64][2 tiles][16 rows][64 bytes]; after the last input zeros, which take no part.
 */
static void prepare_amx(const vgq_panel *panel, const uint8_t *bytes, void *operand,
                        int32_t offset[VGQ_PANEL])
{
    uint8_t *to = operand;
    const size_t steps = panel->k / 4, rows = stripes_of(panel->k) * ROWS;
    (void)offset;
    for (size_t half = 0; half < 2; half++)
        for (size_t row = 0; row < rows; row += ROWS, to += 2 * TILE)
            for (size_t s = 0; s < ROWS; s++) {
                uint8_t *const at = to + s * STRIPE;
                if (row + s < steps) {
                    const uint8_t *const from = bytes + ((row + s) * 4 + half * 2) * STRIPE;
                    memcpy(at, from, STRIPE);
                    memcpy(at + TILE, from + STRIPE, STRIPE);
                } else {
                    memset(at, 0, STRIPE);
                    memset(at + TILE, 0, STRIPE);
                }
            }
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
        const size_t r = row + i / BLOCK, n = i % BLOCK, c = column + n;
        char *const y = (char *)strip->y + r * strip->ldy * vgq_dtype_nbytes(strip->dtype);
        const uint32_t extra = (uint32_t)columns->offset[c] * (uint32_t)strip->sum[r];
        const int32_t exact = (int32_t)((uint32_t)sums[(r - row) * BLOCK + n] - extra);
        float v = (float)exact * strip->x_scale[r] * columns->scale[c] + columns->bias[c];
        if (strip->gelu)
            v = vgq_gelu(v);
        if (strip->dtype == VGQ_F32)
            ((float *)(void *)y)[c] = v;
        else
            ((uint16_t *)(void *)y)[c] = vgq_bf16_of_float(v);
    }
}
#else
/* Sixteen columns of some rows, so that what the columns share is loaded once. */
static inline void finish_rows(const vgq_strip *strip, size_t row, size_t rows, size_t column,
                               const int32_t *sums)
{
    const size_t step = strip->ldy * vgq_dtype_nbytes(strip->dtype);
    for (size_t n = 0; n < BLOCK; n += 16) {
        const vgq_columns *const columns = strip->columns;
        const __m512i offset = _mm512_loadu_si512(columns->offset + column + n);
        const __m512 scale = _mm512_loadu_ps(columns->scale + column + n);
        const __m512 bias = _mm512_loadu_ps(columns->bias + column + n);
        const int32_t *acc = sums + n;
        char *y = (char *)strip->y + row * step;
        for (size_t r = row; r < row + rows; r++, acc += BLOCK, y += step) {
            __m512 v = vgq_finished_avx512(_mm512_loadu_si512(acc), offset, strip->sum[r],
                                           strip->x_scale[r], scale, bias);
            if (strip->gelu)
                v = vgq_gelu_avx512(v);
            vgq_store_avx512(v, y, column + n, strip->dtype);
        }
    }
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

/* One block: `stripes` stripes of inputs from q and tiles on, which is added to acc where `more`;
 * meanwhile what is left of f. `both`: it has more than 16 rows. */
static inline void block(int both, int more, size_t stripes, const int8_t *q, size_t ld,
                         const uint8_t *tiles, int32_t *acc, const vgq_strip *strip, finishing *f)
{
    if (more) {
        tile_load(0, acc, ACC_STRIDE);
        tile_load(1, acc + ROWS, ACC_STRIDE);
        if (both) {
            tile_load(2, acc + ROWS * BLOCK, ACC_STRIDE);
            tile_load(3, acc + ROWS * BLOCK + ROWS, ACC_STRIDE);
        }
    } else {
        tile_zero(0);
        tile_zero(1);
        if (both) {
            tile_zero(2);
            tile_zero(3);
        }
    }
    const size_t rows = (f->end - f->row + stripes - 1) / stripes;
    for (size_t i = 0; i < stripes; i++, q += STRIPE, tiles += 2 * TILE) {
        tile_load(6, tiles, STRIPE);
        tile_load(4, q, ld);
        tile_multiply(0, 4, 6);
        tile_load(7, tiles + TILE, STRIPE);
        tile_multiply(1, 4, 7);
        if (both) {
            tile_load(5, q + ROWS * ld, ld);
            tile_multiply(2, 5, 6);
            tile_multiply(3, 5, 7);
        }
        finish_some(strip, f, rows);
    }
    tile_store(0, acc, ACC_STRIDE);
    tile_store(1, acc + ROWS, ACC_STRIDE);
    if (both) {
        tile_store(2, acc + ROWS * BLOCK, ACC_STRIDE);
        tile_store(3, acc + ROWS * BLOCK + ROWS, ACC_STRIDE);
    }
}

static void strip_amx(const vgq_operand *w, const vgq_strip *strip)
{
    const int8_t *const codes = strip->codes;
    const size_t all = stripes_of(w->k), most = DEPTH / STRIPE, ld = strip->ld;
    const tile_shapes whole = shapes_of(BLOCK), last = shapes_of((strip->rows - 1) % BLOCK + 1);
    const tile_shapes *configured = NULL;
    finishing f = {0, 0, 0, NULL};
    for (size_t half = 0; half < 2; half++)
        for (size_t i = 0; i < all; i += most) {
            const size_t stripes = vgq_min(most, all - i);
            const uint8_t *const tiles = (const uint8_t *)w->data + (half * all + i) * 2 * TILE;
            for (size_t m = 0; m < strip->rows; m += BLOCK) {
                const size_t rows = vgq_min(BLOCK, strip->rows - m);
                const tile_shapes *const shapes = rows == BLOCK ? &whole : &last;
                if (shapes != configured)
                    tile_configure(configured = shapes);
                /* Where all inputs are multiplied at once, two blocks' sums are enough, and stay in
                 * L1. */
                int32_t *const acc = strip->acc + (all > most ? m : m % (2 * BLOCK)) * BLOCK;
                const int8_t *const q = codes + m * ld + i * STRIPE;
                if (rows > ROWS)
                    block(1, i > 0, stripes, q, ld, tiles, acc, strip, &f);
                else
                    block(0, i > 0, stripes, q, ld, tiles, acc, strip, &f);
                if (i + stripes == all)
                    f = (finishing){m, m + rows, half * BLOCK, acc};
            }
        }
    finish_some(strip, &f, BLOCK);
    tile_release(); /* or the system would save 8 KB at each switch of threads */
}

/* The sums of a tile of few rows, for those who finish them in another way. */
static void tile_amx(size_t rows, const vgq_operand *w, const void *codes, size_t ld,
                     const int32_t *sums, int32_t *acc)
{
    const size_t all = stripes_of(w->k);
    const tile_shapes shapes = shapes_of(rows);
    int32_t both[BLOCK * BLOCK];
    finishing none = {0, 0, 0, NULL};
    (void)sums;
    tile_configure(&shapes);
    for (size_t half = 0; half < 2; half++) {
        const uint8_t *const tiles = (const uint8_t *)w->data + half * all * 2 * TILE;
        if (rows > ROWS)
            block(1, 0, all, codes, ld, tiles, both, NULL, &none);
        else
            block(0, 0, all, codes, ld, tiles, both, NULL, &none);
        for (size_t r = 0; r < rows; r++)
            memcpy(acc + r * VGQ_PANEL + half * BLOCK, both + r * BLOCK, ACC_STRIDE);
    }
    tile_release();
}

/* ---- any inputs of a panel as it is packed ----------------------------------------------------
 */

enum { STEP = 4 * VGQ_PANEL /* bytes of a panel's four inputs */ };

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

static void tile_slice_amx(size_t rows, const vgq_operand *w, const void *codes, size_t ld,
                           const int32_t *sums, int32_t *acc)
{
    const size_t whole = w->k / STRIPE * STRIPE, rest = w->k - whole;
    const int both = rows > ROWS;
    int8_t last[2 * ROWS * STRIPE]; /* the inputs after the last 64, and zeros */
    uint8_t bytes[ROWS * 2 * STRIPE];
    (void)sums;
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
        int32_t *const to = acc + half * 2 * ROWS;
        tile_store(0, to, VGQ_PANEL * sizeof(int32_t));
        tile_store(1, to + ROWS, VGQ_PANEL * sizeof(int32_t));
        if (both) {
            tile_store(2, to + ROWS * VGQ_PANEL, VGQ_PANEL * sizeof(int32_t));
            tile_store(3, to + ROWS * VGQ_PANEL + ROWS, VGQ_PANEL * sizeof(int32_t));
        }
    }
    tile_release();
}

ISA_END

/* For fewer lines, preparing a panel and half-empty tiles would cost more than they gain. */
static int many_lines(const vgq_weight *w, size_t lines)
{
    return w->scales != VGQ_PER_GROUP && lines > VGQ_FEW_LINES;
}

static int many_lines_of_slices(const vgq_weight *w, size_t lines)
{
    (void)w;
    return lines > VGQ_FEW_LINES;
}

static const vgq_product product_amx = {
    .applies = many_lines,
    .mr = BLOCK,
    .code_nbytes = 1,
    .offset = 128,
    .operand_nbytes = operand_nbytes_amx,
    .prepare = prepare_amx,
    .tile = tile_amx,
    .strip = strip_amx,
};

static const vgq_product product_slices_amx = {
    .applies = many_lines_of_slices,
    .mr = BLOCK,
    .code_nbytes = 1,
    .weight_nbytes = 1,
    .offset = 128,
    .tile = tile_slice_amx,
};

static const vgq_product *const products_amx[] = {
    &product_amx, &product_slices_amx, &vgq_product_few_avx512vnni, &vgq_product_avx512vnni, NULL};

const vgq_linear_kernels vgq_linear_amx = {.products = products_amx};

#endif
