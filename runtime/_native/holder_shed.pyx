"""Replicas that are given up; ``holder_shed.pxd`` is the contract."""

from libc.stdint cimport int32_t, int64_t, uint32_t

from intentpm.foundation.primitives cimport load_relaxed_i32
from intentpm.runtime._native.budget cimport slot_bytes
from intentpm.runtime._native.holder cimport Holder
from intentpm.runtime._native.state cimport STATE_REPLICA
from intentpm.runtime._native.table_state cimport TableState, key_state


cdef bint shed_replicas(Holder holder) noexcept nogil:
    cdef int64_t excess = holder.budget.excess()
    cdef int64_t missing = excess
    cdef TableState* table
    cdef size_t t
    if excess == 0:
        holder.shed_bytes = 0
        return False
    for t in range(holder.remote.table_count):
        # What is free already is back with the system when it is packed, after a save at the latest.
        table = holder.remote.tables[t]
        missing -= table.free_count * <int64_t>slot_bytes(table)
    holder.shed_bytes = max(<int64_t>0, missing)
    for t in range(holder.remote.table_count):
        if missing <= 0:
            break
        missing -= _shed_of(holder, holder.remote.tables[t], missing)
    return True


cdef int64_t _shed_of(Holder holder, TableState* table, int64_t excess) noexcept nogil:
    """Has replicas given up; returns the bytes of those that are on their way out. The last slots first: what lies behind all
    rows can be given back to the system."""
    cdef int64_t slot = table.slots_touched
    cdef int64_t going = 0
    cdef int32_t key
    if table.slots_used == table.rows_owned:
        return 0
    while slot > 0 and going < excess:
        slot -= 1
        key = load_relaxed_i32(&table.key_of[slot])
        if key >= 0 and key_state(table, key) == STATE_REPLICA:
            holder.queue(table, <uint32_t>key)
            going += slot_bytes(table)
    return going
