/* SPDX-License-Identifier: Apache-2.0
 * vggtquant's C library: quantize, compare, multiply. No Python, no allocation, no I/O.
 *
 * Every formula (rounding, ranges, scales, zero points, edge values, nibble order, metrics) is
 * stated once, in docs/conventions.md; contracts here say shapes, aliasing and errors. Arrays are
 * row-major, aligned as their elements (codes and scratch at any byte), and must not overlap unless
 * said. Sizes count elements; `nbytes` counts bytes. After an error nothing has been written. */
#ifndef VGQ_H
#define VGQ_H

#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

typedef enum vgq_status {
    VGQ_OK = 0,
    VGQ_EINVAL,   /* a null pointer, an unknown format or dtype, sizes that do not fit together */
    VGQ_EISA,     /* an instruction set that is unknown or does not run here */
    VGQ_EPACKED,  /* not packed weights, or cut short */
    VGQ_ELAYOUT,  /* packed weights of another version or layout */
    VGQ_EDEPTH,   /* a row too long for exact 32-bit sums */
    VGQ_ESCALE,   /* a weight's scale that is not positive and finite */
    VGQ_EFACTOR,  /* a weight's factor outside 1..15; 1..8 beside zero points */
    VGQ_EZERO,    /* a zero point of a 4-bit weight outside -8..7 */
    VGQ_ESTOPPED, /* its vgq_stop said so: outputs are unspecified */
    VGQ_ECUDA,    /* CUDA refused a launch; vgq_cuda_error says why */
    VGQ_STATUSES
} vgq_status;

typedef enum vgq_dtype { VGQ_F32 = 0, VGQ_F16, VGQ_BF16, VGQ_DTYPES } vgq_dtype;

#define FORMAT(ID, tag, bits, lowest, highest) VGQ_##ID,
typedef enum vgq_format {
#include "formats.def"
    VGQ_FORMATS
} vgq_format;
#undef FORMAT

/* rows x cols values; each `group` neighbours of a row share a scale, a row's last group may be
 * shorter. Per channel: group = cols. Per tensor: rows = 1 and group = cols = all. */
typedef struct vgq_shape {
    size_t rows, cols, group;
} vgq_shape;

/* One line for a person. */
const char *vgq_message(vgq_status status);

/* ---- instruction sets (dispatch.c) ---------------------------------------------------------- */

/* Use the named table and what weaker ones add to it; NULL means the best that runs here. Calls
 * that have begun go on with theirs.
 * VGQ_EISA: the name is unknown or this machine cannot run it; the old choice stays. */
vgq_status vgq_use(const char *isa);
/* The chosen one's name. */
const char *vgq_isa(void);
/* The index-th instruction set that runs here, weakest first; NULL past the last. */
const char *vgq_isa_here(size_t index);
/* The index-th one that this machine claims to have but whose kernels gave other results than the
 * scalar ones: it is not used. NULL past the last, which is usually at once. */
const char *vgq_isa_refused(size_t index);

/* ---- threads (openmp.c) --------------------------------------------------------------------- */

/* At most n threads from now on, in the whole process; 0: as many as the OpenMP runtime says. */
void vgq_set_threads(int n);
/* At most n threads in the calls of this thread; 0: no limit of its own. Returns the limit that it
 * had. */
int vgq_limit_threads(int n);
/* How many a large call of this thread would use now. */
int vgq_threads(void);
/* This process was forked from one whose OpenMP threads it lacks, so it works on one thread for
 * ever: for callers that saw a fork before this library was loaded, which sees later ones. */
void vgq_forked(void);
/* The file name of the OpenMP runtime in use, or "none". */
const char *vgq_openmp(void);

/* What a call works with, read once when it begins: kernels, and threads of a large call. It stays
 * valid as long as the process runs. */
typedef struct vgq_context {
    const struct vgq_kernels *kernels;
    int threads;
} vgq_context;
vgq_context vgq_context_now(void);

/* ---- stopping (stop.c) ---------------------------------------------------------------------- */

/* A question that work puts now and then, on the thread that called: the calls of a thread that
 * watches it end with VGQ_ESTOPPED once the answer is not 0. */
typedef struct vgq_stop {
    int (*ask)(void *data);
    void *data;
    int64_t asked; /* private: when last, in milliseconds */
    int stopped;   /* private */
} vgq_stop;

/* What this thread's calls watch from now on, NULL: nothing. Returns what they watched before. */
vgq_stop *vgq_watch(vgq_stop *stop);

/* ---- quantize (quantize.c) ------------------------------------------------------------------ */

/* Groups of a row, and of the whole matrix. */
size_t vgq_row_groups(vgq_shape shape);
/* Bytes of a row of codes: cols for 8 bits, ceil(cols / 2) for 4. */
size_t vgq_row_nbytes(vgq_format format, size_t cols);

/* lo[group] <= 0 <= hi[group]: each group's range, widened to hold zero; nonfinite[row]: how many
 * of the row are NaN or infinite (its lo and hi are unspecified where there are any); 0 for rows
 * without columns. */
vgq_status vgq_range(vgq_dtype dtype, vgq_shape shape, const void *x, float *lo, float *hi,
                     uint64_t *nonfinite);

/* Scale and zero point of each of n ranges. zero NULL: symmetric. */
vgq_status vgq_parameters(vgq_format format, size_t n, const float *lo, const float *hi,
                          float *scale, int8_t *zero);

/* Codes. scale (and zero, NULL: all 0): one a group. q: vgq_row_nbytes a row. */
vgq_status vgq_quantize(vgq_format format, vgq_dtype dtype, vgq_shape shape, const void *x,
                        const float *scale, const int8_t *zero, uint8_t *q);

/* The values that codes stand for, rounded once to dtype. */
vgq_status vgq_dequantize(vgq_format format, vgq_dtype dtype, vgq_shape shape, const uint8_t *q,
                          const float *scale, const int8_t *zero, void *x);

/* Two-level scales for INT4: group scale = channel_scale[row] * factor[group], both chosen by
 * squared error. zero NULL: symmetric, factors 1..15; else factors 1..8 and a zero point a group.
 * error[row][0]: the row's squared error with them; error[row][1]: with float group scales.
 * x must be finite (vgq_range tells). Rows without columns: the smallest scale, errors of 0. */
vgq_status vgq_two_level(vgq_dtype dtype, vgq_shape shape, const void *x, float *channel_scale,
                         uint8_t *factor, int8_t *zero, double *error);

/* ---- metrics (metrics.c) ----------------------------------------------------------------------
 */
/* Two arrays of the same shape: r the reference, c the candidate, each of its own dtype. The same
 * bits on every instruction set and with any number of threads. NaN and infinite elements are
 * counted by vgq_compare; every other result is unspecified where there are any. `parts` is scratch
 * of as many elements as the function named says; parts[0] becomes the result. */

/* What a pass over both arrays leaves, counts as doubles. lo, hi: of the finite reference, +Inf and
 * -Inf where nothing is finite. Then a sum for each SUM row of metrics.def. */
typedef struct vgq_moments {
    double n, nonfinite_r, nonfinite_c, lo, hi;
#define SUM(name, term) double name;
#include "metrics.def"
} vgq_moments;

/* Parts for n elements. */
size_t vgq_compare_parts(size_t n);
vgq_status vgq_compare(size_t n, vgq_dtype r_dtype, const void *r, vgq_dtype c_dtype, const void *c,
                       vgq_moments *parts);

/* Means over the rows of the softmax cross entropy and of the Kullback-Leibler divergence, in nats.
 */
typedef struct vgq_entropy {
    double cross_entropy, kl_divergence;
} vgq_entropy;

/* Parts for that many rows; the means of both. */
size_t vgq_cross_entropy_parts(size_t rows);
vgq_status vgq_cross_entropy(size_t rows, size_t cols, vgq_dtype r_dtype, const void *r,
                             vgq_dtype c_dtype, const void *c, vgq_entropy *parts);

/* images x height x width x channels; side: of the window; channels: at most VGQ_SSIM_CHANNELS
 * (more are more images, after a transpose by the caller). */
#define VGQ_SSIM_SIDE 11
#define VGQ_SSIM_CHANNELS 16
typedef struct vgq_images {
    size_t images, height, width, channels;
} vgq_images;

/* Parts for images of that shape. */
size_t vgq_ssim_parts(vgq_images shape);
/* Mean structural similarity. centre: any value near the data, best (lo + hi) / 2; it keeps small
 * variances around a large mean from cancelling.
 * VGQ_EINVAL: smaller than the window, or a data_range that is not positive. */
vgq_status vgq_ssim(vgq_images shape, vgq_dtype r_dtype, const void *r, vgq_dtype c_dtype,
                    const void *c, double data_range, double centre, double *parts);

/* The rows of metrics.def, the metrics first and then their companions. */
typedef struct vgq_metric {
    const char *name, *unit;
    int larger_is_better, is_companion;
} vgq_metric;

/* What formulas take beside the moments; NaN where it was not computed. */
typedef struct vgq_metric_parts {
    double data_range, cross_entropy, kl_divergence, ssim;
} vgq_metric_parts;

/* The index-th row; NULL past the last. */
const vgq_metric *vgq_metric_row(size_t index);
/* A value for each row; NaN where it is undefined. */
vgq_status vgq_metric_values(const vgq_moments *m, const vgq_metric_parts *p, double *values);

/* y[i] = e^x[i] and ln x[i], as the entropies use them: within 1 ulp for e^-708..e^709 and positive
 * normal x. e^x is 0 below, Inf above. x and y may be the same. */
vgq_status vgq_exp(size_t n, const double *x, double *y);
vgq_status vgq_log(size_t n, const double *x, double *y);

/* ---- linear (linear.c) ------------------------------------------------------------------------
 */

/* How the codes of a weight matrix scale: w = scale * factor * (code - zero). */
typedef enum vgq_scales {
    VGQ_PER_ROW,   /* I8: scale[n], zero[n] or none; per tensor repeats one value */
    VGQ_TWO_LEVEL, /* I4: scale[n], factor[n][groups], zero[n][groups] or none */
    VGQ_PER_GROUP, /* I4: scale[n][groups], zero[n][groups] or none */
    VGQ_SCALES
} vgq_scales;

/* A weight matrix of n outputs and k inputs, as a file holds it: q row-major, vgq_row_nbytes a row.
 */
typedef struct vgq_weight {
    vgq_format format;
    vgq_scales scales;
    size_t n, k, group; /* group: multiple of 8, or k and more (then it is k) */
    int asymmetric;     /* whether zero is there */
    uint8_t *q;
    float *scale;
    uint8_t *factor; /* VGQ_TWO_LEVEL only */
    int8_t *zero;
} vgq_weight;

/* Longest row for which every sum of products fits 32 bits. */
#define VGQ_DEEPEST 65536

/* Bytes of the packed form; 0 for a weight that cannot be packed. Pointers are not looked at. */
size_t vgq_packed_nbytes(const vgq_weight *weight);
/* Lay the weight out for the kernels. VGQ_EDEPTH: k above VGQ_DEEPEST. VGQ_ESCALE, VGQ_EFACTOR,
 * VGQ_EZERO: values with which products would leave the kernels' range. */
vgq_status vgq_pack(const vgq_weight *weight, void *packed, size_t nbytes);
/* What packed bytes hold: all of *weight but its pointers. VGQ_EPACKED: not packed, or cut short;
 * VGQ_ELAYOUT: by another version. */
vgq_status vgq_packed_weight(const void *packed, size_t nbytes, vgq_weight *weight);
/* The inverse of pack: writes through weight's pointers, which must be there as packed_weight says.
 */
vgq_status vgq_unpack(const void *packed, size_t nbytes, const vgq_weight *weight);

/* The four of a layout: those above, and the same for what the CUDA kernels read
 * (cuda/linear_layout.h), which is made and undone on the CPU, in its memory. Each layout's
 * functions refuse the other's bytes. */
typedef struct vgq_packing {
    size_t (*nbytes)(const vgq_weight *weight);
    vgq_status (*pack)(const vgq_weight *weight, void *packed, size_t nbytes);
    vgq_status (*weight)(const void *packed, size_t nbytes, vgq_weight *weight);
    vgq_status (*unpack)(const void *packed, size_t nbytes, const vgq_weight *weight);
} vgq_packing;
extern const vgq_packing vgq_packing_cpu, vgq_packing_cuda;

/* What the activations are while they are multiplied. */
typedef enum vgq_activations {
    VGQ_FLOAT_ACTIVATIONS, /* floats; the product has a fixed order per instruction set */
    VGQ_BF16_ACTIVATIONS,  /* rounded to bfloat16, where the instruction set multiplies those with
                              sums of floats; elsewhere as VGQ_FLOAT_ACTIVATIONS */
    VGQ_INT8_ACTIVATIONS,  /* INT8 per token, chosen from each row; exact sums, the same bits
                              everywhere */
    VGQ_INT16_ACTIVATIONS, /* as INT8, of 16 bits: two INT8 products, at twice the cost */
    VGQ_ACTIVATIONS
} vgq_activations;

/* LayerNorm over a row: (x - mean) / sqrt(variance + eps) * weight + bias. weight NULL: none.
 * bias NULL: zeros. */
typedef struct vgq_norm {
    const float *weight, *bias; /* [length of the row] */
    float eps;
} vgq_norm;

/* x[i] * weight[i], and plus bias[i] where there is one, by one fused multiply-add. weight NULL:
 * none. */
typedef struct vgq_affine {
    const float *weight, *bias; /* [length of the row] */
} vgq_affine;

/* Activations that are coded already, as VGQ_INT8_ACTIVATIONS codes them: for several products of
 * the same rows. */
typedef struct vgq_coded {
    const int8_t *codes; /* [m][pitch], 0 from k on */
    size_t pitch;        /* a multiple of 64, at least k */
    const float *scale;  /* [m] */
    const int32_t *sum;  /* [m]: of each row's codes */
} vgq_coded;

/* One call's operands: y[m][n] = x[m][k] w[n][k]^T + bias[n], then what follows it. Fields that are
 * NULL or 0 add nothing. */
typedef struct vgq_linear_call {
    vgq_activations activations;
    size_t m;
    vgq_dtype x_dtype, y_dtype;
    const void *x;
    const float *bias;
    void *y;
    vgq_norm norm;            /* of each row of x before all that; not with `coded` */
    int gelu;                 /* then GELU (gelu.h) */
    const float *layer_scale; /* then output j times layer_scale[j] */
    const void *residual;     /* then plus residual[m][n] of y's dtype, which may be y itself; then
                                 one rounding to y's dtype */
    const vgq_coded *coded;   /* codes to multiply instead of x, which is then not read: INT8
                                 activations on the CPU alone */
    vgq_affine x_affine; /* of each row of x, after the norm and before it is coded: INT8 or INT16
                            activations on the CPU alone, not with `coded` */
    float x_scale;       /* the same, of every row ("static"): codes are rint(x * (1 / x_scale)),
                            saturated, and nothing looks for the largest; a NaN codes as 0. At
                            least 2^-112. 0: each row's own */
    const vgq_context *context; /* NULL: vgq_context_now(). Give one to both functions below, or the
                                   second may want more scratch than the first said */
} vgq_linear_call;

/* The instruction set whose kernel multiplies such activations: vgq_isa() or a weaker one. What
 * they really are there goes through `activations`: VGQ_FLOAT_ACTIVATIONS for bfloat16 without a
 * kernel.
 */
const char *vgq_linear_isa(vgq_activations *activations);
/* Bytes of scratch that vgq_linear wants for that call. */
size_t vgq_linear_nbytes(const vgq_weight *weight, const vgq_linear_call *call);
/* A row of x with a NaN or an infinity gives a row of NaN with INT8 activations. */
vgq_status vgq_linear(const void *packed, size_t nbytes, const vgq_linear_call *call, void *scratch,
                      size_t scratch_nbytes);

/* ---- attention (attention.c) ------------------------------------------------------------------
 */

/* One call's operands. With q, k and v of one batch and head, each [tokens][dim] of qkv:
 * y = softmax(scale * rope(norm(q)) rope(norm(k))^T) v, rows of y in [batch][tokens][heads][dim].
 * dim: 8 to VGQ_WIDEST, a multiple of 8. */
#define VGQ_WIDEST 128
typedef struct vgq_attention_call {
    vgq_activations scores; /* what q and k are while they are multiplied: as in vgq_linear_call,
                               but 16 bits */
    vgq_activations values; /* the same for the softmax and v */
    size_t batch, tokens, heads, dim;
    vgq_dtype x_dtype, y_dtype;
    const void *qkv;
    size_t strides[4]; /* elements from a batch, token, part (q, k, v) and head to the next; the
                          channels of a head are neighbours */
    vgq_norm q_norm, k_norm;
    const float *cos, *sin; /* [rope_tokens][dim], of token i % rope_tokens; NULL: no rotation */
    size_t rope_tokens;
    size_t rope_width; /* channels that turn together, the first half of them with the second: dim,
                          or dim / 2 for positions in a plane */
    float scale;
    void *y;
    const vgq_context *context; /* as in vgq_linear_call */
} vgq_attention_call;

/* The instruction set whose kernel multiplies such scores, or values: as vgq_linear_isa. 16 bits:
 * those of floats. */
const char *vgq_attention_isa(int of_values, vgq_activations *activations);
/* Bytes of scratch that vgq_attention wants for that call: at most 2 MB a thread, however many
 * tokens there are. 0 for a call that cannot be served. */
size_t vgq_attention_nbytes(const vgq_attention_call *call);
/* A value that is NaN or infinite, in q: its row of y is NaN; in k or v: all rows of that batch and
 * head are. INT8 scores and values: the same bits on every instruction set and with any number of
 * threads. VGQ_EINVAL: a null pointer, 16 bits, a scale that is negative or not finite, a
 * dim or a rope_width that does not fit. */
vgq_status vgq_attention(const vgq_attention_call *call, void *scratch, size_t scratch_nbytes);
/* ---- convolution (conv.c) -------------------------------------------------------------------- */

/* A convolution of pictures that lie with their channels last, with INT8 weights and activations.
 * The weight is one of vgq_pack: INT8, a scale a row, symmetric, n outputs, and
 * k = kernel_height * kernel_width * vgq_conv_channels(channels) inputs, in that order; what stands
 * beyond `channels` must be 0. Each picture has one scale. Sums are exact: the same bits
 * everywhere.
 *
 * The convolution sees pictures x of height x width. They are what x holds where source_height and
 * source_width are the same, and else what bilinear interpolation, corners aligned, makes of it;
 * outside there are zeros. Output (i, j) is the sum over the kernel's (u, v) of input
 * (i * stride + u - padding, j * stride + v - padding). */
typedef struct vgq_conv_call {
    size_t pictures, height, width, channels;
    size_t source_height, source_width;
    size_t kernel_height, kernel_width, stride_height, stride_width, padding_height, padding_width;
    size_t out_height, out_width;
    vgq_dtype x_dtype, y_dtype;
    const void *x;          /* [pictures][source_height][source_width][channels] */
    int relu_x;             /* x counts as relu(x), and has unsigned codes 0..254; else -127..127 */
    const float *x_largest; /* [pictures][2]: no |x|, and no relu(x), is larger; NULL: looked for */
    /* Added to x: the first half of a pixel's channels gets its column's row, the rest its row's.
     * Each [width or height][channels / 2]; both NULL: nothing. */
    const float *column_embedding, *row_embedding;
    int folded; /* n is at most 64 and even, and outputs o and o + n / 2 are parts of one, with a
                   part of its weight each: their sum is output o, and below n is half of that */
    const int32_t *weight_sums; /* [n]: the sum of each output's weights; used with relu_x */
    const float *bias;          /* [n]; NULL: none */
    int relu_y;                 /* y = relu(y), before the residual */
    const void *residual;       /* [pictures][out_height][out_width][n] of y's dtype, added; NULL:
                                   none */
    int relu_sum;               /* y = relu(y), after it */
    void *y;                    /* [pictures][out_height][out_width][n or outputs] */
    float *y_largest; /* [pictures][2], before y is rounded to its dtype; NULL: not told */
    /* A second product, of a pixel's n <= 64 outputs with `outputs` float rows of 64, of which n
     * count; then y holds its results, and a residual is added before it. 0: none. */
    size_t outputs;
    const float *last_weight, *last_bias; /* [outputs][64], [outputs] */
    const vgq_context *context;           /* as in vgq_linear_call */
} vgq_conv_call;

/* Channels of a pixel's codes: `channels` padded to whole steps of the kernels. */
size_t vgq_conv_channels(size_t channels);
/* Bytes of scratch that vgq_conv2d wants for that call; 0 where the call or the weight does not
 * fit. */
size_t vgq_conv2d_nbytes(const vgq_weight *weight, const vgq_conv_call *call);
/* A picture with a NaN or an infinity gives a picture of NaN. */
vgq_status vgq_conv2d(const void *packed, size_t nbytes, const vgq_conv_call *call, void *scratch,
                      size_t scratch_nbytes);

/* y = x resized as vgq_conv_call says, plus added (of y's shape and dtype; NULL: nothing). */
typedef struct vgq_resize_call {
    size_t pictures, channels, source_height, source_width, height, width;
    vgq_dtype x_dtype, y_dtype;
    const void *x, *added;
    void *y;
    const vgq_context *context; /* as in vgq_linear_call */
} vgq_resize_call;
size_t vgq_resize_nbytes(const vgq_resize_call *call);
vgq_status vgq_resize(const vgq_resize_call *call, void *scratch, size_t scratch_nbytes);

#ifdef __cplusplus
}
#endif

#endif
