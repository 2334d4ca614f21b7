/* SPDX-License-Identifier: Apache-2.0
 * Arrays of a CUDA device as _cuda takes them: tuples (address, shape, dtype's name). */
#ifndef VGQ_CUDA_ARRAYS_H
#define VGQ_CUDA_ARRAYS_H

#include "../../vgq_cuda.h"
#include "../words.h"

enum { VGQ_ARRAY_DIMS = 4 };

typedef struct vgq_array {
    void *data;
    Py_ssize_t dims, shape[VGQ_ARRAY_DIMS];
    size_t n;
    vgq_dtype dtype; /* of values only */
} vgq_array;

/* Converters for PyArg_ParseTuple's O&, to a vgq_array of that dtype; values: of one of the core's.
 * Optional ones take None too, and then give no data. TypeError for what is no such tuple. */
int vgq_array_values(PyObject *object, void *array);
int vgq_array_f32(PyObject *object, void *array);
int vgq_array_f64(PyObject *object, void *array);
int vgq_array_i64(PyObject *object, void *array);
int vgq_array_u8(PyObject *object, void *array);
int vgq_array_i8(PyObject *object, void *array);
int vgq_array_i32(PyObject *object, void *array);
int vgq_array_optional_values(PyObject *object, void *array);
int vgq_array_optional_f32(PyObject *object, void *array);
int vgq_array_optional_i8(PyObject *object, void *array);

/* vgq_done, with the CUDA runtime's own words. */
PyObject *vgq_cuda_done(vgq_status status);

#endif
