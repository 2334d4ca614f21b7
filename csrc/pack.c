/* SPDX-License-Identifier: Apache-2.0
 * Packs weights into the panels that packed.h draws, and back. */
#include "packed.h"

#include <string.h>

static const char magic[8] = "vgqpack1"; /* the digit: the version of the layout */

vgq_layout vgq_layout_of(const vgq_weight *w)
{
    vgq_layout at;
    const size_t groups = w->scales == VGQ_PER_ROW ? 1 : (w->k + w->group - 1) / w->group;
    at.groups = groups;
    at.panels = (w->n + VGQ_PANEL - 1) / VGQ_PANEL;
    at.depth = vgq_round_up(w->k, 8);
    at.zero = VGQ_PANEL * sizeof(float) * (w->scales == VGQ_PER_GROUP ? groups : 1);
    at.factor = at.zero + (w->asymmetric ? VGQ_PANEL * groups : 0);
    at.codes = at.factor + (w->scales == VGQ_TWO_LEVEL ? VGQ_PANEL * groups : 0);
    at.panel_nbytes = at.codes + VGQ_PANEL * at.depth / (w->format == VGQ_I4 ? 2 : 1);
    return at;
}

size_t vgq_packed_nbytes(const vgq_weight *weight)
{
    vgq_weight w;
    if (vgq_check_weight(weight, &w) != VGQ_OK)
        return 0;
    const vgq_layout at = vgq_layout_of(&w);
    return sizeof(vgq_header) + at.panels * at.panel_nbytes;
}

/* The steps of a panel, 256 bytes each, hold a 4-byte word of every column: 4 inputs of INT8 or 8
 * of INT4. Words go through a register whole; a word's bytes are named one by one, so that the
 * packed bytes do not depend on the machine's byte order. */
enum { STEP = 4 * VGQ_PANEL, STEPS_AT_ONCE = 16 /* a cache line of a row's codes */ };

static uint32_t load_word(const uint8_t *q, size_t nbytes)
{
    uint32_t word = 0;
    for (size_t b = 0; b < nbytes; b++)
        word |= (uint32_t)q[b] << 8 * b;
    return word;
}

static void store_word(uint8_t *q, size_t nbytes, uint32_t word)
{
    for (size_t b = 0; b < nbytes; b++)
        q[b] = (uint8_t)(word >> 8 * b);
}

/* Swap the bits of `mask` with those `by` places above them. */
static uint32_t swap_bits(uint32_t word, uint32_t mask, int by)
{
    const uint32_t differing = (word ^ word >> by) & mask;
    return word ^ differing ^ differing << by;
}

/* Two's complement to what a panel holds: code + 128; or code + 8, and the nibbles of inputs
 * 0 1 2 3 4 5 6 7 to the places 0 4 1 5 2 6 3 7. */
static uint32_t to_panel(vgq_format format, uint32_t word)
{
    if (format == VGQ_I8)
        return word ^ 0x80808080u;
    return swap_bits(swap_bits(word, 0xff00u, 8), 0xf000f0u, 4) ^ 0x88888888u;
}

static uint32_t from_panel(vgq_format format, uint32_t word)
{
    if (format == VGQ_I8)
        return word ^ 0x80808080u;
    return swap_bits(swap_bits(word ^ 0x88888888u, 0xf000f0u, 4), 0xff00u, 8);
}

/* An odd last INT4 code of a row shares its byte with nothing. */
static uint32_t last_word(const vgq_weight *w, const uint8_t *q, size_t nbytes)
{
    const uint32_t word = load_word(q, nbytes);
    return w->format == VGQ_I4 && w->k % 2 ? word & ~(0xf0u << 8 * (nbytes - 1)) : word;
}

static void pack_codes(const vgq_weight *w, size_t columns, const uint8_t *q, uint8_t *codes)
{
    const size_t row_nbytes = vgq_row_nbytes(w->format, w->k);
    const size_t whole = w->format == VGQ_I4 ? w->k / 8 : w->k / 4, rest = row_nbytes - 4 * whole;
    for (size_t start = 0; start < whole; start += STEPS_AT_ONCE) {
        const size_t end = vgq_min(start + STEPS_AT_ONCE, whole);
        for (size_t c = 0; c < columns; c++)
            for (size_t i = start; i < end; i++)
                store_word(codes + i * STEP + 4 * c, 4,
                           to_panel(w->format, load_word(q + c * row_nbytes + 4 * i, 4)));
    }
    for (size_t c = 0; c < columns && rest; c++)
        store_word(codes + whole * STEP + 4 * c, 4,
                   to_panel(w->format, last_word(w, q + c * row_nbytes + 4 * whole, rest)));
}

static void unpack_codes(const vgq_weight *w, size_t columns, const uint8_t *codes, uint8_t *q)
{
    const size_t row_nbytes = vgq_row_nbytes(w->format, w->k);
    const size_t whole = w->format == VGQ_I4 ? w->k / 8 : w->k / 4, rest = row_nbytes - 4 * whole;
    for (size_t start = 0; start < whole; start += STEPS_AT_ONCE) {
        const size_t end = vgq_min(start + STEPS_AT_ONCE, whole);
        for (size_t c = 0; c < columns; c++)
            for (size_t i = start; i < end; i++)
                store_word(q + c * row_nbytes + 4 * i, 4,
                           from_panel(w->format, load_word(codes + i * STEP + 4 * c, 4)));
    }
    for (size_t c = 0; c < columns && rest; c++)
        store_word(q + c * row_nbytes + 4 * whole, rest,
                   from_panel(w->format, load_word(codes + whole * STEP + 4 * c, 4)));
}

static void pack_panel(const vgq_weight *w, const vgq_layout *at, size_t p, unsigned char *panel)
{
    float *const scale = (float *)(void *)panel;
    int8_t *const zero = (int8_t *)panel + at->zero;
    uint8_t *const factor = panel + at->factor, *const codes = panel + at->codes;
    const size_t scales = w->scales == VGQ_PER_GROUP ? at->groups : 1;
    const size_t first = p * VGQ_PANEL, columns = vgq_min(VGQ_PANEL, w->n - first);
    memset(panel, 0, at->codes);
    memset(codes, w->format == VGQ_I4 ? 0x88 : 128, at->panel_nbytes - at->codes);
    for (size_t c = 0; c < columns; c++) {
        const size_t row = first + c;
        for (size_t g = 0; g < scales; g++)
            scale[g * VGQ_PANEL + c] = w->scale[row * scales + g];
        for (size_t g = 0; g < at->groups && w->asymmetric; g++)
            zero[g * VGQ_PANEL + c] = w->zero[row * at->groups + g];
        for (size_t g = 0; g < at->groups && w->scales == VGQ_TWO_LEVEL; g++)
            factor[g * VGQ_PANEL + c] = w->factor[row * at->groups + g];
    }
    pack_codes(w, columns, w->q + first * vgq_row_nbytes(w->format, w->k), codes);
}

static void unpack_panel(const vgq_weight *w, const vgq_layout *at, size_t p,
                         const unsigned char *panel)
{
    const float *const scale = (const float *)(const void *)panel;
    const int8_t *const zero = (const int8_t *)panel + at->zero;
    const uint8_t *const factor = panel + at->factor, *const codes = panel + at->codes;
    const size_t scales = w->scales == VGQ_PER_GROUP ? at->groups : 1;
    const size_t first = p * VGQ_PANEL, columns = vgq_min(VGQ_PANEL, w->n - first);
    for (size_t c = 0; c < columns; c++) {
        const size_t row = first + c;
        for (size_t g = 0; g < scales; g++)
            w->scale[row * scales + g] = scale[g * VGQ_PANEL + c];
        for (size_t g = 0; g < at->groups && w->asymmetric; g++)
            w->zero[row * at->groups + g] = zero[g * VGQ_PANEL + c];
        for (size_t g = 0; g < at->groups && w->scales == VGQ_TWO_LEVEL; g++)
            w->factor[row * at->groups + g] = factor[g * VGQ_PANEL + c];
    }
    unpack_codes(w, columns, codes, w->q + first * vgq_row_nbytes(w->format, w->k));
}

vgq_status vgq_pack(const vgq_weight *weight, void *packed, size_t nbytes)
{
    vgq_weight w;
    vgq_status status = vgq_check_weight(weight, &w);
    if (status != VGQ_OK)
        return status;
    if (!packed || nbytes != vgq_packed_nbytes(&w) || !vgq_has_parts(&w))
        return VGQ_EINVAL;
    status = vgq_check_values(&w);
    if (status != VGQ_OK)
        return status;
    const vgq_layout at = vgq_layout_of(&w);
    vgq_header header = {.format = w.format,
                         .scales = w.scales,
                         .asymmetric = w.asymmetric != 0,
                         .panel = VGQ_PANEL,
                         .n = w.n,
                         .k = w.k,
                         .group = w.group};
    memcpy(header.magic, magic, sizeof(magic));
    memcpy(packed, &header, sizeof(header));
    unsigned char *const panels = (unsigned char *)packed + sizeof(header);
#pragma omp parallel for schedule(static) num_threads(vgq_team(vgq_threads(), w.n *w.k))
    for (size_t p = 0; p < at.panels; p++)
        if (!vgq_stopped())
            pack_panel(&w, &at, p, panels + p * at.panel_nbytes);
    return vgq_stopped() ? VGQ_ESTOPPED : VGQ_OK;
}

vgq_status vgq_packed_weight(const void *packed, size_t nbytes, vgq_weight *weight)
{
    vgq_header header;
    if (!packed || !weight || nbytes < sizeof(header) || (uintptr_t)packed % sizeof(float))
        return VGQ_EPACKED;
    memcpy(&header, packed, sizeof(header));
    const vgq_weight w = {.format = (vgq_format)header.format,
                          .scales = (vgq_scales)header.scales,
                          .n = header.n,
                          .k = header.k,
                          .group = header.group,
                          .asymmetric = (int)header.asymmetric};
    static const unsigned char zeros[sizeof(header.reserved)];
    if (memcmp(header.magic, magic, sizeof(magic) - 1) != 0)
        return VGQ_EPACKED;
    if (memcmp(header.magic, magic, sizeof(magic)) != 0 || header.panel != VGQ_PANEL ||
        memcmp(header.reserved, zeros, sizeof(zeros)) != 0)
        return VGQ_ELAYOUT;
    if (header.asymmetric > 1 || header.group > header.k || vgq_packed_nbytes(&w) != nbytes)
        return VGQ_EPACKED;
    *weight = w;
    return VGQ_OK;
}

vgq_status vgq_unpack(const void *packed, size_t nbytes, const vgq_weight *weight)
{
    vgq_weight w;
    const vgq_status status = vgq_packed_weight(packed, nbytes, &w);
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
    const vgq_layout at = vgq_layout_of(&w);
    const unsigned char *const panels = (const unsigned char *)packed + sizeof(vgq_header);
#pragma omp parallel for schedule(static) num_threads(vgq_team(vgq_threads(), w.n *w.k))
    for (size_t p = 0; p < at.panels; p++)
        if (!vgq_stopped())
            unpack_panel(&w, &at, p, panels + p * at.panel_nbytes);
    return vgq_stopped() ? VGQ_ESTOPPED : VGQ_OK;
}

const vgq_packing vgq_packing_cpu = {vgq_packed_nbytes, vgq_pack, vgq_packed_weight, vgq_unpack};
