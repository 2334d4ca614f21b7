/* SPDX-License-Identifier: Apache-2.0
 * Every function that can take long leaves off when its vgq_stop says so, and works again. */
#include "core.h"

static int asked, patience;
static vgq_stop stop;

/* No, so many times, then yes; asked again as soon as may be. */
static int out_of_patience(void *data)
{
    (void)data;
    stop.asked = 1;
    return asked++ >= patience;
}

/* A call that watches a stop of which the last question was long ago asks at its first block. */
static vgq_status stopped(vgq_status (*call)(void), int no)
{
    stop = (vgq_stop){out_of_patience, NULL, 1, 0};
    asked = 0;
    patience = no;
    CHECK(vgq_watch(&stop) == NULL, " ");
    const vgq_status status = call();
    CHECK(vgq_watch(NULL) == &stop, " ");
    return status;
}

enum { WIDE = 4096 * 3, LONG = 4096 * 130 }; /* a row asks again after 64 blocks */
static float wide[WIDE], one_scale[WIDE / 8], row[LONG];
static uint8_t wide_q[WIDE], wide_factor[WIDE / 8], wide_packed[WIDE * 4];
static double wide_parts[WIDE];
static const vgq_shape in_one = {1, WIDE, WIDE}, in_many = {1, WIDE, 8};

static vgq_status call_quantize(void)
{
    return vgq_quantize(VGQ_I4, VGQ_F32, in_one, wide, one_scale, NULL, wide_q);
}
static vgq_status call_dequantize(void)
{
    return vgq_dequantize(VGQ_I8, VGQ_F32, in_one, wide_q, one_scale, NULL, wide);
}
static vgq_status call_range(void)
{
    uint64_t nonfinite;
    return vgq_range(VGQ_F32, in_one, wide, one_scale, one_scale + 1, &nonfinite);
}
static vgq_status call_parameters(void)
{
    return vgq_parameters(VGQ_I4, WIDE / 8, wide, wide, one_scale, NULL);
}
static vgq_status call_two_level(void)
{
    return vgq_two_level(VGQ_F32, in_many, wide, one_scale, wide_factor, NULL, wide_parts);
}
static vgq_status call_two_level_of_one(void)
{
    return vgq_two_level(VGQ_F32, in_one, wide, one_scale, wide_factor, NULL, wide_parts);
}
static vgq_status call_compare(void)
{
    return vgq_compare(WIDE, VGQ_F32, wide, VGQ_F32, wide, (vgq_moments *)(void *)wide_parts);
}
static vgq_status call_cross_entropy(void)
{
    return vgq_cross_entropy(2, WIDE / 2, VGQ_F32, wide, VGQ_F32, wide,
                             (vgq_entropy *)(void *)wide_parts);
}
static vgq_status call_ssim(void)
{
    return vgq_ssim((vgq_images){1, 100, 100, 1}, VGQ_F32, wide, VGQ_F32, wide, 1, 0, wide_parts);
}
static vgq_status call_long_range(void)
{
    uint64_t nonfinite;
    const vgq_shape shape = {1, LONG, LONG};
    return vgq_range(VGQ_F32, shape, row, one_scale, one_scale + 1, &nonfinite);
}
static vgq_status call_long_quantize(void)
{
    static uint8_t q[LONG];
    const vgq_shape shape = {1, LONG, LONG};
    return vgq_quantize(VGQ_I8, VGQ_F32, shape, row, one_scale, NULL, q);
}
static vgq_status call_long_two_level(void)
{
    const vgq_shape shape = {1, LONG, LONG};
    return vgq_two_level(VGQ_F32, shape, row, one_scale, wide_factor, NULL, wide_parts);
}
static vgq_status call_long_cross_entropy(void)
{
    return vgq_cross_entropy(1, LONG, VGQ_F32, row, VGQ_F32, row,
                             (vgq_entropy *)(void *)wide_parts);
}
static vgq_status call_exp(void) { return vgq_exp(WIDE, wide_parts, wide_parts); }
static vgq_status call_log(void) { return vgq_log(WIDE, wide_parts, wide_parts); }

static vgq_weight stopped_weight(void)
{
    static float scale[65];
    for (size_t i = 0; i < 65; i++)
        scale[i] = 1;
    return (vgq_weight){VGQ_I8, VGQ_PER_ROW, 65, 67, 67, 0, wide_q, scale, NULL, NULL};
}
static vgq_status call_pack(void)
{
    const vgq_weight w = stopped_weight();
    return vgq_pack(&w, wide_packed, vgq_packed_nbytes(&w));
}
static vgq_status call_unpack(void)
{
    const vgq_weight w = stopped_weight();
    return vgq_unpack(wide_packed, vgq_packed_nbytes(&w), &w);
}
static vgq_status call_cuda_pack(void)
{
    const vgq_weight w = stopped_weight();
    return vgq_packing_cuda.pack(&w, wide_packed, vgq_packing_cuda.nbytes(&w));
}
static vgq_status call_cuda_unpack(void)
{
    const vgq_weight w = stopped_weight();
    return vgq_packing_cuda.unpack(wide_packed, vgq_packing_cuda.nbytes(&w), &w);
}
static vgq_status call_linear(void)
{
    static unsigned char scratch[1 << 20];
    const vgq_weight w = stopped_weight();
    const vgq_linear_call call = {VGQ_INT8_ACTIVATIONS, 8, VGQ_F32, VGQ_F32, numbers, NULL, wide};
    return vgq_linear(wide_packed, vgq_packed_nbytes(&w), &call, scratch, sizeof(scratch));
}

static vgq_status call_attention(void)
{
    enum { TOKENS = 300 }; /* more than a block of keys */
    static unsigned char scratch[1 << 21];
    const vgq_attention_call call = {.scores = VGQ_INT8_ACTIVATIONS,
                                     .values = VGQ_INT8_ACTIVATIONS,
                                     .batch = 1,
                                     .tokens = TOKENS,
                                     .heads = 1,
                                     .dim = 8,
                                     .qkv = numbers,
                                     .strides = {24 * TOKENS, 24, 8, 8},
                                     .scale = 1,
                                     .y = wide};
    return vgq_attention(&call, scratch, sizeof(scratch));
}

/* With a search for the largest input, and an embedding that waits for what it finds; each task has
 * several blocks of rows. */
static vgq_status call_conv(void)
{
    enum { HIGH = 96, WIDTH = 64, CHANNELS = 8 };
    static unsigned char scratch[1 << 21], packed[1 << 16];
    static uint8_t codes[8 * CHANNELS];
    float scale[8] = {1, 1, 1, 1, 1, 1, 1, 1};
    const vgq_weight w = {.n = 8, .k = CHANNELS, .group = CHANNELS, .q = codes, .scale = scale};
    const vgq_conv_call call = {.pictures = 1,
                                .height = HIGH,
                                .width = WIDTH,
                                .channels = CHANNELS,
                                .source_height = 3,
                                .source_width = 5,
                                .kernel_height = 1,
                                .kernel_width = 1,
                                .stride_height = 1,
                                .stride_width = 1,
                                .out_height = HIGH,
                                .out_width = WIDTH,
                                .x = row,
                                .column_embedding = numbers,
                                .row_embedding = numbers,
                                .y = row + HIGH * WIDTH * CHANNELS};
    vgq_stop *const before = vgq_watch(NULL); /* packing is not what is stopped */
    const vgq_status status = vgq_pack(&w, packed, vgq_packed_nbytes(&w));
    vgq_watch(before);
    CHECK(status == VGQ_OK, " ");
    return vgq_conv2d(packed, vgq_packed_nbytes(&w), &call, scratch, sizeof(scratch));
}

static vgq_status call_resize(void)
{
    static unsigned char scratch[1 << 20];
    const vgq_resize_call call = {.pictures = 1,
                                  .channels = 3,
                                  .source_height = 20,
                                  .source_width = 20,
                                  .height = 30,
                                  .width = 30,
                                  .x = numbers,
                                  .y = row};
    return vgq_resize(&call, scratch, sizeof(scratch));
}

void test_stopping(void)
{
    static vgq_status (*const all[])(void) = {call_cuda_pack,
                                              call_cuda_unpack,
                                              call_pack,
                                              call_unpack,
                                              call_quantize,
                                              call_dequantize,
                                              call_range,
                                              call_parameters,
                                              call_two_level,
                                              call_two_level_of_one,
                                              call_compare,
                                              call_ssim,
                                              call_cross_entropy,
                                              call_exp,
                                              call_log,
                                              call_linear,
                                              call_attention,
                                              call_conv,
                                              call_resize,
                                              call_long_range,
                                              call_long_quantize,
                                              call_long_two_level,
                                              call_long_cross_entropy};
    for (int threads = 1; threads <= 2; threads++) {
        vgq_set_threads(threads);
        for (size_t i = 0; i < sizeof(all) / sizeof(all[0]); i++) {
            CHECK(stopped(all[i], INT32_MAX) == VGQ_OK, "call %zu", i);
            const int questions = asked;
            CHECK(questions >= 1, "call %zu asks %d times", i, questions);
            for (int no = 0; no < (threads == 1 ? questions : 1) && no < 20; no++)
                CHECK(stopped(all[i], no) == VGQ_ESTOPPED, "call %zu, after %d", i, no);
            CHECK(all[i]() == VGQ_OK, "call %zu", i);
        }
    }
    vgq_set_threads(0);
}
