/* SPDX-License-Identifier: Apache-2.0
 * Packs weights for the CUDA kernels, on the CPU: the layout is drawn in cuda/linear_layout.h. So a
 * machine without a GPU can make, check and undo it. */
#include "kernels.h"
#include "cuda/linear_layout.h"

#include <string.h>

typedef struct vgq_cuda_header {
    uint64_t magic;
    uint32_t format, scales, asymmetric, panel;
    uint64_t n, k, group;
    unsigned char reserved[VGQ_CUDA_HEADER - 48];
} vgq_cuda_header;

_Static_assert(sizeof(vgq_cuda_header) == VGQ_CUDA_HEADER, "panels stay aligned");
#if defined(__BYTE_ORDER__)
_Static_assert(__BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__, "as every host of a GPU");
#endif

static size_t packed_nbytes(const vgq_weight *weight)
{
    vgq_weight w;
    return vgq_check_weight(weight, &w) == VGQ_OK ? vgq_cuda_layout_of(&w).nbytes : 0;
}

/* Codes i..i+3 of a row, of which `count` are there, as bytes of a word; INT4 ones plus 8. */
static uint32_t load_codes(vgq_format format, const uint8_t *q, size_t i, size_t count)
{
    uint32_t word = 0;
    for (size_t j = 0; j < count; j++) {
        const uint32_t code =
            format == VGQ_I8 ? q[i + j] : (q[(i + j) / 2] >> (i + j) % 2 * 4 & 15) ^ 8;
        word |= code << 8 * j;
    }
    return word;
}

/* The inverse; q starts as zeros. */
static void store_codes(vgq_format format, uint8_t *q, size_t i, size_t count, uint32_t word)
{
    for (size_t j = 0; j < count; j++) {
        const uint32_t code = word >> 8 * j & 255;
        if (format == VGQ_I8)
            q[i + j] = (uint8_t)code;
        else
            q[(i + j) / 2] |= (uint8_t)(((code & 15) ^ 8) << (i + j) % 2 * 4);
    }
}

/* Where a panel keeps inputs at..at+3 (padded, a multiple of 4) of output c: a word, in which INT4
 * codes have the low nibbles or the high ones. */
static size_t word_at(const vgq_cuda_layout *layout, size_t c, size_t at, int *shift)
{
    const size_t lane = vgq_cuda_row((unsigned)c) * 4 + at / 4 % 4;
    const size_t unit =
        (at / VGQ_CUDA_DEPTH * 8 + vgq_cuda_unit((unsigned)c)) * layout->unit_nbytes;
    const int is_int4 = layout->unit_nbytes == VGQ_CUDA_UNIT_I4;
    *shift = is_int4 && at / 16 % 2 ? 4 : 0;
    return unit + (is_int4 ? lane * 8 + at / 32 % 2 * 4 : lane * 16 + at / 16 % 4 * 4);
}

/* Codes from input `done` on of one output: row-major q to the panel, or back. The receiver starts
 * as zeros. */
static void move_row(const vgq_weight *w, const vgq_cuda_layout *layout, size_t c, size_t done,
                     uint8_t *q, unsigned char *panel, int to_panel)
{
    for (size_t g = done / w->group; g < layout->groups; g++) {
        const size_t start = g * w->group, end = vgq_min(start + w->group, w->k);
        const size_t padded = g * layout->group_steps * VGQ_CUDA_STEP;
        for (size_t i = done > start ? done : start; i < end; i += 4) {
            int shift;
            unsigned char *const at = panel + word_at(layout, c, padded + i - start, &shift);
            const size_t count = vgq_min(4, end - i);
            uint32_t word;
            memcpy(&word, at, sizeof(word));
            if (to_panel) {
                word |= load_codes(w->format, q, i, count) << shift;
                memcpy(at, &word, sizeof(word));
            } else {
                store_codes(w->format, q, i, count, word >> shift);
            }
        }
    }
}

/* A unit's row and 64 inputs of q, all there: a transposition of 4 x 4 words, and its own inverse.
 */
static void move_i8(const uint8_t *from, uint8_t *to)
{
    uint32_t in[16], out[16];
    memcpy(in, from, sizeof(in));
    for (size_t i = 0; i < 16; i++)
        out[i] = in[i % 4 * 4 + i / 4];
    memcpy(to, out, sizeof(out));
}

/* The four nibbles of a half word, a byte each; and back. */
static uint32_t spread(uint32_t half)
{
    half = (half | half << 8) & 0x00ff00ffu;
    return (half | half << 4) & 0x0f0f0f0fu;
}

static uint16_t gathered(uint32_t nibbles)
{
    nibbles = (nibbles | nibbles >> 4) & 0x00ff00ffu;
    return (uint16_t)(nibbles | nibbles >> 8);
}

/* The same of INT4: word 2t + p of the row has the inputs 32p + 4t.. and 32p + 16 + 4t.. */
static void move_i4_to_panel(const uint8_t *q, uint8_t *row)
{
    uint16_t in[16];
    uint32_t out[8];
    memcpy(in, q, sizeof(in));
    for (size_t p = 0; p < 2; p++)
        for (size_t t = 0; t < 4; t++)
            out[2 * t + p] = (spread(in[8 * p + t]) | spread(in[8 * p + 4 + t]) << 4) ^ 0x88888888u;
    memcpy(row, out, sizeof(out));
}

static void move_i4_from_panel(const uint8_t *row, uint8_t *q)
{
    uint32_t in[8];
    uint16_t out[16];
    memcpy(in, row, sizeof(in));
    for (size_t p = 0; p < 2; p++)
        for (size_t t = 0; t < 4; t++) {
            const uint32_t word = in[2 * t + p] ^ 0x88888888u;
            out[8 * p + t] = gathered(word & 0x0f0f0f0fu);
            out[8 * p + 4 + t] = gathered(word >> 4 & 0x0f0f0f0fu);
        }
    memcpy(q, out, sizeof(out));
}

/* Codes of a panel's outputs, whose first rows are at q, to the panel or back: tiles of 64 inputs,
 * then what fills none. */
static void move_panel(const vgq_weight *w, const vgq_cuda_layout *layout, size_t columns,
                       uint8_t *q, unsigned char *panel, int to_panel)
{
    const size_t row_nbytes = vgq_row_nbytes(w->format, w->k);
    const size_t tiles = layout->straight ? w->k / VGQ_CUDA_DEPTH : 0;
    const size_t tile_nbytes = vgq_row_nbytes(w->format, VGQ_CUDA_DEPTH); /* of a row */
    for (size_t tile = 0; tile < tiles; tile++)
        for (size_t c = 0; c < columns; c++) {
            uint8_t *const codes = q + c * row_nbytes + tile * tile_nbytes;
            const size_t unit = tile * 8 + vgq_cuda_unit((unsigned)c);
            unsigned char *const row =
                panel + unit * layout->unit_nbytes + vgq_cuda_row((unsigned)c) * tile_nbytes;
            if (w->format == VGQ_I8)
                move_i8(to_panel ? codes : row, to_panel ? row : codes);
            else if (to_panel)
                move_i4_to_panel(codes, row);
            else
                move_i4_from_panel(row, codes);
        }
    for (size_t c = 0; c < columns; c++)
        move_row(w, layout, c, tiles * VGQ_CUDA_DEPTH, q + c * row_nbytes, panel, to_panel);
}

/* Where the column part keeps the pair of a group and an output. */
static size_t pair_at(const vgq_cuda_layout *layout, size_t g, size_t output)
{
    const unsigned c = (unsigned)(output % VGQ_CUDA_PANEL);
    return (g * layout->panels + output / VGQ_CUDA_PANEL) * VGQ_CUDA_PANEL + vgq_cuda_row(c) * 8 +
           vgq_cuda_unit(c);
}

static void pack_column(const vgq_weight *w, const vgq_cuda_layout *layout, size_t output,
                        unsigned char *packed)
{
    float *const scale = (float *)(void *)(packed + VGQ_CUDA_HEADER);
    const size_t scales = w->scales == VGQ_PER_GROUP ? layout->groups : 1;
    for (size_t g = 0; g < scales; g++)
        scale[g * layout->columns + output] = w->scale[output * scales + g];
    if (w->format == VGQ_I8 && w->asymmetric)
        ((int32_t *)(void *)(packed + layout->column))[output] = w->zero[output];
    for (size_t g = 0; g < layout->groups && w->format == VGQ_I4; g++) {
        const size_t from = output * layout->groups + g;
        const int factor = w->scales == VGQ_TWO_LEVEL ? w->factor[from] : 1;
        const int zero = w->asymmetric ? w->zero[from] : 0;
        ((uint16_t *)(void *)(packed + layout->column))[pair_at(layout, g, output)] =
            (uint16_t)(factor | ((128 - factor * (zero + 8)) & 255) << 8);
    }
}

static void unpack_column(const vgq_weight *w, const vgq_cuda_layout *layout, size_t output,
                          const unsigned char *packed)
{
    const float *const scale = (const float *)(const void *)(packed + VGQ_CUDA_HEADER);
    const size_t scales = w->scales == VGQ_PER_GROUP ? layout->groups : 1;
    for (size_t g = 0; g < scales; g++)
        w->scale[output * scales + g] = scale[g * layout->columns + output];
    if (w->format == VGQ_I8 && w->asymmetric)
        w->zero[output] =
            (int8_t)((const int32_t *)(const void *)(packed + layout->column))[output];
    for (size_t g = 0; g < layout->groups && w->format == VGQ_I4; g++) {
        const uint16_t pair =
            ((const uint16_t *)(const void *)(packed + layout->column))[pair_at(layout, g, output)];
        const int factor = pair & 255;
        if (w->scales == VGQ_TWO_LEVEL)
            w->factor[output * layout->groups + g] = (uint8_t)factor;
        if (w->asymmetric)
            w->zero[output * layout->groups + g] =
                (int8_t)(factor ? (128 - (pair >> 8)) / factor - 8 : 0);
    }
}

static vgq_status pack(const vgq_weight *weight, void *packed, size_t nbytes)
{
    vgq_weight w;
    vgq_status status = vgq_check_weight(weight, &w);
    if (status != VGQ_OK)
        return status;
    if (!packed || nbytes != packed_nbytes(&w) || !vgq_has_parts(&w))
        return VGQ_EINVAL;
    status = vgq_check_values(&w);
    if (status != VGQ_OK)
        return status;
    const vgq_cuda_layout layout = vgq_cuda_layout_of(&w);
    unsigned char *const to = packed;
    const vgq_cuda_header header = {.magic = VGQ_CUDA_MAGIC,
                                    .format = w.format,
                                    .scales = w.scales,
                                    .asymmetric = w.asymmetric != 0,
                                    .panel = VGQ_CUDA_PANEL,
                                    .n = w.n,
                                    .k = w.k,
                                    .group = w.group};
    memcpy(packed, &header, sizeof(header));
    memset(to + sizeof(header), 0, layout.codes - sizeof(header));
    for (size_t output = 0; output < w.n; output++)
        pack_column(&w, &layout, output, to);
#pragma omp parallel for schedule(static) num_threads(vgq_team(vgq_threads(), w.n *w.k))
    for (size_t p = 0; p < layout.panels; p++) {
        unsigned char *const panel = to + layout.codes + p * layout.panel_nbytes;
        if (vgq_stopped())
            continue;
        const size_t first = p * VGQ_CUDA_PANEL, columns = vgq_min(VGQ_CUDA_PANEL, w.n - first);
        memset(panel, 0, layout.panel_nbytes);
        move_panel(&w, &layout, columns, w.q + first * vgq_row_nbytes(w.format, w.k), panel, 1);
    }
    return vgq_stopped() ? VGQ_ESTOPPED : VGQ_OK;
}

static vgq_status packed_weight(const void *packed, size_t nbytes, vgq_weight *weight)
{
    vgq_cuda_header header;
    if (!packed || !weight || nbytes < sizeof(header) || (uintptr_t)packed % sizeof(float))
        return VGQ_EPACKED;
    memcpy(&header, packed, sizeof(header));
    const vgq_weight w = {.format = (vgq_format)header.format,
                          .scales = (vgq_scales)header.scales,
                          .n = header.n,
                          .k = header.k,
                          .group = header.group,
                          .asymmetric = (int)header.asymmetric};
    if (header.magic != VGQ_CUDA_MAGIC || header.panel != VGQ_CUDA_PANEL || header.asymmetric > 1 ||
        header.group > header.k || packed_nbytes(&w) != nbytes)
        return VGQ_EPACKED;
    *weight = w;
    return VGQ_OK;
}

static vgq_status unpack(const void *packed, size_t nbytes, const vgq_weight *weight)
{
    vgq_weight w;
    const vgq_status status = packed_weight(packed, nbytes, &w);
    if (status != VGQ_OK)
        return status;
    if (!weight)
        return VGQ_EINVAL;
    w.q = weight->q;
    w.scale = weight->scale;
    w.factor = weight->factor;
    w.zero = weight->zero;
    if (!vgq_has_parts(&w))
        return VGQ_EINVAL;
    const vgq_cuda_layout layout = vgq_cuda_layout_of(&w);
    /* Panels are only read here. */
    unsigned char *const from = (unsigned char *)(uintptr_t)packed;
    for (size_t output = 0; output < w.n; output++)
        unpack_column(&w, &layout, output, from);
#pragma omp parallel for schedule(static) num_threads(vgq_team(vgq_threads(), w.n *w.k))
    for (size_t p = 0; p < layout.panels; p++) {
        unsigned char *const panel = from + layout.codes + p * layout.panel_nbytes;
        if (vgq_stopped())
            continue;
        const size_t first = p * VGQ_CUDA_PANEL, columns = vgq_min(VGQ_CUDA_PANEL, w.n - first);
        const size_t row_nbytes = vgq_row_nbytes(w.format, w.k);
        memset(w.q + first * row_nbytes, 0, columns * row_nbytes);
        move_panel(&w, &layout, columns, w.q + first * row_nbytes, panel, 0);
    }
    return vgq_stopped() ? VGQ_ESTOPPED : VGQ_OK;
}

const vgq_packing vgq_packing_cuda = {packed_nbytes, pack, packed_weight, unpack};
