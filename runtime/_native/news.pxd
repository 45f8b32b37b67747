"""News: what this rank's holders of replicas have not been sent yet, and how it gets to them.

A row owned here has changed: every holder but the one that wrote has news of it (``spread``). They wait at least for
sync_interval_ns. A holder that sends rounds writes, and will again: the answer to its next record of a key brings the row
anyway. So news for it wait for about two of its rounds, or a clock of its workers if that is longer, and most of them need no
message of their own. What has waited for so long is sent in REFRESH messages. How many of these may be unacknowledged follows
from how fast acknowledgements come, so that where a link is full, rows that are out of date do not queue up on it.

A holder whose delta was the only write since it last saw the row is told so, and sent no row. Its copy is right but for
rounding where floating-point deltas were added in another order: it is ``rounded``, and the next flush sends it.

Where the owner takes each step anew, whatever the replica made of it (Adagrad), news are weights: nobody but a pull_state
looks at a replica's state. That copy lags, and counts as rounded, so a flush sends the whole row. While a flush is going on
whole rows are sent, else an answer could take news from the flush and bring the weights alone.

A key that is handed over leaves with no news untold (hand_over.pxd): a flush asks the owner of that moment, and need not know
who owned the key before. So its row is sent to every holder that lacks it, as the last of this owner (``note_last``).

A flush of the news for a holder is over when all that was known when it was asked for has been sent and acknowledged. Once
the list has been empty, nothing new is sent until then: news that keep coming cannot hold it up.

Called by: Owner (a holder's delta is in) and RankWrites (this rank wrote): ``spread``; Sync: flushes; Rounds: every step,
and when a ROUND or a REFRESHED has come. Knows nobody of them.

Guarantees
    * What a holder lacks (HOLDING_NEWS, holders.pxd) is sent to it, and is in its list once, however often written.
    * What is sent is the row as it is then. A key that was moved, dropped or answered meanwhile is left out.
Assumption: every method is called under the engine's lock.
"""

cimport cython
from libc.stdint cimport int64_t, uint8_t, uint32_t, uint64_t
from libcpp.vector cimport vector

from intentpm.runtime._native.concerned_ranks cimport ConcernedRanks
from intentpm.runtime._native.draft cimport Draft
from intentpm.runtime._native.intents cimport NEVER
from intentpm.runtime._native.journal cimport Journal
from intentpm.runtime._native.messages cimport RoundHeader
from intentpm.runtime._native.remote cimport RemoteAccess
from intentpm.runtime._native.state cimport KeyRef, KeyRefs
from intentpm.runtime._native.table_state cimport Holding, TableState
from intentpm.transports.base cimport Transport

cdef enum:
    FLUSH_FOR_SYNC = 1               # the holder's wait_sync asked
    FLUSH_FOR_BARRIER = 2            # this rank's barrier asked
    REFRESH_WINDOW = 8               # unacknowledged REFRESH messages per holder, at most; the bits of refresh_slots

# A row that its holder is sent by the owner that gives the key away.
cdef struct LastNews:
    const char* row
    int64_t age_ns
    uint32_t holder
    uint32_t key
    uint32_t version
    uint32_t epoch


@cython.final
cdef class News:
    cdef Transport transport
    cdef RemoteAccess remote
    cdef Journal journal
    cdef Draft draft
    cdef ConcernedRanks concerned
    cdef uint32_t rank
    cdef readonly int64_t sync_interval_ns
    # Per holder:
    cdef vector[KeyRefs] unsent                  # keys that are HOLDING_LISTED
    cdef vector[KeyRefs] rounded                 # keys that are HOLDING_ROUNDED_LISTED
    cdef vector[size_t] rounded_room             # so many at most, before those that are no more are forgotten
    cdef vector[int64_t] due_ns                  # when ``unsent`` is looked at next
    cdef vector[int64_t] heard_ns                # when its last round came
    cdef vector[int64_t] gap_ns                  # between its rounds, smoothed
    cdef vector[int64_t] clock_ns                # of its workers, as it says; 0: not known
    cdef int64_t acknowledged_ns                 # how long an acknowledgement takes, smoothed over all holders
    cdef vector[uint32_t] window                 # REFRESH messages that may be unacknowledged
    cdef vector[uint32_t] refreshes_open         # that are
    cdef vector[uint8_t] flush_asked             # who waits until all its news are sent and acknowledged
    cdef vector[uint8_t] flush_drained           # all sent, acknowledgements to come
    cdef vector[uint8_t] refresh_slots           # window slots in use, a bit each
    # And per window slot, of a REFRESH not acknowledged yet:
    cdef vector[int64_t] news_since_ns           # since when this rank has known of the oldest write among its rows
    cdef vector[int64_t] sent_ns
    cdef KeyRefs ripe                            # scratch: of one holder, what is to be sent now
    cdef vector[LastNews] last                   # scratch: of the answer being built
    # Counters.
    cdef readonly uint64_t refreshed_rows
    cdef readonly uint64_t stale_rows            # refreshed and acknowledged
    cdef readonly uint64_t stale_row_ns          # their ages, summed
    cdef readonly uint64_t stalest_ns

    # The row of a key owned here has changed, as this rank knows since ``written_ns``.
    cdef void spread(self, TableState* table, uint32_t key, uint32_t writer, int64_t written_ns) noexcept nogil
    # The holder is being sent weights alone.
    cdef void note_lagging(self, TableState* table, uint32_t key, uint32_t holder) noexcept nogil
    # The holder wrote, and is told that its row is right.
    cdef void note_rounded(self, TableState* table, uint32_t key, uint32_t holder) noexcept nogil
    # The holder has begun a round. clock_ns: how long its workers' clocks take; 0: not known.
    cdef void note_round_from(self, uint32_t holder, int64_t clock_ns) noexcept nogil
    # Of holders that have begun a round lately; NEVER: none has. 0: that of one is not known.
    cdef int64_t shortest_clock_ns(self, int64_t now_ns) noexcept nogil
    # Of keys of one table that are being given away: the row goes to the holder with the next ``send_last``, until which
    # ``news.row`` stays. Ask ``may_note_last`` first: what is noted is sent at once, in one message per holder.
    cdef bint may_note_last(self, uint32_t holder) noexcept nogil
    cdef void note_last(self, const LastNews* news) noexcept nogil
    cdef void send_last(self, TableState* table) noexcept nogil
    cdef void ask_flush(self, uint32_t holder, uint8_t who) noexcept nogil
    cdef inline bint is_flushing(self, uint32_t holder) noexcept nogil:
        return self.flush_asked[holder] != 0

    # How long a message takes to a holder and back.
    cdef inline int64_t round_trip_ns(self) noexcept nogil:
        return self.acknowledged_ns

    # False: no REFRESH was unacknowledged in that window slot.
    cdef bint take_acknowledgement(self, uint32_t holder, const RoundHeader* header) noexcept nogil

    # Sends the holder its news when they are due; returns when that will be.
    cdef inline int64_t step(self, uint32_t holder, int64_t now_ns) noexcept nogil:
        return NEVER if self.unsent[holder].empty() else self._refresh(holder, now_ns)

    # Who asked for a flush that is over now.
    cdef inline uint8_t end_flush(self, uint32_t holder) noexcept nogil:
        return self._end_flush(holder) if self.flush_asked[holder] else 0

    # ``step`` or ``end_flush`` has to be called for it: it is in ``concerned``.
    cdef inline bint has_some_for(self, uint32_t holder) noexcept nogil:
        return self.flush_asked[holder] != 0 or not self.unsent[holder].empty()

    # Nobody waits for a flush any more.
    cdef void end_flushes(self) noexcept nogil
    # A rank is lost: it needs no news.
    cdef void forget(self, uint32_t holder) noexcept nogil
    # private
    cdef void _list(self, TableState* table, uint32_t key, Holding* holding, int64_t written_ns) noexcept nogil
    cdef void _note_for_flush(self, TableState* table, uint32_t key, Holding* holding) noexcept nogil
    cdef void _list_rounded(self, uint32_t holder) noexcept nogil
    cdef int64_t _patience_ns(self, uint32_t holder, int64_t now_ns) noexcept nogil
    cdef int64_t _refresh(self, uint32_t holder, int64_t now_ns) noexcept nogil
    cdef void _gather_ripe(self, uint32_t holder, int64_t patience_ns, int64_t now_ns) noexcept nogil
    cdef bint _rests(self, Holding* holding, int64_t until_ns) noexcept nogil
    cdef void _sift_rounded(self, uint32_t holder) noexcept nogil
    cdef Holding* _rounded_holding(self, const KeyRef* listed, uint32_t holder) noexcept nogil
    cdef size_t _send_ripe(self, uint32_t holder, bint at_once) noexcept nogil
    cdef bint _fills_message(self, size_t at) noexcept nogil
    cdef size_t _send_refresh(self, uint32_t holder, size_t at) noexcept nogil
    cdef void _send_last_to(self, TableState* table, uint32_t holder) noexcept nogil
    cdef void _send_draft(
        self, TableState* table, uint32_t holder, RoundHeader* header, char* memory, int64_t oldest_ns) noexcept nogil
    cdef uint8_t _open_window_slot(self, uint32_t holder, int64_t since_ns) noexcept nogil
    cdef void _adapt_window(self, uint32_t holder, int64_t took_ns) noexcept nogil
    cdef uint8_t _end_flush(self, uint32_t holder) noexcept nogil
