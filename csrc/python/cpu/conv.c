/* SPDX-License-Identifier: Apache-2.0
 * Wrappers of the convolution and of resizing. Both give the bytes of scratch that they want where
 * none is given. */
#include "binding.h"

static int is_shaped(PyArrayObject *array, int ndim, const size_t *shape)
{
    int same = PyArray_NDIM(array) == ndim;
    for (int i = 0; same && i < ndim; i++)
        same = (size_t)PyArray_DIM(array, i) == shape[i];
    return same;
}

/* NULL or of that shape. */
static int fits(PyArrayObject *array, int ndim, size_t a, size_t b, size_t c, size_t d)
{
    const size_t shape[4] = {a, b, c, d};
    return !array || is_shaped(array, ndim, shape);
}

static int optional_values(PyObject *object, void *array)
{
    if (object != Py_None)
        return vgq_in_values(object, array);
    *(PyArrayObject **)array = NULL;
    return 1;
}

static int optional_i32(PyObject *object, void *array)
{
    PyArrayObject *const a = (PyArrayObject *)object;
    if (object == Py_None) {
        *(PyArrayObject **)array = NULL;
        return 1;
    }
    if (PyArray_Check(object) && PyArray_TYPE(a) == NPY_INT32 && PyArray_ISCARRAY_RO(a)) {
        *(PyArrayObject **)array = a;
        return 1;
    }
    PyErr_SetString(PyExc_TypeError, "a C-contiguous int32 array is wanted");
    return 0;
}

static PyObject *py_conv2d(PyObject *self, PyObject *args)
{
    vgq_weight w;
    vgq_conv_call c = {0};
    PyArrayObject *packed, *x, *x_largest, *columns, *rows, *sums, *bias, *residual, *last_weight,
        *last_bias, *y, *y_largest, *scratch;
    (void)self;
    if (!PyArg_ParseTuple(
            args, "O&O&(O&O&)(O&O&)(O&O&)(O&O&)ppppO&O&O&O&O&O&O&O&O&O&O&:conv2d", vgq_in_u8,
            &packed, vgq_in_values, &x, vgq_parse_size, &c.height, vgq_parse_size, &c.width,
            vgq_parse_size, &c.kernel_height, vgq_parse_size, &c.kernel_width, vgq_parse_size,
            &c.stride_height, vgq_parse_size, &c.stride_width, vgq_parse_size, &c.padding_height,
            vgq_parse_size, &c.padding_width, &c.relu_x, &c.relu_y, &c.relu_sum, &c.folded,
            vgq_optional_f32, &x_largest, vgq_optional_f32, &columns, vgq_optional_f32, &rows,
            optional_i32, &sums, vgq_optional_f32, &bias, optional_values, &residual,
            vgq_optional_f32, &last_weight, vgq_optional_f32, &last_bias, vgq_out_values, &y,
            vgq_optional_f32, &y_largest, vgq_optional_out_u8, &scratch))
        return NULL;
    const size_t nbytes = (size_t)PyArray_SIZE(packed);
    const vgq_status status = vgq_packed_weight(vgq_data(packed), nbytes, &w);
    if (status != VGQ_OK)
        return vgq_done(status);
    if (PyArray_NDIM(x) != 4 || PyArray_NDIM(y) != 4)
        return vgq_wrong_sizes();
    c.pictures = (size_t)PyArray_DIM(x, 0);
    c.source_height = (size_t)PyArray_DIM(x, 1);
    c.source_width = (size_t)PyArray_DIM(x, 2);
    c.channels = (size_t)PyArray_DIM(x, 3);
    c.out_height = (size_t)PyArray_DIM(y, 1);
    c.out_width = (size_t)PyArray_DIM(y, 2);
    c.outputs = last_weight ? (size_t)PyArray_DIM(y, 3) : 0;
    const size_t half = c.channels / 2, pictures = c.pictures, n = c.folded ? w.n / 2 : w.n;
    if ((size_t)PyArray_DIM(y, 0) != pictures || (!last_weight && (size_t)PyArray_DIM(y, 3) != n) ||
        !last_weight != !last_bias || !fits(x_largest, 2, pictures, 2, 0, 0) ||
        !fits(y_largest, 2, pictures, 2, 0, 0) || !fits(columns, 2, c.width, half, 0, 0) ||
        !fits(rows, 2, c.height, half, 0, 0) || !fits(sums, 1, w.n, 0, 0, 0) ||
        !fits(bias, 1, w.n, 0, 0, 0) ||
        !fits(residual, 4, pictures, c.out_height, c.out_width, n) ||
        (residual && vgq_dtype_of(residual) != vgq_dtype_of(y)) ||
        !fits(last_weight, 2, c.outputs, 64, 0, 0) || !fits(last_bias, 1, c.outputs, 0, 0, 0))
        return vgq_wrong_sizes();
    c.x_dtype = vgq_dtype_of(x);
    c.y_dtype = vgq_dtype_of(y);
    c.x = vgq_data(x);
    c.x_largest = vgq_data(x_largest);
    c.column_embedding = vgq_data(columns);
    c.row_embedding = vgq_data(rows);
    c.weight_sums = vgq_data(sums);
    c.bias = vgq_data(bias);
    c.residual = vgq_data(residual);
    c.y = vgq_data(y);
    c.y_largest = vgq_data(y_largest);
    c.last_weight = vgq_data(last_weight);
    c.last_bias = vgq_data(last_bias);
    if (!scratch)
        return PyLong_FromSize_t(vgq_conv2d_nbytes(&w, &c));
    VGQ_RETURN(
        vgq_conv2d(vgq_data(packed), nbytes, &c, vgq_data(scratch), (size_t)PyArray_SIZE(scratch)));
}

static PyObject *py_resize(PyObject *self, PyObject *args)
{
    vgq_resize_call c = {0};
    PyArrayObject *x, *added, *y, *scratch;
    (void)self;
    if (!PyArg_ParseTuple(args, "O&O&O&O&:resize", vgq_in_values, &x, optional_values, &added,
                          vgq_out_values, &y, vgq_optional_out_u8, &scratch))
        return NULL;
    if (PyArray_NDIM(x) != 4 || PyArray_NDIM(y) != 4 || PyArray_DIM(x, 0) != PyArray_DIM(y, 0) ||
        PyArray_DIM(x, 3) != PyArray_DIM(y, 3) ||
        (added && (vgq_dtype_of(added) != vgq_dtype_of(y) || !PyArray_SAMESHAPE(added, y))))
        return vgq_wrong_sizes();
    c.pictures = (size_t)PyArray_DIM(x, 0);
    c.source_height = (size_t)PyArray_DIM(x, 1);
    c.source_width = (size_t)PyArray_DIM(x, 2);
    c.channels = (size_t)PyArray_DIM(x, 3);
    c.height = (size_t)PyArray_DIM(y, 1);
    c.width = (size_t)PyArray_DIM(y, 2);
    c.x_dtype = vgq_dtype_of(x);
    c.y_dtype = vgq_dtype_of(y);
    c.x = vgq_data(x);
    c.added = vgq_data(added);
    c.y = vgq_data(y);
    if (!scratch)
        return PyLong_FromSize_t(vgq_resize_nbytes(&c));
    VGQ_RETURN(vgq_resize(&c, vgq_data(scratch), (size_t)PyArray_SIZE(scratch)));
}

PyMethodDef vgq_conv_methods[] = {
    {"conv2d", py_conv2d, METH_VARARGS,
     "A convolution of pictures with channels last; without scratch, the bytes of it."},
    {"resize", py_resize, METH_VARARGS,
     "Bilinear interpolation, corners aligned; without scratch, the bytes of it."},
    {NULL, NULL, 0, NULL},
};
