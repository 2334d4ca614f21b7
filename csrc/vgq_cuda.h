/* SPDX-License-Identifier: Apache-2.0
 * CUDA twins of the functions of vgq.h: their contracts and their bits.
 *
 * Pointers are addresses of the current device. The work is queued on `stream` (a cudaStream_t;
 * NULL: the default one) and the call returns at once. Nothing is allocated and nothing waits, so
 * a CUDA graph can capture every call. VGQ_ECUDA: the runtime refused. */
#ifndef VGQ_CUDA_H
#define VGQ_CUDA_H

#include "vgq.h"

#ifdef __cplusplus
extern "C" {
#endif

vgq_status vgq_range_cuda(vgq_dtype dtype, vgq_shape shape, const void *x, float *lo, float *hi,
                          uint64_t *nonfinite, void *stream);
vgq_status vgq_parameters_cuda(vgq_format format, size_t n, const float *lo, const float *hi,
                               float *scale, int8_t *zero, void *stream);
vgq_status vgq_quantize_cuda(vgq_format format, vgq_dtype dtype, vgq_shape shape, const void *x,
                             const float *scale, const int8_t *zero, uint8_t *q, void *stream);
vgq_status vgq_dequantize_cuda(vgq_format format, vgq_dtype dtype, vgq_shape shape,
                               const uint8_t *q, const float *scale, const int8_t *zero, void *x,
                               void *stream);
vgq_status vgq_two_level_cuda(vgq_dtype dtype, vgq_shape shape, const void *x, float *channel_scale,
                              uint8_t *factor, int8_t *zero, double *error, void *stream);
vgq_status vgq_compare_cuda(size_t n, vgq_dtype r_dtype, const void *r, vgq_dtype c_dtype,
                            const void *c, vgq_moments *parts, void *stream);
/* Twin with parts of its own number: a part for each row comes after vgq_cross_entropy_parts. */
size_t vgq_cross_entropy_cuda_parts(size_t rows);
vgq_status vgq_cross_entropy_cuda(size_t rows, size_t cols, vgq_dtype r_dtype, const void *r,
                                  vgq_dtype c_dtype, const void *c, vgq_entropy *parts,
                                  void *stream);
/* As vgq_ssim. */
vgq_status vgq_ssim_cuda(vgq_images shape, vgq_dtype r_dtype, const void *r, vgq_dtype c_dtype,
                         const void *c, double data_range, double centre, double *parts,
                         void *stream);
/* *weight says what `packed`, laid out by vgq_packing_cuda, holds (its pointers are not looked at):
 * the device's bytes are not read before the kernels do. Where they hold something else, every
 * output is NaN. VGQ_EPACKED: nbytes does not fit *weight, or packed is not aligned to 16 bytes. */
size_t vgq_linear_cuda_nbytes(const vgq_weight *weight, const vgq_linear_call *call);
/* INT8 activations: the bits of vgq_linear. Others: within (k + 2) 2^-24 of the sum of |x w| and
 * |bias| (before what follows the bias); meant for a few tokens, VGQ_EINVAL from half a million on,
 * and with a norm. VGQ_EINVAL for 16-bit activations, an affine map, a static scale and codes. */
vgq_status vgq_linear_cuda(const vgq_weight *weight, const void *packed, size_t nbytes,
                           const vgq_linear_call *call, void *scratch, size_t scratch_nbytes,
                           void *stream);
/* The INT8 product in parts, for whoever has another product of integers: codes of the tokens;
 * integers of the weight; then, from sums[m][n] of their products, what follows. The result has the
 * bits of vgq_linear_cuda. Codes are int8 [m][depth], the first bytes of the scratch, which is that
 * of vgq_linear_cuda and which vgq_finish_cuda reads; integers are int8 [n][depth]. VGQ_EINVAL for
 * float scales of groups, which are no sums of integers. */
size_t vgq_depth_cuda(const vgq_weight *weight);
vgq_status vgq_code_tokens_cuda(const vgq_weight *weight, const void *packed, size_t nbytes,
                                const vgq_linear_call *call, void *scratch, size_t scratch_nbytes,
                                void *stream);
vgq_status vgq_integers_cuda(const vgq_weight *weight, const void *packed, size_t nbytes,
                             int8_t *integers, void *stream);
vgq_status vgq_finish_cuda(const vgq_weight *weight, const void *packed, size_t nbytes,
                           const vgq_linear_call *call, const int32_t *sums, void *scratch,
                           size_t scratch_nbytes, void *stream);
/* Tokens x[m][k] as FP8 (e4m3fn), behind the norm where its weight is given: codes[m][depth], zeros
 * from k on, and scale[m]; the bits that torch's operators give in vggtquant/ops/float8.py. A row
 * that is not finite has a code or a scale of NaN. VGQ_EINVAL: depth is less than k or no multiple
 * of 4, codes are not aligned to 4 bytes. */
vgq_status vgq_code_float8_cuda(size_t m, size_t k, vgq_dtype dtype, const void *x, vgq_norm norm,
                                size_t depth, uint8_t *codes, float *scale, void *stream);
/* The weight's values, n x k, rounded once to dtype: for products of many tokens by other means. */
vgq_status vgq_decode_cuda(const vgq_weight *weight, const void *packed, size_t nbytes,
                           vgq_dtype dtype, void *values, void *stream);
/* How many CUDA devices this process can use; 0: vgq_cuda_error says why. */
int vgq_cuda_devices(void);
/* Why the runtime refused what it refused last in this thread; then that is forgotten. */
const char *vgq_cuda_error(void);

#ifdef __cplusplus
}
#endif

#endif
