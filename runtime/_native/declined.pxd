"""Keys of tables with an optimiser: who asked for one in vain.

Every step is taken at the owner, so that it is exact: such a table has no replicas. A rank that asks gets the key when nobody
else intends it (``policy.pxd``); else its record is declined, the key is ABSENT there as before, and accesses stay remote. It
asks again at its next intent for the key. The owner remembers the last rank it declined, and offers it the key when its own
intent is over (``hints.pxd``); a rank whose intent is over by then takes no notice, and no other is asked.

Guarded by: engine lock.
"""

from libc.stdint cimport int64_t, uint16_t, uint32_t

from intentpm.runtime._native.holders cimport only_holder
from intentpm.runtime._native.table_state cimport TableState


cdef inline bint may_replicate(const TableState* table) noexcept nogil:
    return table.optimiser == NULL


cdef inline void note_declined(TableState* table, uint32_t key, uint32_t rank) noexcept nogil:
    table.declined[key] = <uint16_t>(rank + 1)


cdef inline void forget_declined(TableState* table, uint32_t key) noexcept nogil:
    if table.declined != NULL:
        table.declined[key] = 0


cdef inline bint is_wanted_elsewhere(const TableState* table, uint32_t key) noexcept nogil:
    return table.declined != NULL and table.declined[key] != 0


cdef inline int64_t next_owner(const TableState* table, uint32_t key) noexcept nogil:
    """The rank to which a key shall go that nobody intends here; -1: it stays."""
    if table.declined != NULL:
        return <int64_t>table.declined[key] - 1
    return only_holder(table, key)
