"""Serving the accesses of other ranks to keys that are owned here, and passing on those of keys that have left.

Guarantees
    * A key is accessed by its owner alone, once: what is not owned here, nor on its way, is forwarded along the location cache
      with the origin's rank; the reply goes straight to the origin.
    * Serving never waits: a key that is on its way has its access parked until it comes.
Called when a message arrives (``serve``), and by management when a key has come (``serve_parked``). Engine lock held.
"""

cimport cython
from libc.stdint cimport int64_t, uint32_t, uint64_t
from libcpp.vector cimport vector

from intentpm.runtime._native.journal cimport Journal
from intentpm.runtime._native.messages cimport AccessBody, AccessHeader
from intentpm.runtime._native.parking cimport ParkedMessage, Parking
from intentpm.runtime._native.remote cimport RemoteAccess
from intentpm.runtime._native.table_state cimport TableState
from intentpm.transports.base cimport Transport


@cython.final
cdef class Serving:
    cdef RemoteAccess remote             # of this rank's own: tables, and what comes back to it
    cdef Transport transport
    cdef Parking parking
    cdef Journal journal
    # guarded by: engine lock
    cdef vector[uint32_t] grouped        # scratch: keys of a request to be forwarded
    cdef vector[uint32_t] parked         # scratch: keys of a request that wait here for their row
    cdef uint64_t served_keys
    cdef uint64_t forwarded_keys

    # Message handler. False: the message is malformed.
    cdef bint serve(
        self, uint32_t source, const AccessHeader* header, const char* body, size_t body_bytes) noexcept nogil
    # A parked access whose key has arrived.
    cdef void serve_parked(self, TableState* table, uint32_t key, ParkedMessage* message) noexcept nogil
    # private
    cdef bint _answer(self, TableState* table, const AccessHeader* asked, const AccessBody* sections) noexcept nogil
    cdef bint _access_owned(
        self, TableState* table, int kind, int64_t key, char* row, double lr, bint is_new) noexcept nogil
    cdef bint _park_if_coming(
        self, TableState* table, const AccessHeader* asked, const AccessBody* sections, uint32_t i) noexcept nogil
    cdef void _fill_index(
        self, TableState* table, const AccessHeader* asked, const AccessBody* sections, AccessBody* reply) noexcept nogil
    cdef bint _forward(self, TableState* table, const AccessHeader* asked, const AccessBody* sections) noexcept nogil
    cdef void _forward_to(
        self, TableState* table, uint32_t owner, const AccessHeader* asked, const AccessBody* sections) noexcept nogil
