"""What this rank's own workers have written and nobody else has heard of yet.

Writers put the keys they write on a stack per table, without a lock (dirty_stack.pxd). Every sync_interval_ns, or at once, the
engine takes the stacks: a written replica needs a record to its owner (Holder.queue), a written row that is owned here is
news for its holders (News.spread). With a sync_threshold a replica's delta that is small waits until it has grown, or
until a collection at once.

Where rounds wait for a link (timing.gathering_ns), keys of replicas in use are gathered first, in the order in which they
were taken, and told of when they have been here for so long, or at once:

    not dirty -> on a stack          a writer
    on a stack -> gathered           a collection; to the writers the key is dirty still, so they do not mark it again
    either -> not dirty, told        a collection, when due or at once. What the key is by then decides: it may have become
                                     owned here, or have left with what was written

Called by: Rounds (every step), Sync (at once). Workers set ``noted`` (worker.pyx). It calls Holder and News, per key.

Guarantee: a key that was written is collected, whatever the order of the writer's steps and the engine's:

    A writer marks its key, then looks at ``noted``; the engine clears it, then looks for keys (``_expect``). With a fence
    between the two steps of each, either the engine sees the key or the writer sees that it has to tell.

Assumption: every method is called under the engine's lock.
"""

cimport cython
from libc.stdint cimport int64_t, uint32_t
from libcpp.deque cimport deque
from libcpp.vector cimport vector

from intentpm.runtime._native.holder cimport Holder
from intentpm.runtime._native.news cimport News
from intentpm.runtime._native.remote cimport RemoteAccess
from intentpm.runtime._native.state cimport KeyRef
from intentpm.runtime._native.table_state cimport TableState


@cython.final
cdef class RankWrites:
    cdef RemoteAccess remote
    cdef Holder holder
    cdef News news
    cdef uint32_t rank
    cdef int64_t since_ns                        # when the oldest not collected was seen; 0: there are none
    cdef int64_t collected_ns                    # when they were last collected
    cdef uint32_t noted                          # atomic: a writer told the engine of some that are not collected yet
    cdef bint gathers                            # writes to replicas in use wait, where rounds are slow
    cdef deque[KeyRef] gathered                  # keys of those, and the tick at which they were taken
    cdef public int64_t gathering_ns             # how long they wait; tests: set, not measured
    cdef public bint gathering_set
    cdef vector[uint32_t] keys                   # scratch: being sorted

    # Turns keys written since last time into records (replicas) and news (owned). Returns when to do so next.
    cdef int64_t collect(self, int64_t now_ns, bint at_once) noexcept nogil
    # private
    cdef int64_t _tell_gathered(self, int64_t now_ns, bint at_once) noexcept nogil
    cdef bint _any(self) noexcept nogil
    cdef void _expect(self) noexcept nogil
    cdef void _sort(self, TableState* table, int64_t written_ns, bint at_once) noexcept nogil
    cdef bint _may_wait(self, const TableState* table, uint32_t key) noexcept nogil
    cdef void _tell(self, TableState* table, uint32_t key, int64_t written_ns, bint at_once) noexcept nogil
    cdef void _queue_withheld(self, TableState* table) noexcept nogil
