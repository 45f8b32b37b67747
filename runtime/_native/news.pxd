"""News: what this rank's holders of replicas have not been sent yet, and how it gets to them.

A row owned here has changed: every holder but the one that wrote has news of it (``spread``). They are gathered for
sync_interval_ns and sent as REFRESH messages, of which at most REFRESH_WINDOW per holder are unacknowledged.

A flush of the news for a holder is over when all that was known when it was asked for has been sent and acknowledged. Once
the list has been empty, nothing new is sent until then: news that keep coming cannot hold it up.

Called by: Owner (a holder's delta is in) and RankWrites (this rank wrote): ``spread``; Sync: flushes; Rounds: every step,
and when a REFRESHED has come. Knows nobody of them.

Guarantees
    * A key whose news bit is set for a holder (holders.pxd) is sent to it, and is in its list once, however often written.
    * What is sent is the row as it is then. A key that was moved, dropped or answered meanwhile is left out.
Assumption: every method is called under the engine's lock.
"""

cimport cython
from libc.stdint cimport int64_t, uint8_t, uint32_t, uint64_t
from libcpp.vector cimport vector

from intentpm.runtime._native.draft cimport Draft
from intentpm.runtime._native.intents cimport NEVER
from intentpm.runtime._native.journal cimport Journal
from intentpm.runtime._native.messages cimport RoundHeader
from intentpm.runtime._native.remote cimport RemoteAccess
from intentpm.runtime._native.state cimport KeyRef
from intentpm.runtime._native.table_state cimport TableState
from intentpm.transports.base cimport Transport

cdef enum:
    FLUSH_FOR_SYNC = 1               # the holder's wait_sync asked
    FLUSH_FOR_BARRIER = 2            # this rank's barrier asked


@cython.final
cdef class News:
    cdef Transport transport
    cdef RemoteAccess remote
    cdef Journal journal
    cdef Draft draft
    cdef uint32_t rank
    cdef readonly int64_t sync_interval_ns
    # Per holder:
    cdef vector[vector[KeyRef]] unsent           # keys whose news bit is or was set
    cdef vector[uint32_t] refreshes_open         # unacknowledged REFRESH messages
    cdef vector[int64_t] refreshed_ns            # when the last was sent
    cdef vector[uint8_t] flush_asked             # who waits until all its news are sent and acknowledged
    cdef vector[uint8_t] flush_drained           # all sent, acknowledgements to come
    # Age of news: since this rank knew of the oldest write among them.
    cdef vector[int64_t] news_since_ns           # 0: no news
    # Under load the news never run out. So their later half, from this position on, has an age of its own.
    cdef vector[size_t] later_news_at
    cdef vector[int64_t] later_news_since_ns     # 0: not begun
    cdef vector[int64_t] refresh_since_ns        # and per window slot: of a REFRESH not acknowledged yet
    cdef vector[uint8_t] refresh_slots           # window slots in use, a bit each
    # Counters.
    cdef readonly uint64_t refreshed_rows
    cdef readonly uint64_t stale_rows            # refreshed and acknowledged
    cdef readonly uint64_t stale_row_ns          # their ages, summed
    cdef readonly uint64_t stalest_ns

    # The row of a key owned here has changed, as this rank knows since ``written_ns``.
    cdef void spread(self, TableState* table, uint32_t key, uint32_t writer, int64_t written_ns) noexcept nogil
    cdef void ask_flush(self, uint32_t holder, uint8_t who) noexcept nogil
    # False: no REFRESH was unacknowledged in that window slot.
    cdef bint take_acknowledgement(self, uint32_t holder, const RoundHeader* header) noexcept nogil

    # Sends the holder its news when they are due; returns when that will be.
    cdef inline int64_t step(self, uint32_t holder, int64_t now_ns) noexcept nogil:
        return NEVER if self.unsent[holder].empty() else self._refresh(holder, now_ns)

    # Who asked for a flush that is over now.
    cdef inline uint8_t end_flush(self, uint32_t holder) noexcept nogil:
        return self._end_flush(holder) if self.flush_asked[holder] else 0

    # private
    cdef void _note_age(self, uint32_t holder, int64_t written_ns) noexcept nogil
    cdef void _forget_age(self, uint32_t holder, size_t sent) noexcept nogil
    cdef int64_t _refresh(self, uint32_t holder, int64_t now_ns) noexcept nogil
    cdef bint _fills_message(self, const vector[KeyRef]& references, size_t at) noexcept nogil
    cdef size_t _send_refresh(self, uint32_t holder, size_t at) noexcept nogil
    cdef uint8_t _open_window_slot(self, uint32_t holder) noexcept nogil
    cdef uint8_t _end_flush(self, uint32_t holder) noexcept nogil
