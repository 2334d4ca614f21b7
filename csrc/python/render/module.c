// SPDX-License-Identifier: Apache-2.0
// Python module vggtquant._render: converts arrays and calls csrc/render.  It allocates nothing.
// -Wpedantic is off here alone: NumPy's API table and module slots hold functions as void pointers.
#pragma GCC diagnostic ignored "-Wpedantic"
#define PY_SSIZE_T_CLEAN
#define NPY_NO_DEPRECATED_API NPY_1_7_API_VERSION
#include <Python.h>

#include <numpy/arrayobject.h>

#include "../../render/render.h"

// An "O&" converter for borrowed C-contiguous, aligned arrays of one type.
static int as_array(PyObject *object, PyArrayObject **out, int type, const char *name)
{
    if (!PyArray_Check(object) || PyArray_TYPE((PyArrayObject *)object) != type ||
        !PyArray_ISCARRAY_RO((PyArrayObject *)object)) {
        PyErr_Format(PyExc_TypeError, "wanted a C-contiguous NumPy array of %s, got %R", name,
                     (PyObject *)Py_TYPE(object));
        return 0;
    }
    *out = (PyArrayObject *)object;
    return 1;
}

static int as_f32(PyObject *object, void *out)
{
    return as_array(object, out, NPY_FLOAT32, "float32");
}

static int as_u8(PyObject *object, void *out) { return as_array(object, out, NPY_UINT8, "uint8"); }

// The number of rows of a table whose rows are structs of floats, or -1 with an exception set.
static Py_ssize_t rows_of(PyArrayObject *table, size_t row_bytes, const char *name)
{
    if (PyArray_NDIM(table) == 2 && (size_t)PyArray_DIM(table, 1) * sizeof(float) == row_bytes)
        return (Py_ssize_t)PyArray_DIM(table, 0);
    PyErr_Format(PyExc_ValueError, "%s must have the shape (n, %zu)", name,
                 row_bytes / sizeof(float));
    return -1;
}

PyDoc_STRVAR(
    render_doc,
    "render(shapes, textures, lights, ambient, cameras, antialias, first, last, rgb, depth, "
    "points)\n--\n\n"
    "Render rows first..last-1 of the (frames * height) rows into the three output arrays.");

static PyObject *py_render(PyObject *self, PyObject *args)
{
    PyArrayObject *shapes, *textures, *lights, *ambient, *cameras, *rgb, *depth, *points;
    int antialias;
    Py_ssize_t first, last;
    (void)self;
    if (!PyArg_ParseTuple(args, "O&O&O&O&O&pnnO&O&O&:render", as_f32, &shapes, as_f32, &textures,
                          as_f32, &lights, as_f32, &ambient, as_f32, &cameras, &antialias, &first,
                          &last, as_u8, &rgb, as_f32, &depth, as_f32, &points))
        return NULL;
    const Py_ssize_t n_shapes = rows_of(shapes, sizeof(vgq_render_shape), "shapes");
    const Py_ssize_t n_textures = rows_of(textures, sizeof(vgq_render_texture), "textures");
    const Py_ssize_t n_lights = rows_of(lights, sizeof(vgq_render_light), "lights");
    const Py_ssize_t n_cameras = rows_of(cameras, sizeof(vgq_render_camera), "cameras");
    if (n_shapes < 0 || n_textures < 0 || n_lights < 0 || n_cameras < 0)
        return NULL;
    if (PyArray_SIZE(ambient) != 3 || PyArray_NDIM(depth) != 3 ||
        PyArray_DIM(depth, 0) != n_cameras || PyArray_SIZE(rgb) != 3 * PyArray_SIZE(depth) ||
        PyArray_SIZE(points) != 3 * PyArray_SIZE(depth))
        return PyErr_Format(PyExc_ValueError,
                            "ambient must be (3,), depth (S, H, W), rgb and points (S, H, W, 3)");
    if (!PyArray_ISWRITEABLE(rgb) || !PyArray_ISWRITEABLE(depth) || !PyArray_ISWRITEABLE(points))
        return PyErr_Format(PyExc_ValueError, "rgb, depth and points must be writeable");
    const size_t height = (size_t)PyArray_DIM(depth, 1), width = (size_t)PyArray_DIM(depth, 2);
    if (first < 0 || last < first || last > n_cameras * (Py_ssize_t)height)
        return PyErr_Format(PyExc_ValueError, "rows %zd to %zd are not in the %zd rows", first,
                            last, n_cameras * (Py_ssize_t)height);
    const float *sky = PyArray_DATA(ambient);
    const vgq_render_scene scene = {
        PyArray_DATA(shapes), PyArray_DATA(textures), PyArray_DATA(lights),    (size_t)n_shapes,
        (size_t)n_textures,   (size_t)n_lights,       {sky[0], sky[1], sky[2]}};
    const char *fault = vgq_render_check(&scene);
    if (fault)
        return PyErr_Format(PyExc_ValueError, "%s", fault);
    const vgq_render_camera *camera = PyArray_DATA(cameras);
    uint8_t *colours = PyArray_DATA(rgb);
    float *z = PyArray_DATA(depth), *xyz = PyArray_DATA(points);
    // A few rows at a time, so that a signal's handler need not wait for the whole.
    enum { ROWS = 16 };
    for (size_t row = (size_t)first; row < (size_t)last;) {
        if (PyErr_CheckSignals() < 0)
            return NULL;
        Py_BEGIN_ALLOW_THREADS
            const size_t frame = row / height, start = row % height;
            const size_t most = (size_t)last - row, left = most < ROWS ? most : ROWS;
            const size_t stop = start + left < height ? start + left : height;
            const size_t base = frame * height * width;
            vgq_render_rows(&scene, &camera[frame], width, height, start, stop, antialias,
                            colours + 3 * base, z + base, xyz + 3 * base);
            row += stop - start;
        Py_END_ALLOW_THREADS
    }
    Py_RETURN_NONE;
}

PyDoc_STRVAR(mean_norm_doc, "mean_norm(points)\n--\n\n"
                            "Mean length of points (..., 3), summed in order in double.");

static PyObject *py_mean_norm(PyObject *self, PyObject *args)
{
    PyArrayObject *points;
    double mean;
    (void)self;
    if (!PyArg_ParseTuple(args, "O&:mean_norm", as_f32, &points))
        return NULL;
    const int axes = PyArray_NDIM(points);
    if (axes < 1 || PyArray_DIM(points, axes - 1) != 3)
        return PyErr_Format(PyExc_ValueError, "points must have the shape (..., 3)");
    const size_t n = (size_t)PyArray_SIZE(points) / 3;
    const float *xyz = PyArray_DATA(points);
    Py_BEGIN_ALLOW_THREADS
        mean = vgq_mean_norm(n, xyz);
    Py_END_ALLOW_THREADS
    return PyFloat_FromDouble(mean);
}

static PyMethodDef methods[] = {
    {"render", py_render, METH_VARARGS, render_doc},
    {"mean_norm", py_mean_norm, METH_VARARGS, mean_norm_doc},
    {NULL, NULL, 0, NULL},
};

static int execute(PyObject *module)
{
    if (PyArray_ImportNumPyAPI() < 0)
        return -1;
    return PyModule_AddIntConstant(module, "MAX_SHAPES", VGQ_RENDER_SHAPES);
}

static PyModuleDef_Slot slots[] = {
    {Py_mod_exec, (void *)execute},
    {0, NULL},
};

static struct PyModuleDef definition = {
    PyModuleDef_HEAD_INIT,
    "_render",
    "Closed-form ray caster.",
    0,
    methods,
    slots,
    NULL,
    NULL,
    NULL,
};

PyMODINIT_FUNC PyInit__render(void);

PyMODINIT_FUNC PyInit__render(void) { return PyModuleDef_Init(&definition); }
