/* SPDX-License-Identifier: Apache-2.0
 * The C core without Python: every public function of csrc/vgq.h, each buffer between unmapped
 * pages, at all lengths 0..67 and all offsets of 0..63 bytes, on every instruction set that runs
 * here. Reads and writes beyond a buffer crash or break a canary; integer results must equal those
 * of the scalar table. tests/test_core.py builds and runs this, with and without sanitizers.
 *
 *     core [STRIDE [RUNTIME...]]      every STRIDE-th length, 0: threads alone; OpenMP runtimes to
 *                                     load at the end */
#define _GNU_SOURCE
#include "core.h"
#include "../csrc/formats.h"

#include <math.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

size_t checks;
static size_t calls, stride = 1; /* every stride-th length is tried */

static size_t min_size(size_t a, size_t b) { return a < b ? a : b; }

/* ---- guarded buffers ------------------------------------------------------------------------- */

enum { SLOTS = 10, CAPACITY = 1 << 20, CANARY = 64, LENGTHS = 68 };

typedef struct slot {
    unsigned char *first, *last; /* between two unmapped pages */
    unsigned char *at;
    size_t nbytes;
} slot;

static slot slots[SLOTS];
/* Where buffers are put: against the page behind them, or so many bytes after the page before them,
 * less what their elements' alignment forbids. */
static struct place {
    int at_end;
    size_t offset;
} place;
/* Six places a call: against either page, and four offsets that follow those of the call before. A
 * length has 18 calls and more, so it meets all 64 offsets on every instruction set. Attention,
 * which takes long, has two offsets. */
enum { PLACES = 6, FEW_PLACES = 4, OFFSETS = 64, ALL_PLACES = OFFSETS + 2, ISAS = 16 };

static struct place place_of(size_t isa, int p)
{
    static size_t turn[ISAS];
    return (struct place){p == 0, p < 2 ? 0 : turn[isa]++ % OFFSETS};
}

static void map_slots(void)
{
    const size_t page = (size_t)sysconf(_SC_PAGESIZE);
    for (int i = 0; i < SLOTS; i++) {
        unsigned char *const map = mmap(NULL, CAPACITY + 2 * page, PROT_NONE,
                                        MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
        if (map == MAP_FAILED || mprotect(map + page, CAPACITY, PROT_READ | PROT_WRITE) != 0) {
            perror("mmap");
            exit(2);
        }
        slots[i] = (slot){map + page, map + page + CAPACITY, map + page, 0};
    }
}

static unsigned char *before(const slot *s)
{
    return s->at - s->first < CANARY ? s->first : s->at - CANARY;
}

static unsigned char *after(const slot *s)
{
    unsigned char *const end = s->at + s->nbytes;
    return s->last - end < CANARY ? s->last : end + CANARY;
}

/* n elements of that size in slot i, holding a copy of source where there is one. */
static void *buffer(int i, size_t n, size_t size, const void *source)
{
    slot *const s = &slots[i];
    s->nbytes = n * size;
    if (s->nbytes + CANARY > CAPACITY) {
        printf("a buffer of %zu bytes is too large for the test\n", s->nbytes);
        exit(2);
    }
    const size_t alignment = size % 8 == 0 ? 8 : size & -size;
    s->at = place.at_end ? s->last - s->nbytes : s->first + place.offset / alignment * alignment;
    memset(before(s), 0xa5, (size_t)(after(s) - before(s)));
    if (source)
        memcpy(s->at, source, s->nbytes);
    return s->at;
}

static void untouched(const unsigned char *first, const unsigned char *last, int i)
{
    for (const unsigned char *p = first; p < last; p++)
        if (*p != 0xa5)
            CHECK(0, "slot %d: byte %td of %zu was written", i, p - slots[i].at, slots[i].nbytes);
}

/* What lies around the buffers of slots 0..used is as it was. */
static void intact(int used)
{
    calls++;
    for (int i = 0; i < used; i++) {
        untouched(before(&slots[i]), slots[i].at, i);
        untouched(slots[i].at + slots[i].nbytes, after(&slots[i]), i);
    }
}

/* ---- inputs ---------------------------------------------------------------------------------- */

static uint64_t state = 88172645463325252u;

static uint32_t next(void)
{
    state ^= state << 13;
    state ^= state >> 7;
    state ^= state << 17;
    return (uint32_t)(state >> 16);
}

enum { MOST = CORE_NUMBERS };
float numbers[MOST];
static float hard[MOST];         /* finite and ordinary; with NaN, infinities, denormals */
static uint16_t halves[2][MOST]; /* float16 and bfloat16 bits of ordinary numbers */
static uint8_t bytes[1 << 17];
static float scales[MOST];
static int8_t zeros[MOST];
static uint8_t factors[MOST];

static void make_inputs(void)
{
    static const float odd[] = {NAN, INFINITY, -INFINITY, 0.0f, -0.0f, 1e-45f, 1e38f, -3e38f};
    for (size_t i = 0; i < MOST; i++) {
        numbers[i] = (float)(next() % 20001) / 10000.0f - 1.0f;
        hard[i] = i % 5 ? numbers[i] : odd[next() % 8];
        halves[0][i] = (uint16_t)(next() % 0x3c00u | (next() & 0x8000u));
        halves[1][i] = (uint16_t)(0x3a00u + next() % 0x200u) | (uint16_t)(next() & 0x8000u);
        scales[i] = (float)(1 + next() % 100) / 1000.0f;
        zeros[i] = (int8_t)((int)(next() % 16) - 8);
        factors[i] = (uint8_t)(1 + next() % 8);
    }
    for (size_t i = 0; i < sizeof(bytes); i++)
        bytes[i] = (uint8_t)next();
}

static const size_t element_nbytes[VGQ_DTYPES] = {4, 2, 2};

static const void *values(vgq_dtype dtype, const float *floats)
{
    return dtype == VGQ_F32 ? (const void *)floats : halves[dtype - VGQ_F16];
}

/* ---- instruction sets ------------------------------------------------------------------------ */

static const char *isas[ISAS];
static size_t n_isas;

static void test_dispatch(void)
{
    const char *const best = vgq_isa(); /* before any choice */
    while (vgq_isa_here(n_isas)) {
        isas[n_isas] = vgq_isa_here(n_isas);
        n_isas++;
    }
    CHECK(n_isas > 0 && strcmp(isas[0], "scalar") == 0, "scalar is the weakest");
    CHECK(strcmp(best, isas[n_isas - 1]) == 0, "%s is the best", best);
    CHECK(vgq_isa_here(n_isas + 5) == NULL && vgq_isa_here(SIZE_MAX) == NULL, " ");
    for (size_t i = 0; i < n_isas; i++)
        CHECK(vgq_use(isas[i]) == VGQ_OK && strcmp(vgq_isa(), isas[i]) == 0, "%s", isas[i]);
    CHECK(vgq_use("z80") == VGQ_EISA && strcmp(vgq_isa(), isas[n_isas - 1]) == 0, "stays");
    CHECK(vgq_use("") == VGQ_EISA, " ");
    CHECK(vgq_use(isas[0]) == VGQ_OK && vgq_use(NULL) == VGQ_OK, " ");
    CHECK(strcmp(vgq_isa(), isas[n_isas - 1]) == 0, "NULL is the best");
#if defined(VGQ_WRONG_MODELS) /* a build in which these sets' own instructions compute wrongly */
    static const char *const wrong[] = {"avxvnni", "amx", "neondot", "neoni8mm"};
    CHECK(vgq_isa_refused(0) && vgq_use(vgq_isa_refused(0)) == VGQ_EISA,
          "a wrong table is refused");
    for (size_t i = 0; i < n_isas; i++)
        for (size_t k = 0; k < sizeof(wrong) / sizeof(wrong[0]); k++)
            CHECK(strcmp(isas[i], wrong[k]) != 0, "%s is left", isas[i]);
    printf("core: refused %s\n", vgq_isa_refused(0));
    exit(0);
#endif
    CHECK(vgq_isa_refused(0) == NULL, "%s is refused", vgq_isa_refused(0));
    for (int status = -1; status <= VGQ_STATUSES; status++)
        CHECK(strlen(vgq_message((vgq_status)status)) > 1, "status %d", status);
    CHECK(strlen(vgq_openmp()) > 0 && vgq_threads() >= 1, " ");
    vgq_set_threads(-3);
    CHECK(vgq_threads() >= 1, " ");
    vgq_set_threads(5);
    CHECK(vgq_limit_threads(2) == 0 && vgq_threads() == 2, "a limit");
    CHECK(vgq_limit_threads(9) == 2 && vgq_threads() == 5, "above what is set");
    CHECK(vgq_limit_threads(-1) == 9 && vgq_threads() == 5, "none");
    CHECK(vgq_limit_threads(0) == 0, " ");
    vgq_set_threads(0);
}

/* ---- quantize -------------------------------------------------------------------------------- */

static void test_codes(vgq_format format, vgq_dtype dtype, vgq_shape shape, int asymmetric)
{
    static uint8_t q_scalar[MOST];
    static float x_scalar[MOST];
    const size_t groups = shape.rows * vgq_row_groups(shape), n = shape.rows * shape.cols;
    const size_t q_nbytes = shape.rows * vgq_row_nbytes(format, shape.cols);
    const void *const source = values(dtype, hard);
    for (size_t isa = 0; isa < n_isas; isa++) {
        vgq_use(isas[isa]);
        for (int p = 0; p < PLACES; p++) {
            place = place_of(isa, p);
            const void *const x = buffer(0, n, element_nbytes[dtype], source);
            const float *const scale = buffer(1, groups, sizeof(float), scales);
            const int8_t *const zero = buffer(2, groups, 1, zeros);
            uint8_t *const q = buffer(3, q_nbytes, 1, NULL);
            CHECK(vgq_quantize(format, dtype, shape, x, scale, asymmetric ? zero : NULL, q) ==
                      VGQ_OK,
                  " ");
            intact(4);
            if (isa == 0 && p == 0)
                memcpy(q_scalar, q, q_nbytes);
            CHECK(memcmp(q, q_scalar, q_nbytes) == 0, "codes of %zu x %zu by %zu, dtype %d",
                  shape.rows, shape.cols, shape.group, dtype);

            void *const back = buffer(0, n, element_nbytes[dtype], NULL);
            CHECK(vgq_dequantize(format, dtype, shape, q, scale, asymmetric ? zero : NULL, back) ==
                      VGQ_OK,
                  " ");
            intact(4);
            if (isa == 0 && p == 0)
                memcpy(x_scalar, back, n * element_nbytes[dtype]);
            CHECK(memcmp(back, x_scalar, n * element_nbytes[dtype]) == 0, "values of %zu x %zu",
                  shape.rows, shape.cols);
        }
    }
}

static void test_scales(vgq_dtype dtype, vgq_shape shape, int asymmetric)
{
    static float lo_scalar[MOST], hi_scalar[MOST], scale_scalar[MOST], channel_scalar[MOST];
    static uint8_t factor_scalar[MOST];
    static int8_t zero_scalar[MOST];
    static double error_scalar[MOST];
    const size_t groups = shape.rows * vgq_row_groups(shape), n = shape.rows * shape.cols;
    for (size_t isa = 0; isa < n_isas; isa++) {
        vgq_use(isas[isa]);
        for (int p = 0; p < PLACES; p++) {
            place = place_of(isa, p);
            const int first = isa == 0 && p == 0;
            const void *const x = buffer(0, n, element_nbytes[dtype], values(dtype, numbers));
            float *const lo = buffer(1, groups, sizeof(float), NULL);
            float *const hi = buffer(2, groups, sizeof(float), NULL);
            uint64_t *const nonfinite = buffer(3, shape.rows, sizeof(uint64_t), NULL);
            CHECK(vgq_range(dtype, shape, x, lo, hi, nonfinite) == VGQ_OK, " ");
            intact(4);
            for (size_t g = 0; g < groups; g++)
                CHECK(lo[g] <= 0 && hi[g] >= 0, "group %zu", g);
            for (size_t r = 0; r < shape.rows && n; r++)
                CHECK(nonfinite[r] == 0, "row %zu", r);
            if (first) {
                memcpy(lo_scalar, lo, groups * sizeof(float));
                memcpy(hi_scalar, hi, groups * sizeof(float));
            }
            for (size_t g = 0; g < groups; g++)
                CHECK(lo[g] == lo_scalar[g] && hi[g] == hi_scalar[g], "group %zu", g);

            float *const scale = buffer(3, groups, sizeof(float), NULL);
            int8_t *const zero = buffer(4, groups, 1, NULL);
            CHECK(vgq_parameters(shape.cols % 2 ? VGQ_I8 : VGQ_I4, groups, lo, hi, scale,
                                 asymmetric ? zero : NULL) == VGQ_OK,
                  " ");
            intact(5);
            if (first)
                memcpy(scale_scalar, scale, groups * sizeof(float));
            CHECK(memcmp(scale, scale_scalar, groups * sizeof(float)) == 0, "scales");

            float *const channel = buffer(1, shape.rows, sizeof(float), NULL);
            uint8_t *const factor = buffer(2, groups, 1, NULL);
            double *const error = buffer(3, 2 * shape.rows, sizeof(double), NULL);
            CHECK(vgq_two_level(dtype, shape, x, channel, factor, asymmetric ? zero : NULL,
                                error) == VGQ_OK,
                  " ");
            intact(5);
            if (first && n) {
                memcpy(channel_scalar, channel, shape.rows * sizeof(float));
                memcpy(factor_scalar, factor, groups);
                memcpy(zero_scalar, zero, groups);
                memcpy(error_scalar, error, 2 * shape.rows * sizeof(double));
            }
            CHECK(!n || (memcmp(channel, channel_scalar, shape.rows * sizeof(float)) == 0 &&
                         memcmp(factor, factor_scalar, groups) == 0 &&
                         (!asymmetric || memcmp(zero, zero_scalar, groups) == 0) &&
                         memcmp(error, error_scalar, 2 * shape.rows * sizeof(double)) == 0),
                  "two-level scales of %zu x %zu by %zu", shape.rows, shape.cols, shape.group);
        }
    }
}

static void test_quantize(void)
{
    for (size_t cols = 0; cols < LENGTHS; cols += stride)
        for (int dtype = 0; dtype < VGQ_DTYPES; dtype++)
            for (int kind = 0; kind < 6; kind++) {
                const size_t wanted = kind % 3 == 0 ? cols : kind % 3 == 1 ? 8 : 5;
                const size_t group = cols ? min_size(wanted, cols) : 1;
                const vgq_shape shape = {1 + (cols + (size_t)kind) % 3, cols, group};
                for (int format = 0; format < VGQ_FORMATS; format++)
                    test_codes((vgq_format)format, (vgq_dtype)dtype, shape, kind >= 3);
                test_scales((vgq_dtype)dtype, shape, kind >= 3);
            }
    const vgq_shape block = {1, 4096 + 5, 4096 + 5}, grouped = {1, 4096 + 5, 70};
    for (int format = 0; format < VGQ_FORMATS; format++) {
        test_codes((vgq_format)format, VGQ_F32, block, 1);
        test_codes((vgq_format)format, VGQ_BF16, grouped, 0);
    }
    test_scales(VGQ_F16, block, 1);
    test_scales(VGQ_F32, grouped, 0);
}

static void test_nothing(void)
{
    const vgq_shape empty = {3, 0, 1}, none = {0, 5, 5};
    CHECK(vgq_quantize(VGQ_I4, VGQ_F32, empty, NULL, NULL, NULL, NULL) == VGQ_OK, " ");
    CHECK(vgq_dequantize(VGQ_I4, VGQ_F32, none, NULL, NULL, NULL, NULL) == VGQ_OK, " ");
    CHECK(vgq_parameters(VGQ_I4, 0, NULL, NULL, NULL, NULL) == VGQ_OK, " ");
    CHECK(vgq_exp(0, NULL, NULL) == VGQ_OK && vgq_log(0, NULL, NULL) == VGQ_OK, " ");
    CHECK(vgq_range(VGQ_F32, none, NULL, NULL, NULL, NULL) == VGQ_OK, " ");
    CHECK(vgq_two_level(VGQ_F32, none, NULL, NULL, NULL, NULL, NULL) == VGQ_OK, " ");
    CHECK(vgq_row_groups((vgq_shape){1, 9, 4}) == 3 && vgq_row_nbytes(VGQ_I4, 9) == 5, " ");
}

/* ---- linear ---------------------------------------------------------------------------------- */

typedef struct kind {
    vgq_format format;
    vgq_scales scales;
    int asymmetric;
    size_t group;
} kind;
static const kind kinds[] = {
    {VGQ_I8, VGQ_PER_ROW, 0, 0},    {VGQ_I8, VGQ_PER_ROW, 1, 0},    {VGQ_I4, VGQ_TWO_LEVEL, 0, 8},
    {VGQ_I4, VGQ_TWO_LEVEL, 1, 16}, {VGQ_I4, VGQ_PER_GROUP, 0, 16}, {VGQ_I4, VGQ_PER_GROUP, 1, 128},
    {VGQ_I4, VGQ_TWO_LEVEL, 0, 32},
};
enum { KINDS = sizeof(kinds) / sizeof(kinds[0]) };

static vgq_weight weight_of(kind of, size_t n, size_t k)
{
    return (vgq_weight){of.format,     of.scales, n,      k,       of.group ? of.group : k,
                        of.asymmetric, bytes,     scales, factors, zeros};
}

/* The layout for the CPU, and the one for CUDA. */
static const vgq_packing *const layouts[] = {&vgq_packing_cpu, &vgq_packing_cuda};

static void test_pack(const vgq_packing *as, const vgq_weight *w)
{
    const size_t group = min_size(w->group, w->k), row_groups = (w->k + group - 1) / group;
    const size_t groups = w->n * (w->scales == VGQ_PER_ROW ? 1 : row_groups);
    const size_t q_nbytes = w->n * vgq_row_nbytes(w->format, w->k);
    const size_t n_scales = w->scales == VGQ_PER_GROUP ? groups : w->n;
    const size_t nbytes = as->nbytes(w);
    for (int p = 0; p < PLACES; p++) {
        place = place_of(as == &vgq_packing_cuda, p);
        vgq_weight in = *w, out = *w, told;
        void *const packed = buffer(0, nbytes / 4, 4, NULL); /* any 4-byte boundary will do */
        in.q = buffer(1, q_nbytes, 1, bytes);
        in.scale = buffer(2, n_scales, sizeof(float), scales);
        in.factor = buffer(3, w->scales == VGQ_TWO_LEVEL ? groups : 0, 1, factors);
        in.zero = buffer(4, w->asymmetric ? groups : 0, 1, zeros);
        CHECK(as->pack(&in, packed, nbytes) == VGQ_OK, " ");
        intact(5);
        CHECK(as->weight(packed, nbytes, &told) == VGQ_OK && told.n == w->n && told.k == w->k &&
                  told.group == group && told.format == w->format && told.scales == w->scales &&
                  told.asymmetric == w->asymmetric,
              " ");
        static unsigned char kept[CAPACITY];
        memcpy(kept, packed, nbytes);
        out.q = buffer(1, q_nbytes, 1, NULL);
        out.scale = buffer(2, n_scales, sizeof(float), NULL);
        out.factor = buffer(3, w->scales == VGQ_TWO_LEVEL ? groups : 0, 1, NULL);
        out.zero = buffer(4, w->asymmetric ? groups : 0, 1, NULL);
        CHECK(as->unpack(packed, nbytes, &out) == VGQ_OK, " ");
        intact(5);
        CHECK(memcmp(out.scale, scales, n_scales * sizeof(float)) == 0, "scales");
        CHECK(memcmp(out.factor, factors, slots[3].nbytes) == 0, "factors");
        CHECK(memcmp(out.zero, zeros, slots[4].nbytes) == 0, "zeros");
        /* Packed again they give the same bytes; codes may differ in the padding of odd rows only.
         */
        in = out;
        CHECK(as->pack(&in, packed, nbytes) == VGQ_OK && memcmp(packed, kept, nbytes) == 0, " ");
        const size_t row = vgq_row_nbytes(w->format, w->k);
        for (size_t i = 0; i < q_nbytes; i++) {
            const int half = w->format == VGQ_I4 && w->k % 2 && i % row == row - 1;
            CHECK((out.q[i] ^ bytes[i]) == (half ? bytes[i] & 0xf0 : 0), "code byte %zu", i);
        }
    }
}

static void test_truncated(const vgq_weight *w)
{
    const size_t nbytes = vgq_packed_nbytes(w);
    unsigned char *const whole = malloc(nbytes);
    vgq_weight told;
    float x[LENGTHS] = {0}, y[256], scratch[4];
    const vgq_linear_call call = {VGQ_INT8_ACTIVATIONS, 1, VGQ_F32, VGQ_F32, x, NULL, y};
    CHECK(whole && vgq_pack(w, whole, nbytes) == VGQ_OK, " ");
    place = place_of(0, 0);
    for (size_t n = 0; n < nbytes; n += n < 80 ? 4 : nbytes / 13 / 4 * 4) {
        const void *const packed = buffer(0, n / 4, 4, whole);
        CHECK(vgq_packed_weight(packed, n, &told) == VGQ_EPACKED, "%zu bytes", n);
        CHECK(vgq_unpack(packed, n, w) == VGQ_EPACKED, "%zu bytes", n);
        CHECK(vgq_linear(packed, n, &call, scratch, sizeof(scratch)) == VGQ_EPACKED, "%zu", n);
    }
    CHECK(vgq_packed_weight(NULL, nbytes, &told) == VGQ_EPACKED, " ");
    for (size_t i = 0; i < 64; i++) { /* version, panel, and what no version has used */
        whole[i] ^= 64;
        const vgq_status status = vgq_packed_weight(whole, nbytes, &told);
        const int of_layout = i == 7 || (i >= 20 && i < 24) || i >= 48;
        CHECK(of_layout ? status == VGQ_ELAYOUT : status != VGQ_ELAYOUT, "header byte %zu", i);
        CHECK(i >= 24 || status != VGQ_OK, "header byte %zu", i);
        whole[i] ^= 64;
    }
    CHECK(vgq_packed_weight(whole, nbytes, &told) == VGQ_OK, " ");
    CHECK(vgq_linear(whole, nbytes, &call, scratch, sizeof(scratch)) == VGQ_EINVAL, "scratch");
    CHECK(vgq_linear(whole, nbytes, &call, NULL, 0) == VGQ_EINVAL, "no scratch");
    CHECK(vgq_linear(whole, nbytes, NULL, scratch, 1) == VGQ_EINVAL, "no call");
    free(whole);
}

/* The same rows, if they are few, coded by the caller give the same bits. */
static void test_coded(const vgq_weight *w, vgq_linear_call call, const void *packed, size_t nbytes)
{
    enum { MOST_ROWS = 64, MOST_PITCH = 2048 };
    static float row[MOST_PITCH], scale[MOST_ROWS];
    static int8_t coded[MOST_ROWS * MOST_PITCH];
    static int32_t sum[MOST_ROWS];
    const size_t pitch = (w->k + 63) / 64 * 64, y_n = call.m * w->n;
    const size_t y_nbytes = y_n * element_nbytes[call.y_dtype];
    if (call.m > MOST_ROWS || pitch > MOST_PITCH)
        return;
    memset(coded, 0, sizeof(coded));
    for (size_t m = 0; m < call.m; m++) {
        uint32_t largest = 0;
        float inverse;
        for (size_t i = 0; i < w->k; i++) {
            const char *const at =
                (const char *)call.x + (m * w->k + i) * element_nbytes[call.x_dtype];
            uint16_t half;
            memcpy(&half, at, sizeof(half));
            if (call.x_dtype == VGQ_F32)
                memcpy(&row[i], at, sizeof(row[i]));
            else
                row[i] = call.x_dtype == VGQ_F16 ? vgq_float_of_f16(half) : vgq_float_of_bf16(half);
            const uint32_t magnitude = vgq_bits_of_float(row[i]) & 0x7fffffffu;
            largest = magnitude > largest ? magnitude : largest;
        }
        scale[m] = vgq_token_scale(largest, VGQ_INT8_HIGHEST, &inverse);
        sum[m] = 0;
        for (size_t i = 0; i < w->k; i++)
            sum[m] += coded[m * pitch + i] = vgq_encode_token(row[i], inverse);
    }
    void *const want = malloc(y_nbytes + 1);
    CHECK(want != NULL, " ");
    memcpy(want, call.y, y_nbytes);
    vgq_coded given = {
        .codes = buffer(1, call.m * pitch, 1, coded),
        .pitch = pitch,
        .scale = scale,
        .sum = sum,
    };
    call.x = NULL;
    call.coded = &given;
    call.y = buffer(3, y_n, element_nbytes[call.y_dtype], NULL);
    const size_t scratch_nbytes = vgq_linear_nbytes(w, &call);
    void *const scratch = buffer(4, scratch_nbytes, 1, NULL);
    CHECK(vgq_linear(packed, nbytes, &call, scratch, scratch_nbytes) == VGQ_OK, " ");
    intact(5);
    CHECK(memcmp(call.y, want, y_nbytes) == 0, "coded %zu x %zu x %zu", call.m, w->n, w->k);
    free(want);
    for (int bad = 0; bad < 8; bad++) {
        vgq_linear_call wrong = call;
        vgq_coded other = given;
        wrong.coded = &other;
        if (bad == 0)
            other.codes = NULL;
        else if (bad == 1)
            other.scale = NULL;
        else if (bad == 2)
            other.sum = NULL;
        else if (bad == 3)
            other.pitch = pitch + 8;
        else if (bad == 4)
            other.pitch = pitch - 64;
        else if (bad == 5)
            other.pitch = SIZE_MAX / 64 * 64;
        else if (bad == 6)
            wrong.norm.weight = numbers;
        else
            wrong.activations = VGQ_INT16_ACTIVATIONS;
        CHECK(vgq_linear(packed, nbytes, &wrong, scratch, scratch_nbytes) == VGQ_EINVAL, "%d", bad);
        CHECK(bad < 3 || vgq_linear_nbytes(w, &wrong) == 0, "%d", bad);
    }
}

/* Rows under an affine map and one scale, as the caller codes them, give the same bits. */
static void test_static(const vgq_weight *w, vgq_linear_call call, const void *packed,
                        size_t nbytes)
{
    enum { ROWS = 5, MOST_PITCH = 2048 };
    static float x[ROWS * MOST_PITCH], scale[ROWS];
    static int8_t coded[ROWS * MOST_PITCH];
    static int32_t sum[ROWS];
    static unsigned char scratch[4 << 20];
    const size_t pitch = (w->k + 63) / 64 * 64;
    if (pitch > MOST_PITCH || call.m > 4)
        return;
    call.m = ROWS;
    call.x_dtype = call.y_dtype = VGQ_F32;
    call.residual = NULL; /* of other rows */
    const size_t y_n = call.m * w->n;
    float *const want = malloc(2 * y_n * sizeof(float) + 1), *const got = want + y_n;
    CHECK(want != NULL, " ");
    memcpy(x, numbers, ROWS * w->k * sizeof(float));
    x[0] = NAN;
    x[w->k] = INFINITY;
    for (int how = 0; how < 4; how++) { /* alone, times, times and plus, times and plus rows' own */
        const float *const weight = buffer(4, w->k, sizeof(float), numbers + 7);
        const float *const bias = buffer(5, w->k, sizeof(float), numbers + 9);
        const float x_scale = 0x1.8p-7f;
        memset(coded, 0, sizeof(coded));
        for (size_t m = 0; m < ROWS; m++) {
            float row[MOST_PITCH], inverse = 1 / x_scale;
            uint32_t largest = 0;
            for (size_t i = 0; i < w->k; i++) {
                const float v = x[m * w->k + i];
                row[i] = how == 0 ? v : how == 1 ? v * weight[i] : fmaf(v, weight[i], bias[i]);
                const uint32_t magnitude = vgq_bits_of_float(row[i]) & 0x7fffffffu;
                largest = magnitude > largest ? magnitude : largest;
            }
            scale[m] = how == 3 ? vgq_token_scale(largest, VGQ_INT8_HIGHEST, &inverse) : x_scale;
            sum[m] = 0;
            for (size_t i = 0; i < w->k; i++)
                sum[m] += coded[m * pitch + i] = vgq_encode_token(row[i], inverse);
        }
        const vgq_coded given = {.codes = coded, .pitch = pitch, .scale = scale, .sum = sum};
        vgq_linear_call by_codes = call, by_scale = call;
        by_codes.coded = &given;
        by_codes.y = want;
        CHECK(vgq_linear(packed, nbytes, &by_codes, scratch, sizeof(scratch)) == VGQ_OK, " ");
        by_scale.x = x;
        by_scale.x_affine.weight = how ? weight : NULL;
        by_scale.x_affine.bias = how > 1 ? bias : NULL;
        by_scale.x_scale = how == 3 ? 0 : x_scale;
        by_scale.y = got;
        CHECK(vgq_linear_nbytes(w, &by_scale) <= sizeof(scratch), "room in the test");
        CHECK(vgq_linear(packed, nbytes, &by_scale, scratch, sizeof(scratch)) == VGQ_OK, " ");
        intact(3);
        for (size_t i = 0; i < y_n; i++)
            CHECK(memcmp(&got[i], &want[i], sizeof(float)) == 0 ||
                      (isnan(got[i]) && isnan(want[i])),
                  "way %d, output %zu: %g, not %g", how, i, (double)got[i], (double)want[i]);
        vgq_linear_call wrong = by_scale;
        wrong.coded = &given;
        CHECK(vgq_linear(packed, nbytes, &wrong, scratch, sizeof(scratch)) == VGQ_EINVAL, " ");
    }
    for (int bad = 0; bad < 8; bad++) {
        static const float unusable[] = {-1, NAN, INFINITY, 0x1p-113f};
        vgq_linear_call wrong = call;
        wrong.x = x;
        wrong.y = got;
        wrong.x_scale = bad < 4 ? unusable[bad] : bad == 5 ? 1 : 0;
        wrong.x_affine.weight = bad == 6 ? numbers : NULL;
        wrong.x_affine.bias = bad == 4 || bad == 7 ? numbers : NULL;
        if (bad > 4)
            wrong.activations = VGQ_FLOAT_ACTIVATIONS;
        CHECK(vgq_linear(packed, nbytes, &wrong, scratch, sizeof(scratch)) == VGQ_EINVAL, "%d",
              bad);
        CHECK(vgq_linear_nbytes(w, &wrong) == 0, "%d", bad);
    }
    free(want);
}

/* What follows the bias, as a product with it says: v, GELU, a scale, a residual, one rounding. */
static void test_epilogue(const vgq_weight *w, vgq_linear_call call, const void *packed,
                          size_t nbytes)
{
    static float plain[CAPACITY / 4], want[CAPACITY / 4];
    static unsigned char scratch[4 << 20];
    const size_t y_n = call.m * w->n, size = element_nbytes[call.y_dtype];
    vgq_linear_call floats = call;
    floats.y_dtype = VGQ_F32;
    floats.y = plain;
    floats.layer_scale = floats.residual = NULL;
    CHECK(vgq_linear_nbytes(w, &floats) <= sizeof(scratch), "room in the test");
    CHECK(vgq_linear(packed, nbytes, &floats, scratch, sizeof(scratch)) == VGQ_OK, " ");
    void *const y = buffer(3, y_n, size, values(call.y_dtype, numbers));
    for (size_t i = 0; i < y_n; i++) {
        const float scaled = plain[i] * numbers[i % w->n];
        const float before = call.y_dtype == VGQ_F32   ? numbers[i]
                             : call.y_dtype == VGQ_F16 ? vgq_float_of_f16(halves[0][i])
                                                       : vgq_float_of_bf16(halves[1][i]);
        want[i] = scaled + before;
    }
    call.layer_scale = buffer(6, w->n, sizeof(float), numbers);
    call.residual = call.y = y;
    CHECK(vgq_linear(packed, nbytes, &call, scratch, sizeof(scratch)) == VGQ_OK, " ");
    intact(8);
    for (size_t i = 0; i < y_n; i++) {
        const uint16_t half =
            call.y_dtype == VGQ_F16 ? vgq_f16_of_float(want[i]) : vgq_bf16_of_float(want[i]);
        CHECK(memcmp((char *)y + i * size,
                     call.y_dtype == VGQ_F32 ? (void *)&want[i] : (void *)&half, size) == 0,
              "output %zu of %zu x %zu", i, call.m, w->n);
    }
}

/* What surrounds a product, as bits of a word. */
enum { BIAS = 1, NORM = 2, SCALE = 4, RESIDUAL = 8, EVERYTHING = 15 };

static void test_product(const vgq_weight *w, vgq_linear_call call, int around)
{
    static unsigned char packed[CAPACITY], y_scalar[CAPACITY], y_isa[CAPACITY];
    const size_t nbytes = vgq_packed_nbytes(w), x_n = call.m * w->k, y_n = call.m * w->n;
    const size_t y_nbytes = y_n * element_nbytes[call.y_dtype];
    const int exact = call.activations >= VGQ_INT8_ACTIVATIONS;
    CHECK(vgq_pack(w, packed, nbytes) == VGQ_OK, " ");
    for (size_t isa = 0; isa < n_isas; isa++) {
        vgq_use(isas[isa]);
        for (int p = 0; p < PLACES; p++) {
            place = place_of(isa, p);
            const void *const weight = buffer(0, nbytes / 4, 4, packed);
            call.x = buffer(1, x_n, element_nbytes[call.x_dtype], values(call.x_dtype, numbers));
            const float *const bias = buffer(2, w->n, sizeof(float), numbers);
            call.bias = around & BIAS ? bias : NULL;
            const float *const norm = buffer(4, w->k, sizeof(float), numbers + 1);
            const float *const shift = buffer(5, w->k, sizeof(float), numbers + 2);
            call.norm.weight = around & NORM ? norm : NULL;
            call.norm.bias = call.m % 2 ? shift : NULL;
            call.norm.eps = 1e-5f;
            const float *const scale = buffer(6, w->n, sizeof(float), numbers + 3);
            call.layer_scale = around & SCALE ? scale : NULL;
            const void *const residual =
                buffer(7, y_n, element_nbytes[call.y_dtype], values(call.y_dtype, numbers + 5));
            call.residual = around & RESIDUAL ? residual : NULL;
            call.y = buffer(3, y_n, element_nbytes[call.y_dtype], NULL);
            const vgq_context now = vgq_context_now();
            call.context = p % 2 ? &now : NULL;
            const size_t scratch_nbytes = vgq_linear_nbytes(w, &call);
            void *const scratch = buffer(8, scratch_nbytes, 1, NULL);
            CHECK(vgq_linear(weight, nbytes, &call, scratch, scratch_nbytes) == VGQ_OK, " ");
            intact(9);
            if (p == 0)
                memcpy(isa ? y_isa : y_scalar, call.y, y_nbytes);
            CHECK(memcmp(call.y, isa ? y_isa : y_scalar, y_nbytes) == 0,
                  "%zu x %zu x %zu depends on where its buffers lie", call.m, w->n, w->k);
            if (p == 0 && call.activations == VGQ_INT8_ACTIVATIONS && !call.norm.weight) {
                test_coded(w, call, packed, nbytes);
                test_static(w, call, packed, nbytes);
            }
            if (p == 0) {
                call.x =
                    buffer(1, x_n, element_nbytes[call.x_dtype], values(call.x_dtype, numbers));
                if (around & NORM)
                    call.norm.weight = buffer(4, w->k, sizeof(float), numbers + 1);
                test_epilogue(w, call, packed, nbytes);
            }
        }
        CHECK(!isa || !exact || memcmp(y_isa, y_scalar, y_nbytes) == 0,
              "%zu x %zu x %zu, scales %d", call.m, w->n, w->k, w->scales);
    }
}

/* ---- attention ------------------------------------------------------------------------------- */

/* One call of those modes: rotated and normalized or not, wherever its buffers lie. */
static void test_heads(vgq_attention_call call, int dressed)
{
    static unsigned char y_scalar[CAPACITY], y_isa[CAPACITY];
    const size_t rows = call.batch * call.tokens * call.heads, n = rows * call.dim;
    const size_t y_nbytes = n * element_nbytes[call.y_dtype];
    const int exact = call.scores == VGQ_INT8_ACTIVATIONS && call.values == VGQ_INT8_ACTIVATIONS;
    const size_t row = 3 * call.heads * call.dim;
    const size_t strides[4] = {call.tokens * row, row, call.heads * call.dim, call.dim};
    memcpy(call.strides, strides, sizeof(strides));
    for (size_t isa = 0; isa < n_isas; isa++) {
        vgq_use(isas[isa]);
        for (int p = 0; p < FEW_PLACES; p++) {
            place = place_of(isa, p);
            call.qkv =
                buffer(0, 3 * n, element_nbytes[call.x_dtype], values(call.x_dtype, numbers));
            const float *const weight = buffer(1, call.dim, sizeof(float), numbers + 7);
            const float *const bias = buffer(2, call.dim, sizeof(float), numbers + 99);
            call.q_norm = (vgq_norm){dressed ? weight : NULL, dressed > 1 ? bias : NULL, 1e-5f};
            call.k_norm = call.q_norm;
            const float *const cosine = buffer(3, 3 * call.dim, sizeof(float), numbers + 500);
            const float *const sine = buffer(4, 3 * call.dim, sizeof(float), numbers + 900);
            call.cos = dressed ? cosine : NULL;
            call.sin = dressed ? sine : NULL;
            call.rope_tokens = 3;
            call.rope_width = dressed > 1 ? call.dim : call.dim / 2;
            call.y = buffer(5, n, element_nbytes[call.y_dtype], NULL);
            const vgq_context now = vgq_context_now();
            call.context = p % 2 ? &now : NULL;
            const size_t scratch_nbytes = vgq_attention_nbytes(&call);
            void *const scratch = buffer(6, scratch_nbytes, 1, NULL);
            CHECK(vgq_attention(&call, scratch, scratch_nbytes) == VGQ_OK, " ");
            intact(7);
            if (p == 0)
                memcpy(isa ? y_isa : y_scalar, call.y, y_nbytes);
            CHECK(memcmp(call.y, isa ? y_isa : y_scalar, y_nbytes) == 0,
                  "%zu tokens of %zu depend on where their buffers lie", call.tokens, call.dim);
        }
        CHECK(!isa || !exact || memcmp(y_isa, y_scalar, y_nbytes) == 0, "%zu tokens of %zu, %d",
              call.tokens, call.dim, dressed);
    }
}

static void test_attention(void)
{
    static const size_t dims[] = {8, 40, 64, 128};
    for (size_t tokens = 0; tokens < LENGTHS; tokens += stride)
        for (size_t d = 0; d < sizeof(dims) / sizeof(dims[0]); d++) {
            vgq_attention_call call = {.batch = 1, .tokens = tokens, .dim = dims[d], .scale = 0.3f};
            call.heads = 3 * tokens * 2 * dims[d] <= MOST ? 2 : 1;
            call.x_dtype = (vgq_dtype)((tokens + d) % VGQ_DTYPES);
            call.y_dtype = (vgq_dtype)(tokens % VGQ_DTYPES);
            if (!tokens || 3 * tokens * call.heads * dims[d] > MOST)
                continue;
            for (int mode = 0; mode < 9; mode++) {
                call.scores = (vgq_activations)(mode % 3);
                call.values = (vgq_activations)(mode / 3);
                if (mode % 4 == 0 || (tokens + d) % 5 == 0) /* of the mixed ones a few */
                    test_heads(call, (int)(tokens + d) % 3);
            }
        }
}

/* Scratch: at most 2 MB a thread, whatever the tokens. */
static void test_attention_scratch(void)
{
    for (size_t tokens = 1; tokens < 1000000; tokens *= 7)
        for (size_t dim = 64; dim <= VGQ_WIDEST; dim *= 2)
            for (int mode = 0; mode < 9; mode++) {
                const vgq_attention_call call = {.scores = (vgq_activations)(mode % 3),
                                                 .values = (vgq_activations)(mode / 3),
                                                 .batch = 1,
                                                 .tokens = tokens,
                                                 .heads = 16,
                                                 .dim = dim,
                                                 .scale = 1};
                const size_t nbytes = vgq_attention_nbytes(&call);
                CHECK(nbytes && nbytes <= (size_t)vgq_threads() << 21, "%zu tokens of %zu: %zu",
                      tokens, dim, nbytes);
            }
}

static void test_attention_refusals(void)
{
    static float x[3 * 64], y[64], angle[64];
    static unsigned char scratch[CAPACITY];
    const vgq_attention_call good = {.batch = 1,
                                     .tokens = 1,
                                     .heads = 1,
                                     .dim = 64,
                                     .qkv = x,
                                     .strides = {192, 192, 64, 64},
                                     .cos = angle,
                                     .sin = angle,
                                     .rope_tokens = 1,
                                     .rope_width = 32,
                                     .scale = 1,
                                     .y = y};
    const size_t nbytes = vgq_attention_nbytes(&good);
    CHECK(nbytes && nbytes <= sizeof(scratch), " ");
    CHECK(vgq_attention(&good, scratch, nbytes) == VGQ_OK, " ");
    CHECK(vgq_attention(&good, scratch, nbytes - 1) == VGQ_EINVAL, "short scratch");
    CHECK(vgq_attention(&good, NULL, nbytes) == VGQ_EINVAL, "no scratch");
    CHECK(vgq_attention(NULL, scratch, nbytes) == VGQ_EINVAL && !vgq_attention_nbytes(NULL), " ");
#define REFUSED(change)                                                               \
    {                                                                                 \
        vgq_attention_call call = good;                                               \
        call.change;                                                                  \
        CHECK(vgq_attention(&call, scratch, sizeof(scratch)) == VGQ_EINVAL, #change); \
    }
    REFUSED(qkv = NULL)
    REFUSED(y = NULL)
    REFUSED(sin = NULL)
    REFUSED(cos = NULL)
    REFUSED(rope_tokens = 0)
    REFUSED(rope_width = 0)
    REFUSED(rope_width = 1)
    REFUSED(rope_width = 48)
    REFUSED(dim = 0)
    REFUSED(dim = 12)
    REFUSED(dim = VGQ_WIDEST + 8)
    REFUSED(scale = -1)
    REFUSED(scale = NAN)
    REFUSED(scale = INFINITY)
    REFUSED(scores = VGQ_INT16_ACTIVATIONS)
    REFUSED(values = VGQ_INT16_ACTIVATIONS)
    REFUSED(x_dtype = VGQ_DTYPES)
    REFUSED(y_dtype = VGQ_DTYPES)
#undef REFUSED
    for (int empty = 0; empty < 3; empty++) {
        vgq_attention_call call = good;
        *(empty == 0 ? &call.batch : empty == 1 ? &call.tokens : &call.heads) = 0;
        call.qkv = call.y = NULL;
        CHECK(vgq_attention(&call, NULL, 0) == VGQ_OK && !vgq_attention_nbytes(&call), " ");
    }
}

/* Weights and activations of one sign, and of alternating ones, where narrow sums would overflow;
 * scales are 1, and a token's is 1/127, so that the integers can be told. */
static void test_extremes(void)
{
    enum { K = 4096 + 40, N = 4, M = 34 };
    static const signed char patterns[N][2] = {{-128, -128}, {127, 127}, {-128, 127}, {127, -128}};
    static uint8_t q[N * K];
    static float x[M * K], y[M * N], one[N] = {1, 1, 1, 1};
    static unsigned char packed[1 << 20], scratch[4 << 20];
    const vgq_weight w = {VGQ_I8, VGQ_PER_ROW, N, K, K, 0, q, one, NULL, NULL};
    vgq_linear_call call = {VGQ_INT8_ACTIVATIONS, M, VGQ_F32, VGQ_F32, x, NULL, y};
    for (size_t i = 0; i < K; i++) {
        for (size_t n = 0; n < N; n++)
            q[n * K + i] = (uint8_t)patterns[n][i % 2];
        for (size_t m = 0; m < M; m++)
            x[m * K + i] = m % 3 == 0 ? 1.0f : m % 3 == 1 ? -1.0f : i % 2 ? 1.0f : -1.0f;
    }
    CHECK(vgq_pack(&w, packed, vgq_packed_nbytes(&w)) == VGQ_OK, " ");
    for (size_t isa = 0; isa < n_isas; isa++) {
        vgq_use(isas[isa]);
        CHECK(vgq_linear_nbytes(&w, &call) <= sizeof(scratch) &&
                  vgq_linear(packed, vgq_packed_nbytes(&w), &call, scratch, sizeof(scratch)) ==
                      VGQ_OK,
              " ");
        calls++;
        for (size_t m = 0; m < M; m++)
            for (size_t n = 0; n < N; n++) {
                int64_t sum = 0;
                for (size_t i = 0; i < K; i++)
                    sum += (int64_t)(127 * x[m * K + i]) * patterns[n][i % 2];
                CHECK(y[m * N + n] == (float)sum * (1.0f / 127.0f), "token %zu, output %zu", m, n);
            }
    }
}

static void test_linear(void)
{
    static const size_t widths[] = {1, 64, 65}, rows[] = {1, 2, 6, 7, 13, 17, 33};
    for (size_t k = 1; k < LENGTHS; k += stride)
        for (size_t i = 0; i < KINDS; i++)
            for (size_t j = 0; j < 3; j++) {
                const vgq_weight w = weight_of(kinds[i], widths[j], k);
                for (size_t l = 0; l < 2; l++)
                    test_pack(layouts[l], &w);
                const vgq_linear_call call = {
                    .activations = (vgq_activations)(k % VGQ_ACTIVATIONS),
                    .m = rows[(k + i + j) % 7],
                    .x_dtype = (vgq_dtype)((k + i) % 3),
                    .y_dtype = (vgq_dtype)((k + j) % 3),
                    .gelu = (k + i + 2 * j) % 4 == 0,
                };
                vgq_linear_call other = call;
                other.activations = (vgq_activations)((k + 1 + i % 2) % VGQ_ACTIVATIONS);
                other.m = rows[(k + i + j + 3) % 7];
                test_product(&w, call, (int)((k + 3 * i) % (EVERYTHING + 1)));
                test_product(&w, other, EVERYTHING - (int)((k + 3 * i) % (EVERYTHING + 1)));
            }
    for (size_t i = 0; i < KINDS; i++) {
        vgq_weight w = weight_of(kinds[i], 65, 67), deep = weight_of(kinds[i], 3, 1530);
        test_truncated(&w);
        for (int a = 0; a < VGQ_ACTIVATIONS; a++) /* more than one slice of a float panel */
            test_product(
                &deep, (vgq_linear_call){(vgq_activations)a, 7, VGQ_F32, VGQ_F32, NULL, NULL, NULL},
                1);
        w.k = VGQ_DEEPEST + 1;
        CHECK(vgq_packed_nbytes(&w) == 0 && vgq_pack(&w, &w, 0) == VGQ_EDEPTH, " ");
        for (int bad = 0; bad < 7; bad++) {
            w = weight_of(kinds[i], 65, 67);
            w.n = bad == 0 ? 0 : bad == 1 ? SIZE_MAX / 2 : w.n;
            w.k = bad == 2 ? 0 : w.k;
            w.format = bad == 3 ? VGQ_FORMATS : bad == 4 ? 1 - w.format : w.format;
            w.scales = bad == 5 ? VGQ_SCALES : w.scales;
            w.group = bad == 6 && w.scales != VGQ_PER_ROW ? 12 : w.group;
            CHECK((bad == 6 && w.scales == VGQ_PER_ROW) ||
                      (vgq_packed_nbytes(&w) == 0 && vgq_pack(&w, &w, 0) == VGQ_EINVAL),
                  "bad weight %d", bad);
        }
    }
    for (size_t m = 1; m <= 70; m++) {
        const vgq_weight ragged = weight_of(kinds[m % KINDS], 65, 130 - m);
        test_product(&ragged,
                     (vgq_linear_call){VGQ_INT8_ACTIVATIONS, m, VGQ_F32, VGQ_F32, NULL, NULL, NULL},
                     1);
    }
    for (size_t i = 0; i < KINDS; i++) /* tiles of every height */
        for (size_t m = 1; m <= 6; m++)
            for (int a = 0; a < VGQ_ACTIVATIONS; a++) {
                const vgq_weight low = weight_of(kinds[i], 65, 130);
                test_product(&low, (vgq_linear_call){.activations = (vgq_activations)a, .m = m},
                             BIAS);
            }
    for (size_t k = 1530; k <= 1531; k++) /* of floats, with more than one slice of the panel */
        for (size_t m = 1; m <= 6; m++)
            for (int a = VGQ_FLOAT_ACTIVATIONS; a <= VGQ_BF16_ACTIVATIONS; a++) {
                const vgq_weight deep = weight_of(kinds[0], 3, k);
                test_product(&deep,
                             (vgq_linear_call){.activations = (vgq_activations)a,
                                               .m = m,
                                               .x_dtype = (vgq_dtype)(m % VGQ_DTYPES)},
                             BIAS);
            }
    const vgq_weight whole = weight_of(kinds[0], 128, 70); /* whole panels, with GELU */
    for (int dtype = 0; dtype < VGQ_DTYPES; dtype++)
        test_product(&whole,
                     (vgq_linear_call){.activations = VGQ_INT8_ACTIVATIONS,
                                       .m = 35,
                                       .y_dtype = (vgq_dtype)dtype,
                                       .gelu = 1},
                     BIAS);
    const vgq_weight wide = weight_of(kinds[0], 260, 8); /* as many panels as keep a thread busy */
    test_product(&wide, (vgq_linear_call){.activations = VGQ_INT8_ACTIVATIONS, .m = 3}, 0);
    const vgq_weight w = weight_of(kinds[0], 3, 8);
    const vgq_linear_call none = {VGQ_INT8_ACTIVATIONS, 0, VGQ_F32, VGQ_F32, NULL, NULL, NULL};
    unsigned char *const packed = aligned_alloc(64, vgq_packed_nbytes(&w));
    CHECK(packed && vgq_pack(&w, packed, vgq_packed_nbytes(&w)) == VGQ_OK, " ");
    CHECK(vgq_linear_nbytes(&w, &none) == 0 &&
              vgq_linear(packed, vgq_packed_nbytes(&w), &none, NULL, 0) == VGQ_OK,
          "no rows");
    free(packed);
}

/* ---- metrics --------------------------------------------------------------------------------- */

static void test_metrics_of(vgq_dtype a, vgq_dtype b, size_t rows, size_t cols, vgq_images shape)
{
    static double m_scalar[64], e_scalar[2], s_scalar, f_scalar[2][LENGTHS];
    const size_t n = rows * cols,
                 pixels = shape.images * shape.height * shape.width * shape.channels;
    for (size_t isa = 0; isa < n_isas; isa++) {
        vgq_use(isas[isa]);
        for (int p = 0; p < ALL_PLACES; p++) {
            place = place_of(isa, p);
            const int first = isa == 0 && p == 0;
            const void *r = buffer(0, n, element_nbytes[a], values(a, numbers));
            const void *c = buffer(1, n, element_nbytes[b], values(b, numbers + 100));
            vgq_moments *const m = buffer(2, vgq_compare_parts(n), sizeof(*m), NULL);
            CHECK(vgq_compare(n, a, r, b, c, m) == VGQ_OK, " ");
            intact(3);
            if (first)
                memcpy(m_scalar, m, sizeof(*m));
            CHECK(memcmp(m, m_scalar, sizeof(*m)) == 0, "moments of %zu", n);

            vgq_entropy *const e = buffer(2, vgq_cross_entropy_parts(rows), sizeof(*e), NULL);
            const vgq_status status = vgq_cross_entropy(rows, cols, a, r, b, c, e);
            intact(3);
            if (first && status == VGQ_OK)
                memcpy(e_scalar, e, sizeof(*e));
            CHECK(status != VGQ_OK || memcmp(e, e_scalar, sizeof(*e)) == 0, "entropy %zu", cols);

            double *const x = buffer(2, cols, sizeof(double), NULL);
            for (size_t i = 0; i < cols; i++)
                x[i] = 800 * fabs((double)numbers[i]) + 1e-300;
            double *const y = buffer(3, cols, sizeof(double), NULL);
            CHECK(vgq_exp(cols, x, y) == VGQ_OK, " ");
            intact(4);
            if (first)
                memcpy(f_scalar[0], y, cols * sizeof(double));
            CHECK(memcmp(y, f_scalar[0], cols * sizeof(double)) == 0, "exp");
            CHECK(vgq_log(cols, x, y) == VGQ_OK, " ");
            intact(4);
            if (first)
                memcpy(f_scalar[1], y, cols * sizeof(double));
            CHECK(memcmp(y, f_scalar[1], cols * sizeof(double)) == 0, "log");

            r = buffer(0, pixels, element_nbytes[a], values(a, numbers));
            c = buffer(1, pixels, element_nbytes[b], values(b, numbers + 100));
            double *const s = buffer(2, vgq_ssim_parts(shape), sizeof(double), NULL);
            CHECK(vgq_ssim(shape, a, r, b, c, 2.0, 0.0, s) == VGQ_OK, " ");
            intact(3);
            if (first)
                s_scalar = *s;
            CHECK(memcmp(s, &s_scalar, sizeof(double)) == 0, "ssim");
        }
    }
}

static void test_metrics(void)
{
    for (size_t cols = 1; cols < LENGTHS; cols += stride)
        test_metrics_of((vgq_dtype)(cols % 3), (vgq_dtype)(cols / 3 % 3), 1 + cols % 3, cols,
                        (vgq_images){1 + cols % 2, 11 + cols % 5, 11 + cols % 7, 1 + cols % 3});
    vgq_moments m;
    double values_of[64];
    size_t rows = 0;
    while (vgq_metric_row(rows))
        rows++;
    CHECK(rows >= 8 && rows < 64, "%zu metrics", rows);
    CHECK(vgq_compare(100, VGQ_F32, numbers, VGQ_F32, numbers, &m) == VGQ_OK, " ");
    const vgq_metric_parts parts = {2, NAN, NAN, NAN};
    CHECK(vgq_metric_values(&m, &parts, values_of) == VGQ_OK && values_of[0] == 0, "mae");
}

/* ---- threads --------------------------------------------------------------------------------- */

static void test_threads(void)
{
    enum { M = 37, N = 120, K = 512, ROWS = 128 }; /* for 7 threads 6 rows each, and 1 more */
    static float x[M * K], y[M * N], w[ROWS * 1024];
    static uint8_t q4[2][ROWS * 512], q8[2][ROWS * 1024], scratch[8 << 20];
    for (size_t i = 0; i < ROWS * 1024; i++)
        w[i] = numbers[i % MOST];
    for (size_t i = 0; i < M * K; i++)
        x[i] = numbers[i % 4999];
    static const int counts[] = {1, 2, 3, 7};
    for (size_t t = 0; t < sizeof(counts) / sizeof(counts[0]); t++) {
        const int threads = counts[t], into = threads > 1;
        vgq_set_threads(threads);
        CHECK(vgq_threads() == threads, " ");
        const vgq_shape shape = {ROWS, 1024, 1024}, row = {1, ROWS * 1024, ROWS * 1024};
        CHECK(vgq_quantize(VGQ_I4, VGQ_F32, shape, w, scales, NULL, q4[into]) == VGQ_OK, " ");
        CHECK(memcmp(q4[0], q4[into], sizeof(q4[0])) == 0, "%d threads", threads);
        CHECK(vgq_quantize(VGQ_I8, VGQ_F32, row, w, scales, NULL, q8[into]) == VGQ_OK, " ");
        CHECK(memcmp(q8[0], q8[into], sizeof(q8[0])) == 0, "%d threads", threads);
        const vgq_images image = {2, 90, ROWS, 5};
        static double similarity[1024], one_thread;
        CHECK(vgq_ssim_parts(image) <= 1024 &&
                  vgq_ssim(image, VGQ_F32, w, VGQ_F32, w + 1, 2, 0, similarity) == VGQ_OK,
              " ");
        one_thread = into ? one_thread : similarity[0];
        CHECK(similarity[0] == one_thread, "%d threads", threads);
        for (size_t i = 0; i < KINDS; i++)
            for (int a = 0; a < VGQ_ACTIVATIONS; a++) {
                static unsigned char packed[1 << 20];
                static float want[KINDS][VGQ_ACTIVATIONS][M * N];
                const vgq_weight weight = weight_of(kinds[i], N, K);
                const size_t nbytes = vgq_packed_nbytes(&weight);
                const vgq_linear_call call = {(vgq_activations)a, M, VGQ_F32, VGQ_F32, x, NULL, y};
                CHECK(vgq_pack(&weight, packed, nbytes) == VGQ_OK &&
                          vgq_linear_nbytes(&weight, &call) <= sizeof(scratch) &&
                          vgq_linear(packed, nbytes, &call, scratch, sizeof(scratch)) == VGQ_OK,
                      " ");
                calls++;
                if (threads == 1)
                    memcpy(want[i][a], y, sizeof(y));
                CHECK(memcmp(y, want[i][a], sizeof(y)) == 0, "kind %zu, %d threads", i, threads);
            }
    }
    vgq_set_threads(0);
}

static void test_all(void)
{
    for (size_t isa = 0; isa < n_isas; isa++) { /* first: what is wrong is found soon */
        vgq_use(isas[isa]);
        test_values();
        test_exponentials(stride > 1 ? 997 : 1);
        test_attention_scratch();
        test_attention_values();
        test_errors();
        test_convolutions();
    }
    test_quantize();
    test_nothing();
    test_linear();
    test_extremes();
    test_attention();
    test_attention_refusals();
    test_metrics();
    vgq_use(NULL);
    test_stopping();
    for (size_t isa = 0; isa < n_isas; isa++) {
        vgq_use(isas[isa]);
        test_threads();
    }
}

int main(int argc, char **argv)
{
    stride = argc > 1 ? (size_t)atoi(argv[1]) : 1;
    map_slots();
    make_inputs();
    test_dispatch();
    if (stride)
        test_all();
    test_teams();
    if (argc > 2)
        test_runtimes(argc - 2, argv + 2);
    printf("core: %zu guarded calls and %zu checks on %zu instruction sets (", calls, checks,
           n_isas);
    for (size_t i = 0; i < n_isas; i++)
        printf("%s%s", i ? ", " : "", isas[i]);
    printf("), OpenMP: %s: all passed\n", vgq_openmp());
    return 0;
}
