"""Serving what waited for its key; ``unparking.pxd`` is the contract."""

from libc.stdint cimport uint32_t
from libcpp.vector cimport vector

from intentpm.runtime._native.mutations cimport MUTATION_RECORDS_FIRST, is_planted
from intentpm.runtime._native.owner cimport Owner
from intentpm.runtime._native.parking cimport ParkedMessage, ParkedRecord, unpark
from intentpm.runtime._native.serving cimport Serving
from intentpm.runtime._native.table_state cimport TableState, is_here


cdef class Unparking:
    def __init__(self, Serving serving not None, Owner owner not None):
        self.parking = serving.remote.parking
        self.serving = serving
        self.owner = owner

    cdef void serve(self, TableState* table, uint32_t count, const uint32_t* keys) noexcept nogil:
        cdef uint32_t i
        if self.parking.parked_now == 0:
            return
        for i in range(count):
            if is_here(table, keys[i]) and self.parking.any(table, keys[i]):
                self._serve_accesses(table, keys[i])
        self._serve_records(table)

    cdef void _serve_accesses(self, TableState* table, uint32_t key) noexcept nogil:
        """And puts the key's records with those of the others."""
        cdef vector[ParkedMessage*] waiting
        cdef vector[ParkedMessage*] accesses
        cdef ParkedRecord record
        cdef size_t i
        self.parking.take(table, key, waiting)
        for i in range(waiting.size()):
            if waiting[i].is_access:
                accesses.push_back(waiting[i])
                continue
            record.message = waiting[i]
            record.key = key
            self.records.push_back(record)
        if is_planted(MUTATION_RECORDS_FIRST):
            self._serve_records(table)
        for i in range(accesses.size()):
            self.serving.serve_parked(table, key, accesses[i])
            unpark(accesses[i])

    cdef void _serve_records(self, TableState* table) noexcept nogil:
        cdef size_t i
        self.owner.serve_parked(table, self.records)
        for i in range(self.records.size()):
            unpark(self.records[i].message)
        self.records.clear()
