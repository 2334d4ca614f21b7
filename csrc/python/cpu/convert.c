/* SPDX-License-Identifier: Apache-2.0
 * Arrays from Python, and the GIL and signals during a call. */
#define _GNU_SOURCE
#include "binding.h"

#include <sys/syscall.h>
#include <unistd.h>

static const char *kind_of(PyArrayObject *a)
{
    if (!PyArray_ISALIGNED(a))
        return "misaligned";
    if (!PyArray_ISNOTSWAPPED(a))
        return "byte-swapped";
    return PyArray_IS_C_CONTIGUOUS(a) ? "read-only" : "non-contiguous";
}

static int convert(PyObject *object, PyArrayObject **array, int writable, int type,
                   const char *wanted)
{
    if (!PyArray_Check(object)) {
        PyErr_Format(PyExc_TypeError, "an array of %s is wanted, not %.100s", wanted,
                     Py_TYPE(object)->tp_name);
        return 0;
    }
    PyArrayObject *const a = (PyArrayObject *)object;
    const int seen = PyArray_TYPE(a);
    if (type == NPY_NOTYPE ? seen != NPY_FLOAT32 && seen != NPY_FLOAT16 && seen != NPY_UINT16
                           : seen != type) {
        PyErr_Format(PyExc_TypeError, "an array of %s is wanted, not of %S", wanted,
                     (PyObject *)PyArray_DESCR(a));
        return 0;
    }
    if (!PyArray_IS_C_CONTIGUOUS(a) || !PyArray_ISALIGNED(a) || !PyArray_ISNOTSWAPPED(a) ||
        (writable && !PyArray_ISWRITEABLE(a))) {
        PyErr_Format(PyExc_ValueError, "a C-contiguous%s array of %s is wanted, not a %s one",
                     writable ? " writable" : "", wanted, kind_of(a));
        return 0;
    }
    *array = a;
    return 1;
}

#define CONVERTER(name, optional, writable, type, wanted)      \
    int vgq_##name(PyObject *object, void *array)              \
    {                                                          \
        if (optional && object == Py_None) {                   \
            *(PyArrayObject **)array = NULL;                   \
            return 1;                                          \
        }                                                      \
        return convert(object, array, writable, type, wanted); \
    }
CONVERTER(in_values, 0, 0, NPY_NOTYPE, "float32, float16 or uint16 (bfloat16 bits)")
CONVERTER(optional_values, 1, 0, NPY_NOTYPE, "float32, float16 or uint16 (bfloat16 bits)")
CONVERTER(out_values, 0, 1, NPY_NOTYPE, "float32, float16 or uint16 (bfloat16 bits)")
CONVERTER(in_f32, 0, 0, NPY_FLOAT32, "float32")
CONVERTER(out_f32, 0, 1, NPY_FLOAT32, "float32")
CONVERTER(optional_f32, 1, 0, NPY_FLOAT32, "float32")
CONVERTER(out_f64, 0, 1, NPY_FLOAT64, "float64")
CONVERTER(in_u8, 0, 0, NPY_UINT8, "uint8")
CONVERTER(out_u8, 0, 1, NPY_UINT8, "uint8")
CONVERTER(optional_in_u8, 1, 0, NPY_UINT8, "uint8")
CONVERTER(optional_out_u8, 1, 1, NPY_UINT8, "uint8")
CONVERTER(optional_in_i8, 1, 0, NPY_INT8, "int8")
CONVERTER(optional_out_i8, 1, 1, NPY_INT8, "int8")
CONVERTER(out_u64, 0, 1, NPY_UINT64, "uint64")
#undef CONVERTER

vgq_dtype vgq_dtype_of(PyArrayObject *array)
{
    const int type = PyArray_TYPE(array);
    return type == NPY_FLOAT32 ? VGQ_F32 : type == NPY_FLOAT16 ? VGQ_F16 : VGQ_BF16;
}

void *vgq_data(PyArrayObject *array) { return array ? PyArray_DATA(array) : NULL; }

static int handle_signals(void *thread)
{
    PyThreadState **const state = thread;
    PyEval_RestoreThread(*state);
    const int raised = PyErr_CheckSignals() < 0;
    *state = PyEval_SaveThread();
    return raised;
}

void vgq_release(vgq_released *released)
{
    *released = (vgq_released){.stop = {handle_signals, &released->thread, 0, 0}};
    /* Python sees to signals on the main thread alone. */
    static _Thread_local enum { UNKNOWN, MAIN, OTHER } this_thread;
    if (this_thread == UNKNOWN)
        this_thread = syscall(SYS_gettid) == getpid() ? MAIN : OTHER;
    released->outer = vgq_watch(this_thread == MAIN ? &released->stop : NULL);
    released->thread = PyEval_SaveThread();
}

PyObject *vgq_regain(vgq_released *released, vgq_status status)
{
    PyEval_RestoreThread(released->thread);
    vgq_watch(released->outer);
    return vgq_done(status);
}

int vgq_has(PyArrayObject *array, size_t elements)
{
    return (size_t)PyArray_SIZE(array) == elements;
}
