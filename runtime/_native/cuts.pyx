"""The cut of a checkpoint; ``cuts.pxd`` is the contract."""

from libc.stdint cimport uint8_t, uint32_t

from intentpm.foundation.primitives cimport store_relaxed, store_release, store_release_pointer
from intentpm.runtime._native.apart cimport free_snapshots, new_snapshot, retire_snapshot
from intentpm.runtime._native.budget cimport Budget
from intentpm.runtime._native.table_state cimport TableState
from intentpm.transports.base cimport Transport


cdef class Cuts:
    def __init__(self, Transport transport not None, Budget budget not None):
        self.transport = transport
        self.budget = budget

    cdef void hear(self, TableState* table, uint8_t flags) noexcept nogil:
        if self._lead(flags) > 0:
            self._open(table, self.made + 1)

    cdef void _open(self, TableState* table, uint32_t number) noexcept nogil:
        if table.snapshot != NULL and table.snapshot.number == number:
            return
        if table.snapshot != NULL:
            retire_snapshot(table)           # all ranks are done with that one, or the next could not have begun
        self.budget.make_copy_room()
        store_release_pointer(<void**>&table.snapshot, new_snapshot(table, number, &self.budget.copies))
        if table.snapshot == NULL:
            self.transport.out_of_memory = True

    cdef bint cut(self, TableState* table, uint32_t number) noexcept nogil:
        free_snapshots(table)                # no worker writes
        self._open(table, number)
        if table.snapshot == NULL:
            return False
        store_release(&table.snapshot.cut_here, 1)
        return True

    cdef void count(self) noexcept nogil:
        store_relaxed(&self.made, self.made + 1)

    cdef void end(self, TableState* table, uint32_t number) noexcept nogil:
        if table.snapshot != NULL and table.snapshot.number <= number:
            retire_snapshot(table)

    cdef void restart(self, TableState** tables, uint32_t table_count, uint32_t made) noexcept nogil:
        cdef uint32_t t
        for t in range(table_count):
            if tables[t].snapshot != NULL:
                retire_snapshot(tables[t])
        store_relaxed(&self.made, made)
