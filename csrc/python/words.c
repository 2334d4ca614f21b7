/* SPDX-License-Identifier: Apache-2.0
 * Words, shapes and statuses, as both modules tell them to Python. */
#include "words.h"

/* The index of `object` among the names, or count. */
static int index_of(PyObject *object, const char *const *names, int count)
{
    int i = 0;
    while (i < count &&
           !(PyUnicode_Check(object) && PyUnicode_CompareWithASCIIString(object, names[i]) == 0))
        i++;
    return i;
}

void vgq_unknown(const char *what, PyObject *object)
{
    const int is_short = PyUnicode_Check(object) || PyLong_Check(object);
    PyErr_Format(PyExc_ValueError, "unknown %s %R", what,
                 is_short ? object : (PyObject *)Py_TYPE(object));
}

int vgq_parse_format(PyObject *object, void *format)
{
#define FORMAT(ID, tag, bits, lowest, highest) [VGQ_##ID] = #tag,
    static const char *const names[VGQ_FORMATS] = {
#include "../formats.def"
    };
#undef FORMAT
    *(vgq_format *)format = (vgq_format)index_of(object, names, VGQ_FORMATS);
    if (*(vgq_format *)format != VGQ_FORMATS)
        return 1;
    vgq_unknown("number format", object);
    return 0;
}

static const char *const scales_names[VGQ_SCALES] = {"per_row", "two_level", "per_group"};

const char *vgq_scales_name(vgq_scales scales) { return scales_names[scales]; }

int vgq_parse_scales(PyObject *object, void *scales)
{
    *(vgq_scales *)scales = (vgq_scales)index_of(object, scales_names, VGQ_SCALES);
    if (*(vgq_scales *)scales != VGQ_SCALES)
        return 1;
    vgq_unknown("kind of scales", object);
    return 0;
}

int vgq_parse_size(PyObject *object, void *size)
{
    const Py_ssize_t n = PyNumber_AsSsize_t(object, PyExc_OverflowError);
    if (n == -1 && PyErr_Occurred())
        return 0;
    if (n < 0) {
        PyErr_Format(PyExc_ValueError, "a size of %zd is given; 0 or more is wanted", n);
        return 0;
    }
    *(size_t *)size = (size_t)n;
    return 1;
}

static int three_sizes(PyObject *object, size_t *first, size_t *second, size_t *third)
{
    if (!PyTuple_Check(object) || PyTuple_GET_SIZE(object) != 3) {
        PyErr_SetString(PyExc_TypeError, "a tuple of three sizes is wanted");
        return 0;
    }
    return vgq_parse_size(PyTuple_GET_ITEM(object, 0), first) &&
           vgq_parse_size(PyTuple_GET_ITEM(object, 1), second) &&
           vgq_parse_size(PyTuple_GET_ITEM(object, 2), third);
}

int vgq_parse_shape(PyObject *object, void *shape)
{
    vgq_shape *const s = shape;
    return three_sizes(object, &s->rows, &s->cols, &s->group);
}

int vgq_parse_nkg(PyObject *object, void *weight)
{
    vgq_weight *const w = weight;
    return three_sizes(object, &w->n, &w->k, &w->group);
}

int vgq_unusable(vgq_shape shape)
{
    return shape.cols && (!shape.group || shape.group > shape.cols ||
                          shape.rows > (size_t)PY_SSIZE_T_MAX / 8 / shape.cols);
}

PyObject *vgq_done(vgq_status status)
{
    if (status == VGQ_OK)
        Py_RETURN_NONE;
    if (status == VGQ_ESTOPPED) /* with the handler's exception set */
        return NULL;
    PyErr_SetString(status == VGQ_EISA ? PyExc_RuntimeError : PyExc_ValueError,
                    vgq_message(status));
    return NULL;
}

PyObject *vgq_wrong_sizes(void)
{
    PyErr_SetString(PyExc_ValueError, "the arrays' sizes do not fit the shape given");
    return NULL;
}

static const char *const activations_names[VGQ_ACTIVATIONS] = {
    [VGQ_FLOAT_ACTIVATIONS] = "float",
    [VGQ_BF16_ACTIVATIONS] = "bf16",
    [VGQ_INT8_ACTIVATIONS] = "int8",
    [VGQ_INT16_ACTIVATIONS] = "int16",
};

const char *vgq_activations_name(vgq_activations activations)
{
    return activations_names[activations];
}

int vgq_parse_activations(PyObject *object, void *activations)
{
    for (int i = 0; PyUnicode_Check(object) && i < VGQ_ACTIVATIONS; i++)
        if (PyUnicode_CompareWithASCIIString(object, activations_names[i]) == 0) {
            *(vgq_activations *)activations = (vgq_activations)i;
            return 1;
        }
    vgq_unknown("kind of activations", object);
    return 0;
}
