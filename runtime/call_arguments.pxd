"""What a worker's calls are given, checked and in the form that the data path needs; and arrays for what they give back.

Called by Worker, before anything is applied. An array of the right dtype and shape costs a few comparisons; whatever else can
be taken for one is converted by ``arguments``. Holding the GIL; no state.
"""

from libc.stdint cimport int64_t

cimport numpy as cnp

from intentpm.runtime._native.duplicates cimport Duplicates
from intentpm.runtime._native.store cimport Table


# int64 [K], contiguous, all in the table. Raises ShapeError, DtypeError, KeyRangeError.
cdef cnp.ndarray keys_of(Table table, object keys)
# A row for each of ``keys`` to read into: of ``out``, or new. Raises ShapeError, DtypeError.
cdef cnp.ndarray rows_for(Table table, cnp.ndarray keys, object out)
# A row for each of ``keys``, contiguous. Raises ShapeError, DtypeError.
cdef cnp.ndarray values_for(Table table, cnp.ndarray keys, object values)
# Of push_grad. Raises OptimizerError.
cdef int check_step(Table table, object duplicates) except -1
# The keys to be stepped, and their gradients.
cdef tuple steps_of(Table table, Duplicates scratch, cnp.ndarray keys, object gradients, object duplicates)
cdef double learning_rate(Table table, object lr) except -1.0
# The same, once nothing can be wrong any more, of an optimizer that corrects by calls, counted in ``calls`` per table.
cdef double rate_of_call(Table table, dict calls, double lr) except -1.0
# A clock, as it is or as far as there are any. Raises DtypeError naming the argument.
cdef int64_t clock_of(object value, str name) except? -1
