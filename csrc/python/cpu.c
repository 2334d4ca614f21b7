/* SPDX-License-Identifier: Apache-2.0
 * The module vggtquant._cpu: parse, check shapes, call, report. Types and meanings stand in
 * _cpu.pyi, contracts in vgq.h. Only vggtquant/ops.py imports it. */
#define _GNU_SOURCE
#define VGQ_IMPORTS_NUMPY
#include "binding.h"

#include <sys/syscall.h>
#include <unistd.h>

/* ---- converters ---------------------------------------------------------------------------------
 */

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

#define has vgq_has
int vgq_has(PyArrayObject *array, size_t elements)
{
    return (size_t)PyArray_SIZE(array) == elements;
}

/* ---- instruction sets and threads
 * ---------------------------------------------------------------- */

static PyObject *py_use(PyObject *self, PyObject *args)
{
    const char *isa;
    (void)self;
    if (!PyArg_ParseTuple(args, "z:use", &isa))
        return NULL;
    return vgq_done(vgq_use(isa));
}

static PyObject *py_isa(PyObject *self, PyObject *args)
{
    (void)self, (void)args;
    return PyUnicode_FromString(vgq_isa());
}

static PyObject *py_isas(PyObject *self, PyObject *args)
{
    (void)self, (void)args;
    PyObject *const names = PyList_New(0);
    for (size_t i = 0; names && vgq_isa_here(i); i++) {
        PyObject *const name = PyUnicode_FromString(vgq_isa_here(i));
        if (!name || PyList_Append(names, name) < 0) {
            Py_XDECREF(name);
            Py_DECREF(names);
            return NULL;
        }
        Py_DECREF(name);
    }
    return names;
}

static PyObject *py_set_threads(PyObject *self, PyObject *args)
{
    int n;
    (void)self;
    if (!PyArg_ParseTuple(args, "i:set_threads", &n))
        return NULL;
    vgq_set_threads(n);
    Py_RETURN_NONE;
}

static PyObject *py_threads(PyObject *self, PyObject *args)
{
    (void)self, (void)args;
    return PyLong_FromLong(vgq_threads());
}

static PyObject *py_openmp(PyObject *self, PyObject *args)
{
    (void)self, (void)args;
    return PyUnicode_FromString(vgq_openmp());
}

/* ---- quantize
 * ------------------------------------------------------------------------------------- */

static PyObject *py_range(PyObject *self, PyObject *args)
{
    vgq_shape shape;
    PyArrayObject *x, *lo, *hi, *nonfinite;
    (void)self;
    if (!PyArg_ParseTuple(args, "(nnn)O&O&O&O&:range", &shape.rows, &shape.cols, &shape.group,
                          vgq_in_values, &x, vgq_out_f32, &lo, vgq_out_f32, &hi, vgq_out_u64,
                          &nonfinite))
        return NULL;
    const size_t groups = shape.rows * vgq_row_groups(shape);
    if (vgq_unusable(shape) || !has(x, shape.rows * shape.cols) || !has(lo, groups) ||
        !has(hi, groups) || !has(nonfinite, shape.rows))
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
    if (!has(hi, n) || !has(scale, n) || (zero && !has(zero, n)))
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
    return has(x, shape.rows * shape.cols) && has(scale, groups) && (!zero || has(zero, groups)) &&
           has(q, shape.rows * vgq_row_nbytes(format, shape.cols));
}

static PyObject *py_quantize(PyObject *self, PyObject *args)
{
    vgq_format format;
    vgq_shape shape;
    PyArrayObject *x, *scale, *zero, *q;
    (void)self;
    if (!PyArg_ParseTuple(args, "O&(nnn)O&O&O&O&:quantize", vgq_parse_format, &format, &shape.rows,
                          &shape.cols, &shape.group, vgq_in_values, &x, vgq_in_f32, &scale,
                          vgq_optional_in_i8, &zero, vgq_out_u8, &q))
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
    if (!PyArg_ParseTuple(args, "O&(nnn)O&O&O&O&:dequantize", vgq_parse_format, &format,
                          &shape.rows, &shape.cols, &shape.group, vgq_in_u8, &q, vgq_in_f32, &scale,
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
    if (!PyArg_ParseTuple(args, "(nnn)O&O&O&O&O&:two_level", &shape.rows, &shape.cols, &shape.group,
                          vgq_in_values, &x, vgq_out_f32, &channel_scale, vgq_out_u8, &factor,
                          vgq_optional_out_i8, &zero, vgq_out_f64, &error))
        return NULL;
    const size_t groups = shape.rows * vgq_row_groups(shape);
    if (vgq_unusable(shape) || !has(x, shape.rows * shape.cols) ||
        !has(channel_scale, shape.rows) || !has(factor, groups) || (zero && !has(zero, groups)) ||
        !has(error, 2 * shape.rows))
        return vgq_wrong_sizes();
    VGQ_RETURN(vgq_two_level(vgq_dtype_of(x), shape, vgq_data(x), vgq_data(channel_scale),
                             vgq_data(factor), vgq_data(zero), vgq_data(error)));
}

/* ---- linear
 * --------------------------------------------------------------------------------------- */

/* Whether the arrays hold what the weight says; then its pointers are set. */
static int bind_weight(vgq_weight *w, PyArrayObject *q, PyArrayObject *scale, PyArrayObject *factor,
                       PyArrayObject *zero)
{
    const size_t row_groups = w->group ? (w->k + w->group - 1) / w->group : 0;
    const size_t groups = w->scales == VGQ_PER_ROW ? w->n : w->n * row_groups;
    if (!has(q, w->n * vgq_row_nbytes(w->format, w->k)) ||
        !has(scale, w->scales == VGQ_PER_GROUP ? groups : w->n) ||
        (w->scales == VGQ_TWO_LEVEL) != (factor != NULL) || (factor && !has(factor, groups)) ||
        (w->asymmetric != 0) != (zero != NULL) || (zero && !has(zero, groups)))
        return 0;
    w->q = vgq_data(q);
    w->scale = vgq_data(scale);
    w->factor = vgq_data(factor);
    w->zero = vgq_data(zero);
    return 1;
}

/* The layouts for the CPU and for CUDA differ in these functions only. */
typedef struct layout {
    size_t (*nbytes)(const vgq_weight *);
    vgq_status (*pack)(const vgq_weight *, void *, size_t);
    vgq_status (*weight)(const void *, size_t, vgq_weight *);
    vgq_status (*unpack)(const void *, size_t, const vgq_weight *);
} layout;
static const layout for_cpu = {vgq_packed_nbytes, vgq_pack, vgq_packed_weight, vgq_unpack};
static const layout for_cuda = {vgq_cuda_packed_nbytes, vgq_cuda_pack, vgq_cuda_packed_weight,
                                vgq_cuda_unpack};

static PyObject *packed_nbytes(const layout *as, PyObject *args)
{
    vgq_weight w = {0};
    if (!PyArg_ParseTuple(args, "O&O&(nnn)p:packed_nbytes", vgq_parse_format, &w.format,
                          vgq_parse_scales, &w.scales, &w.n, &w.k, &w.group, &w.asymmetric))
        return NULL;
    return PyLong_FromSize_t(as->nbytes(&w));
}

static PyObject *pack(const layout *as, PyObject *args)
{
    vgq_weight w = {0};
    PyArrayObject *q, *scale, *factor, *zero, *packed;
    if (!PyArg_ParseTuple(args, "O&O&(nnn)O&O&O&O&O&:pack", vgq_parse_format, &w.format,
                          vgq_parse_scales, &w.scales, &w.n, &w.k, &w.group, vgq_in_u8, &q,
                          vgq_in_f32, &scale, vgq_optional_in_u8, &factor, vgq_optional_in_i8,
                          &zero, vgq_out_u8, &packed))
        return NULL;
    w.asymmetric = zero != NULL;
    if (w.k > VGQ_DEEPEST)
        return vgq_done(VGQ_EDEPTH);
    if (w.n > (size_t)PY_SSIZE_T_MAX / 8 / VGQ_DEEPEST || !bind_weight(&w, q, scale, factor, zero))
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

static PyObject *unpack(const layout *as, PyObject *args)
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
    return packed_nbytes(&for_cpu, args);
}

static PyObject *py_cuda_packed_nbytes(PyObject *self, PyObject *args)
{
    (void)self;
    return packed_nbytes(&for_cuda, args);
}

static PyObject *py_pack(PyObject *self, PyObject *args)
{
    (void)self;
    return pack(&for_cpu, args);
}

static PyObject *py_cuda_pack(PyObject *self, PyObject *args)
{
    (void)self;
    return pack(&for_cuda, args);
}

static PyObject *py_unpack(PyObject *self, PyObject *args)
{
    (void)self;
    return unpack(&for_cpu, args);
}

static PyObject *py_cuda_unpack(PyObject *self, PyObject *args)
{
    (void)self;
    return unpack(&for_cuda, args);
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

static PyObject *py_linear_nbytes(PyObject *self, PyObject *args)
{
    vgq_weight w;
    PyArrayObject *packed, *x, *y;
    vgq_linear_call call = {0};
    (void)self;
    if (!PyArg_ParseTuple(args, "O&O&O&O&:linear_nbytes", vgq_in_u8, &packed, vgq_parse_activations,
                          &call.activations, vgq_in_values, &x, vgq_out_values, &y))
        return NULL;
    const vgq_status status = vgq_packed_weight(vgq_data(packed), (size_t)PyArray_SIZE(packed), &w);
    if (status != VGQ_OK)
        return vgq_done(status);
    if (bad_operands(&w, x, y))
        return NULL;
    call.m = (size_t)PyArray_DIM(x, 0);
    call.x_dtype = vgq_dtype_of(x);
    call.y_dtype = vgq_dtype_of(y);
    return PyLong_FromSize_t(vgq_linear_nbytes(&w, &call));
}

static PyObject *py_linear(PyObject *self, PyObject *args)
{
    vgq_weight w;
    PyArrayObject *packed, *x, *bias, *y, *scratch;
    vgq_linear_call call = {0};
    (void)self;
    if (!PyArg_ParseTuple(args, "O&O&O&O&O&O&:linear", vgq_in_u8, &packed, vgq_parse_activations,
                          &call.activations, vgq_in_values, &x, vgq_optional_f32, &bias,
                          vgq_out_values, &y, vgq_out_u8, &scratch))
        return NULL;
    const size_t nbytes = (size_t)PyArray_SIZE(packed);
    vgq_status status = vgq_packed_weight(vgq_data(packed), nbytes, &w);
    if (status != VGQ_OK)
        return vgq_done(status);
    if (bad_operands(&w, x, y))
        return NULL;
    call.m = (size_t)PyArray_DIM(x, 0);
    if (bias && !has(bias, w.n))
        return vgq_wrong_sizes();
    call.x_dtype = vgq_dtype_of(x);
    call.y_dtype = vgq_dtype_of(y);
    call.x = vgq_data(x);
    call.bias = vgq_data(bias);
    call.y = vgq_data(y);
    VGQ_RETURN(vgq_linear(vgq_data(packed), nbytes, &call, vgq_data(scratch),
                          (size_t)PyArray_SIZE(scratch)));
}

/* ---- the module
 * ----------------------------------------------------------------------------------- */

static PyMethodDef methods[] = {
    {"use", py_use, METH_VARARGS,
     "Use the named instruction set, or with None the best that runs here."},
    {"isa", py_isa, METH_NOARGS, "The instruction set in use."},
    {"isas", py_isas, METH_NOARGS, "Those that run here, weakest first."},
    {"set_threads", py_set_threads, METH_VARARGS, "At most so many threads; 0: as OpenMP says."},
    {"threads", py_threads, METH_NOARGS, "Threads that a large call uses now."},
    {"openmp", py_openmp, METH_NOARGS, "File name of the OpenMP runtime in use, or none."},
    {"range", py_range, METH_VARARGS,
     "Each group's range, and each row's count of NaN and infinities."},
    {"parameters", py_parameters, METH_VARARGS, "Scales and zero points from ranges."},
    {"quantize", py_quantize, METH_VARARGS, "Codes from values."},
    {"dequantize", py_dequantize, METH_VARARGS, "Values from codes."},
    {"two_level", py_two_level, METH_VARARGS, "Two-level INT4 scales by squared error."},
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
    {"linear_nbytes", py_linear_nbytes, METH_VARARGS, "Bytes of scratch that linear wants."},
    {"linear", py_linear, METH_VARARGS, "y = x w^T + bias."},
    {NULL, NULL, 0, NULL},
};

static int exec_module(PyObject *module)
{
    if (PyArray_ImportNumPyAPI() < 0)
        return -1;
    const vgq_status status = vgq_use(NULL);
    /* uncovered: scalar runs everywhere */
    if (status != VGQ_OK) {
        PyErr_SetString(PyExc_RuntimeError, vgq_message(status)); /* uncovered: as above */
        return -1;                                                /* uncovered: as above */
    }
    return PyModule_AddFunctions(module, vgq_metrics_methods) < 0
               ? -1
               : PyModule_AddFunctions(module, vgq_attention_methods);
}

static PyModuleDef_Slot slots[] = {
    {Py_mod_exec, (void *)exec_module},
#if PY_VERSION_HEX >= 0x030c0000
    {Py_mod_multiple_interpreters, Py_MOD_MULTIPLE_INTERPRETERS_NOT_SUPPORTED},
#endif
    {0, NULL},
};

static struct PyModuleDef module_def = {
    .m_base = PyModuleDef_HEAD_INIT,
    .m_name = "vggtquant._cpu",
    .m_doc = "C core of vggtquant on the CPU. Private: vggtquant.ops is its only user.",
    .m_methods = methods,
    .m_slots = slots,
};

PyMODINIT_FUNC PyInit__cpu(void); /* Python.h declares none */
PyMODINIT_FUNC PyInit__cpu(void) { return PyModuleDef_Init(&module_def); }
