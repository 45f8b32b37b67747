"""Management: who holds which key. Both sides of the protocol that relocates and replicates keys and keeps replicas fresh.

Holder                                               Owner
    intent due, key absent: REQUESTED
    ROUND {keys, records, what was written} ----------> applies that; decides per key (policy.pxd)
    <--- ANSWER {keys, results, rows}                    ROW, FETCHED, WEIGHTS, SAME, MOVED, MOVED_SAME or DROPPED
    <--- REFRESH {keys, rows}  REFRESHED --->            rows of this holder's replicas that others have changed
    <--- OFFER {keys}                                    "you alone still hold these": asked for again, they move (hints.pxd)

Every rank is both. Each part of it is a class and file with its own state, and knows only those further down. Rounds composes
them: it says in which order they step, and which of them takes a message.

    Sync           waits until writes have reached those who hold copies: wait_sync, and the flush of a barrier
    RankIntents    what this rank's workers intend: due, started, over
    RankWrites     what they wrote, on its way to owners and holders
    Holder         asks for keys, takes answers and refreshes, gives replicas back
    Owner          decides on records; answers, parks or forwards them
    News, Hints    what holders have not been sent yet of rows owned here; where keys have moved, and which are offered

At most one round is in flight per pair of ranks (I2), beside it releases, and at most one record per key and holder, so an
answer acknowledges exactly the delta that its record carried. A key that is no longer here is forwarded along the location
cache with the holder's rank; the answer goes straight to the holder. A rank that forwards says at which epoch it believes
the receiver became owner: a receiver that does not know that epoch yet parks the record until the row arrives.

Order of messages does not matter: rows carry (epoch, version of the owner's row); a holder takes only newer ones. A REFRESH
for a key with an unanswered record is not applied (the delta in flight would be missing from it) but remembered, and asked
for again with the next record.

Invariants: I1 a key has one owner or one relocation in flight; I2, above; I3 epochs only grow (directory.pxd); I4 a replica
is the owner's row it last saw plus what is pending (replicas.pxd); I5 value conservation: follows from one record per key.

Called by: Engine (``step``, ``on_message``), which calls single parts too; Inspection (``sample``, counters).
Assumption: every method is called under the engine's lock.
"""

cimport cython
from libc.stdint cimport int64_t, uint8_t, uint32_t, uint64_t

from intentpm.runtime._native.concerned_ranks cimport ConcernedRanks
from intentpm.runtime._native.hints cimport Hints
from intentpm.runtime._native.holder cimport Holder
from intentpm.runtime._native.journal cimport Journal
from intentpm.runtime._native.messages cimport RoundBody, RoundHeader
from intentpm.runtime._native.news cimport News
from intentpm.runtime._native.owner cimport Owner
from intentpm.runtime._native.rank_intents cimport RankIntents
from intentpm.runtime._native.rank_writes cimport RankWrites
from intentpm.runtime._native.remote cimport RemoteAccess
from intentpm.runtime._native.table_state cimport TableState
from intentpm.runtime._native.sync cimport Sync
from intentpm.transports.base cimport Transport


@cython.final
cdef class Rounds:
    cdef Transport transport
    cdef RemoteAccess remote
    cdef Journal journal
    cdef uint32_t size
    cdef int management
    cdef uint64_t messages               # of management that have come
    cdef int64_t shed_again_ns           # before that it is not looked whether copies must go. 0: look
    cdef ConcernedRanks concerned
    cdef readonly Hints hints
    cdef readonly News news
    cdef readonly Owner owner
    cdef readonly Holder holder
    cdef readonly RankIntents intents
    cdef readonly RankWrites writes
    cdef readonly Sync sync

    # Does what is due at ``now_ns``; returns when it wants to be called again at the latest (NEVER: when something happens).
    cdef int64_t step(self, int64_t now_ns) noexcept nogil
    # False: malformed.
    cdef bint on_message(
        self, uint32_t source, uint8_t message_id, const RoundHeader* header,
        const char* body, size_t body_bytes) noexcept nogil
    # Gives memory that former replicas and owned rows have left back to the system, of tables where it is that much.
    cdef void trim(self, size_t least_bytes) noexcept nogil
    # Totals at this moment, into the trace.
    cdef void sample(self, int64_t now_ns, bint at_once) noexcept nogil
    # private
    cdef int64_t _keep_to_budget(self, int64_t now_ns) noexcept nogil
    cdef bint _fetch_rows(self, uint32_t now) noexcept nogil
    cdef bint _take_hint(
        self, uint8_t message_id, TableState* table, const RoundHeader* header, const char* body,
        size_t body_bytes) noexcept nogil
    cdef void _take_answer(
        self, uint32_t owner, TableState* table, const RoundHeader* header, const RoundBody* body) noexcept nogil
