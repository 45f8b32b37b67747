"""The memory of a table: address space for every key, which the system commits page by page at first touch.

Guarantees
    * Memory is zero when it is first touched, and again after it was given back; that a table is large costs nothing yet.
    * Rows lie in huge pages where there is enough of them: a random access then rarely misses the TLB.
Called by ``Table``, once each; ``give_back_...`` by ``slots``, under the engine's lock.
"""

from libc.stdint cimport int64_t

from intentpm.runtime._native.row_pool cimport RowPool
from intentpm.runtime._native.table_state cimport TableState


# Maps every array of a table whose numbers (size, num_keys, stored_bytes) and optimiser are set, and sets ``fixed_bytes``.
# Raises MemoryBudgetError; then some are NULL.
cdef int map_arrays(TableState* table) except -1
cdef void unmap_arrays(TableState* table) noexcept
# The slots from ``end`` up to the last that was ever bound are free, and of the free ones ``kept`` lie below.
cdef void give_back_slots(TableState* table, int64_t end, int64_t kept) noexcept nogil
# No row is in ``rows``: all are on a device.
cdef void give_back_rows(TableState* table) noexcept nogil
# No row has a holder.
cdef void give_back_holdings(TableState* table) noexcept nogil
# Nobody has a row of it, nor can anybody take one meanwhile.
cdef void give_back_pool(RowPool* pool) noexcept nogil
