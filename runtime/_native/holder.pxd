"""The holder's side of management: how keys that this rank intends come here, stay fresh, and go again.

    want     an intent is due and its key is not here: REQUESTED, and ``fenced`` until earlier writes to it are through
    queue    its owner has to hear of a replica: of its delta, that it is given up, that it is asked for again
      -> todo[owner] -> ROUND, a record per key -> ANSWER: take the row, or let the replica go; look at the key again
    release  nobody here intends a replica any more: as ``queue``, but it need not wait until a round is over

A write that was on its way to the owner when its key became REQUESTED could be overtaken by the copy the owner grants. So
requests for keys wait until the writes that were open then are acknowledged (``fenced``; RequestPool.phase), and accesses
to REQUESTED keys wait for the copy (RemoteAccess parks them).

A key that is intended for one clock only is asked for *once*: fetched (KEY_ONCE). Its replica is sent no refresh but by a
flush, and its writes go to the owner with the release. If it is intended again meanwhile, its next record says so; if it is for
longer, or still here after a while, a record is sent for it (``want_longer``, ``step_fetched``): it becomes a replica as any.

A key is busy while it is queued or in flight. wait_sync must wait for the keys that are busy when it starts, but not for
those that become busy later, or it would wait for ever beside a busy worker. So busy keys have one of two colours,
counted each; a sync flips the colour and waits until none of the old one is left. A key of the old colour whose record
was sent before the flip may have newer writes pending: it keeps the old colour for one more record (KEY_FRESH tells).

Called by: RankIntents (``want``, ``release``), RankWrites (``queue``), Sync (colours), Rounds (every step; an ANSWER, a REFRESH
or an OFFER has come). Knows nobody of them; has served what waited for keys that
have come (Unparking).

Guarantees
    * I2: the records for one rank that are sent before its answers are one round; the next begins when all are answered.
      Releases that are sent beside it are counted for themselves, and the next ones wait until these are answered.
    * One record per key is unanswered, so its answer acknowledges exactly the delta that it carried (I4, I5).
    * A replica takes no older rows than it has; a REFRESH not at all while a record of it is unanswered: the next one asks for
      it again.
    * A replica is given up with its last delta acknowledged, never before. One that is written and intended again meanwhile
      stays; the owner, which has let it go, is asked for it anew (KEY_MISSED) before it is idle.
    * Memory for a key is promised before it is asked for (budget.pxd). One that is handed over and stays as a replica has its
      slot; what it may keep for its new owner counts from then on.
Assumption: every method is called under the engine's lock.
"""

cimport cython
from libc.stdint cimport int64_t, uint8_t, uint16_t, uint32_t, uint64_t
from libcpp.deque cimport deque
from libcpp.vector cimport vector

from intentpm.runtime._native.budget cimport Budget
from intentpm.runtime._native.concerned_ranks cimport ConcernedRanks
from intentpm.runtime._native.draft cimport Draft
from intentpm.runtime._native.hints cimport Hints
from intentpm.runtime._native.journal cimport Journal
from intentpm.runtime._native.messages cimport RoundBody, RoundHeader
from intentpm.runtime._native.owner cimport Owner
from intentpm.runtime._native.remote cimport RemoteAccess
from intentpm.runtime._native.requests cimport RequestPool
from intentpm.runtime._native.state cimport KeyRef, KeyRefs
from intentpm.runtime._native.table_state cimport TableState
from intentpm.runtime._native.unparking cimport Unparking
from intentpm.transports.base cimport Transport

cdef enum:
    RELEASES_SHARE = 4               # looked for beside a round when one in so many of the queued keys may be one


@cython.final
cdef class Holder:
    cdef Transport transport
    cdef RemoteAccess remote
    cdef RequestPool requests
    cdef Journal journal
    cdef Owner owner
    cdef Unparking unparking
    cdef Hints hints
    cdef Draft draft
    cdef ConcernedRanks concerned
    cdef uint32_t rank
    cdef readonly double sync_threshold          # L2 norm below which a replica's delta waits; 0: none
    cdef bint tells_all                          # whatever the threshold: a wait_sync is going on
    # This rank is about to make its cut (cuts.pxd). A record sent now may be answered after it: it does not say which row this
    # rank has, or the answer could leave that out, and what is pending then be taken for older than the cut
    # (``promote_in_place``).
    cdef bint cutting
    cdef public uint32_t early_records           # new keys of one owner that are asked for early; tests: a few
    cdef readonly Budget budget
    cdef bint passed_back                        # to a rank before the one that this step has come to: step again
    cdef int64_t shed_bytes                      # too much memory is taken: replicas of so much are given up, though intended
    cdef KeyRefs fenced                          # REQUESTED, waiting for earlier writes
    cdef KeyRefs draining                        # as fenced, of the phase that is draining
    cdef deque[KeyRef] fetched                   # replicas that were KEY_ONCE when they came, and at which tick
    # Per rank:
    cdef vector[KeyRefs] todo                    # keys that may need a record to it
    cdef vector[uint32_t] open_records           # of the round in flight; 0: none. Behind them, of releases beside it
    cdef vector[uint32_t] releasable             # of todo, since it was last looked at: keys that nobody here intends any more
    cdef vector[size_t] asked_bytes              # of rows that it may bring
    cdef vector[uint8_t] growing                 # this step has begun a round with it and may add to it
    cdef vector[int64_t] began_ns                # when the last round with it began
    cdef int64_t round_ns                        # how long a round takes, smoothed
    cdef int64_t longest_round_ns                # timing.longest_of_last
    cdef int64_t bearable_gathering_ns           # how long writes may be gathered at most: as the worker bears that bears least
    cdef int64_t clock_ns                        # how long a clock takes of the worker whose are shortest; 0: not known
    cdef uint64_t records_in_flight
    cdef uint64_t busy[2]                        # keys queued or in flight, by colour
    cdef uint32_t colour                         # of keys that become busy now
    # Counters.
    cdef readonly uint64_t relocations_in
    cdef readonly uint64_t replicas_set_up
    cdef readonly uint64_t replicas_fetched      # of these, for one use
    cdef readonly uint64_t replicas_dropped
    cdef readonly uint64_t replicas_promoted
    cdef int64_t replicas_taken                  # and not dropped or promoted
    cdef readonly uint64_t rounds
    cdef readonly uint64_t records
    cdef readonly uint64_t intents_withdrawn     # keys whose intent was over before they were asked for
    cdef readonly uint64_t intents_refused       # keys not asked for because of the memory budget

    # Asks for an ABSENT key with active intent, if there is memory for it.
    # once: for one clock. first_use: the tick at which the key is first accessed.
    cdef void want(self, TableState* table, uint32_t key, bint once, uint32_t first_use) noexcept nogil
    # A key that is KEY_ONCE is needed for longer.
    cdef void want_longer(self, TableState* table, uint32_t key) noexcept nogil
    # Fetched replicas that have been here for too long become replicas as any; returns when to look next.
    cdef int64_t step_fetched(self, int64_t now_ns) noexcept nogil
    # Has what was written to fetched replicas sent now.
    cdef void queue_fetched(self) noexcept nogil
    # Has the key looked at when the next round to its owner begins; once its record is answered, if one is open.
    cdef void queue(self, TableState* table, uint32_t key) noexcept nogil
    # The last intent for a replica is over: the same, and it may go beside a round.
    cdef void release(self, TableState* table, uint32_t key) noexcept nogil
    cdef void step_fence(self) noexcept nogil
    # Asks owners of whom enough is wanted, so that they work while further keys are counted. To be called if may_ask_early.
    cdef void ask_early(self) noexcept nogil
    # An ANSWER has come: ``close_records`` (True: its round is over), then ``take_answer``.
    cdef bint close_records(self, const RoundHeader* header) noexcept nogil
    cdef void take_answer(
        self, uint32_t owner, TableState* table, const RoundHeader* header, const RoundBody* body) noexcept nogil
    cdef void take_refresh(
        self, uint32_t owner, TableState* table, const RoundHeader* header, const RoundBody* body) noexcept nogil
    # The owner would give these away.
    cdef void take_offers(self, TableState* table, const RoundHeader* header, const uint32_t* keys) noexcept nogil

    # Begins the round that is due with ``peer``, if one is; or sends releases beside the one that is open.
    cdef inline void step(self, uint32_t peer) noexcept nogil:
        if not self.todo[peer].empty():
            if self._may_send_to(peer):
                self._begin_round(peer)
            elif self._may_release_to(peer):
                self._send_releases(peer)
        self.growing[peer] = False

    # ``step`` has to be called for it: it is in ``concerned``.
    cdef inline bint has_some_for(self, uint32_t peer) noexcept nogil:
        return not self.todo[peer].empty()

    cdef inline bint may_ask_early(self) noexcept nogil:
        return self.fenced.size() >= self.early_records and self._no_writes_open()

    # Anything is asked for, or to be.
    cdef inline bint is_busy(self) noexcept nogil:
        return self.busy[0] + self.busy[1] > 0

    cdef inline int64_t replicas_held(self) noexcept nogil:
        return self.replicas_taken + self.owner.hand_over.kept

    cdef inline bint holds_replicas(self) noexcept nogil:
        return self.replicas_held() > 0

    # What is busy now is of the old colour from here on.
    cdef inline void flip_colour(self) noexcept nogil:
        self.colour ^= 1

    cdef inline bint is_old_colour_busy(self) noexcept nogil:
        return self.busy[self.colour ^ 1] > 0

    # private
    cdef inline bint _may_send_to(self, uint32_t peer) noexcept nogil:
        return self.open_records[peer] == 0 or self.growing[peer] != 0

    # What releases to a peer count for, in ``open_records`` and as a record's ``round_rank``.
    cdef inline uint32_t _releases_to(self, uint32_t peer) noexcept nogil:
        return <uint32_t>self.todo.size() + peer

    cdef inline bint _may_release_to(self, uint32_t peer) noexcept nogil:
        return RELEASES_SHARE * self.releasable[peer] > self.todo[peer].size() and (
            self.open_records[self._releases_to(peer)] == 0)

    cdef inline bint _no_writes_open(self) noexcept nogil:
        return self.requests.writes_open[0] + self.requests.writes_open[1] == 0

    cdef inline bint _may_ask(self, uint32_t peer) noexcept nogil:
        return self.asked_bytes[peer] < self.budget.answer_bytes

    cdef bint _sheds(self, const TableState* table) noexcept nogil

    cdef void _release_fenced(self, KeyRefs& references) noexcept nogil
    cdef void _put_in_queue(self, TableState* table, uint32_t key, uint32_t first_use=*) noexcept nogil
    cdef uint32_t _number_of(self, TableState* table, const KeyRef* reference, int record) noexcept nogil
    cdef void _become_busy(self, TableState* table, uint32_t key) noexcept nogil
    cdef void _become_idle(self, TableState* table, uint32_t key) noexcept nogil
    cdef void _stay_busy(self, TableState* table, uint32_t key) noexcept nogil
    cdef void _begin_round(self, uint32_t peer) noexcept nogil
    cdef void _send_releases(self, uint32_t peer) noexcept nogil
    cdef size_t _send_records(
        self, uint32_t peer, uint32_t counts_for, const KeyRefs& references, size_t at, size_t end,
        size_t* sent_bytes) noexcept nogil
    cdef int _what_it_has(self, const TableState* table, uint32_t key) noexcept nogil
    cdef int _next_record(self, TableState* table, uint32_t key, char* row) noexcept nogil
    cdef void _take_drop(self, TableState* table, uint32_t key) noexcept nogil
    cdef void _take_same(
        self, uint32_t owner, TableState* table, uint32_t key, bint moved, uint32_t epoch, uint32_t version) noexcept nogil
    cdef void _take_row(
        self, uint32_t owner, TableState* table, uint32_t key, const char* row, uint8_t result, uint32_t epoch,
        uint32_t version) noexcept nogil
    cdef void _note_seen(self, TableState* table, uint32_t key, uint32_t version) noexcept nogil
    cdef void _take_ownership(
        self, uint32_t owner, TableState* table, uint32_t key, const char* row, const uint16_t* others, uint32_t epoch,
        uint32_t version, uint8_t apart) noexcept nogil
    cdef uint8_t _hear_of_snapshot(self, TableState* table, uint8_t flags, uint8_t code) noexcept nogil
    cdef void _look_again(self, TableState* table, uint32_t key) noexcept nogil
    cdef bint _needs_record(self, TableState* table, uint32_t key) noexcept nogil
    cdef bint _is_worth_sending(self, TableState* table, uint32_t key) noexcept nogil
