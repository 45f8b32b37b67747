"""One table as Python sees it; its memory and all that happens to it are in the files that ``table_state.pxd`` names."""

from libc.stdint cimport int64_t, uint32_t

from intentpm.runtime._native.row_optimiser cimport RowOptimiser
from intentpm.runtime._native.state cimport KeyState
from intentpm.runtime._native.table_state cimport TableState

cdef enum:
    MAX_ROW_NDIM = 31


cdef class Table:
    cdef TableState* state       # owned by this object; NULL after release
    cdef RowOptimiser optimiser  # state.optimiser, if there is one
    cdef readonly str name
    cdef readonly object dtype   # numpy.dtype
    cdef readonly object optimizer       # of runtime/optimisers.py; None: none
    cdef readonly object stored_dtype    # numpy.dtype: structure of weights and state (row_layout.pyx); None without optimizer
    cdef readonly tuple row_shape
    cdef readonly object tier    # DeviceTier; None: all rows are in ``rows``
    cdef int row_ndim            # row_shape for checks without Python objects
    cdef int64_t row_dims[MAX_ROW_NDIM]
    cdef readonly int64_t num_keys
    cdef readonly uint32_t table_id
    # private
    cdef _set_optimiser(self, optimiser)
    cdef _keys_in(self, KeyState wanted)
