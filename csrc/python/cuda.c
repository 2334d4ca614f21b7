/* SPDX-License-Identifier: Apache-2.0
 * The module vggtquant._cuda: the calls of _cpu on addresses of a CUDA device, each with a stream
 * as its last argument. An array is a tuple (address, elements, dtype's name): no header of torch,
 * NumPy or CUDA is needed, and importing needs neither a driver nor a GPU. Types and meanings stand
 * in _cuda.pyi, contracts in vgq.h. Only vggtquant/ops.py imports it; it sees to it that the arrays
 * are contiguous and lie on the current device. */
#include "words.h"

#include <string.h>

typedef struct array {
    void *data;
    size_t n;
    vgq_dtype dtype; /* of values only */
} array;

static int convert(PyObject *object, array *a, int optional, const char *const *names, int count)
{
    Py_ssize_t n;
    const char *name;
    PyObject *address;
    memset(a, 0, sizeof(*a));
    if (optional && object == Py_None)
        return 1;
    if (!PyTuple_Check(object) || !PyArg_ParseTuple(object, "Ons", &address, &n, &name)) {
        PyErr_SetString(PyExc_TypeError, "an array is (address, elements, dtype's name)");
        return 0;
    }
    a->data = PyLong_AsVoidPtr(address);
    a->n = (size_t)n;
    if (PyErr_Occurred())
        return 0;
    for (int i = 0; i < count; i++)
        if (strcmp(name, names[i]) == 0) {
            a->dtype = (vgq_dtype)i;
            return 1;
        }
    PyErr_Format(PyExc_TypeError, "an array of %s is wanted, not of %.50s", names[0], name);
    return 0;
}

static const char *const value_names[VGQ_DTYPES] = {"float32", "float16", "bfloat16"};

static int values(PyObject *object, void *a) { return convert(object, a, 0, value_names, 3); }
#define CONVERTER(tag, optional, name)                 \
    static int tag(PyObject *object, void *a)          \
    {                                                  \
        static const char *const names[] = {name};     \
        return convert(object, a, optional, names, 1); \
    }
CONVERTER(f32, 0, "float32")
CONVERTER(i64, 0, "int64")
CONVERTER(u8, 0, "uint8")
CONVERTER(optional_i8, 1, "int8")
#undef CONVERTER

static PyObject *done(vgq_status status)
{
    if (status != VGQ_ECUDA)
        return vgq_done(status);
    PyErr_Format(PyExc_RuntimeError, "%s: %s", vgq_message(status), vgq_cuda_error());
    return NULL;
}

static PyObject *py_devices(PyObject *self, PyObject *args)
{
    (void)self, (void)args;
    return PyLong_FromLong(vgq_cuda_devices());
}

/* ---- quantize
 * ------------------------------------------------------------------------------------- */

static PyObject *py_range(PyObject *self, PyObject *args)
{
    vgq_shape shape;
    array x, lo, hi, nonfinite;
    void *stream;
    vgq_status status;
    (void)self;
    if (!PyArg_ParseTuple(args, "(nnn)O&O&O&O&n:range", &shape.rows, &shape.cols, &shape.group,
                          values, &x, f32, &lo, f32, &hi, i64, &nonfinite, &stream))
        return NULL;
    const size_t groups = shape.rows * vgq_row_groups(shape);
    if (vgq_unusable(shape) || x.n != shape.rows * shape.cols || lo.n != groups || hi.n != groups ||
        nonfinite.n != shape.rows)
        return vgq_wrong_sizes();
    Py_BEGIN_ALLOW_THREADS
        status = vgq_range_cuda(x.dtype, shape, x.data, lo.data, hi.data, nonfinite.data, stream);
    Py_END_ALLOW_THREADS
    return done(status);
}

static PyObject *py_parameters(PyObject *self, PyObject *args)
{
    vgq_format format;
    array lo, hi, scale, zero;
    void *stream;
    vgq_status status;
    (void)self;
    if (!PyArg_ParseTuple(args, "O&O&O&O&O&n:parameters", vgq_parse_format, &format, f32, &lo, f32,
                          &hi, f32, &scale, optional_i8, &zero, &stream))
        return NULL;
    if (hi.n != lo.n || scale.n != lo.n || (zero.data && zero.n != lo.n))
        return vgq_wrong_sizes();
    Py_BEGIN_ALLOW_THREADS
        status = vgq_parameters_cuda(format, lo.n, lo.data, hi.data, scale.data, zero.data, stream);
    Py_END_ALLOW_THREADS
    return done(status);
}

/* The sizes that quantize and dequantize share. */
static int fits(vgq_format format, vgq_shape shape, array x, array scale, array zero, array q)
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
    array x, scale, zero, q;
    void *stream;
    vgq_status status;
    (void)self;
    if (!PyArg_ParseTuple(args, "O&(nnn)O&O&O&O&n:quantize", vgq_parse_format, &format, &shape.rows,
                          &shape.cols, &shape.group, values, &x, f32, &scale, optional_i8, &zero,
                          u8, &q, &stream))
        return NULL;
    if (!fits(format, shape, x, scale, zero, q))
        return vgq_wrong_sizes();
    Py_BEGIN_ALLOW_THREADS
        status = vgq_quantize_cuda(format, x.dtype, shape, x.data, scale.data, zero.data, q.data,
                                   stream);
    Py_END_ALLOW_THREADS
    return done(status);
}

static PyObject *py_dequantize(PyObject *self, PyObject *args)
{
    vgq_format format;
    vgq_shape shape;
    array x, scale, zero, q;
    void *stream;
    vgq_status status;
    (void)self;
    if (!PyArg_ParseTuple(args, "O&(nnn)O&O&O&O&n:dequantize", vgq_parse_format, &format,
                          &shape.rows, &shape.cols, &shape.group, u8, &q, f32, &scale, optional_i8,
                          &zero, values, &x, &stream))
        return NULL;
    if (!fits(format, shape, x, scale, zero, q))
        return vgq_wrong_sizes();
    Py_BEGIN_ALLOW_THREADS
        status = vgq_dequantize_cuda(format, x.dtype, shape, q.data, scale.data, zero.data, x.data,
                                     stream);
    Py_END_ALLOW_THREADS
    return done(status);
}

/* ---- the module
 * ----------------------------------------------------------------------------------- */

static PyMethodDef methods[] = {
    {"devices", py_devices, METH_NOARGS, "CUDA devices that this process can use."},
    {"range", py_range, METH_VARARGS,
     "Each group's range, and each row's count of NaN and infinities."},
    {"parameters", py_parameters, METH_VARARGS, "Scales and zero points from ranges."},
    {"quantize", py_quantize, METH_VARARGS, "Codes from values."},
    {"dequantize", py_dequantize, METH_VARARGS, "Values from codes."},
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
