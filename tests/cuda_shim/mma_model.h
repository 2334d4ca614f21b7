/* SPDX-License-Identifier: Apache-2.0
 * The host shim's warp instructions (csrc/cuda/mma.cuh), by the PTX manual: "Matrix Fragments for
 * mma.m16n8k32" and "mma.m8n8k16" with .s8, "ldmatrix", "cp.async". Compile with -DVGQ_ARCH=800 or
 * 750 for what kernels do on those architectures.
 *
 * A copy in the background arrives only when its thread waits for its group: until then its place
 * holds garbage, so that a wait too few is seen. */
#ifndef VGQ_MMA_MODEL_H
#define VGQ_MMA_MODEL_H

#include "cuda_shim.h"

#ifndef VGQ_ARCH
#define VGQ_ARCH 800
#endif

namespace shim
{
/* What the lanes of a warp show each other, at most 8 words each. Two places by turns: who writes
 * one knows that all have read it, because they came to the barrier of the other. */
struct shown_words {
    uint32_t words[8];
};
inline shown_words shown_by[2][LARGEST_BLOCK];
inline uint8_t turn_of[LARGEST_BLOCK];

/* Of the running thread's warp: [32], after all have shown theirs. */
VGQ_NOT_WATCHED inline const shown_words *show(const shown_words &mine)
{
    const unsigned self = now().thread, turn = turn_of[self] ^= 1;
    shown_by[turn][self] = mine;
    warp_barrier(0xffffffffu);
    return shown_by[turn] + self / WARP * WARP;
}

VGQ_NOT_WATCHED inline int signed_byte(uint32_t word, unsigned i)
{
    return (int8_t)(word >> 8 * i);
}

/* An access that the compiler does not see: told to the race detector, where that sees the others.
 */
VGQ_NOT_WATCHED inline void saw(const void *first, size_t nbytes, bool writes)
{
#if defined(__SANITIZE_THREAD__)
    touch(first, nbytes, writes);
#else
    (void)first, (void)nbytes, (void)writes;
#endif
}

/* How often ldmatrix met a bank twice in one of its four phases. */
inline size_t bank_conflicts;

struct copy {
    unsigned char *to;
    const unsigned char *from; /* NULL: zeros */
};
enum { COPIES = 64, GROUPS = 8 };
struct copies {
    copy list[COPIES];
    unsigned n, groups, ends[GROUPS]; /* committed groups, oldest first, and where each ends */
    uint32_t block;
};
inline copies copies_of[LARGEST_BLOCK];

/* The running thread's copies; a new block has none. */
VGQ_NOT_WATCHED inline copies &own_copies()
{
    copies &own = copies_of[now().thread];
    if (own.block != now().block) {
        own.n = own.groups = 0;
        own.block = now().block;
    }
    return own;
}
} // namespace shim

VGQ_NOT_WATCHED static inline void ldmatrix_x4(uint32_t (&d)[4], const void *row)
{
    if ((uintptr_t)row % 16)
        shim::fail("ldmatrix: a row that is not aligned to 16 bytes");
    shim::shown_words mine;
    memcpy(mine.words, &row, sizeof(row));
    const shim::shown_words *const all = shim::show(mine);
    const unsigned lane = shim::lane();
    for (unsigned i = 0; i < 4; i++) {
        unsigned used = 0;
        for (unsigned r = 0; r < 8; r++) {
            const unsigned char *address;
            memcpy(&address, all[8 * i + r].words, sizeof(address));
            used |= 1u << (uintptr_t)address / 16 % 8; /* of eight groups of four banks */
            if (r == lane / 4) {
                memcpy(&d[i], address + 4 * (lane % 4), 4);
                shim::saw(address + 4 * (lane % 4), 4, false);
            }
        }
        shim::bank_conflicts += lane == 0 && used != 0xff;
    }
}

/* a: row r, input k is byte k % 4 of register r / 8 + 2 (k / 16) of lane 4 (r % 8) + k % 16 / 4.
 * b: input k, column n is byte k % 4 of register k / 16 of lane 4 n + k % 16 / 4.
 * d: register i of a lane is row lane / 4 + 8 (i / 2), column 2 (lane % 4) + i % 2. */
VGQ_NOT_WATCHED static inline void mma_m16n8k32(int32_t (&d)[4], const uint32_t (&a)[4],
                                                uint32_t b0, uint32_t b1)
{
    const shim::shown_words *const all = shim::show({{a[0], a[1], a[2], a[3], b0, b1, 0, 0}});
    const unsigned lane = shim::lane();
    for (unsigned i = 0; i < 4; i++) {
        const unsigned r = lane / 4 + 8 * (i / 2), n = 2 * (lane % 4) + i % 2;
        for (unsigned k = 0; k < 32; k++) {
            const uint32_t x = all[4 * (r % 8) + k % 16 / 4].words[r / 8 + 2 * (k / 16)];
            const uint32_t w = all[4 * n + k % 16 / 4].words[4 + k / 16];
            d[i] += shim::signed_byte(x, k % 4) * shim::signed_byte(w, k % 4);
        }
    }
}

/* a: row r, input k is byte k % 4 of lane 4 r + k / 4. b: input k, column n is byte k % 4 of lane
 * 4 n + k / 4. d: register i of a lane is row lane / 4, column 2 (lane % 4) + i. */
VGQ_NOT_WATCHED static inline void mma_m8n8k16(int32_t &d0, int32_t &d1, uint32_t a, uint32_t b)
{
    const shim::shown_words *const all = shim::show({{a, b, 0, 0, 0, 0, 0, 0}});
    const unsigned r = shim::lane() / 4;
    int32_t *const d[2] = {&d0, &d1};
    for (unsigned i = 0; i < 2; i++) {
        const unsigned n = 2 * (shim::lane() % 4) + i;
        for (unsigned k = 0; k < 16; k++)
            *d[i] += shim::signed_byte(all[4 * r + k / 4].words[0], k % 4) *
                     shim::signed_byte(all[4 * n + k / 4].words[1], k % 4);
    }
}

#if VGQ_ARCH >= 800
VGQ_NOT_WATCHED static inline void copy_async(void *shared, const void *global, bool there)
{
    shim::copies &own = shim::own_copies();
    if ((uintptr_t)shared % 16 || (uintptr_t)global % 16)
        shim::fail("cp.async: an address that is not aligned to 16 bytes");
    if (own.n == shim::COPIES)
        shim::fail("cp.async: more than %d copies under way", shim::COPIES);
    own.list[own.n++] = {(unsigned char *)shared, there ? (const unsigned char *)global : NULL};
    shim::saw(shared, 16, true);
    memset(shared, 0x5a, 16);
}

VGQ_NOT_WATCHED static inline void copy_commit()
{
    shim::copies &own = shim::own_copies();
    if (own.groups == shim::GROUPS)
        shim::fail("cp.async: more than %d groups under way", shim::GROUPS);
    own.ends[own.groups++] = own.n;
}

template <int pending> VGQ_NOT_WATCHED static inline void copy_wait()
{
    shim::copies &own = shim::own_copies();
    if (own.groups <= pending)
        return;
    const unsigned done = own.groups - pending, arrived = own.ends[done - 1];
    for (unsigned i = 0; i < arrived; i++) {
        const shim::copy &one = own.list[i];
        shim::saw(one.to, 16, true);
        if (one.from) {
            shim::saw(one.from, 16, false);
            memcpy(one.to, one.from, 16);
        } else {
            memset(one.to, 0, 16);
        }
    }
    for (unsigned i = arrived; i < own.n; i++)
        own.list[i - arrived] = own.list[i];
    own.n -= arrived;
    for (unsigned g = done; g < own.groups; g++)
        own.ends[g - done] = own.ends[g] - arrived;
    own.groups -= done;
}
#endif

#endif
