/* SPDX-License-Identifier: Apache-2.0
 * Shared by the modules _cpu and _cuda: words to enums, shapes that cannot overflow, and the one
 * place where a status becomes None or an exception. */
#ifndef VGQ_WORDS_H
#define VGQ_WORDS_H

#define PY_SSIZE_T_CLEAN
#include <Python.h>

#include "../vgq.h"

/* Converters for PyArg_ParseTuple's O&. */
int vgq_parse_format(PyObject *object, void *format);
int vgq_parse_scales(PyObject *object, void *scales);
int vgq_parse_activations(PyObject *object, void *activations);
/* A size, which is not negative; (rows, columns, group) of a vgq_shape; (n, k, group) of a
 * vgq_weight. */
int vgq_parse_size(PyObject *object, void *size);
int vgq_parse_shape(PyObject *object, void *shape);
int vgq_parse_nkg(PyObject *object, void *weight);
const char *vgq_scales_name(vgq_scales scales);
const char *vgq_activations_name(vgq_activations activations);

/* A shape whose products overflow, or whose groups are empty. */
int vgq_unusable(vgq_shape shape);

/* None, or the exception for that status. */
PyObject *vgq_done(vgq_status status);
/* ValueError for a word that is none of those known; of other objects in its place the type is
 * told, since their repr may run over many lines. */
void vgq_unknown(const char *what, PyObject *object);
/* ValueError for arrays that do not fit the shape. */
PyObject *vgq_wrong_sizes(void);

#endif
