"""How a table's row lies in its slab; ``row_layout.pyx`` says what there is."""

from intentpm.runtime._native.row_optimiser cimport RowOptimiser


cdef int describe_optimiser(RowOptimiser* out, object optimiser, int dtype_code, object stored, size_t items) except -1
