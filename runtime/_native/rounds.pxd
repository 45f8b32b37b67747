"""Management: who holds which key. Both sides of the protocol that relocates and replicates keys and keeps replicas fresh.

Holder                                               Owner
    intent due, key absent: REQUESTED
    ROUND {keys, records, deltas of dirty replicas} ---> applies deltas; decides per key (policy.pxd)
    <--- ANSWER {keys, results, rows}                    RESULT_ROW, RESULT_MOVED or RESULT_DROPPED
    <--- REFRESH {keys, rows}  REFRESHED --->            rows of this holder's replicas that others have changed
    <--- OFFER {keys}                                    "you alone still hold these": asked for again, they move (hints.pxd)

At most one round is in flight per pair of ranks (I2), and at most one record per key and holder, so an answer acknowledges
exactly the delta that its record carried. A key that is no longer here is forwarded along the location cache with the
holder's rank; the answer goes straight to the holder. A rank that forwards says at which epoch it believes the receiver
became owner: a receiver that does not know that epoch yet parks the record until the row arrives.

Order of messages does not matter: rows carry (epoch, version of the owner's row); a holder takes only newer ones. A REFRESH
for a key with an unanswered record is not applied (the delta in flight would be missing from it) but remembered, and asked
for again with the next record.

A write that was on its way to the owner when its key became REQUESTED could be overtaken by the copy the owner grants. So
requests for keys wait until the writes that were open then are acknowledged (``fenced``; RequestPool.phase), and accesses
to REQUESTED keys wait for the copy (RemoteAccess parks them).

Invariants: I1 a key has one owner or one relocation in flight; I2, above; I3 epochs only grow (directory.pxd); I4 a replica
is the owner's row it last saw plus what is pending (store.pyx); I5 value conservation: follows from one record per key.

Assumption: every method is called under the engine's lock.
"""

cimport cython
from libc.stdint cimport int32_t, int64_t, uint8_t, uint16_t, uint32_t, uint64_t
from libcpp.vector cimport vector

from intentpm.runtime._native.hints cimport Hints
from intentpm.runtime._native.intents cimport Intent, IntentQueue
from intentpm.runtime._native.journal cimport Journal, Reason
from intentpm.runtime._native.messages cimport ControlHeader, RoundBody, RoundHeader
from intentpm.runtime._native.parking cimport ParkedMessage
from intentpm.runtime._native.remote cimport RemoteAccess
from intentpm.runtime._native.requests cimport Operation, RequestPool
from intentpm.runtime._native.state cimport KeyRef
from intentpm.runtime._native.store cimport Table, TableState
from intentpm.transports.base cimport Transport


cdef enum KeyFlags:
    KEY_QUEUED = 1               # in ``todo`` or ``fenced``
    KEY_IN_FLIGHT = 2            # a record of it is unanswered
    KEY_MISSED = 4               # a refresh was not applied: ask again
    KEY_OFFERED = 8              # the owner offers it: ask again
    KEY_PINNED = 16              # too many intents to count: kept for good
    KEY_COLOUR = 32              # while busy: counted in busy[1], else in busy[0]
    KEY_FRESH = 64               # of the old colour, and its record was sent after the colour was flipped
    # 128: journal.KEY_TRACED

cdef struct SyncWait:
    uint64_t ticket
    Operation* operation


@cython.final
cdef class Rounds:
    cdef Transport transport
    cdef RemoteAccess remote
    cdef RequestPool requests
    cdef Journal journal
    cdef uint32_t rank
    cdef uint32_t size
    cdef readonly int management
    cdef readonly int64_t sync_interval_ns
    cdef readonly double sync_threshold          # L2 norm below which a replica's delta waits; 0: none
    cdef public uint32_t early_records           # new keys of one owner that are asked for early; tests: a few
    cdef readonly int64_t budget_bytes           # of row memory; 0: no limit
    cdef readonly int64_t held_bytes             # of row memory, counting keys that are asked for
    cdef list queues                             # guarded by: GIL. Keeps the workers' IntentQueues alive
    cdef vector[void*] workers                   # the same, for nogil code
    # Holder.
    cdef vector[vector[KeyRef]] todo             # per rank: keys that may need a record to it
    cdef vector[uint32_t] open_records           # per rank: of the round in flight; 0: none
    cdef vector[uint8_t] growing                 # per rank: this step has begun a round with it and may add to it
    cdef vector[int64_t] began_ns                # per peer: when the last round with it began
    cdef int64_t round_ns                        # how long a round takes, smoothed
    cdef uint64_t records_in_flight
    cdef uint64_t busy[2]                        # keys queued or in flight, by colour
    cdef uint32_t colour                         # of keys that become busy now
    cdef vector[KeyRef] fenced                   # REQUESTED, waiting for earlier writes
    cdef vector[KeyRef] draining                 # as fenced, of the phase that is draining
    # Owner.
    cdef vector[vector[KeyRef]] news             # per holder: keys whose ``news`` bit is or was set
    cdef vector[uint32_t] refreshes_open         # per holder: unacknowledged REFRESH messages
    cdef vector[int64_t] refreshed_ns            # per holder: when the last was sent
    cdef vector[uint8_t] flush_asked             # per holder: who waits until all its news are sent and acknowledged
    cdef vector[uint8_t] flush_drained           # per holder: all sent, acknowledgements to come
    cdef Hints hints
    # Age of news: since this rank knew of the oldest write among them.
    cdef int64_t dirty_since_ns                  # of keys written and not collected; 0: none
    cdef int64_t written_ns                      # of the writes that are being spread
    cdef vector[int64_t] news_since_ns           # per holder; 0: no news
    # Under load the news never run out. So their later half, from this position on, has an age of its own.
    cdef vector[size_t] later_news_at            # per holder
    cdef vector[int64_t] later_news_since_ns     # per holder; 0: not begun
    cdef vector[int64_t] refresh_since_ns        # per holder and window slot: of a REFRESH not acknowledged yet
    cdef vector[uint8_t] refresh_slots           # per holder: window slots in use, a bit each
    # wait_sync of this rank.
    cdef uint64_t sync_wanted                    # last ticket given out
    cdef uint64_t sync_running                   # ticket being worked on; 0: none
    cdef uint64_t sync_done
    cdef bint sync_flushed                       # its first half (deltas acknowledged) is over
    cdef uint32_t synced_missing                 # SYNCED answers still to come
    cdef vector[SyncWait] sync_waits
    cdef int64_t collected_ns                    # when dirty keys were last looked at
    cdef bint look_at_intents
    cdef uint32_t dirt_noted                     # atomic: a writer told the engine of dirt that is not collected yet
    cdef vector[uint32_t] dirty                  # scratch: keys being sorted
    # Scratch of the message being built.
    cdef vector[uint32_t] keys
    cdef vector[uint32_t] epochs
    cdef vector[uint32_t] versions
    cdef vector[uint8_t] codes
    cdef vector[uint32_t] left_over
    cdef vector[uint32_t] row_numbers
    # Counters.
    cdef readonly uint64_t relocations_in
    cdef readonly uint64_t relocations_out
    cdef readonly uint64_t replicas_set_up
    cdef readonly uint64_t replicas_dropped
    cdef readonly int64_t replicas_held          # now
    cdef readonly uint64_t rounds
    cdef readonly uint64_t records
    cdef readonly uint64_t refreshed_rows
    cdef readonly uint64_t forwarded_records
    cdef readonly uint64_t replicas_promoted
    cdef readonly uint64_t intents_acted
    cdef readonly uint64_t intents_late          # keys not here when the window of their intent started
    cdef readonly uint64_t intents_in_time
    cdef readonly uint64_t intents_withdrawn     # keys whose intent was over before they were asked for
    cdef readonly uint64_t stale_rows            # refreshed and acknowledged
    cdef readonly uint64_t stale_row_ns          # their ages, summed
    cdef readonly uint64_t stalest_ns
    cdef readonly uint64_t intents_refused       # keys not asked for because of the memory budget

    # Does what is due at ``now_ns``; returns when it wants to be called again at the latest (NEVER: when something happens).
    cdef int64_t step(self, int64_t now_ns) noexcept nogil
    # Something the engine should look at: an intent that is due or over.
    cdef void look(self) noexcept nogil
    cdef bint is_busy(self) noexcept nogil      # anything is asked for, or to be
    # False: malformed.
    cdef bint on_message(
        self, uint32_t source, uint8_t message_id, const RoundHeader* header,
        const char* body, size_t body_bytes) noexcept nogil
    cdef bint on_control(self, uint32_t source, uint8_t message_id, const ControlHeader* header) noexcept nogil
    # Ends ``operation`` (begun by the caller) when all that DESIGN asks of wait_sync has happened.
    cdef void sync(self, Operation* operation) noexcept nogil
    cdef void unsync(self, Operation* operation) noexcept nogil
    # Sends every holder what it lacks; is_flushed says when all has arrived.
    cdef void flush(self) noexcept nogil
    cdef bint is_flushed(self) noexcept nogil
    cdef void fail(self, int status) noexcept nogil
    cdef bint holds_replicas(self) noexcept nogil
    # A new worker's intents are looked after; it must have been given to ``keep`` before (which needs the GIL, not the lock).
    cdef keep(self, IntentQueue queue)
    cdef void add_worker(self, IntentQueue queue) noexcept nogil
    cdef void count_rows(self, Table table) noexcept nogil
    # Gives memory that former replicas and owned rows have left back to the system, of tables where it is that much.
    cdef void trim(self, size_t least_bytes) noexcept nogil
    cdef void replicate_all(self, Table table) noexcept nogil
    # Totals at this moment, into the trace.
    cdef void sample(self, int64_t now_ns, bint at_once) noexcept nogil
    # private
    cdef TableState* _table(self, uint32_t table) noexcept nogil
    cdef void _step_intents(self) noexcept nogil
    cdef void _look_at(self, IntentQueue queue) noexcept nogil
    cdef void _activate(self, IntentQueue queue, Intent* intent) noexcept nogil
    cdef bint _intend(self, TableState* table, uint32_t key) noexcept nogil
    cdef void _count_started(self, IntentQueue queue, int64_t clock) noexcept nogil
    cdef void _deactivate(self, const Intent* intent) noexcept nogil
    cdef void _want(self, TableState* table, uint32_t key) noexcept nogil
    cdef bint _no_writes_open(self) noexcept nogil
    cdef void _step_fence(self) noexcept nogil
    cdef void _ask_early(self) noexcept nogil
    cdef void _release_fenced(self, vector[KeyRef]& references) noexcept nogil
    cdef void _queue(self, TableState* table, uint32_t key) noexcept nogil
    cdef void _put_in_queue(self, TableState* table, uint32_t key) noexcept nogil
    cdef void _become_busy(self, TableState* table, uint32_t key) noexcept nogil
    cdef void _become_idle(self, TableState* table, uint32_t key) noexcept nogil
    cdef void _stay_busy(self, TableState* table, uint32_t key) noexcept nogil
    cdef void _begin_round(self, uint32_t peer) noexcept nogil
    cdef size_t _send_records(
        self, uint32_t peer, const vector[KeyRef]& references, size_t at, size_t* sent_bytes) noexcept nogil
    cdef int _next_record(self, TableState* table, uint32_t key, char* row) noexcept nogil
    cdef void _send_body(
        self, uint32_t to, uint8_t message_id, TableState* table, const RoundHeader* header, char* memory, bint epochs,
        bint versions) noexcept nogil
    cdef void _take_answer(
        self, uint32_t owner, TableState* table, const RoundHeader* header, const RoundBody* body) noexcept nogil
    cdef void _take_drop(self, TableState* table, uint32_t key) noexcept nogil
    cdef void _take_row(
        self, uint32_t owner, TableState* table, uint32_t key, const char* row, bint moved, uint32_t epoch, uint32_t
        version) noexcept nogil
    cdef void _look_again(self, TableState* table, uint32_t key) noexcept nogil
    cdef bint _needs_record(self, TableState* table, uint32_t key) noexcept nogil
    cdef void _serve_parked(self, TableState* table, uint32_t key, ParkedMessage* message) noexcept nogil
    cdef void _take_offers(self, TableState* table, const RoundHeader* header, const uint32_t* keys) noexcept nogil
    cdef void _take_refresh(
        self, uint32_t owner, TableState* table, const RoundHeader* header, const RoundBody* body) noexcept nogil
    cdef void _serve_round(self, TableState* table, const RoundHeader* asked, const RoundBody* body) noexcept nogil
    cdef void _decide(
        self, TableState* table, uint32_t holder, uint32_t key, uint8_t record, const char* delta, char* memory,
        RoundHeader* header) noexcept nogil
    cdef Reason _reason_to_replicate(self, TableState* table, uint32_t key) noexcept nogil
    cdef uint32_t _move_to(
        self, TableState* table, uint32_t key, uint32_t holder, char* row) noexcept nogil
    cdef void _add_holder(self, TableState* table, uint32_t key, uint32_t holder) noexcept nogil
    cdef void _remove_holder(self, TableState* table, uint32_t key, uint32_t holder) noexcept nogil
    cdef void _pass_on(self, TableState* table, const RoundHeader* asked, const RoundBody* body) noexcept nogil
    cdef void _park(
        self, TableState* table, const RoundHeader* asked, const RoundBody* body, uint32_t i, uint32_t row) noexcept nogil
    cdef void _forward(
        self, TableState* table, uint32_t owner, const RoundHeader* asked, const RoundBody* body, const
        vector[uint32_t]& numbers, const vector[uint32_t]& rows) noexcept nogil
    cdef bint _any_dirty(self) noexcept nogil
    cdef void _expect_dirt(self) noexcept nogil
    cdef int64_t _collect_dirt(self, int64_t now_ns, bint at_once) noexcept nogil
    cdef void _sort_dirty(self, TableState* table, bint at_once) noexcept nogil
    cdef void _spread(self, TableState* table, uint32_t key, uint32_t writer) noexcept nogil
    cdef void _note_age(self, uint32_t holder) noexcept nogil
    cdef void _forget_age(self, uint32_t holder, size_t sent) noexcept nogil
    cdef int64_t _refresh(self, uint32_t holder, int64_t now_ns) noexcept nogil
    cdef bint _fills_message(self, const vector[KeyRef]& references, size_t at) noexcept nogil
    cdef size_t _send_refresh(self, uint32_t holder, size_t at) noexcept nogil
    cdef uint8_t _open_window_slot(self, uint32_t holder) noexcept nogil
    cdef bint _take_acknowledgement(self, uint32_t holder, const RoundHeader* header) noexcept nogil
    cdef void _ask_flush(self, uint32_t peer, uint8_t who) noexcept nogil
    cdef void _step_flush(self, uint32_t peer) noexcept nogil
    cdef void _step_sync(self) noexcept nogil
    cdef void _ask_for_news(self) noexcept nogil
    cdef void _answer_sync(self, uint32_t peer) noexcept nogil
    cdef void _end_sync(self) noexcept nogil
    cdef void _acknowledge(self, uint32_t owner, const RoundHeader* header) noexcept nogil
    cdef bint _is_worth_sending(self, TableState* table, uint32_t key) noexcept nogil
    cdef void _queue_withheld(self, TableState* table) noexcept nogil
