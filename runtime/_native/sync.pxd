"""Sync and flush: waiting until writes have reached those who hold copies.

    wait_sync   this rank's deltas are acknowledged by the owners, then every owner has sent this rank all news of its replicas:
                SYNC to every rank <-> SYNCED when its news for this rank are sent and acknowledged. Then the records are
                answered that were under way: their answers have what a REFRESH missed, and may come after the SYNCED
    barrier     the reverse: this rank's news are sent to all holders and acknowledged by them (``flush``). When all ranks
                have done so, each waits for its records that are under way then (``begin_settling``), for the same reason

Several calls of wait_sync share one sync: those that come while one is going on wait for the next (tickets).

Called by: Engine (calls of workers; a SYNC or SYNCED has come; a lost rank), Rounds (every step). It has RankIntents look,
RankWrites collect, Holder flip its colour, and News flush.

Guarantees
    * A sync waits for what was written or asked for before it began, and not for what comes later: it ends beside workers that
      never rest (Holder's colours, News' flushes).
    * Every operation is ended once: by ``_end_sync``, ``abandon`` or ``fail``.
Assumption: every method is called under the engine's lock.
"""

cimport cython
from libc.stdint cimport uint8_t, uint32_t, uint64_t
from libcpp.vector cimport vector

from intentpm.runtime._native.holder cimport Holder
from intentpm.runtime._native.news cimport News
from intentpm.runtime._native.rank_intents cimport RankIntents
from intentpm.runtime._native.rank_writes cimport RankWrites
from intentpm.runtime._native.requests cimport Operation, RequestPool
from intentpm.transports.base cimport Transport

cdef struct SyncWait:
    uint64_t ticket
    Operation* operation
    bint settles                 # waits for the first half alone


@cython.final
cdef class Sync:
    cdef Transport transport
    cdef RequestPool requests
    cdef RankIntents intents
    cdef Holder holder
    cdef News news
    cdef RankWrites writes
    cdef uint32_t rank
    cdef uint32_t size
    cdef uint64_t wanted                         # last ticket given out
    cdef uint64_t running                        # ticket being worked on; 0: none
    cdef uint64_t done
    cdef bint flushed                            # its first half (deltas acknowledged) is over
    cdef uint32_t synced_missing                 # SYNCED answers still to come
    cdef bint heard                              # all have come: what was under way then is waited for
    cdef vector[SyncWait] waits

    # Ends ``operation`` (begun by the caller) when all that DESIGN asks of wait_sync has happened.
    cdef void begin(self, Operation* operation) noexcept nogil
    # The same, of what this rank has for others, and has asked for: replicas are not refreshed. What ``cuts.pxd`` needs, and
    # the end of a barrier.
    cdef void begin_settling(self, Operation* operation) noexcept nogil
    # The caller no longer waits.
    cdef void abandon(self, Operation* operation) noexcept nogil
    cdef void fail(self, int status) noexcept nogil
    # The members have formed anew: what is under way fails, and nobody is owed news.
    cdef void restart(self) noexcept nogil
    # Sends every holder what it lacks; is_flushed says when all has arrived.
    cdef void flush(self) noexcept nogil
    cdef bint is_flushed(self) noexcept nogil
    # False: makes no sense.
    cdef bint on_message(self, uint32_t source, uint8_t message_id) noexcept nogil
    # The news for ``peer``, whose wait_sync asked for them, have arrived.
    cdef void answer(self, uint32_t peer) noexcept nogil

    cdef inline void step(self) noexcept nogil:
        if self.running != 0 or self.wanted != self.done:
            self._go_on()

    # What it waited for ended after it looked.
    cdef inline bint can_go_on(self) noexcept nogil:
        return self.running != 0 and self.synced_missing == 0 and not self.holder.is_old_colour_busy()

    # private
    cdef void _go_on(self) noexcept nogil
    cdef void _begin_sync(self) noexcept nogil
    cdef void _ask_for_news(self) noexcept nogil
    cdef bint _is_waited_for(self) noexcept nogil
    cdef void _end_sync(self) noexcept nogil
    cdef void _add_wait(self, Operation* operation, bint settles) noexcept nogil
    cdef void _close_waits(self, uint64_t ticket, bint settling) noexcept nogil
    cdef void _send(self, uint32_t peer, uint8_t message_id, uint64_t sequence) noexcept nogil
