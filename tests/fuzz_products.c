/* SPDX-License-Identifier: Apache-2.0
 * Fuzz targets: attention, convolution and resizing of csrc/vgq.h, with sizes that fit and sizes
 * that do not. INT8 results and resized pictures are compared with the scalar table's. */
#include "fuzz.h"

#include <math.h>

static int served(vgq_status status, size_t scratch)
{
    check(status == VGQ_OK || status == VGQ_EINVAL, "status");
    check(status == VGQ_OK || scratch == 0 || status == VGQ_EINVAL, "a refusal");
    return status == VGQ_OK;
}

static vgq_norm norm_of(input *in, size_t n)
{
    vgq_norm norm = {0};
    if (byte(in) & 1) {
        norm.weight = filled(in, n * 4);
        norm.bias = byte(in) & 1 ? filled(in, n * 4) : NULL;
        norm.eps = 1e-5f;
    }
    return norm;
}

void fuzz_attention(input *in, const char *isa)
{
    vgq_attention_call call = {0};
    call.scores = (vgq_activations)below(in, VGQ_ACTIVATIONS);
    call.values = (vgq_activations)below(in, VGQ_ACTIVATIONS);
    call.batch = below(in, 3);
    call.tokens = below(in, byte(in) & 1 ? 300 : 20);
    call.heads = 1 + below(in, 3);
    call.dim = byte(in) % 8 ? 8 * (1 + below(in, VGQ_WIDEST / 8)) : below(in, VGQ_WIDEST + 20);
    call.x_dtype = (vgq_dtype)below(in, VGQ_DTYPES);
    call.y_dtype = (vgq_dtype)below(in, VGQ_DTYPES);
    call.q_norm = norm_of(in, call.dim);
    call.k_norm = norm_of(in, call.dim);
    if (byte(in) & 1) {
        call.rope_tokens = below(in, 40);
        call.rope_width = byte(in) % 4 ? call.dim / (1 + (byte(in) & 1)) : below(in, 140);
        call.cos = filled(in, call.rope_tokens * call.dim * 4);
        call.sin = filled(in, call.rope_tokens * call.dim * 4);
    }
    memcpy(&call.scale, filled(in, 4), 4);
    if (byte(in) % 8)
        call.scale = 0.25f;
    /* Either packed as a Linear gives it, or with heads and parts the other way round. */
    const size_t part = call.heads * call.dim, n = call.batch * call.tokens * part;
    const int heads_first = byte(in) & 1;
    call.strides[0] = call.tokens * 3 * part;
    call.strides[1] = 3 * part;
    call.strides[2] = heads_first ? call.dim : part;
    call.strides[3] = heads_first ? 3 * call.dim : call.dim;
    call.qkv = filled(in, 3 * n * width[call.x_dtype]);
    void *const y[2] = {room(n * width[call.y_dtype]), room(n * width[call.y_dtype])};
    for (int i = 0; i < 2; i++) {
        vgq_use(i ? isa : "scalar");
        const size_t scratch = vgq_attention_nbytes(&call);
        call.y = y[i];
        if (!served(vgq_attention(&call, room(scratch), scratch), scratch))
            return;
    }
    check(call.scores != VGQ_INT8_ACTIVATIONS || call.values != VGQ_INT8_ACTIVATIONS ||
              same_values(call.y_dtype, y[0], y[1], n),
          "attention");
}

static size_t below_or_huge(input *in, size_t n)
{
    const size_t x = below(in, n);
    return byte(in) % 64 ? x : SIZE_MAX / (1 + x);
}

void fuzz_convolution(input *in, const char *isa)
{
    vgq_conv_call call = {0};
    call.pictures = 1 + below(in, 2);
    call.height = below_or_huge(in, 12);
    call.width = below_or_huge(in, 20);
    call.channels = byte(in) % 8 ? 8 * (1 + below(in, 5)) : below(in, 40);
    const int resized = byte(in) % 4 == 0;
    call.source_height = resized ? 1 + below(in, 9) : call.height;
    call.source_width = resized ? 1 + below(in, 9) : call.width;
    call.kernel_height = below(in, 4);
    call.kernel_width = below(in, 4);
    call.stride_height = below(in, 3);
    call.stride_width = below(in, 3);
    call.padding_height = below(in, 3);
    call.padding_width = below(in, 3);
    call.out_height = below(in, 14);
    call.out_width = below(in, 22);
    if (byte(in) % 4 && call.stride_height && call.stride_width) { /* what such a window gives */
        const size_t high = call.height + 2 * call.padding_height;
        const size_t wide = call.width + 2 * call.padding_width;
        call.out_height =
            high < call.kernel_height ? 0 : (high - call.kernel_height) / call.stride_height + 1;
        call.out_width =
            wide < call.kernel_width ? 0 : (wide - call.kernel_width) / call.stride_width + 1;
    }
    call.x_dtype = (vgq_dtype)below(in, VGQ_DTYPES);
    call.y_dtype = (vgq_dtype)below(in, VGQ_DTYPES);
    call.relu_x = byte(in) & 1;
    call.relu_y = byte(in) & 1;
    call.relu_sum = byte(in) & 1;
    vgq_weight w = {0};
    w.format = VGQ_I8;
    w.scales = VGQ_PER_ROW;
    w.n = 1 + below(in, 80);
    w.k = call.kernel_height * call.kernel_width * vgq_conv_channels(call.channels);
    call.folded = byte(in) % 4 == 0;
    call.outputs = byte(in) % 4 ? 0 : below(in, 5);
    const size_t nbytes = vgq_packed_nbytes(&w);
    if (!nbytes || w.k > 3000 || call.out_height > 40 || call.out_width > 40)
        return;
    w.scale = filled(in, w.n * 4);
    for (size_t i = 0; i < w.n; i++)
        w.scale[i] = w.scale[i] > 0 && isfinite(w.scale[i]) ? w.scale[i] : 1;
    w.q = filled(in, w.n * w.k);
    for (size_t r = 0; r < w.n; r++)
        for (size_t i = 0; i < w.k; i++)
            if (i % vgq_conv_channels(call.channels) >= call.channels)
                w.q[r * w.k + i] = 0;
    uint8_t *const packed = room(nbytes);
    check(vgq_pack(&w, packed, nbytes) == VGQ_OK, "pack");
    int32_t *const sums = room(w.n * 4);
    for (size_t r = 0; r < w.n; r++) {
        sums[r] = 0;
        for (size_t i = 0; i < w.k; i++)
            sums[r] += (int8_t)w.q[r * w.k + i];
    }
    call.weight_sums = sums;
    call.bias = byte(in) & 1 ? filled(in, w.n * 4) : NULL;
    const int one_row = call.source_height > 40 || call.source_width > 40;
    const size_t pixels = one_row ? 0 : call.pictures * call.source_height * call.source_width;
    call.x = filled(in, pixels * call.channels * width[call.x_dtype]);
    if (byte(in) % 4 == 0 && call.height < 40 && call.width < 40) {
        call.column_embedding = filled(in, call.width * (call.channels / 2) * 4);
        call.row_embedding = filled(in, call.height * (call.channels / 2) * 4);
    }
    call.last_weight = filled(in, call.outputs * 64 * 4);
    call.last_bias = filled(in, call.outputs * 4);
    const size_t own = call.folded ? w.n / 2 : w.n;
    const size_t outputs = call.pictures * call.out_height * call.out_width;
    const size_t n = outputs * (call.outputs ? call.outputs : own);
    call.residual = byte(in) & 1 ? filled(in, outputs * own * width[call.y_dtype]) : NULL;
    void *const y[2] = {room(n * width[call.y_dtype]), room(n * width[call.y_dtype])};
    float *const largest[2] = {room(call.pictures * 8), room(call.pictures * 8)};
    for (int i = 0; i < 2; i++) {
        vgq_use(i ? isa : "scalar");
        const size_t scratch = vgq_conv2d_nbytes(&w, &call);
        if (!scratch)
            return;
        call.y = y[i];
        call.y_largest = largest[i];
        if (!served(vgq_conv2d(packed, nbytes, &call, room(scratch), scratch), scratch))
            return;
    }
    check(same_values(call.y_dtype, y[0], y[1], n), "convolution");
    check(same_f32(largest[0], largest[1], 2 * call.pictures), "largest magnitudes");
}

void fuzz_resize(input *in, const char *isa)
{
    vgq_resize_call call = {0};
    call.pictures = below(in, 3);
    call.channels = below(in, 40);
    call.source_height = below(in, 12);
    call.source_width = below(in, 12);
    call.height = below(in, 20);
    call.width = below(in, 20);
    call.x_dtype = (vgq_dtype)below(in, VGQ_DTYPES);
    call.y_dtype = (vgq_dtype)below(in, VGQ_DTYPES);
    const size_t n = call.pictures * call.height * call.width * call.channels;
    call.x = filled(in, call.pictures * call.source_height * call.source_width * call.channels *
                            width[call.x_dtype]);
    call.added = byte(in) & 1 ? filled(in, n * width[call.y_dtype]) : NULL;
    void *const y[2] = {room(n * width[call.y_dtype]), room(n * width[call.y_dtype])};
    for (int i = 0; i < 2; i++) {
        vgq_use(i ? isa : "scalar");
        const size_t scratch = vgq_resize_nbytes(&call);
        call.y = y[i];
        if (!served(vgq_resize(&call, room(scratch), scratch), scratch))
            return;
    }
    check(same_values(call.y_dtype, y[0], y[1], n), "resize");
}
