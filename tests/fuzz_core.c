/* SPDX-License-Identifier: Apache-2.0
 * libFuzzer target: csrc/vgq.h and csrc/render from bytes.
 *
 *     tests/sanitize.sh fuzz 600
 *
 * The first bytes choose a function and its sizes, the rest fills the buffers, each of exactly its
 * size, so that the address sanitizer sees the first byte beyond. Every result is also compared
 * with the scalar table's; NaNs count as equal, since their payload is no result. */
#include "fuzz.h"

#include <math.h>

enum { KEPT = 24 };
static void *kept[KEPT];
static int n_kept;

void *room(size_t nbytes)
{
    void *const p = malloc(nbytes ? nbytes : 1);
    if (!p || n_kept == KEPT)
        abort();
    memset(p, 0x5a, nbytes);
    return kept[n_kept++] = p;
}

static size_t isa_count(void)
{
    size_t n = 0;
    while (vgq_isa_here(n))
        n++;
    return n;
}

/* ---- quantize -------------------------------------------------------------------------------- */

static vgq_shape shape_of(input *in)
{
    const size_t cols = below(in, 300), rows = 1 + below(in, 5), group = below(in, 310);
    return (vgq_shape){rows, cols, group};
}

static void codes(input *in, const char *isa)
{
    const vgq_shape shape = shape_of(in);
    const vgq_format format = (vgq_format)below(in, VGQ_FORMATS + 1);
    const vgq_dtype dtype = (vgq_dtype)below(in, VGQ_DTYPES);
    const int asymmetric = byte(in) & 1;
    const size_t n = shape.rows * shape.cols, groups = shape.rows * vgq_row_groups(shape);
    const size_t nbytes =
        format < VGQ_FORMATS ? shape.rows * vgq_row_nbytes(format, shape.cols) : n;
    const float *const scale = filled(in, groups * sizeof(float));
    const int8_t *const zero = filled(in, groups);
    const void *const x = filled(in, n * width[dtype]);
    uint8_t *const q[2] = {room(nbytes), room(nbytes)};
    void *const back[2] = {room(n * width[dtype]), room(n * width[dtype])};
    vgq_status status[2];
    for (int i = 0; i < 2; i++) {
        vgq_use(i ? isa : "scalar");
        status[i] = vgq_quantize(format, dtype, shape, x, scale, asymmetric ? zero : NULL, q[i]);
        vgq_dequantize(format, dtype, shape, q[0], scale, asymmetric ? zero : NULL, back[i]);
    }
    check(status[0] == status[1] && memcmp(q[0], q[1], nbytes) == 0, "quantize");
    check(same_values(dtype, back[0], back[1], n), "dequantize");
}

static void ranges(input *in, const char *isa)
{
    const vgq_shape shape = shape_of(in);
    const vgq_format format = (vgq_format)below(in, VGQ_FORMATS);
    const vgq_dtype dtype = (vgq_dtype)below(in, VGQ_DTYPES);
    const size_t n = shape.rows * shape.cols, groups = shape.rows * vgq_row_groups(shape);
    const void *const x = filled(in, n * width[dtype]);
    float *const lo = room(groups * 4), *const hi = room(groups * 4);
    uint64_t *const bad[2] = {room(shape.rows * 8), room(shape.rows * 8)};
    float *const scale[2] = {room(groups * 4), room(groups * 4)};
    int8_t *const zero[2] = {room(groups), room(groups)};
    for (int i = 0; i < 2; i++) {
        vgq_use(i ? isa : "scalar");
        const vgq_status status = vgq_range(dtype, shape, x, lo, hi, bad[i]);
        if (status != VGQ_OK)
            return;
        vgq_parameters(format, groups, lo, hi, scale[i], zero[i]);
        vgq_parameters(format, groups, lo, hi, scale[i], NULL);
    }
    check(memcmp(bad[0], bad[1], shape.rows * 8) == 0, "count of what is not finite");
    size_t nonfinite = 0;
    for (size_t r = 0; r < shape.rows; r++)
        nonfinite += bad[0][r];
    check(nonfinite || same_f32(scale[0], scale[1], groups), "scales");
    check(nonfinite || memcmp(zero[0], zero[1], groups) == 0, "zero points");
}

static void two_level(input *in, const char *isa)
{
    const vgq_shape shape = shape_of(in);
    const int asymmetric = byte(in) & 1;
    const size_t n = shape.rows * shape.cols, groups = shape.rows * vgq_row_groups(shape);
    float *const x = filled(in, n * 4);
    for (size_t i = 0; i < n; i++)
        x[i] = isfinite(x[i]) ? x[i] : 0; /* as the contract says */
    float *const channel[2] = {room(shape.rows * 4), room(shape.rows * 4)};
    uint8_t *const factor[2] = {room(groups), room(groups)};
    int8_t *const zero[2] = {room(groups), room(groups)};
    double *const error[2] = {room(shape.rows * 16), room(shape.rows * 16)};
    for (int i = 0; i < 2; i++) {
        vgq_use(i ? isa : "scalar");
        if (vgq_two_level(VGQ_F32, shape, x, channel[i], factor[i], asymmetric ? zero[i] : NULL,
                          error[i]) != VGQ_OK)
            return;
        for (size_t g = 0; g < groups && n; g++)
            check(factor[i][g] >= 1 && factor[i][g] <= (asymmetric ? 8 : 15), "a factor");
    }
    check(same_f32(channel[0], channel[1], shape.rows) && memcmp(factor[0], factor[1], groups) == 0,
          "two-level scales");
    check(memcmp(zero[0], zero[1], groups) == 0 && same_f64(error[0], error[1], 2 * shape.rows),
          "two-level errors");
}

/* ---- linear ---------------------------------------------------------------------------------- */

static vgq_weight weight_of(input *in)
{
    vgq_weight w = {0};
    w.format = (vgq_format)below(in, VGQ_FORMATS);
    w.scales = (vgq_scales)(w.format == VGQ_I8 ? VGQ_PER_ROW : 1 + below(in, 2));
    w.n = 1 + below(in, 130);
    w.k = 1 + below(in, 260);
    w.group = byte(in) % 4 ? 8 * (1 + below(in, 20)) : below(in, 300);
    w.asymmetric = byte(in) & 1;
    return w;
}

static void multiply(input *in, const char *isa, const void *packed, size_t nbytes)
{
    vgq_weight w;
    vgq_linear_call call = {0};
    if (vgq_packed_weight(packed, nbytes, &w) != VGQ_OK || w.n > 1000 || w.k > 10000)
        return;
    const size_t groups = w.group ? w.n * ((w.k + w.group - 1) / w.group) : 0;
    w.q = room(w.n * vgq_row_nbytes(w.format, w.k));
    w.scale = room((groups + w.n) * 4);
    w.factor = room(groups);
    w.zero = room(groups + w.n);
    vgq_unpack(packed, nbytes, &w);
    call.activations = (vgq_activations)(byte(in) % VGQ_ACTIVATIONS);
    call.m = below(in, 16);
    call.x_dtype = (vgq_dtype)below(in, VGQ_DTYPES);
    call.y_dtype = (vgq_dtype)below(in, VGQ_DTYPES);
    call.bias = byte(in) & 1 ? filled(in, w.n * 4) : NULL;
    call.x = filled(in, call.m * w.k * width[call.x_dtype]);
    void *const y[2] = {room(call.m * w.n * width[call.y_dtype]),
                        room(call.m * w.n * width[call.y_dtype])};
    for (int i = 0; i < 2; i++) {
        vgq_use(i ? isa : "scalar");
        const size_t scratch = vgq_linear_nbytes(&w, &call);
        call.y = y[i];
        check(vgq_linear(packed, nbytes, &call, room(scratch), scratch) == VGQ_OK, "status");
    }
    check(call.activations < VGQ_INT8_ACTIVATIONS || /* floats have an order per table */
              same_values(call.y_dtype, y[0], y[1], call.m * w.n),
          "linear");
}

static void linear(input *in, const char *isa)
{
    vgq_weight w = weight_of(in);
    const size_t nbytes = vgq_packed_nbytes(&w);
    if (!nbytes)
        return;
    const size_t groups = w.scales == VGQ_PER_ROW ? w.n : w.n * ((w.k + w.group - 1) / w.group);
    const int damaged = byte(in) & 1;
    const size_t at = below(in, 64);
    const uint8_t flip = byte(in);
    const size_t n_scales = w.scales == VGQ_PER_GROUP ? groups : w.n;
    w.scale = filled(in, n_scales * 4);
    w.factor = w.scales == VGQ_TWO_LEVEL ? filled(in, groups) : NULL;
    w.zero = w.asymmetric ? filled(in, groups) : NULL;
    w.q = filled(in, w.n * vgq_row_nbytes(w.format, w.k));
    for (size_t g = 0; w.factor && g < groups; g++)
        w.factor[g] = (uint8_t)(1 + w.factor[g] % (w.asymmetric ? 8 : 15));
    for (size_t g = 0; w.zero && w.format == VGQ_I4 && g < groups; g++)
        w.zero[g] = (int8_t)((w.zero[g] & 15) - 8);
    uint8_t *const packed = room(nbytes);
    for (size_t i = n_scales; i-- > 0;)
        if (!(w.scale[i] > 0 && isfinite(w.scale[i]))) {
            check(i % 8 != 0 || vgq_pack(&w, packed, nbytes) == VGQ_ESCALE, "a scale");
            w.scale[i] = 1;
        }
    check(vgq_pack(&w, packed, nbytes) == VGQ_OK, "pack");
    if (damaged)
        packed[at] ^= flip;
    multiply(in, isa, packed, nbytes);
}

enum { HEADER = 64 };

/* Bytes from anywhere, after a right header. */
static void foreign(input *in, const char *isa)
{
    vgq_weight w = weight_of(in);
    const size_t nbytes = vgq_packed_nbytes(&w);
    vgq_weight told;
    if (!nbytes)
        return;
    const uint8_t *const bytes = filled(in, nbytes);
    uint8_t *const packed = room(nbytes);
    w.q = room(w.n * vgq_row_nbytes(w.format, w.k));
    w.scale = room(w.n * w.k * 4);
    w.factor = memset(room(w.n * w.k), 1, w.n * w.k);
    w.zero = memset(room(w.n * w.k), 0, w.n * w.k);
    check(vgq_pack(&w, packed, nbytes) == VGQ_OK, "pack");
    memcpy(packed + HEADER, bytes + HEADER, nbytes - HEADER);
    check(vgq_packed_weight(packed, nbytes, &told) == VGQ_OK, "a header");
    told.q = w.q;
    told.scale = w.scale;
    told.factor = w.factor;
    told.zero = w.zero;
    vgq_unpack(packed, nbytes, &told);
    vgq_linear_call call = {0};
    call.activations = (vgq_activations)(byte(in) & 1);
    call.m = 1 + below(in, 8);
    call.x = filled(in, call.m * w.k * 4);
    call.y = room(call.m * w.n * 4);
    vgq_use(isa);
    const size_t scratch = vgq_linear_nbytes(&w, &call);
    vgq_linear(packed, nbytes, &call, room(scratch), scratch);
}

/* ---- metrics --------------------------------------------------------------------------------- */

static void metrics(input *in, const char *isa)
{
    const vgq_dtype a = (vgq_dtype)below(in, VGQ_DTYPES), b = (vgq_dtype)below(in, VGQ_DTYPES);
    const size_t rows = below(in, 5), cols = below(in, 300), n = rows * cols;
    const void *const r = filled(in, n * width[a]), *const c = filled(in, n * width[b]);
    vgq_moments *const m[2] = {room(vgq_compare_parts(n) * sizeof(**m)),
                               room(vgq_compare_parts(n) * sizeof(**m))};
    vgq_entropy *const e[2] = {room(vgq_cross_entropy_parts(rows) * sizeof(**e)),
                               room(vgq_cross_entropy_parts(rows) * sizeof(**e))};
    double values[2][64];
    vgq_metric_parts parts;
    memset(values, 0, sizeof(values));
    memcpy(&parts, filled(in, sizeof(parts)), sizeof(parts));
    for (int i = 0; i < 2; i++) {
        vgq_use(i ? isa : "scalar");
        check(vgq_compare(n, a, r, b, c, m[i]) == VGQ_OK, "status");
        vgq_cross_entropy(rows, cols, a, r, b, c, e[i]);
        vgq_metric_values(m[i], &parts, values[i]);
    }
    check(m[0]->nonfinite_r == m[1]->nonfinite_r && m[0]->nonfinite_c == m[1]->nonfinite_c,
          "count of what is not finite");
    if (m[0]->nonfinite_r + m[0]->nonfinite_c > 0)
        return;
    check(same_f64((double *)m[0], (double *)m[1], sizeof(**m) / 8), "moments");
    check(same_f64((double *)e[0], (double *)e[1], 2), "entropies");
    check(same_f64(values[0], values[1], 64), "metrics");
}

static void ssim(input *in, const char *isa)
{
    const vgq_dtype a = (vgq_dtype)below(in, VGQ_DTYPES), b = (vgq_dtype)below(in, VGQ_DTYPES);
    const vgq_images shape = {below(in, 3), below(in, 20), below(in, 40), below(in, 18)};
    const size_t n = shape.images * shape.height * shape.width * shape.channels;
    double around[2];
    memcpy(around, filled(in, sizeof(around)), sizeof(around));
    const void *const r = filled(in, n * width[a]), *const c = filled(in, n * width[b]);
    double *const parts[2] = {room(vgq_ssim_parts(shape) * 8 + 8),
                              room(vgq_ssim_parts(shape) * 8 + 8)};
    vgq_status status[2];
    for (int i = 0; i < 2; i++) {
        vgq_use(i ? isa : "scalar");
        status[i] = vgq_ssim(shape, a, r, b, c, around[0], around[1], parts[i]);
    }
    check(status[0] == status[1], "status");
    check(status[0] != VGQ_OK || same_f64(parts[0], parts[1], 1), "ssim");
}

static void transcendental(input *in, const char *isa)
{
    const size_t n = below(in, 80);
    double *const x = filled(in, n * 8), *const y[2] = {room(n * 8), room(n * 8)};
    for (int i = 0; i < 2; i++) {
        vgq_use(i ? isa : "scalar");
        vgq_exp(n, x, y[i]);
    }
    check(same_f64(y[0], y[1], n), "exp");
    vgq_log(n, x, y[0]);
}

/* ---- all ------------------------------------------------------------------------------------- */

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);
int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    static void (*const tasks[])(input *, const char *) = {
        codes, ranges,         two_level, linear,         foreign,          metrics,
        ssim,  transcendental, NULL,      fuzz_attention, fuzz_convolution, fuzz_resize};
    enum { TASKS = sizeof(tasks) / sizeof(tasks[0]) };
    input in = {data, size, 0};
    const size_t task = byte(&in) % TASKS;
    const char *const isa = vgq_isa_here(byte(&in) % isa_count());
    if (!tasks[task])
        fuzz_render(data + in.at, size - in.at);
    else
        tasks[task](&in, isa);
    while (n_kept)
        free(kept[--n_kept]);
    return 0;
}

/* ---- replay ----------------------------------------------------------------------------------
 * Without libFuzzer: every input of a corpus file, each after its length in two bytes. */

#ifdef REPLAY
int main(int argc, char **argv)
{
    static uint8_t data[1 << 16];
    uint8_t length[2];
    size_t inputs = 0;
    FILE *const file = argc == 2 ? fopen(argv[1], "rb") : NULL;
    if (!file) {
        fprintf(stderr, "usage: %s corpus.bin\n", argv[0]);
        return 2;
    }
    while (fread(length, 1, 2, file) == 2) {
        const size_t size = length[0] | (size_t)length[1] << 8;
        if (fread(data, 1, size, file) != size)
            return 2;
        LLVMFuzzerTestOneInput(data, size);
        inputs++;
    }
    fclose(file);
    printf("core: %zu inputs replayed: all passed\n", inputs);
    return 0;
}
#endif
