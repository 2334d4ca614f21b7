/* SPDX-License-Identifier: Apache-2.0
 * The CUDA Linear on the host shim against vgq_linear's scalar table: equal bits with INT8
 * activations, the documented bound with float ones. With an argument, the few cases that every
 * mistake in a kernel shows in. */
#include "harness.h"
#include "mma_model.h"
#include "../../csrc/formats.h"

#include <algorithm>
#include <cmath>

static uint32_t random_bits() { return next_random(); }
static int random_in(int lo, int hi) { return lo + (int)(random_bits() % (unsigned)(hi - lo + 1)); }
static float random_float() { return (float)random_in(-1000000, 1000000) * 1e-6f; }

static void wrong(const char *what, size_t at, double got, double want)
{
    printf("%s: element %zu is %.9g; %.9g is wanted\n", what, at, got, want);
    fflush(stdout);
    _Exit(1);
}

/* A weight with its plain arrays. */
struct owned_weight {
    vgq_weight w;
    std::vector<uint8_t> q, factor;
    std::vector<float> scale;
    std::vector<int8_t> zero;
    size_t groups;

    owned_weight(vgq_scales scales, size_t n, size_t k, size_t group, bool asymmetric) : w{}
    {
        w.format = scales == VGQ_PER_ROW ? VGQ_I8 : VGQ_I4;
        w.scales = scales;
        w.n = n, w.k = k, w.group = std::min(group, k), w.asymmetric = asymmetric;
        groups = scales == VGQ_PER_ROW ? 1 : (k + w.group - 1) / w.group;
        q.resize(n * vgq_row_nbytes(w.format, k));
        for (auto &byte : q)
            byte = (uint8_t)random_bits();
        if (w.format == VGQ_I4 && k % 2)
            for (size_t row = 1; row <= n; row++)
                q[row * vgq_row_nbytes(w.format, k) - 1] &= 15;
        scale.resize(n * (scales == VGQ_PER_GROUP ? groups : 1));
        for (auto &s : scale)
            s = std::fabs(random_float()) * 0.01f + 1e-4f;
        if (scales == VGQ_TWO_LEVEL)
            for (size_t i = 0; i < n * groups; i++)
                factor.push_back((uint8_t)random_in(1, asymmetric ? 8 : 15));
        for (size_t i = 0; i < n * groups && asymmetric; i++)
            zero.push_back((int8_t)(w.format == VGQ_I8 ? random_in(-128, 127) : random_in(-8, 7)));
        bind(&w);
    }

    void bind(vgq_weight *to)
    {
        to->q = q.data();
        to->scale = scale.data();
        to->factor = factor.empty() ? NULL : factor.data();
        to->zero = zero.empty() ? NULL : zero.data();
    }

    std::vector<uint8_t> packed_for_cpu() const
    {
        std::vector<uint8_t> packed(vgq_packed_nbytes(&w));
        if (vgq_pack(&w, packed.data(), packed.size()) != VGQ_OK)
            wrong("vgq_pack", 0, 1, 0);
        return packed;
    }

    /* Packed for CUDA; unpacking must give everything back. */
    std::vector<uint8_t> packed_for_cuda()
    {
        std::vector<uint8_t> packed(vgq_packing_cuda.nbytes(&w));
        if (vgq_packing_cuda.pack(&w, packed.data(), packed.size()) != VGQ_OK)
            wrong("vgq_packing_cuda.pack", 0, 1, 0);
        owned_weight copy = *this;
        copy.bind(&copy.w);
        std::fill(copy.q.begin(), copy.q.end(), 0xee);
        std::fill(copy.scale.begin(), copy.scale.end(), 0);
        std::fill(copy.factor.begin(), copy.factor.end(), 0);
        std::fill(copy.zero.begin(), copy.zero.end(), 0);
        if (vgq_packing_cuda.unpack(packed.data(), packed.size(), &copy.w) != VGQ_OK ||
            copy.q != q || copy.scale != scale || copy.factor != factor || copy.zero != zero)
            wrong("vgq_packing_cuda.unpack", 0, 1, 0);
        checks++;
        return packed;
    }
};

static float value_at(const uint8_t *values, vgq_dtype dtype, size_t i)
{
    if (dtype == VGQ_F32)
        return ((const float *)values)[i];
    uint16_t half;
    memcpy(&half, values + 2 * i, 2);
    return dtype == VGQ_F16 ? vgq_float_of_f16(half) : vgq_float_of_bf16(half);
}

static void put_value(uint8_t *values, vgq_dtype dtype, size_t i, float v)
{
    const uint16_t half = dtype == VGQ_F16 ? vgq_f16_of_float(v) : vgq_bf16_of_float(v);
    if (dtype == VGQ_F32)
        memcpy(values + 4 * i, &v, 4);
    else
        memcpy(values + 2 * i, &half, 2);
}

struct options {
    vgq_dtype x_dtype = VGQ_F32, y_dtype = VGQ_F32;
    bool bias = true, gelu = false, hard = false, float_activations = false;
    size_t x_offset = 0; /* elements that x begins after an aligned address */
    bool norm = false, norm_bias = true, layer_scale = false, residual = false, in_place = false;
};

/* Operands of a call, freshly drawn; y and scratch are as long as they must be and no longer. */
struct operands {
    std::vector<uint8_t> x, y, want, residual;
    std::vector<float> bias, norm_weight, norm_bias, layer_scale;
    vgq_linear_call call = {};

    operands(const vgq_weight &w, size_t m, const options &o)
    {
        x.resize((m * w.k + o.x_offset) * dtype_nbytes(o.x_dtype));
        for (size_t i = 0; i < m * w.k; i++)
            put_value(x.data(), o.x_dtype, o.x_offset + i, random_float());
        static const float odd[] = {NAN,       INFINITY, -INFINITY, 1e38f,
                                    0x1p-120f, 1e-45f,   -0.0f,     0.5f};
        for (size_t r = 0; o.hard && r < m; r++) {
            for (size_t i = 0; r % 9 > 5 && i < w.k; i++) /* a row of little else */
                put_value(x.data(), o.x_dtype, o.x_offset + r * w.k + i, 0.0f);
            put_value(x.data(), o.x_dtype, o.x_offset + r * w.k + r % w.k, odd[r % 8]);
        }
        y.resize(m * w.n * dtype_nbytes(o.y_dtype), 0xcc);
        want = y;
        for (size_t c = 0; o.bias && c < w.n; c++)
            bias.push_back(random_float());
        call.activations = o.float_activations ? VGQ_FLOAT_ACTIVATIONS : VGQ_INT8_ACTIVATIONS;
        call.m = m;
        call.x_dtype = o.x_dtype, call.y_dtype = o.y_dtype;
        call.x = x.data() + o.x_offset * dtype_nbytes(o.x_dtype);
        call.bias = o.bias ? bias.data() : NULL;
        call.gelu = o.gelu;
        for (size_t i = 0; i < w.k; i++)
            norm_weight.push_back(random_float()), norm_bias.push_back(random_float());
        if (o.norm)
            call.norm = {norm_weight.data(), o.norm_bias ? norm_bias.data() : NULL, 1e-5f};
        for (size_t c = 0; c < w.n; c++)
            layer_scale.push_back(random_float());
        call.layer_scale = o.layer_scale ? layer_scale.data() : NULL;
        residual.resize(y.size());
        for (size_t i = 0; i < m * w.n; i++)
            put_value(residual.data(), o.y_dtype, i, random_float());
        call.residual = o.residual ? residual.data() : NULL;
        in_place = o.in_place;
    }
    bool in_place; /* y is the residual */

    /* y at that address, which holds the residual where the two are one. */
    void bind(uint8_t *at)
    {
        call.y = at;
        if (call.residual && in_place) {
            memcpy(at, residual.data(), residual.size());
            call.residual = at;
        }
    }
};

static void on_cuda(const vgq_weight &w, const std::vector<uint8_t> &packed, operands *o)
{
    const buffer<uint8_t> scratch(vgq_linear_cuda_nbytes(&w, &o->call)), y(o->y.size());
    vgq_weight about = w;
    about.q = NULL, about.scale = NULL, about.factor = NULL, about.zero = NULL;
    o->bind(y.at);
    const vgq_status status =
        vgq_linear_cuda(&about, packed.data(), packed.size(), &o->call, scratch, scratch.n, NULL);
    if (status != VGQ_OK)
        wrong("vgq_linear_cuda", 0, status, VGQ_OK);
    memcpy(o->y.data(), y.at, y.n);
}

/* The same in parts, with sums in between that this loop makes. */
static void in_parts(const vgq_weight &w, const std::vector<uint8_t> &packed, operands *o)
{
    const size_t m = o->call.m, depth = vgq_depth_cuda(&w);
    const buffer<uint8_t> scratch(vgq_linear_cuda_nbytes(&w, &o->call)), y(o->y.size());
    const buffer<int8_t> integers(w.n * depth);
    const buffer<int32_t> sums(m * w.n);
    o->bind(y.at);
    vgq_status status =
        vgq_code_tokens_cuda(&w, packed.data(), packed.size(), &o->call, scratch, scratch.n, NULL);
    if (status == VGQ_OK)
        status = vgq_integers_cuda(&w, packed.data(), packed.size(), integers, NULL);
    const int8_t *const codes = (const int8_t *)scratch.at;
    for (size_t r = 0; r < m && status == VGQ_OK; r++)
        for (size_t c = 0; c < w.n; c++) {
            int32_t sum = 0;
            for (size_t i = 0; i < depth; i++)
                sum += codes[r * depth + i] * integers[c * depth + i];
            sums[r * w.n + c] = sum;
        }
    if (status == VGQ_OK)
        status = vgq_finish_cuda(&w, packed.data(), packed.size(), &o->call, sums, scratch,
                                 scratch.n, NULL);
    if (status != (w.scales == VGQ_PER_GROUP ? VGQ_EINVAL : VGQ_OK))
        wrong("the product in parts", 0, status, VGQ_OK);
    memcpy(o->y.data(), y.at, y.n);
}

static void same_bits(const char *what, const operands &o)
{
    const size_t n = o.y.size() / dtype_nbytes(o.call.y_dtype);
    for (size_t i = 0; i < n; i++, checks++) {
        const float got = value_at(o.y.data(), o.call.y_dtype, i);
        const float want = value_at(o.want.data(), o.call.y_dtype, i);
        const bool equal =
            std::isnan(want) ? std::isnan(got) : vgq_bits_of_float(got) == vgq_bits_of_float(want);
        if (!equal)
            wrong(what, i, got, want);
    }
}

static void check_int8(owned_weight &weight, size_t m, const options &o)
{
    char what[160];
    snprintf(what, sizeof(what),
             "scales %d asymmetric %d m %zu n %zu k %zu group %zu dtypes %d %d bias %d gelu %d "
             "norm %d layer scale %d residual %d",
             weight.w.scales, weight.w.asymmetric, m, weight.w.n, weight.w.k, weight.w.group,
             o.x_dtype, o.y_dtype, o.bias, o.gelu, o.norm, o.layer_scale, o.residual);
    operands both(weight.w, m, o);
    const std::vector<uint8_t> cpu = weight.packed_for_cpu(), cuda = weight.packed_for_cuda();
    std::vector<uint8_t> scratch(vgq_linear_nbytes(&weight.w, &both.call));
    both.bind(both.want.data());
    if (vgq_linear(cpu.data(), cpu.size(), &both.call, scratch.data(), scratch.size()) != VGQ_OK)
        wrong(what, 0, 1, 0);
    on_cuda(weight.w, cuda, &both);
    same_bits(what, both);
    in_parts(weight.w, cuda, &both);
    if (weight.w.scales != VGQ_PER_GROUP)
        same_bits(what, both);
}

/* The weights that the CUDA layout stands for, by vgq_decode_cuda. */
static std::vector<float> decoded(const vgq_weight &w, const std::vector<uint8_t> &packed)
{
    std::vector<float> values(w.n * w.k);
    if (vgq_decode_cuda(&w, packed.data(), packed.size(), VGQ_F32, values.data(), NULL) != VGQ_OK)
        wrong("vgq_decode_cuda", 0, 1, 0);
    return values;
}

static void check_decode(owned_weight &weight)
{
    const vgq_weight &w = weight.w;
    const std::vector<uint8_t> packed = weight.packed_for_cuda();
    const std::vector<float> values = decoded(w, packed);
    for (size_t r = 0; r < w.n; r++)
        for (size_t i = 0; i < w.k; i++, checks++) {
            const size_t g = w.scales == VGQ_PER_ROW ? 0 : i / w.group;
            const uint8_t byte =
                w.q[r * vgq_row_nbytes(w.format, w.k) + i * (w.format == VGQ_I4 ? 1 : 2) / 2];
            int v = w.format == VGQ_I8 ? (int8_t)byte : ((i % 2 ? byte >> 4 : byte & 15) ^ 8) - 8;
            v -= w.zero ? w.zero[r * weight.groups + g] : 0;
            v *= w.factor ? w.factor[r * weight.groups + g] : 1;
            const float want =
                (float)v * w.scale[w.scales == VGQ_PER_GROUP ? r * weight.groups + g : r];
            if (values[r * w.k + i] != want)
                wrong("decoded weight", r * w.k + i, values[r * w.k + i], want);
        }
    std::vector<uint16_t> halves(w.n * w.k);
    if (vgq_decode_cuda(&w, packed.data(), packed.size(), VGQ_BF16, halves.data(), NULL) != VGQ_OK)
        wrong("vgq_decode_cuda", 0, 1, 0);
    for (size_t i = 0; i < halves.size(); i++)
        if (halves[i] != vgq_bf16_of_float(values[i]))
            wrong("decoded bfloat16", i, halves[i], vgq_bf16_of_float(values[i]));
}

static void check_float(owned_weight &weight, size_t m, options o)
{
    const vgq_weight &w = weight.w;
    o.float_activations = true;
    operands both(w, m, o);
    const std::vector<uint8_t> packed = weight.packed_for_cuda();
    const std::vector<float> values = decoded(w, packed);
    on_cuda(w, packed, &both);
    for (size_t r = 0; r < m; r++)
        for (size_t c = 0; c < w.n; c++, checks++) {
            double sum = both.call.bias ? both.call.bias[c] : 0, terms = std::fabs(sum);
            for (size_t i = 0; i < w.k; i++) {
                const double term =
                    (double)value_at(both.x.data(), o.x_dtype, o.x_offset + r * w.k + i) *
                    values[c * w.k + i];
                sum += term;
                terms += std::fabs(term);
            }
            if (o.layer_scale)
                sum *= both.layer_scale[c], terms = std::fabs(terms * both.layer_scale[c]);
            if (o.residual) {
                const double added = value_at(both.residual.data(), o.y_dtype, r * w.n + c);
                sum += added, terms += std::fabs(added);
            }
            const double got = value_at(both.y.data(), o.y_dtype, r * w.n + c);
            const double rounding = o.y_dtype == VGQ_F32 ? 0 : std::fabs(sum) * 0x1p-8;
            if (!(std::fabs(got - sum) <= (double)(w.k + 4) * 0x1p-24 * terms + rounding))
                wrong("float activations", r * w.n + c, got, sum);
        }
}

/* The e4m3fn number nearest to v, half to even, by trying all of them. */
static uint8_t nearest_float8(float v)
{
    uint8_t nearest = 0;
    double least = INFINITY;
    for (int code = 0; code < 127; code++) {
        const int exponent = code >> 3, mantissa = code & 7;
        const double number =
            exponent ? std::ldexp(8 + mantissa, exponent - 10) : std::ldexp(mantissa, -9);
        const double distance = std::fabs(std::fabs((double)v) - number);
        if (distance < least || (distance == least && code % 2 == 0))
            least = distance, nearest = (uint8_t)code;
    }
    return (uint8_t)(nearest | (std::signbit(v) ? 0x80 : 0));
}

static void check_float8(size_t m, size_t k, const options &o)
{
    vgq_weight w = {};
    w.n = 1, w.k = k;
    const operands drawn(w, m, o);
    const size_t depth = (k + 15) / 16 * 16;
    const buffer<uint8_t> x(drawn.x.size(), drawn.x.data()), codes(m * depth);
    const buffer<float> scale(m);
    const vgq_dtype dtype = o.x_dtype;
    if (vgq_code_float8_cuda(m, k, dtype, x.at + o.x_offset * dtype_nbytes(dtype), drawn.call.norm,
                             depth, codes, scale, NULL) != VGQ_OK)
        wrong("vgq_code_float8_cuda", 0, 1, 0);
    std::vector<float> row(k);
    for (size_t r = 0; r < m; r++) {
        float largest = 0;
        for (size_t i = 0; i < k; i++)
            row[i] = value_at(drawn.x.data(), dtype, o.x_offset + r * k + i);
        for (const float v : row)
            largest = std::fmax(largest, std::fabs(v));
        const bool nan = std::any_of(row.begin(), row.end(), [](float v) { return v != v; });
        const float want = nan ? NAN : std::fmax(largest / 448.0f, 0x1p-126f);
        if (nan ? scale[r] == scale[r] : scale[r] != want)
            wrong("a scale of FP8", r, scale[r], want);
        for (size_t i = 0; i < depth; i++, checks++) {
            const uint8_t code = codes[r * depth + i];
            const float v = i < k ? row[i] / want : 0.0f;
            const bool good = i >= k   ? code == 0
                              : v != v ? (code & 0x7f) == 0x7f
                                       : code == nearest_float8(v);
            if (!good)
                wrong("a code of FP8", r * depth + i, code, v != v ? 0x7f : nearest_float8(v));
        }
    }
}

static void refuse_float8()
{
    float x[8] = {}, scale[1];
    alignas(4) uint8_t codes[16];
    const vgq_norm none = {NULL, NULL, 0};
    struct bad {
        size_t m, k, depth;
        const float *x;
        uint8_t *codes;
    };
    for (const bad &b : {bad{1, 0, 16, x, codes}, bad{1, 8, 4, x, codes}, bad{1, 8, 10, x, codes},
                         bad{1, 8, 8, NULL, codes}, bad{1, 8, 8, x, NULL},
                         bad{1, 8, 8, x, codes + 1}, bad{(size_t)1 << 31, 8, 8, x, codes}})
        if (vgq_code_float8_cuda(b.m, b.k, VGQ_F32, b.x, none, b.depth, b.codes, scale, NULL) !=
            VGQ_EINVAL)
            wrong("FP8 codes of a bad call", b.m, b.k, b.depth);
    if (vgq_code_float8_cuda(0, 8, VGQ_F32, NULL, none, 8, NULL, NULL, NULL) != VGQ_OK)
        wrong("FP8 codes of no tokens", 0, 1, 0);
}

/* Bytes that vgq_packing_cuda did not make: refused by their size, or told by NaN. */
static void check_foreign_bytes()
{
    owned_weight weight(VGQ_PER_ROW, 65, 40, 40, false);
    operands o(weight.w, 3, {});
    std::vector<uint8_t> packed = weight.packed_for_cuda(), cpu = weight.packed_for_cpu();
    std::vector<uint8_t> scratch(vgq_linear_cuda_nbytes(&weight.w, &o.call));
    vgq_weight about;
    o.call.y = o.y.data();
    if (vgq_linear_cuda(&weight.w, cpu.data(), cpu.size(), &o.call, scratch.data(), scratch.size(),
                        NULL) != VGQ_EPACKED ||
        vgq_packing_cuda.weight(cpu.data(), cpu.size(), &about) != VGQ_EPACKED ||
        vgq_packed_weight(packed.data(), packed.size(), &about) != VGQ_EPACKED ||
        vgq_linear_cuda(&weight.w, packed.data(), packed.size(), &o.call, scratch.data(),
                        scratch.size() - 1, NULL) != VGQ_EINVAL)
        wrong("foreign bytes are taken", 0, 0, 1);
    o.call.activations = VGQ_FLOAT_ACTIVATIONS;
    o.call.norm.weight = o.norm_weight.data();
    if (vgq_linear_cuda(&weight.w, packed.data(), packed.size(), &o.call, NULL, 0, NULL) !=
        VGQ_EINVAL)
        wrong("a norm of float activations is taken", 0, 0, 1);
    o.call.activations = VGQ_INT8_ACTIVATIONS, o.call.norm.weight = NULL;
    memcpy(packed.data(), cpu.data(), 64);
    on_cuda(weight.w, packed, &o);
    for (size_t i = 0; i < o.y.size() / 4; i++, checks++)
        if (!std::isnan(value_at(o.y.data(), VGQ_F32, i)))
            wrong("foreign bytes", i, value_at(o.y.data(), VGQ_F32, i), NAN);
}

struct kind {
    vgq_scales scales;
    bool asymmetric;
    size_t group;
};
static const kind kinds[] = {
    {VGQ_PER_ROW, false, 1},    {VGQ_PER_ROW, true, 1},      {VGQ_TWO_LEVEL, false, 32},
    {VGQ_TWO_LEVEL, true, 64},  {VGQ_TWO_LEVEL, false, 128}, {VGQ_TWO_LEVEL, false, 40},
    {VGQ_PER_GROUP, false, 64}, {VGQ_PER_GROUP, true, 24},   {VGQ_PER_GROUP, false, 99999},
};

static void few()
{
    for (const kind &of : kinds)
        for (const int processors : {1, 1000}) {
            if (of.scales == VGQ_PER_GROUP && processors == 1)
                continue; /* there is one shape of block for these */
            shim::processors = processors;
            owned_weight weight(of.scales, 130, processors == 1 ? 328 : 330, of.group,
                                of.asymmetric);
            check_int8(weight, 131, {});
        }
    for (const vgq_scales scales : {VGQ_TWO_LEVEL, VGQ_PER_ROW}) { /* parts of the depth */
        shim::processors = 1000;
        owned_weight weight(scales, 9, 2630, 128, scales == VGQ_PER_ROW);
        options o;
        o.residual = o.gelu = true;
        check_int8(weight, 20, o);
    }
    for (const size_t n : {72, 76}) { /* nothing follows the bias: whole pieces of 8, and not */
        owned_weight weight(VGQ_PER_ROW, n, 104, 1, true);
        options o;
        o.x_dtype = o.y_dtype = VGQ_BF16;
        check_int8(weight, 21, o);
    }
    for (const int odd : {0, 1}) { /* what stands around a Linear in a block */
        owned_weight weight(VGQ_PER_ROW, 72 + (size_t)odd, 104 + (size_t)odd, 1, odd != 0);
        options o;
        o.gelu = o.norm = o.layer_scale = o.residual = true;
        o.norm_bias = !odd, o.in_place = odd != 0, o.y_dtype = odd ? VGQ_F32 : VGQ_BF16;
        check_int8(weight, 9, o);
    }
    for (const int odd : {0, 1}) { /* FP8, ragged rows that are not finite too */
        options o;
        o.x_dtype = odd ? VGQ_F32 : VGQ_BF16, o.hard = true, o.x_offset = (size_t)odd;
        check_float8(10, 600 + (size_t)odd * 37, o);
    }
    for (const vgq_scales scales : {VGQ_TWO_LEVEL, VGQ_PER_ROW})
        for (const size_t tokens : {2, 5}) { /* more inputs than a chunk has */
            owned_weight weight(scales, 70, 770, 32, scales == VGQ_PER_ROW);
            check_float(weight, tokens, {});
        }
}

static void all()
{
    static const size_t ms[] = {1, 2, 17, 64, 65, 127, 129}, ns[] = {9, 64, 129, 200};
    static const size_t ks[] = {1, 7, 40, 64, 130, 192, 257, 600};
    size_t turn = 0;
    for (const kind &of : kinds)
        for (const size_t n : ns)
            for (const bool wide : {false, true}) {
                shim::processors = wide ? 1 : 1000;
                const size_t k = ks[turn % 8], m = ms[turn / 3 % 7];
                owned_weight weight(of.scales, n, k, of.group, of.asymmetric);
                options o;
                o.x_dtype = (vgq_dtype)(turn % 3), o.y_dtype = (vgq_dtype)(turn / 2 % 3);
                o.bias = turn % 4 != 0, o.gelu = turn % 5 == 0, o.hard = turn % 3 == 1;
                o.x_offset = turn % 7 == 6;
                o.norm = turn % 4 > 1, o.norm_bias = turn % 8 < 4, o.layer_scale = turn % 3 == 0;
                o.residual = turn % 5 > 1, o.in_place = turn % 2 != 0;
                check_int8(weight, m, o);
                check_decode(weight);
                o.hard = o.gelu = o.norm = false;
                check_float(weight, 1 + turn % 11, o);
                turn++;
            }
    { /* a row that is not staged */
        owned_weight weight(VGQ_PER_ROW, 9, 4104, 1, true);
        options o;
        o.norm = true;
        check_int8(weight, 2, o);
    }
    refuse_float8();
    for (const size_t k : {1, 3, 16, 70, 257, 4104}) {
        options o;
        o.x_dtype = (vgq_dtype)(k % 3), o.hard = true;
        check_float8(9, k, o);
    }
    check_foreign_bytes();
}

int main(int argc, char **)
{
    if (vgq_use("scalar") != VGQ_OK)
        return 2;
    few();
    if (argc < 2)
        all();
    if (shim::bank_conflicts) {
        printf("ldmatrix met a bank twice %zu times\n", shim::bank_conflicts);
        return 1;
    }
    return all_passed("cuda linear");
}
