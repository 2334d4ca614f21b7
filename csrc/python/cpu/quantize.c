/* SPDX-License-Identifier: Apache-2.0
 * The quantize part of module vggtquant._cpu: parse, check shapes, call, report. */
#include "binding.h"

static PyObject *py_range(PyObject *self, PyObject *args)
{
    vgq_shape shape;
    PyArrayObject *x, *lo, *hi, *nonfinite;
    (void)self;
    if (!PyArg_ParseTuple(args, "O&O&O&O&O&:range", vgq_parse_shape, &shape, vgq_in_values, &x,
                          vgq_out_f32, &lo, vgq_out_f32, &hi, vgq_out_u64, &nonfinite))
        return NULL;
    const size_t groups = shape.rows * vgq_row_groups(shape);
    if (vgq_unusable(shape) || !vgq_has(x, shape.rows * shape.cols) || !vgq_has(lo, groups) ||
        !vgq_has(hi, groups) || !vgq_has(nonfinite, shape.rows))
        return vgq_wrong_sizes();
    VGQ_RETURN(vgq_range(vgq_dtype_of(x), shape, vgq_data(x), vgq_data(lo), vgq_data(hi),
                         vgq_data(nonfinite)));
}

static PyObject *py_parameters(PyObject *self, PyObject *args)
{
    vgq_format format;
    PyArrayObject *lo, *hi, *scale, *zero;
    (void)self;
    if (!PyArg_ParseTuple(args, "O&O&O&O&O&:parameters", vgq_parse_format, &format, vgq_in_f32, &lo,
                          vgq_in_f32, &hi, vgq_out_f32, &scale, vgq_optional_out_i8, &zero))
        return NULL;
    const size_t n = (size_t)PyArray_SIZE(lo);
    if (!vgq_has(hi, n) || !vgq_has(scale, n) || (zero && !vgq_has(zero, n)))
        return vgq_wrong_sizes();
    VGQ_RETURN(
        vgq_parameters(format, n, vgq_data(lo), vgq_data(hi), vgq_data(scale), vgq_data(zero)));
}

/* The sizes that quantize and dequantize share. */
static int fits(vgq_format format, vgq_shape shape, PyArrayObject *x, PyArrayObject *scale,
                PyArrayObject *zero, PyArrayObject *q)
{
    if (vgq_unusable(shape))
        return 0;
    const size_t groups = shape.rows * vgq_row_groups(shape);
    return vgq_has(x, shape.rows * shape.cols) && vgq_has(scale, groups) &&
           (!zero || vgq_has(zero, groups)) &&
           vgq_has(q, shape.rows * vgq_row_nbytes(format, shape.cols));
}

static PyObject *py_quantize(PyObject *self, PyObject *args)
{
    vgq_format format;
    vgq_shape shape;
    PyArrayObject *x, *scale, *zero, *q;
    (void)self;
    if (!PyArg_ParseTuple(args, "O&O&O&O&O&O&:quantize", vgq_parse_format, &format, vgq_parse_shape,
                          &shape, vgq_in_values, &x, vgq_in_f32, &scale, vgq_optional_in_i8, &zero,
                          vgq_out_u8, &q))
        return NULL;
    if (!fits(format, shape, x, scale, zero, q))
        return vgq_wrong_sizes();
    VGQ_RETURN(vgq_quantize(format, vgq_dtype_of(x), shape, vgq_data(x), vgq_data(scale),
                            vgq_data(zero), vgq_data(q)));
}

static PyObject *py_dequantize(PyObject *self, PyObject *args)
{
    vgq_format format;
    vgq_shape shape;
    PyArrayObject *x, *scale, *zero, *q;
    (void)self;
    if (!PyArg_ParseTuple(args, "O&O&O&O&O&O&:dequantize", vgq_parse_format, &format,
                          vgq_parse_shape, &shape, vgq_in_u8, &q, vgq_in_f32, &scale,
                          vgq_optional_in_i8, &zero, vgq_out_values, &x))
        return NULL;
    if (!fits(format, shape, x, scale, zero, q))
        return vgq_wrong_sizes();
    VGQ_RETURN(vgq_dequantize(format, vgq_dtype_of(x), shape, vgq_data(q), vgq_data(scale),
                              vgq_data(zero), vgq_data(x)));
}

static PyObject *py_two_level(PyObject *self, PyObject *args)
{
    vgq_shape shape;
    PyArrayObject *x, *channel_scale, *factor, *zero, *error;
    (void)self;
    if (!PyArg_ParseTuple(args, "O&O&O&O&O&O&:two_level", vgq_parse_shape, &shape, vgq_in_values,
                          &x, vgq_out_f32, &channel_scale, vgq_out_u8, &factor, vgq_optional_out_i8,
                          &zero, vgq_out_f64, &error))
        return NULL;
    const size_t groups = shape.rows * vgq_row_groups(shape);
    if (vgq_unusable(shape) || !vgq_has(x, shape.rows * shape.cols) ||
        !vgq_has(channel_scale, shape.rows) || !vgq_has(factor, groups) ||
        (zero && !vgq_has(zero, groups)) || !vgq_has(error, 2 * shape.rows))
        return vgq_wrong_sizes();
    VGQ_RETURN(vgq_two_level(vgq_dtype_of(x), shape, vgq_data(x), vgq_data(channel_scale),
                             vgq_data(factor), vgq_data(zero), vgq_data(error)));
}

PyMethodDef vgq_quantize_methods[] = {
    {"range", py_range, METH_VARARGS,
     "Each group's range, and each row's count of NaN and infinities."},
    {"parameters", py_parameters, METH_VARARGS, "Scales and zero points from ranges."},
    {"quantize", py_quantize, METH_VARARGS, "Codes from values."},
    {"dequantize", py_dequantize, METH_VARARGS, "Values from codes."},
    {"two_level", py_two_level, METH_VARARGS, "Two-level INT4 scales by squared error."},
    {NULL, NULL, 0, NULL},
};
