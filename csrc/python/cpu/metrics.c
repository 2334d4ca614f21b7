/* SPDX-License-Identifier: Apache-2.0
 * The metrics part of module vggtquant._cpu: parse, check shapes, call, report. Arrays come
 * contiguous from vggtquant/ops; bfloat16 comes as its bits, uint16. */
#include "binding.h"

/* Both arrays of `dims` dimensions and one shape, and room for count * width doubles. */
static int fit(PyArrayObject *r, PyArrayObject *c, int dims, PyArrayObject *parts, size_t count,
               size_t width)
{
    if (PyArray_NDIM(r) == dims && PyArray_SAMESHAPE(r, c) &&
        (size_t)PyArray_SIZE(parts) >= count * width)
        return 1;
    PyErr_Format(PyExc_ValueError,
                 "two arrays of the same %d-dimensional shape and %zu doubles of scratch wanted",
                 dims, count * width);
    return 0;
}

static PyObject *py_compare(PyObject *self, PyObject *args)
{
    PyArrayObject *r, *c, *parts;
    (void)self;
    if (!PyArg_ParseTuple(args, "O&O&O&:compare", vgq_in_values, &r, vgq_in_values, &c, vgq_out_f64,
                          &parts))
        return NULL;
    const size_t n = (size_t)PyArray_SIZE(r);
    if (!fit(r, c, 1, parts, vgq_compare_parts(n), sizeof(vgq_moments) / sizeof(double)))
        return NULL;
    VGQ_RETURN(vgq_compare(n, vgq_dtype_of(r), vgq_data(r), vgq_dtype_of(c), vgq_data(c),
                           vgq_data(parts)));
}

static PyObject *py_cross_entropy(PyObject *self, PyObject *args)
{
    PyArrayObject *r, *c, *parts;
    (void)self;
    if (!PyArg_ParseTuple(args, "O&O&O&:cross_entropy", vgq_in_values, &r, vgq_in_values, &c,
                          vgq_out_f64, &parts))
        return NULL;
    const size_t rows = PyArray_NDIM(r) == 2 ? (size_t)PyArray_DIM(r, 0) : 0;
    if (!fit(r, c, 2, parts, vgq_cross_entropy_parts(rows), sizeof(vgq_entropy) / sizeof(double)))
        return NULL;
    VGQ_RETURN(vgq_cross_entropy(rows, (size_t)PyArray_DIM(r, 1), vgq_dtype_of(r), vgq_data(r),
                                 vgq_dtype_of(c), vgq_data(c), vgq_data(parts)));
}

static vgq_images images_of(PyArrayObject *a)
{
    vgq_images shape = {0};
    if (PyArray_NDIM(a) == 4)
        shape = (vgq_images){(size_t)PyArray_DIM(a, 0), (size_t)PyArray_DIM(a, 1),
                             (size_t)PyArray_DIM(a, 2), (size_t)PyArray_DIM(a, 3)};
    return shape;
}

static PyObject *py_ssim(PyObject *self, PyObject *args)
{
    PyArrayObject *r, *c, *parts;
    double data_range, centre;
    (void)self;
    if (!PyArg_ParseTuple(args, "O&O&ddO&:ssim", vgq_in_values, &r, vgq_in_values, &c, &data_range,
                          &centre, vgq_out_f64, &parts))
        return NULL;
    const vgq_images shape = images_of(r);
    if (!fit(r, c, 4, parts, vgq_ssim_parts(shape), 1))
        return NULL;
    VGQ_RETURN(vgq_ssim(shape, vgq_dtype_of(r), vgq_data(r), vgq_dtype_of(c), vgq_data(c),
                        data_range, centre, vgq_data(parts)));
}

static PyObject *py_metric_values(PyObject *self, PyObject *args)
{
    PyArrayObject *moments, *values;
    vgq_metric_parts parts;
    size_t rows = 0;
    (void)self;
    if (!PyArg_ParseTuple(args, "O&ddddO&:metric_values", vgq_out_f64, &moments, &parts.data_range,
                          &parts.cross_entropy, &parts.kl_divergence, &parts.ssim, vgq_out_f64,
                          &values))
        return NULL;
    while (vgq_metric_row(rows))
        rows++;
    if ((size_t)PyArray_SIZE(moments) < sizeof(vgq_moments) / sizeof(double) ||
        (size_t)PyArray_SIZE(values) != rows)
        return PyErr_Format(PyExc_ValueError, "moments and %zu doubles for values wanted", rows);
    return vgq_done(vgq_metric_values(vgq_data(moments), &parts, vgq_data(values)));
}

static PyObject *py_metric_rows(PyObject *self, PyObject *unused)
{
    PyObject *const rows = PyList_New(0);
    const vgq_metric *m;
    (void)self, (void)unused;
    for (size_t i = 0; rows && (m = vgq_metric_row(i)); i++) {
        PyObject *const row =
            Py_BuildValue("ssNN", m->name, m->unit, PyBool_FromLong(m->larger_is_better),
                          PyBool_FromLong(m->is_companion));
        const int failed = !row || PyList_Append(rows, row) < 0;
        Py_XDECREF(row);
        if (failed) {
            Py_DECREF(rows);
            return NULL;
        }
    }
    return rows;
}

static PyObject *py_moment_names(PyObject *self, PyObject *unused)
{
    (void)self, (void)unused;
    return Py_BuildValue("[sssss"
#define SUM(name, term) "s"
#include "../../metrics.def"
                         "]",
                         "n", "nonfinite_r", "nonfinite_c", "lo", "hi"
#define SUM(name, term) , #name
#include "../../metrics.def"
    );
}

static PyObject *parts_for(PyObject *n, size_t (*parts)(size_t))
{
    size_t value;
    return vgq_parse_size(n, &value) ? PyLong_FromSize_t(parts(value)) : NULL;
}

static PyObject *py_compare_parts(PyObject *self, PyObject *n)
{
    (void)self;
    return parts_for(n, vgq_compare_parts);
}

static PyObject *py_cross_entropy_parts(PyObject *self, PyObject *rows)
{
    (void)self;
    return parts_for(rows, vgq_cross_entropy_parts);
}

static PyObject *py_ssim_parts(PyObject *self, PyObject *args)
{
    vgq_images shape;
    (void)self;
    if (!PyArg_ParseTuple(args, "O&O&O&O&:ssim_parts", vgq_parse_size, &shape.images,
                          vgq_parse_size, &shape.height, vgq_parse_size, &shape.width,
                          vgq_parse_size, &shape.channels))
        return NULL;
    return PyLong_FromSize_t(vgq_ssim_parts(shape));
}

static PyObject *py_ssim_limits(PyObject *self, PyObject *unused)
{
    (void)self, (void)unused;
    return Py_BuildValue("ii", VGQ_SSIM_SIDE, VGQ_SSIM_CHANNELS);
}

static PyObject *map_doubles(PyObject *args, vgq_status (*map)(size_t, const double *, double *))
{
    PyArrayObject *x, *y;
    if (!PyArg_ParseTuple(args, "O&O&", vgq_out_f64, &x, vgq_out_f64, &y))
        return NULL;
    if (PyArray_SIZE(x) != PyArray_SIZE(y))
        return PyErr_Format(PyExc_ValueError, "arrays of the same size wanted");
    VGQ_RETURN(map((size_t)PyArray_SIZE(x), vgq_data(x), vgq_data(y)));
}

static PyObject *py_exp(PyObject *self, PyObject *args)
{
    (void)self;
    return map_doubles(args, vgq_exp);
}

static PyObject *py_log(PyObject *self, PyObject *args)
{
    (void)self;
    return map_doubles(args, vgq_log);
}

PyMethodDef vgq_metrics_methods[] = {
    {"compare", py_compare, METH_VARARGS, "compare(r, c, parts): moments into parts[0]"},
    {"compare_parts", py_compare_parts, METH_O, "compare_parts(n): rows of scratch"},
    {"cross_entropy", py_cross_entropy, METH_VARARGS,
     "cross_entropy(r, c, parts): means of cross entropy and divergence into parts[0]"},
    {"cross_entropy_parts", py_cross_entropy_parts, METH_O, "cross_entropy_parts(rows)"},
    {"ssim", py_ssim, METH_VARARGS,
     "ssim(r, c, data_range, centre, parts): mean similarity into parts[0]"},
    {"ssim_parts", py_ssim_parts, METH_VARARGS, "ssim_parts(images, height, width, channels)"},
    {"ssim_limits", py_ssim_limits, METH_NOARGS, "(side of the window, most channels)"},
    {"metric_values", py_metric_values, METH_VARARGS,
     "metric_values(moments, data_range, cross_entropy, kl_divergence, ssim, values)"},
    {"metric_rows", py_metric_rows, METH_NOARGS, "[(name, unit, larger is better, companion)]"},
    {"moment_names", py_moment_names, METH_NOARGS, "what the moments are, in order"},
    {"exp", py_exp, METH_VARARGS, "exp(x, y): y = e^x"},
    {"log", py_log, METH_VARARGS, "log(x, y): y = ln x"},
    {NULL, NULL, 0, NULL},
};
