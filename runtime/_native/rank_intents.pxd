"""The intents of this rank's workers, put into practice. What one worker has signalled, and when it is due: intents.pxd.

    due      every key's ``intent_refs`` grows. A key that is not here is asked for (Holder.want), if this is its first
    started  keys that are not here are counted as late
    over     ``intent_refs`` shrink. With the last one a replica is given back (Holder.queue), and a key owned here is offered
             to the rank that alone holds a replica (Hints)

Of a table whose rows are on a device as far as there is room, the tier is told of each window (tiered_rows.pxd), also where
management does not act on intents.

A worker that signals or advances its clock has the engine call ``look``; the next step looks at every worker's queue.

Keys arrive with answers only. So a key is late if it is not here when the engine first looks, or takes an answer, after the
window has started: it is counted just before. Intents whose keys were here from the start cost nothing.

Called by: Rounds (every step; before and after an ANSWER's records), Sync (``look``), Engine (``look``; workers, tables),
Inquiry (``collect``). It calls Holder and Hints, per key.

Guarantees
    * Of a worker, due intents are acted on before those that are over end: an intent of no length is begun and ended.
    * A key with more intents than can be counted is intended for good.
Assumption: every method is called under the engine's lock, but ``keep``.
"""

cimport cython
from libc.stdint cimport int64_t, uint32_t, uint64_t
from libcpp.vector cimport vector

from intentpm.runtime._native.hints cimport Hints
from intentpm.runtime._native.holder cimport Holder
from intentpm.runtime._native.intents cimport Intent, IntentQueue
from intentpm.runtime._native.journal cimport Journal
from intentpm.runtime._native.remote cimport RemoteAccess
from intentpm.runtime._native.store cimport Table
from intentpm.runtime._native.table_state cimport TableState, WindowEvent


@cython.final
cdef class RankIntents:
    cdef RemoteAccess remote
    cdef Journal journal
    cdef Holder holder
    cdef Hints hints
    cdef uint32_t rank
    cdef int management
    cdef bint managed                            # intents move keys
    cdef list queues                             # guarded by: GIL. Keeps the workers' IntentQueues alive
    cdef vector[void*] workers                   # the same, for nogil code; guarded by: engine lock
    cdef bint look_wanted
    # Counters of keys.
    cdef readonly uint64_t intents_acted
    cdef readonly uint64_t intents_late          # not here when the window of their intent started
    cdef readonly uint64_t intents_in_time
    cdef int64_t keys_signalled                  # by workers that were removed

    # Something the next step should look at: an intent that is due or over.
    cdef inline void look(self) noexcept nogil:
        self.look_wanted = True

    cdef inline void step(self) noexcept nogil:
        if self.look_wanted:
            self._look_at_workers()

    # An answer is about to be taken.
    cdef void answer_came(self) noexcept nogil
    cdef void round_ended(self) noexcept nogil
    # A new worker's intents are looked after; it must have been given to ``keep`` before (which needs the GIL, not the lock).
    cdef keep(self, IntentQueue queue)
    cdef void add_worker(self, IntentQueue queue) noexcept nogil
    # Ends the intents of a worker that signals no more; ``release`` its queue afterwards (as ``keep``).
    cdef void remove_worker(self, IntentQueue queue) noexcept nogil
    cdef release(self, IntentQueue queue)
    # Takes over what the worker has signalled, without acting on any of it.
    cdef void collect(self, IntentQueue queue) noexcept nogil
    # Management "full_replication": this rank intends every key of the table for good.
    cdef void replicate_all(self, Table table) noexcept nogil
    # private
    cdef void _look_at_workers(self) noexcept nogil
    cdef void _look_at(self, IntentQueue queue) noexcept nogil
    cdef void _tell_tier(self, const Intent* intent, WindowEvent event, uint32_t first_use) noexcept nogil
    cdef bint _count(self, IntentQueue queue, Intent* intent, uint32_t first_use) noexcept nogil
    cdef void _begin(self, IntentQueue queue, Intent* intent) noexcept nogil
    cdef uint32_t _tick_of(self, IntentQueue queue, int64_t clock) noexcept nogil
    cdef bint _intend(self, TableState* table, uint32_t key, bint once, uint32_t first_use) noexcept nogil
    cdef void _count_started(self, IntentQueue queue, int64_t clock) noexcept nogil
    cdef void _end(self, const Intent* intent) noexcept nogil
    cdef void _end_last(self, TableState* table, uint32_t key) noexcept nogil
