/* SPDX-License-Identifier: Apache-2.0 */
#include "arrays.h"

#include <string.h>

/* Sizes whose product is the number of elements. */
static int parse_shape(PyObject *shape, vgq_array *a)
{
    a->dims = PyTuple_Check(shape) ? PyTuple_GET_SIZE(shape) : -1;
    a->n = 1;
    for (Py_ssize_t i = 0; i < a->dims && i < VGQ_ARRAY_DIMS; i++) {
        a->shape[i] = PyLong_AsSsize_t(PyTuple_GET_ITEM(shape, i));
        if (a->shape[i] < 0 || __builtin_mul_overflow(a->n, (size_t)a->shape[i], &a->n))
            return 0;
    }
    return a->dims >= 0 && a->dims <= VGQ_ARRAY_DIMS;
}

static int convert(PyObject *object, vgq_array *a, int optional, const char *const *names,
                   int count)
{
    const char *name;
    PyObject *address, *shape;
    *a = (vgq_array){0};
    if (optional && object == Py_None)
        return 1;
    if (!PyTuple_Check(object) || !PyArg_ParseTuple(object, "OOs", &address, &shape, &name) ||
        !parse_shape(shape, a)) {
        PyErr_SetString(PyExc_TypeError, "an array is (address, shape, dtype's name)");
        return 0;
    }
    a->data = PyLong_AsVoidPtr(address);
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

int vgq_array_values(PyObject *object, void *a) { return convert(object, a, 0, value_names, 3); }
int vgq_array_optional_values(PyObject *object, void *a)
{
    return convert(object, a, 1, value_names, 3);
}

#define CONVERTER(tag, optional, name)                 \
    int vgq_array_##tag(PyObject *object, void *a)     \
    {                                                  \
        static const char *const names[] = {name};     \
        return convert(object, a, optional, names, 1); \
    }
CONVERTER(f32, 0, "float32")
CONVERTER(f64, 0, "float64")
CONVERTER(i64, 0, "int64")
CONVERTER(u8, 0, "uint8")
CONVERTER(i8, 0, "int8")
CONVERTER(i32, 0, "int32")
CONVERTER(optional_f32, 1, "float32")
CONVERTER(optional_i8, 1, "int8")
#undef CONVERTER

PyObject *vgq_cuda_done(vgq_status status)
{
    if (status != VGQ_ECUDA)
        return vgq_done(status);
    PyErr_Format(PyExc_RuntimeError, "%s: %s", vgq_message(status), vgq_cuda_error());
    return NULL;
}
