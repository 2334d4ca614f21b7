/* SPDX-License-Identifier: Apache-2.0
 * Shared by the files of the module vggtquant._cpu: converters for PyArg_ParseTuple's O&. They
 * borrow: a wrapper never cleans up. All arrays must be C-contiguous, aligned and of native byte
 * order; outputs writable as well.
 */
#ifndef VGQ_BINDING_H
#define VGQ_BINDING_H

#include "../words.h"

#define NPY_NO_DEPRECATED_API NPY_2_0_API_VERSION
#define PY_ARRAY_UNIQUE_SYMBOL vgq_numpy_api
#ifndef VGQ_IMPORTS_NUMPY
#define NO_IMPORT_ARRAY
#endif
#include <numpy/arrayobject.h>

/* float32, float16, or uint16 holding the bits of bfloat16 */
int vgq_in_values(PyObject *object, void *array);
int vgq_optional_values(PyObject *object, void *array);
int vgq_out_values(PyObject *object, void *array);
/* one dtype each; `optional` ones take None as NULL */
int vgq_in_f32(PyObject *object, void *array);
int vgq_out_f32(PyObject *object, void *array);
int vgq_optional_f32(PyObject *object, void *array);
int vgq_out_f64(PyObject *object, void *array);
int vgq_in_u8(PyObject *object, void *array);
int vgq_out_u8(PyObject *object, void *array);
int vgq_optional_in_u8(PyObject *object, void *array);
int vgq_optional_out_u8(PyObject *object, void *array);
int vgq_optional_in_i8(PyObject *object, void *array);
int vgq_optional_out_i8(PyObject *object, void *array);
int vgq_out_u64(PyObject *object, void *array);

vgq_dtype vgq_dtype_of(PyArrayObject *array);
/* Whether it has so many elements. */
int vgq_has(PyArrayObject *array, size_t elements);
/* NULL gives NULL. */
void *vgq_data(PyArrayObject *array);

/* Return what a call without the GIL gives. On the main thread signals are seen to meanwhile: a
 * handler that raises, as that of Ctrl-C does, ends the call with what it raised. */
#define VGQ_RETURN(call)                       \
    do {                                       \
        vgq_released released;                 \
        vgq_release(&released);                \
        const vgq_status status_ = (call);     \
        return vgq_regain(&released, status_); \
    } while (0)

/* The same for a call that wants scratch: it finds it in `scratch`. */
#define VGQ_RETURN_WITH_SCRATCH(wanted, call)                   \
    do {                                                        \
        vgq_scratch scratch;                                    \
        if (!vgq_take_scratch(&scratch, (wanted)))              \
            return NULL;                                        \
        vgq_released released;                                  \
        vgq_release(&released);                                 \
        const vgq_status status_ = (call);                      \
        PyObject *const done_ = vgq_regain(&released, status_); \
        vgq_give_scratch(&scratch);                             \
        return done_;                                           \
    } while (0)

/* Memory for one call. A thread keeps what its last call had, up to a limit, so that the next one
 * need not wait for the system to clear new pages. */
typedef struct vgq_scratch {
    unsigned char *data;
    size_t nbytes;
} vgq_scratch;
/* 0 with MemoryError set. */
int vgq_take_scratch(vgq_scratch *scratch, size_t nbytes);
void vgq_give_scratch(vgq_scratch *scratch);

typedef struct vgq_released {
    PyThreadState *thread;
    vgq_stop stop, *outer;
} vgq_released;
void vgq_release(vgq_released *released);
PyObject *vgq_regain(vgq_released *released, vgq_status status);

/* Whether it has so many. */
int vgq_has(PyArrayObject *array, size_t elements);

/* The module's files: <part>.c has vgq_<part>_methods, ended by NULL. */
#define VGQ_BINDINGS(X) X(quantize) X(linear) X(metrics) X(attention) X(conv)
#define X(part) extern PyMethodDef vgq_##part##_methods[];
VGQ_BINDINGS(X)
#undef X

#endif
