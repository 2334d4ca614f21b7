/* SPDX-License-Identifier: Apache-2.0
 * The module vggtquant._cpu: its functions, and the choice of instruction set and threads. Types
 * and meanings stand in _cpu.pyi, contracts in vgq.h. Only vggtquant/ops imports it. */
#define VGQ_IMPORTS_NUMPY
#include "binding.h"

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

static PyObject *isa_names(const char *(*at)(size_t))
{
    PyObject *const names = PyList_New(0);
    for (size_t i = 0; names && at(i); i++) {
        PyObject *const name = PyUnicode_FromString(at(i));
        if (!name || PyList_Append(names, name) < 0) {
            Py_XDECREF(name);
            Py_DECREF(names);
            return NULL;
        }
        Py_DECREF(name);
    }
    return names;
}

static PyObject *py_isas(PyObject *self, PyObject *args)
{
    (void)self, (void)args;
    return isa_names(vgq_isa_here);
}

static PyObject *py_isas_refused(PyObject *self, PyObject *args)
{
    (void)self, (void)args;
    return isa_names(vgq_isa_refused);
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

static PyObject *py_limit_threads(PyObject *self, PyObject *args)
{
    int n;
    (void)self;
    if (!PyArg_ParseTuple(args, "i:limit_threads", &n))
        return NULL;
    return PyLong_FromLong(vgq_limit_threads(n));
}

static PyObject *py_forked(PyObject *self, PyObject *args)
{
    (void)self, (void)args;
    vgq_forked();
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

static PyMethodDef methods[] = {
    {"use", py_use, METH_VARARGS,
     "Use the named instruction set, or with None the best that runs here."},
    {"isa", py_isa, METH_NOARGS, "The instruction set in use."},
    {"isas", py_isas, METH_NOARGS, "Those that run here, weakest first."},
    {"set_threads", py_set_threads, METH_VARARGS, "At most so many threads; 0: as OpenMP says."},
    {"limit_threads", py_limit_threads, METH_VARARGS,
     "At most so many threads in this thread's calls; 0: no limit. Returns the one before."},
    {"forked", py_forked, METH_NOARGS, "This process was forked: it works on one thread."},
    {"isas_refused", py_isas_refused, METH_NOARGS,
     "Those whose kernels gave wrong results when they were tried."},
    {"threads", py_threads, METH_NOARGS, "Threads that a large call uses now."},
    {"openmp", py_openmp, METH_NOARGS, "File name of the OpenMP runtime in use, or none."},
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
#define X(part)                                                  \
    if (PyModule_AddFunctions(module, vgq_##part##_methods) < 0) \
        return -1; /* uncovered: out of memory */
    VGQ_BINDINGS(X)
#undef X
    return 0;
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
