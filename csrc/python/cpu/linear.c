/* SPDX-License-Identifier: Apache-2.0
 * The Linear's part of module vggtquant._cpu: parse, check shapes, call, report. */
#include "binding.h"
#include "../../weight.h"

/* Whether the arrays hold what the weight, as vgq_check_weight leaves it, says; then its pointers
 * are set. */
static int bind_weight(vgq_weight *w, PyArrayObject *q, PyArrayObject *scale, PyArrayObject *factor,
                       PyArrayObject *zero)
{
    const size_t groups = w->n * ((w->k + w->group - 1) / w->group);
    if (!vgq_has(q, w->n * vgq_row_nbytes(w->format, w->k)) ||
        !vgq_has(scale, w->scales == VGQ_PER_GROUP ? groups : w->n) ||
        (w->scales == VGQ_TWO_LEVEL) != (factor != NULL) || (factor && !vgq_has(factor, groups)) ||
        (w->asymmetric != 0) != (zero != NULL) || (zero && !vgq_has(zero, groups)))
        return 0;
    w->q = vgq_data(q);
    w->scale = vgq_data(scale);
    w->factor = vgq_data(factor);
    w->zero = vgq_data(zero);
    return 1;
}

static PyObject *packed_nbytes(const vgq_packing *as, PyObject *args)
{
    vgq_weight w = {0};
    if (!PyArg_ParseTuple(args, "O&O&O&p:packed_nbytes", vgq_parse_format, &w.format,
                          vgq_parse_scales, &w.scales, vgq_parse_nkg, &w, &w.asymmetric))
        return NULL;
    return PyLong_FromSize_t(as->nbytes(&w));
}

static PyObject *pack(const vgq_packing *as, PyObject *args)
{
    vgq_weight w = {0};
    PyArrayObject *q, *scale, *factor, *zero, *packed;
    if (!PyArg_ParseTuple(args, "O&O&O&O&O&O&O&O&:pack", vgq_parse_format, &w.format,
                          vgq_parse_scales, &w.scales, vgq_parse_nkg, &w, vgq_in_u8, &q, vgq_in_f32,
                          &scale, vgq_optional_in_u8, &factor, vgq_optional_in_i8, &zero,
                          vgq_out_u8, &packed))
        return NULL;
    w.asymmetric = zero != NULL;
    const vgq_status status = vgq_check_weight(&w, &w);
    if (status != VGQ_OK)
        return vgq_done(status);
    if (!bind_weight(&w, q, scale, factor, zero))
        return vgq_wrong_sizes();
    VGQ_RETURN(as->pack(&w, vgq_data(packed), (size_t)PyArray_SIZE(packed)));
}

static PyObject *py_packed_weight(PyObject *self, PyObject *args)
{
    vgq_weight w;
    PyArrayObject *packed;
    (void)self;
    if (!PyArg_ParseTuple(args, "O&:packed_weight", vgq_in_u8, &packed))
        return NULL;
    const vgq_status status = vgq_packed_weight(vgq_data(packed), (size_t)PyArray_SIZE(packed), &w);
    if (status != VGQ_OK)
        return vgq_done(status);
    return Py_BuildValue("(is(nnn)O)", w.format == VGQ_I4 ? 4 : 8, vgq_scales_name(w.scales),
                         (Py_ssize_t)w.n, (Py_ssize_t)w.k, (Py_ssize_t)w.group,
                         w.asymmetric ? Py_True : Py_False);
}

static PyObject *unpack(const vgq_packing *as, PyObject *args)
{
    vgq_weight w;
    PyArrayObject *packed, *q, *scale, *factor, *zero;
    if (!PyArg_ParseTuple(args, "O&O&O&O&O&:unpack", vgq_in_u8, &packed, vgq_out_u8, &q,
                          vgq_out_f32, &scale, vgq_optional_out_u8, &factor, vgq_optional_out_i8,
                          &zero))
        return NULL;
    const size_t nbytes = (size_t)PyArray_SIZE(packed);
    vgq_status status = as->weight(vgq_data(packed), nbytes, &w);
    if (status != VGQ_OK)
        return vgq_done(status);
    if (!bind_weight(&w, q, scale, factor, zero))
        return vgq_wrong_sizes();
    VGQ_RETURN(as->unpack(vgq_data(packed), nbytes, &w));
}

static PyObject *py_packed_nbytes(PyObject *self, PyObject *args)
{
    (void)self;
    return packed_nbytes(&vgq_packing_cpu, args);
}

static PyObject *py_cuda_packed_nbytes(PyObject *self, PyObject *args)
{
    (void)self;
    return packed_nbytes(&vgq_packing_cuda, args);
}

static PyObject *py_pack(PyObject *self, PyObject *args)
{
    (void)self;
    return pack(&vgq_packing_cpu, args);
}

static PyObject *py_cuda_pack(PyObject *self, PyObject *args)
{
    (void)self;
    return pack(&vgq_packing_cuda, args);
}

static PyObject *py_unpack(PyObject *self, PyObject *args)
{
    (void)self;
    return unpack(&vgq_packing_cpu, args);
}

static PyObject *py_cuda_unpack(PyObject *self, PyObject *args)
{
    (void)self;
    return unpack(&vgq_packing_cuda, args);
}

/* Whether x and y are not (m, k) and (m, n) for that weight; then an exception is set. */
static int bad_operands(const vgq_weight *w, PyArrayObject *x, PyArrayObject *y)
{
    const npy_intp *const xs = PyArray_DIMS(x), *const ys = PyArray_DIMS(y);
    if (PyArray_NDIM(x) == 2 && PyArray_NDIM(y) == 2 && xs[0] == ys[0] && (size_t)xs[1] == w->k &&
        (size_t)ys[1] == w->n)
        return 0;
    PyObject *const x_shape = PyObject_GetAttrString((PyObject *)x, "shape");
    PyObject *const y_shape = PyObject_GetAttrString((PyObject *)y, "shape");
    if (x_shape && y_shape)
        PyErr_Format(PyExc_ValueError,
                     "the arrays' sizes do not fit the packed weight: x %S and y %S are given; "
                     "(m, %zu) and (m, %zu) are wanted",
                     x_shape, y_shape, w->k, w->n);
    Py_XDECREF(x_shape);
    Py_XDECREF(y_shape);
    return 1;
}

static PyObject *py_linear_isa(PyObject *self, PyObject *args)
{
    vgq_activations activations;
    (void)self;
    if (!PyArg_ParseTuple(args, "O&:linear_isa", vgq_parse_activations, &activations))
        return NULL;
    const char *const isa = vgq_linear_isa(&activations);
    return Py_BuildValue("(ss)", vgq_activations_name(activations), isa);
}

static PyObject *py_linear(PyObject *self, PyObject *args)
{
    vgq_weight w;
    PyArrayObject *packed, *x, *norm_weight, *norm_bias, *x_weight, *x_bias;
    PyArrayObject *bias, *layer_scale, *residual, *y;
    vgq_linear_call call = {0};
    (void)self;
    if (!PyArg_ParseTuple(args, "O&O&O&(O&O&f)(O&O&f)O&pO&O&O&:linear", vgq_in_u8, &packed,
                          vgq_parse_activations, &call.activations, vgq_in_values, &x,
                          vgq_optional_f32, &norm_weight, vgq_optional_f32, &norm_bias,
                          &call.norm.eps, vgq_optional_f32, &x_weight, vgq_optional_f32, &x_bias,
                          &call.x_scale, vgq_optional_f32, &bias, &call.gelu, vgq_optional_f32,
                          &layer_scale, vgq_optional_values, &residual, vgq_out_values, &y))
        return NULL;
    const size_t nbytes = (size_t)PyArray_SIZE(packed);
    const vgq_status status = vgq_packed_weight(vgq_data(packed), nbytes, &w);
    if (status != VGQ_OK)
        return vgq_done(status);
    if (bad_operands(&w, x, y))
        return NULL;
    if ((norm_weight && !vgq_has(norm_weight, w.k)) ||
        (norm_bias && (!norm_weight || !vgq_has(norm_bias, w.k))) ||
        (x_weight && !vgq_has(x_weight, w.k)) || (x_bias && !vgq_has(x_bias, w.k)) ||
        (bias && !vgq_has(bias, w.n)) || (layer_scale && !vgq_has(layer_scale, w.n)) ||
        (residual &&
         (!PyArray_SAMESHAPE(residual, y) || PyArray_TYPE(residual) != PyArray_TYPE(y))))
        return vgq_wrong_sizes();
    const vgq_context now = vgq_context_now();
    call.context = &now;
    call.m = (size_t)PyArray_DIM(x, 0);
    call.x_dtype = vgq_dtype_of(x);
    call.y_dtype = vgq_dtype_of(y);
    call.x = vgq_data(x);
    call.norm.weight = vgq_data(norm_weight);
    call.norm.bias = vgq_data(norm_bias);
    call.x_affine.weight = vgq_data(x_weight);
    call.x_affine.bias = vgq_data(x_bias);
    call.bias = vgq_data(bias);
    call.layer_scale = vgq_data(layer_scale);
    call.residual = vgq_data(residual);
    call.y = vgq_data(y);
    VGQ_RETURN_WITH_SCRATCH(
        vgq_linear_nbytes(&w, &call),
        vgq_linear(vgq_data(packed), nbytes, &call, scratch.data, scratch.nbytes));
}

PyMethodDef vgq_linear_methods[] = {
    {"packed_nbytes", py_packed_nbytes, METH_VARARGS,
     "Bytes of a packed weight; 0 if it cannot be."},
    {"pack", py_pack, METH_VARARGS, "Lay a weight out for the kernels."},
    {"packed_weight", py_packed_weight, METH_VARARGS, "What packed bytes hold."},
    {"unpack", py_unpack, METH_VARARGS, "The inverse of pack."},
    {"cuda_packed_nbytes", py_cuda_packed_nbytes, METH_VARARGS, "The same for the CUDA kernels."},
    {"cuda_pack", py_cuda_pack, METH_VARARGS, "Lay a weight out for the CUDA kernels."},
    {"cuda_unpack", py_cuda_unpack, METH_VARARGS, "The inverse of cuda_pack."},
    {"linear_isa", py_linear_isa, METH_VARARGS,
     "What activations are while they are multiplied, and the instruction set that does it."},
    {"linear", py_linear, METH_VARARGS,
     "y = norm(x) w^T + bias, then what is asked for: GELU, a scale for each output, a residual."},
    {NULL, NULL, 0, NULL},
};
