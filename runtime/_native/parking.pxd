"""Messages that wait for a key that is on its way to this rank.

A parked message has one key and is stored as it came, so that it can be served as if it arrived now. Off the data path:
keys are parked only while they are being relocated or granted. Pulls of this rank's own wait as a whole (remote.pxd).
Guarded by the engine's lock.
"""

cimport cython
from libc.stdint cimport uint8_t, uint32_t, uint64_t
from libcpp.unordered_map cimport unordered_map
from libcpp.vector cimport vector

from intentpm.runtime._native.messages cimport AccessHeader, RoundHeader
from intentpm.runtime._native.table_state cimport TableState


cdef struct ParkedMessage:
    bint is_access               # else a round record
    AccessHeader access
    RoundHeader round
    uint32_t index               # of an access: position in the origin's request
    uint32_t epoch               # the forwarder's
    uint32_t version             # of a record
    double lr                    # of a step
    uint8_t record
    bint has_row                 # of an access
    char* row                    # of an access, or all rows of a record; in the same allocation


# A record, and its key.
cdef struct ParkedRecord:
    ParkedMessage* message
    uint32_t key


@cython.final
cdef class Parking:
    cdef unordered_map[uint64_t, vector[ParkedMessage*]] messages
    cdef readonly uint64_t parked_now            # keys, those that pulls of this rank wait for included (remote.pxd)
    cdef readonly uint64_t parked_ever

    cdef bint park_access(
        self, TableState* table, uint32_t key, const AccessHeader* header, uint32_t index, uint32_t epoch, double lr,
        const char* row) noexcept nogil
    cdef bint park_record(
        self, TableState* table, uint32_t key, const RoundHeader* header, uint8_t record, uint32_t epoch,
        uint32_t version, const char* rows) noexcept nogil
    cdef bint any(self, const TableState* table, uint32_t key) noexcept nogil
    cdef uint32_t count(self, const TableState* table, uint32_t key) noexcept nogil
    # Moves the messages of a key to ``out``; whoever takes them calls unpark on each.
    cdef void take(self, const TableState* table, uint32_t key, vector[ParkedMessage*]& out) noexcept nogil
    # Forgets all messages.
    cdef void clear(self) noexcept nogil
    # private
    cdef bint _put(self, TableState* table, uint32_t key, ParkedMessage* message) noexcept nogil


cdef void unpark(ParkedMessage* message) noexcept nogil
