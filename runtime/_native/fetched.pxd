"""Keys that are fetched: asked for, or here as a replica, for one clock of one worker (KEY_ONCE).

Guarded by: engine lock.
"""

from libc.stdint cimport uint32_t

from intentpm.runtime._native.flags cimport KEY_ONCE
from intentpm.runtime._native.table_state cimport TableState


cdef inline bint is_for_one_use(const TableState* table, uint32_t key) noexcept nogil:
    """Of a fetched replica: whether it is given back after this use, or has been by now: no further intent is due."""
    return (table.flags[key] & KEY_ONCE) != 0 and table.records[key].intent_refs <= 1
