/* SPDX-License-Identifier: Apache-2.0
 * The module vggtquant._cuda: the calls of _cpu on addresses of a CUDA device, each with a stream
 * as its last argument. No header of torch, NumPy or CUDA is needed, and importing needs neither a
 * driver nor a GPU. Types and meanings stand
 * in _cuda.pyi, contracts in vgq_cuda.h. Only vggtquant/ops imports it; it sees to it that the
 * arrays are contiguous and lie on the current device. */
#include "arrays.h"

static PyObject *py_devices(PyObject *self, PyObject *args)
{
    (void)self, (void)args;
    const int count = vgq_cuda_devices();
    if (count)
        return PyLong_FromLong(count);
    PyErr_SetString(PyExc_RuntimeError, vgq_cuda_error());
    return NULL;
}

/* ---- quantize -------------------------------------------------------------------------------- */

static PyObject *py_range(PyObject *self, PyObject *args)
{
    vgq_shape shape;
    vgq_array x, lo, hi, nonfinite;
    void *stream;
    vgq_status status;
    (void)self;
    if (!PyArg_ParseTuple(args, "O&O&O&O&O&n:range", vgq_parse_shape, &shape, vgq_array_values, &x,
                          vgq_array_f32, &lo, vgq_array_f32, &hi, vgq_array_i64, &nonfinite,
                          &stream))
        return NULL;
    const size_t groups = shape.rows * vgq_row_groups(shape);
    if (vgq_unusable(shape) || x.n != shape.rows * shape.cols || lo.n != groups || hi.n != groups ||
        nonfinite.n != shape.rows)
        return vgq_wrong_sizes();
    Py_BEGIN_ALLOW_THREADS
        status = vgq_range_cuda(x.dtype, shape, x.data, lo.data, hi.data, nonfinite.data, stream);
    Py_END_ALLOW_THREADS
    return vgq_cuda_done(status);
}

static PyObject *py_parameters(PyObject *self, PyObject *args)
{
    vgq_format format;
    vgq_array lo, hi, scale, zero;
    void *stream;
    vgq_status status;
    (void)self;
    if (!PyArg_ParseTuple(args, "O&O&O&O&O&n:parameters", vgq_parse_format, &format, vgq_array_f32,
                          &lo, vgq_array_f32, &hi, vgq_array_f32, &scale, vgq_array_optional_i8,
                          &zero, &stream))
        return NULL;
    if (hi.n != lo.n || scale.n != lo.n || (zero.data && zero.n != lo.n))
        return vgq_wrong_sizes();
    Py_BEGIN_ALLOW_THREADS
        status = vgq_parameters_cuda(format, lo.n, lo.data, hi.data, scale.data, zero.data, stream);
    Py_END_ALLOW_THREADS
    return vgq_cuda_done(status);
}

/* The sizes that quantize and dequantize share. */
static int fits(vgq_format format, vgq_shape shape, vgq_array x, vgq_array scale, vgq_array zero,
                vgq_array q)
{
    if (vgq_unusable(shape))
        return 0;
    const size_t groups = shape.rows * vgq_row_groups(shape);
    return x.n == shape.rows * shape.cols && scale.n == groups &&
           (!zero.data || zero.n == groups) &&
           q.n == shape.rows * vgq_row_nbytes(format, shape.cols);
}

static PyObject *py_quantize(PyObject *self, PyObject *args)
{
    vgq_format format;
    vgq_shape shape;
    vgq_array x, scale, zero, q;
    void *stream;
    vgq_status status;
    (void)self;
    if (!PyArg_ParseTuple(args, "O&O&O&O&O&O&n:quantize", vgq_parse_format, &format,
                          vgq_parse_shape, &shape, vgq_array_values, &x, vgq_array_f32, &scale,
                          vgq_array_optional_i8, &zero, vgq_array_u8, &q, &stream))
        return NULL;
    if (!fits(format, shape, x, scale, zero, q))
        return vgq_wrong_sizes();
    Py_BEGIN_ALLOW_THREADS
        status = vgq_quantize_cuda(format, x.dtype, shape, x.data, scale.data, zero.data, q.data,
                                   stream);
    Py_END_ALLOW_THREADS
    return vgq_cuda_done(status);
}

static PyObject *py_dequantize(PyObject *self, PyObject *args)
{
    vgq_format format;
    vgq_shape shape;
    vgq_array x, scale, zero, q;
    void *stream;
    vgq_status status;
    (void)self;
    if (!PyArg_ParseTuple(args, "O&O&O&O&O&O&n:dequantize", vgq_parse_format, &format,
                          vgq_parse_shape, &shape, vgq_array_u8, &q, vgq_array_f32, &scale,
                          vgq_array_optional_i8, &zero, vgq_array_values, &x, &stream))
        return NULL;
    if (!fits(format, shape, x, scale, zero, q))
        return vgq_wrong_sizes();
    Py_BEGIN_ALLOW_THREADS
        status = vgq_dequantize_cuda(format, x.dtype, shape, q.data, scale.data, zero.data, x.data,
                                     stream);
    Py_END_ALLOW_THREADS
    return vgq_cuda_done(status);
}

static PyObject *py_two_level(PyObject *self, PyObject *args)
{
    vgq_shape shape;
    vgq_array x, channel_scale, factor, zero, error;
    void *stream;
    vgq_status status;
    (void)self;
    if (!PyArg_ParseTuple(args, "O&O&O&O&O&O&n:two_level", vgq_parse_shape, &shape,
                          vgq_array_values, &x, vgq_array_f32, &channel_scale, vgq_array_u8,
                          &factor, vgq_array_optional_i8, &zero, vgq_array_f64, &error, &stream))
        return NULL;
    const size_t groups = shape.rows * vgq_row_groups(shape);
    if (vgq_unusable(shape) || x.n != shape.rows * shape.cols || channel_scale.n != shape.rows ||
        factor.n != groups || (zero.data && zero.n != groups) || error.n != 2 * shape.rows)
        return vgq_wrong_sizes();
    Py_BEGIN_ALLOW_THREADS
        status = vgq_two_level_cuda(x.dtype, shape, x.data, channel_scale.data, factor.data,
                                    zero.data, error.data, stream);
    Py_END_ALLOW_THREADS
    return vgq_cuda_done(status);
}

/* ---- metrics --------------------------------------------------------------------------------- */

static PyObject *py_compare(PyObject *self, PyObject *args)
{
    vgq_array r, c, parts;
    void *stream;
    vgq_status status;
    (void)self;
    if (!PyArg_ParseTuple(args, "O&O&O&n:compare", vgq_array_values, &r, vgq_array_values, &c,
                          vgq_array_f64, &parts, &stream))
        return NULL;
    if (r.n != c.n || parts.n < vgq_compare_parts(r.n) * (sizeof(vgq_moments) / sizeof(double)))
        return vgq_wrong_sizes();
    Py_BEGIN_ALLOW_THREADS
        status = vgq_compare_cuda(r.n, r.dtype, r.data, c.dtype, c.data, parts.data, stream);
    Py_END_ALLOW_THREADS
    return vgq_cuda_done(status);
}

static PyObject *py_cross_entropy_parts(PyObject *self, PyObject *args)
{
    size_t rows;
    (void)self;
    if (!PyArg_ParseTuple(args, "O&:cross_entropy_parts", vgq_parse_size, &rows))
        return NULL;
    return PyLong_FromSize_t(vgq_cross_entropy_cuda_parts(rows));
}

static PyObject *py_cross_entropy(PyObject *self, PyObject *args)
{
    vgq_array r, c, parts;
    void *stream;
    vgq_status status;
    (void)self;
    if (!PyArg_ParseTuple(args, "O&O&O&n:cross_entropy", vgq_array_values, &r, vgq_array_values, &c,
                          vgq_array_f64, &parts, &stream))
        return NULL;
    const size_t rows = (size_t)r.shape[0], cols = (size_t)r.shape[1];
    if (r.dims != 2 || c.n != r.n ||
        parts.n / (sizeof(vgq_entropy) / sizeof(double)) < vgq_cross_entropy_cuda_parts(rows))
        return vgq_wrong_sizes();
    Py_BEGIN_ALLOW_THREADS
        status = vgq_cross_entropy_cuda(rows, cols, r.dtype, r.data, c.dtype, c.data, parts.data,
                                        stream);
    Py_END_ALLOW_THREADS
    return vgq_cuda_done(status);
}

static PyObject *py_ssim(PyObject *self, PyObject *args)
{
    vgq_array r, c, parts;
    double data_range, centre;
    void *stream;
    vgq_status status;
    (void)self;
    if (!PyArg_ParseTuple(args, "O&O&ddO&n:ssim", vgq_array_values, &r, vgq_array_values, &c,
                          &data_range, &centre, vgq_array_f64, &parts, &stream))
        return NULL;
    const vgq_images shape = {(size_t)r.shape[0], (size_t)r.shape[1], (size_t)r.shape[2],
                              (size_t)r.shape[3]};
    if (r.dims != 4 || c.n != r.n || parts.n < vgq_ssim_parts(shape))
        return vgq_wrong_sizes();
    Py_BEGIN_ALLOW_THREADS
        status = vgq_ssim_cuda(shape, r.dtype, r.data, c.dtype, c.data, data_range, centre,
                               parts.data, stream);
    Py_END_ALLOW_THREADS
    return vgq_cuda_done(status);
}

/* ---- linear ---------------------------------------------------------------------------------- */

/* A weight without its arrays: (format, scales, (n, k, group), asymmetric). */
static int parse_weight(PyObject *object, void *weight)
{
    vgq_weight *const w = weight;
    *w = (vgq_weight){0};
    if (!PyTuple_Check(object)) {
        PyErr_SetString(PyExc_TypeError, "a weight is (format, scales, (n, k, group), asymmetric)");
        return 0;
    }
    return PyArg_ParseTuple(object, "O&O&O&p:weight", vgq_parse_format, &w->format,
                            vgq_parse_scales, &w->scales, vgq_parse_nkg, w, &w->asymmetric);
}

static PyObject *py_linear_nbytes(PyObject *self, PyObject *args)
{
    vgq_weight w;
    vgq_linear_call call = {0};
    (void)self;
    if (!PyArg_ParseTuple(args, "O&O&O&:linear_nbytes", parse_weight, &w, vgq_parse_activations,
                          &call.activations, vgq_parse_size, &call.m))
        return NULL;
    return PyLong_FromSize_t(vgq_linear_cuda_nbytes(&w, &call));
}

/* (weight, packed, x, (norm's weight, bias, eps), bias, gelu, layer_scale, residual, y). */
typedef struct product {
    vgq_weight w;
    vgq_array packed, x, y;
    vgq_linear_call call;
} product;

static int fits_or_none(vgq_array a, size_t n) { return !a.data || a.n == n; }

/* The operands of a product, all but its scratch; call.activations is the caller's. */
static int parse_product(PyObject *object, void *parsed)
{
    product *const p = parsed;
    vgq_array norm_weight, norm_bias, bias, layer_scale, residual;
    *p = (product){.call.activations = VGQ_INT8_ACTIVATIONS};
    if (!PyTuple_Check(object)) {
        PyErr_SetString(PyExc_TypeError, "a product is (weight, packed, x, norm, bias, gelu, "
                                         "layer_scale, residual, y)");
        return 0;
    }
    if (!PyArg_ParseTuple(object, "O&O&O&(O&O&f)O&pO&O&O&:product", parse_weight, &p->w,
                          vgq_array_u8, &p->packed, vgq_array_values, &p->x, vgq_array_optional_f32,
                          &norm_weight, vgq_array_optional_f32, &norm_bias, &p->call.norm.eps,
                          vgq_array_optional_f32, &bias, &p->call.gelu, vgq_array_optional_f32,
                          &layer_scale, vgq_array_optional_values, &residual, vgq_array_values,
                          &p->y))
        return 0;
    const vgq_weight w = p->w;
    p->call.m = w.k ? p->x.n / w.k : 0;
    if (!w.n || p->x.n != p->call.m * w.k || p->y.n / w.n != p->call.m || p->y.n % w.n ||
        !fits_or_none(norm_weight, w.k) || !fits_or_none(norm_bias, w.k) ||
        !fits_or_none(bias, w.n) || !fits_or_none(layer_scale, w.n) ||
        !fits_or_none(residual, p->y.n)) {
        vgq_wrong_sizes();
        return 0;
    }
    if (residual.data && residual.dtype != p->y.dtype) {
        PyErr_SetString(PyExc_TypeError, "a residual of y's dtype is wanted");
        return 0;
    }
    p->call.x_dtype = p->x.dtype, p->call.y_dtype = p->y.dtype;
    p->call.x = p->x.data, p->call.y = p->y.data;
    p->call.norm.weight = norm_weight.data, p->call.norm.bias = norm_bias.data;
    p->call.bias = bias.data;
    p->call.layer_scale = layer_scale.data, p->call.residual = residual.data;
    return 1;
}

static PyObject *py_linear(PyObject *self, PyObject *args)
{
    product p;
    vgq_activations activations;
    vgq_array scratch;
    void *stream;
    vgq_status status;
    (void)self;
    if (!PyArg_ParseTuple(args, "O&O&O&n:linear", parse_product, &p, vgq_parse_activations,
                          &activations, vgq_array_u8, &scratch, &stream))
        return NULL;
    p.call.activations = activations;
    Py_BEGIN_ALLOW_THREADS
        status = vgq_linear_cuda(&p.w, p.packed.data, p.packed.n, &p.call, scratch.data, scratch.n,
                                 stream);
    Py_END_ALLOW_THREADS
    return vgq_cuda_done(status);
}

static PyObject *py_depth(PyObject *self, PyObject *args)
{
    vgq_weight w;
    (void)self;
    if (!PyArg_ParseTuple(args, "O&:depth", parse_weight, &w))
        return NULL;
    return PyLong_FromSize_t(vgq_depth_cuda(&w));
}

static PyObject *py_code_tokens(PyObject *self, PyObject *args)
{
    product p;
    vgq_array scratch;
    void *stream;
    vgq_status status;
    (void)self;
    if (!PyArg_ParseTuple(args, "O&O&n:code_tokens", parse_product, &p, vgq_array_u8, &scratch,
                          &stream))
        return NULL;
    Py_BEGIN_ALLOW_THREADS
        status = vgq_code_tokens_cuda(&p.w, p.packed.data, p.packed.n, &p.call, scratch.data,
                                      scratch.n, stream);
    Py_END_ALLOW_THREADS
    return vgq_cuda_done(status);
}

static PyObject *py_code_float8(PyObject *self, PyObject *args)
{
    vgq_array x, norm_weight, norm_bias, codes, scale;
    float eps;
    void *stream;
    vgq_status status;
    (void)self;
    if (!PyArg_ParseTuple(args, "O&(O&O&f)O&O&n:code_float8", vgq_array_values, &x,
                          vgq_array_optional_f32, &norm_weight, vgq_array_optional_f32, &norm_bias,
                          &eps, vgq_array_u8, &codes, vgq_array_f32, &scale, &stream))
        return NULL;
    const size_t m = (size_t)x.shape[0], k = (size_t)x.shape[1], depth = (size_t)codes.shape[1];
    if (x.dims != 2 || codes.dims != 2 || (size_t)codes.shape[0] != m || depth < k ||
        scale.n != m || !fits_or_none(norm_weight, k) || !fits_or_none(norm_bias, k))
        return vgq_wrong_sizes();
    const vgq_norm norm = {norm_weight.data, norm_bias.data, eps};
    Py_BEGIN_ALLOW_THREADS
        status = vgq_code_float8_cuda(m, k, x.dtype, x.data, norm, depth, codes.data, scale.data,
                                      stream);
    Py_END_ALLOW_THREADS
    return vgq_cuda_done(status);
}

static PyObject *py_integers(PyObject *self, PyObject *args)
{
    vgq_weight w;
    vgq_array packed, integers;
    void *stream;
    vgq_status status;
    (void)self;
    if (!PyArg_ParseTuple(args, "O&O&O&n:integers", parse_weight, &w, vgq_array_u8, &packed,
                          vgq_array_i8, &integers, &stream))
        return NULL;
    if (!w.n || integers.n != w.n * vgq_depth_cuda(&w))
        return vgq_wrong_sizes();
    Py_BEGIN_ALLOW_THREADS
        status = vgq_integers_cuda(&w, packed.data, packed.n, integers.data, stream);
    Py_END_ALLOW_THREADS
    return vgq_cuda_done(status);
}

static PyObject *py_finish(PyObject *self, PyObject *args)
{
    product p;
    vgq_array sums, scratch;
    void *stream;
    vgq_status status;
    (void)self;
    if (!PyArg_ParseTuple(args, "O&O&O&n:finish", parse_product, &p, vgq_array_i32, &sums,
                          vgq_array_u8, &scratch, &stream))
        return NULL;
    if (sums.n != p.y.n)
        return vgq_wrong_sizes();
    Py_BEGIN_ALLOW_THREADS
        status = vgq_finish_cuda(&p.w, p.packed.data, p.packed.n, &p.call, sums.data, scratch.data,
                                 scratch.n, stream);
    Py_END_ALLOW_THREADS
    return vgq_cuda_done(status);
}

static PyObject *py_decode(PyObject *self, PyObject *args)
{
    vgq_weight w;
    vgq_array packed, y;
    void *stream;
    vgq_status status;
    (void)self;
    if (!PyArg_ParseTuple(args, "O&O&O&n:decode", parse_weight, &w, vgq_array_u8, &packed,
                          vgq_array_values, &y, &stream))
        return NULL;
    if (!w.n || y.n / w.n != w.k || y.n % w.n)
        return vgq_wrong_sizes();
    Py_BEGIN_ALLOW_THREADS
        status = vgq_decode_cuda(&w, packed.data, packed.n, y.dtype, y.data, stream);
    Py_END_ALLOW_THREADS
    return vgq_cuda_done(status);
}

/* ---- the module ------------------------------------------------------------------------------ */

static PyMethodDef methods[] = {
    {"devices", py_devices, METH_NOARGS,
     "CUDA devices that this process can use; RuntimeError for none."},
    {"range", py_range, METH_VARARGS,
     "Each group's range, and each row's count of NaN and infinities."},
    {"parameters", py_parameters, METH_VARARGS, "Scales and zero points from ranges."},
    {"quantize", py_quantize, METH_VARARGS, "Codes from values."},
    {"dequantize", py_dequantize, METH_VARARGS, "Values from codes."},
    {"two_level", py_two_level, METH_VARARGS, "Two-level INT4 scales by squared error."},
    {"compare", py_compare, METH_VARARGS, "Moments of two arrays; parts[0] is the result."},
    {"cross_entropy_parts", py_cross_entropy_parts, METH_VARARGS, "Parts for that many rows."},
    {"cross_entropy", py_cross_entropy, METH_VARARGS, "Mean entropies; parts[0] is the result."},
    {"ssim", py_ssim, METH_VARARGS, "Mean structural similarity; parts[0] is the result."},
    {"linear_nbytes", py_linear_nbytes, METH_VARARGS, "Bytes of scratch that linear wants."},
    {"linear", py_linear, METH_VARARGS, "y = x w^T + bias."},
    {"depth", py_depth, METH_VARARGS, "Inputs of a packed weight's row, padding included."},
    {"code_tokens", py_code_tokens, METH_VARARGS, "Codes of tokens into the scratch of linear."},
    {"code_float8", py_code_float8, METH_VARARGS, "FP8 codes and scales of tokens."},
    {"integers", py_integers, METH_VARARGS, "A packed weight's integers, by rows."},
    {"finish", py_finish, METH_VARARGS, "y from the sums of products of integers."},
    {"decode", py_decode, METH_VARARGS, "A packed weight's values."},
    {NULL, NULL, 0, NULL},
};

static PyModuleDef_Slot slots[] = {
#if PY_VERSION_HEX >= 0x030c0000
    {Py_mod_multiple_interpreters, Py_MOD_MULTIPLE_INTERPRETERS_NOT_SUPPORTED},
#endif
    {0, NULL},
};

static struct PyModuleDef module_def = {
    .m_base = PyModuleDef_HEAD_INIT,
    .m_name = "vggtquant._cuda",
    .m_doc = "C core of vggtquant on CUDA devices. Private: vggtquant.ops is its only user.",
    .m_methods = methods,
    .m_slots = slots,
};

PyMODINIT_FUNC PyInit__cuda(void); /* Python.h declares none */
PyMODINIT_FUNC PyInit__cuda(void) { return PyModuleDef_Init(&module_def); }
