"""The arguments of a worker's calls; ``call_arguments.pxd`` is the contract."""

import numpy as np

from intentpm.foundation.errors import KeyRangeError, OptimizerError
from intentpm.runtime.arguments import as_keys, as_out, as_rows, whole_number
from intentpm.runtime.optimisers import is_number

from cpython.long cimport PyLong_AsLongLongAndOverflow, PyLong_CheckExact
from cpython.ref cimport Py_INCREF, PyObject
from libc.stdint cimport int64_t

cimport numpy as cnp

from intentpm.runtime._native.batches cimport check_keys
from intentpm.runtime._native.duplicates cimport Duplicates
from intentpm.runtime._native.intents cimport NEVER
from intentpm.runtime._native.store cimport Table

cdef extern from "numpy/arrayobject.h":
    ctypedef struct PyTypeObject:
        pass
    ctypedef struct PyArray_Descr:
        pass
    PyTypeObject PyArray_Type
    object PyArray_NewFromDescr(
        PyTypeObject* subtype, PyArray_Descr* descr, int nd, const cnp.npy_intp* dims, const cnp.npy_intp* strides,
        void* data, int flags, PyObject* prototype)

cnp.import_array()


cdef cnp.ndarray keys_of(Table table, object keys):
    cdef cnp.ndarray wanted
    cdef int64_t bad
    if (cnp.PyArray_CheckExact(keys) and cnp.PyArray_TYPE(<cnp.ndarray>keys) == cnp.NPY_INT64
            and cnp.PyArray_NDIM(<cnp.ndarray>keys) == 1 and cnp.PyArray_ISCARRAY_RO(<cnp.ndarray>keys)):
        wanted = <cnp.ndarray>keys
    else:
        wanted = as_keys(keys)
    bad = check_keys(table.state, <const int64_t*>cnp.PyArray_DATA(wanted), cnp.PyArray_DIM(wanted, 0))
    if bad >= 0:
        raise KeyRangeError(
            f"key {wanted[bad]} (position {bad}) is not in table {table.name!r}, whose keys are 0 to "
            f"{table.num_keys - 1}")
    return wanted


cdef cnp.ndarray rows_for(Table table, cnp.ndarray keys, object out):
    cdef cnp.npy_intp dims[32]
    cdef int axis
    if out is not None:
        if cnp.PyArray_CheckExact(out) and cnp.PyArray_ISCARRAY(<cnp.ndarray>out) and _fit(table, keys, <cnp.ndarray>out):
            return <cnp.ndarray>out
        return as_out(out, table.dtype, _rows_shape(table, keys), f"out for table {table.name!r}")
    dims[0] = cnp.PyArray_DIM(keys, 0)
    for axis in range(table.row_ndim):
        dims[axis + 1] = table.row_dims[axis]
    Py_INCREF(table.dtype)           # PyArray_NewFromDescr takes one
    return <cnp.ndarray>PyArray_NewFromDescr(
        &PyArray_Type, <PyArray_Descr*>table.dtype, table.row_ndim + 1, dims, NULL, NULL, 0, NULL)


cdef cnp.ndarray values_for(Table table, cnp.ndarray keys, object values):
    if (cnp.PyArray_CheckExact(values) and cnp.PyArray_ISCARRAY_RO(<cnp.ndarray>values)
            and _fit(table, keys, <cnp.ndarray>values)):
        return <cnp.ndarray>values
    return as_rows(values, table.dtype, _rows_shape(table, keys), f"deltas or values for table {table.name!r}")


cdef bint _fit(Table table, cnp.ndarray keys, cnp.ndarray rows) except -1:
    """``rows`` are one row of the table for each of the keys."""
    cdef int axis
    if <PyObject*>cnp.PyArray_DESCR(rows) != <PyObject*>table.dtype and rows.dtype != table.dtype:
        return False
    if cnp.PyArray_NDIM(rows) != table.row_ndim + 1 or cnp.PyArray_DIM(rows, 0) != cnp.PyArray_DIM(keys, 0):
        return False
    for axis in range(table.row_ndim):
        if cnp.PyArray_DIM(rows, axis + 1) != table.row_dims[axis]:
            return False
    return True


cdef tuple _rows_shape(Table table, cnp.ndarray keys):
    return (cnp.PyArray_DIM(keys, 0), *table.row_shape)


cdef int check_step(Table table, object duplicates) except -1:
    if table.optimizer is None:
        raise OptimizerError(
            f"table {table.name!r} has no optimizer: pass one when it is made, as in "
            "create_table(..., optimizer=intentpm.optim.Adagrad())")
    if duplicates not in ("sum", "each"):
        raise OptimizerError(f'duplicates={duplicates!r}: choose "sum" or "each"')
    return 0


cdef tuple steps_of(Table table, Duplicates scratch, cnp.ndarray keys, object gradients, object duplicates):
    """The keys to be stepped, and their gradients."""
    cdef cnp.ndarray rows = values_for(table, keys, gradients)
    cdef cnp.ndarray distinct_keys
    cdef cnp.ndarray sums
    cdef const int64_t* wanted = <const int64_t*>cnp.PyArray_DATA(keys)
    cdef int64_t count = cnp.PyArray_DIM(keys, 0)
    cdef int64_t distinct
    if duplicates == "each":
        return keys, rows
    with nogil:
        distinct = scratch.count_distinct(wanted, count, table.state.num_keys)
    if distinct == count:
        return keys, rows
    distinct_keys = np.empty(distinct, np.int64)
    sums = np.empty((distinct, *table.row_shape), table.dtype)
    with nogil:
        scratch.sum_gradients(
            table.state, wanted, <const char*>cnp.PyArray_DATA(rows), count, <int64_t*>cnp.PyArray_DATA(distinct_keys),
            <char*>cnp.PyArray_DATA(sums))
    return distinct_keys, sums


cdef double learning_rate(Table table, object lr) except -1.0:
    if lr is None:
        return table.optimiser.lr
    if not is_number(lr) or lr < 0:
        raise OptimizerError(f"lr={lr!r}: needs a number >= 0")
    return lr


cdef double rate_of_call(Table table, dict calls, double lr) except -1.0:
    if not table.optimiser.by_calls:
        return lr
    calls[table.table_id] = calls.get(table.table_id, 0) + 1
    return table.optimizer.rate_of_call(lr, calls[table.table_id])


cdef int64_t clock_of(object value, str name) except? -1:
    """A clock, as it is or as far as there are any."""
    cdef int overflow = 0
    cdef int64_t clock
    if not PyLong_CheckExact(value):
        value = whole_number(value, name)
    clock = PyLong_AsLongLongAndOverflow(value, &overflow)
    if overflow:
        return <int64_t>NEVER if overflow > 0 else -<int64_t>NEVER
    return clock
