"""What waited here for keys on their way, once they have come. ``parking.pxd`` has kept it.

Guarantee: of a key's messages accesses are served before records. A record may give the key away again, and an access of this
rank's own needs it here.

Called by: Holder (an answer has brought keys). Calls Serving and Owner, per message.
Assumption: every method is called under the engine's lock.
"""

cimport cython
from libc.stdint cimport uint32_t
from libcpp.vector cimport vector

from intentpm.runtime._native.owner cimport Owner
from intentpm.runtime._native.parking cimport ParkedRecord, Parking
from intentpm.runtime._native.serving cimport Serving
from intentpm.runtime._native.table_state cimport TableState


@cython.final
cdef class Unparking:
    cdef Parking parking
    cdef Serving serving
    cdef Owner owner
    cdef vector[ParkedRecord] records            # scratch: of the keys that have come

    # Serves what waits for those of ``keys`` that are here now.
    cdef void serve(self, TableState* table, uint32_t count, const uint32_t* keys) noexcept nogil
    # private
    cdef void _serve_accesses(self, TableState* table, uint32_t key) noexcept nogil
    cdef void _serve_records(self, TableState* table) noexcept nogil
