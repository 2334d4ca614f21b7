/* SPDX-License-Identifier: Apache-2.0
 * Attention, for the module vggtquant._cpu: parse, check shapes, call, report. */
#include "binding.h"

/* qkv, whose first four axes may lie anywhere, and what it and y say of a call. */
static int bind_operands(vgq_attention_call *call, PyObject *object, PyArrayObject *y)
{
    if (!PyArray_Check(object)) {
        PyErr_Format(PyExc_TypeError, "qkv must be an array, not %.100s", Py_TYPE(object)->tp_name);
        return 0;
    }
    PyArrayObject *const qkv = (PyArrayObject *)object;
    const int type = PyArray_TYPE(qkv);
    if (type != NPY_FLOAT32 && type != NPY_FLOAT16 && type != NPY_UINT16) {
        PyErr_Format(PyExc_TypeError,
                     "qkv must be of float32, float16 or uint16 (bfloat16 bits), not of %S",
                     (PyObject *)PyArray_DESCR(qkv));
        return 0;
    }
    const npy_intp itemsize = PyArray_ITEMSIZE(qkv);
    int usable = PyArray_NDIM(qkv) == 5 && PyArray_DIM(qkv, 2) == 3 && PyArray_ISALIGNED(qkv) &&
                 PyArray_ISNOTSWAPPED(qkv) &&
                 (PyArray_DIM(qkv, 4) <= 1 || PyArray_STRIDE(qkv, 4) == itemsize);
    for (int axis = 0; usable && axis < 4; axis++) {
        usable = PyArray_STRIDE(qkv, axis) >= 0 && PyArray_STRIDE(qkv, axis) % itemsize == 0;
        call->strides[axis] = (size_t)(PyArray_STRIDE(qkv, axis) / itemsize);
    }
    if (!usable) {
        PyErr_SetString(PyExc_ValueError, "qkv must be (batch, tokens, 3, heads, dim) in native "
                                          "byte order, each head's channels neighbours");
        return 0;
    }
    call->batch = (size_t)PyArray_DIM(qkv, 0);
    call->tokens = (size_t)PyArray_DIM(qkv, 1);
    call->heads = (size_t)PyArray_DIM(qkv, 3);
    call->dim = (size_t)PyArray_DIM(qkv, 4);
    call->x_dtype = vgq_dtype_of(qkv);
    call->y_dtype = vgq_dtype_of(y);
    call->qkv = PyArray_DATA(qkv);
    call->y = vgq_data(y);
    if (!vgq_has(y, (size_t)PyArray_SIZE(qkv) / 3)) {
        vgq_wrong_sizes();
        return 0;
    }
    return 1;
}

static int norm_fits(vgq_norm *norm, size_t dim, PyArrayObject *weight, PyArrayObject *bias)
{
    norm->weight = vgq_data(weight);
    norm->bias = vgq_data(bias);
    return (!weight || vgq_has(weight, dim)) && (!bias || (weight && vgq_has(bias, dim)));
}

static PyObject *py_attention(PyObject *self, PyObject *args)
{
    PyObject *qkv;
    PyArrayObject *q_weight, *q_bias, *k_weight, *k_bias, *cosine, *sine, *y;
    vgq_attention_call call = {0};
    (void)self;
    if (!PyArg_ParseTuple(args, "O&O&O(O&O&f)(O&O&f)(O&O&O&)fO&:attention", vgq_parse_activations,
                          &call.scores, vgq_parse_activations, &call.values, &qkv, vgq_optional_f32,
                          &q_weight, vgq_optional_f32, &q_bias, &call.q_norm.eps, vgq_optional_f32,
                          &k_weight, vgq_optional_f32, &k_bias, &call.k_norm.eps, vgq_optional_f32,
                          &cosine, vgq_optional_f32, &sine, vgq_parse_size, &call.rope_width,
                          &call.scale, vgq_out_values, &y) ||
        !bind_operands(&call, qkv, y))
        return NULL;
    if (cosine && call.dim)
        call.rope_tokens = (size_t)PyArray_SIZE(cosine) / call.dim;
    if (!norm_fits(&call.q_norm, call.dim, q_weight, q_bias) ||
        !norm_fits(&call.k_norm, call.dim, k_weight, k_bias) || !cosine != !sine ||
        (cosine && (!vgq_has(cosine, call.rope_tokens * call.dim) ||
                    !vgq_has(sine, call.rope_tokens * call.dim))))
        return vgq_wrong_sizes();
    call.cos = vgq_data(cosine);
    call.sin = vgq_data(sine);
    const vgq_context now = vgq_context_now();
    call.context = &now;
    VGQ_RETURN_WITH_SCRATCH(vgq_attention_nbytes(&call),
                            vgq_attention(&call, scratch.data, scratch.nbytes));
}

static PyObject *py_attention_isa(PyObject *self, PyObject *args)
{
    vgq_activations scores, values;
    (void)self;
    if (!PyArg_ParseTuple(args, "O&O&:attention_isa", vgq_parse_activations, &scores,
                          vgq_parse_activations, &values))
        return NULL;
    const char *const first = vgq_attention_isa(0, &scores);
    const char *const second = vgq_attention_isa(1, &values);
    return Py_BuildValue("((ss)(ss))", vgq_activations_name(scores), first,
                         vgq_activations_name(values), second);
}

PyMethodDef vgq_attention_methods[] = {
    {"attention_isa", py_attention_isa, METH_VARARGS,
     "What scores and values are while they are multiplied, and the instruction sets that do it."},
    {"attention", py_attention, METH_VARARGS, "y = softmax(scale q k^T) v, for every head."},
    {NULL, NULL, 0, NULL},
};
