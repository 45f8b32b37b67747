"""Hand-over: a key that several ranks intend gets another owner, so that no rank serves all of them.

Contended keys would stay with whoever came first: an owner relocates a key only when nobody else holds it, and some are held by
somebody all the time. So an owner that carries clearly more load than the rank that asks (policy.pxd) answers its record with
RESULT_MOVED, though others hold the key:

    owner -> asker     ANSWER: the row, and the list of all who hold a replica, the owner itself included if it intends the key
    owner -> holders   REFRESH: the row, to those that lacked news of it, or were right but for rounding
    owner              OWNED -> REPLICA of the row it gave away, if it intends the key; else ABSENT. A forward pointer stays
    asker              OWNED, with the holders of the list. What it wrote since its record was sent is news for all of them

Holders learn of it by the answer to their next record, which goes astray and is forwarded once (or by MOVED, hints.pxd).

Guarantees
    * A holder is in the list of exactly one owner, or in an answer that is under way (as the key itself: I1).
    * A holder on the list lacks nothing that was written before the hand-over, but what is under way to it. So a sync or a
      flush that asked the former owner, or will ask the next, misses nothing.
    * Versions go on, and the new owner's are later than all the former's: no holder's row is taken for right that is not.
    * What is handed over with one answer is bounded: by the surplus, and by ``room``. What all hand-overs cost is bounded by a
      share of what this rank sends.

Called by: Owner (an answer is being built), Holder (an answer has come; the load).
Assumption: every method is called under the engine's lock.
"""

cimport cython
from libc.stdint cimport int64_t, uint8_t, uint16_t, uint32_t, uint64_t
from libcpp.vector cimport vector

from intentpm.runtime._native.draft cimport Draft
from intentpm.runtime._native.journal cimport Journal
from intentpm.runtime._native.news cimport News
from intentpm.runtime._native.remote cimport RemoteAccess
from intentpm.runtime._native.table_state cimport Holding, TableState
from intentpm.transports.base cimport Transport


@cython.final
cdef class HandOver:
    cdef Transport transport
    cdef RemoteAccess remote
    cdef Journal journal
    cdef News news
    cdef uint32_t rank
    cdef uint32_t size
    cdef int management
    cdef uint32_t room                           # ranks on the lists of one answer, at most
    cdef public bint always                      # tests: whatever the loads are
    # Of the answer being built:
    cdef bint any                                # a key was handed over
    cdef int64_t surplus                         # load that is still to be handed over
    cdef uint32_t own_load                       # as it will be, ...
    cdef uint32_t their_load                     # ... and that of the rank that asked
    cdef uint32_t listed                         # ranks on its lists
    cdef vector[Holding] others                  # scratch: those of the key being handed over
    # Counters.
    cdef uint64_t spent_bytes                    # that hand-overs may have cost
    cdef readonly uint64_t handed_over
    cdef readonly int64_t kept                   # replicas that former owned rows became

    # What this rank keeps fresh for others.
    cdef uint32_t load(self) noexcept nogil
    # An answer to a rank with that load.
    cdef void begin(self, uint32_t their_load) noexcept nogil
    # Whether the key, owned here and intended by ``asker`` and others, shall be its with this answer.
    cdef bint is_due(self, TableState* table, uint32_t key, uint32_t asker) noexcept nogil
    # The row is moved into ``row``, of the answer, and ``apart`` says what else (``move_out``); returns its version. The list
    # goes into the draft; the caller learns the new owner, and has the news sent that were noted (News.send_last) before the
    # answer is.
    cdef uint32_t give(
        self, TableState* table, uint32_t key, uint32_t asker, char* row, Draft draft, uint8_t* apart) noexcept nogil
    # The other side: the key is owned here and SHARED. others: how many hold it, and who. wrote: this rank's writes that no
    # record carried are in the row.
    cdef void take(self, TableState* table, uint32_t key, const uint16_t* others, bint wrote) noexcept nogil
    # private
    cdef void _count(self, const TableState* table, uint32_t holders) noexcept nogil
    cdef void _take_holdings(self, TableState* table, uint32_t key, uint32_t asker) noexcept nogil
    cdef void _tell(
        self, TableState* table, uint32_t key, const Holding* holding, const char* row, uint32_t version) noexcept nogil
