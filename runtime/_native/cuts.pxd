"""The cut of a checkpoint: which writes are in it, and which came after.

Every rank makes its cut when it is asked to save. What its workers have written by then is in the checkpoint, what they write
later is not, whichever rank owns the row. Just before it, the rank's writes in progress are ended and its replicas' deltas
acknowledged, while new ones wait (``worker.pyx``): so no write straddles the cut, and none of this rank's is under way then.
Other ranks make theirs earlier or later. So every ACCESS and ROUND says how many cuts its origin had made, modulo 4, and

    a write that is ahead of the owner's cuts    is after the cut: the row is set apart before it (apart.pxd), from then on
    a write that is behind the owner's cuts      is from before: made on the row, and on the copy that was set apart

Once every rank has made its cut (``seal``) there is no write from before it any more, and rows are written to the checkpoint.

Rows on the move: until a rank is sealed, a row that it gives away takes along what belongs in the checkpoint (RESULT_KEPT), and
the receiver writes it. From then on it stays behind (RESULT_SAVED), and this rank writes it. When all are sealed and this
rank's own records from before are answered, no row can come any more that it has to write: ``Snapshot.rows`` is final. So each
key has one copy at most, also while a rank that was done sooner than this one gives it away again and again.

At most one checkpoint is being made: the next cut comes after ``end``. A rank may hear of it before it has heard of that end.
Called by: Serving and Owner (``is_new``), Holder (``hear``), RankSnapshot (the rest).
Assumption: every method is called under the engine's lock.
"""

cimport cython
from libc.stdint cimport int32_t, int64_t, uint8_t, uint32_t

from intentpm.runtime._native.budget cimport Budget
from intentpm.runtime._native.messages cimport CUT_SHIFT
from intentpm.runtime._native.mutations cimport MUTATION_CUT_UNTOLD, is_planted
from intentpm.runtime._native.snapshot cimport Snapshot
from intentpm.runtime._native.table_state cimport TableState
from intentpm.transports.base cimport Transport


@cython.final
cdef class Cuts:
    cdef Transport transport
    cdef Budget budget
    cdef uint32_t made                       # by this rank. Atomic: stored under the engine's lock, which not all loads take

    # What a write of this rank says of itself, among its message's flags.
    cdef inline uint8_t flags(self) noexcept nogil:
        return <uint8_t>0 if is_planted(MUTATION_CUT_UNTOLD) else <uint8_t>(self.made << CUT_SHIFT)

    # Whether a write with these flags is after the cut whose checkpoint is being made. This rank may hear of it by this write.
    cdef inline bint is_new(self, TableState* table, uint8_t flags) noexcept nogil:
        if self._lead(flags) > 0:
            self._open(table, self.made + 1)
        return table.snapshot != NULL and self.made + self._lead(flags) >= table.snapshot.number

    # A row has come with RESULT_KEPT or RESULT_SAVED.
    cdef void hear(self, TableState* table, uint8_t flags) noexcept nogil
    # This rank's cut, of a table; ``cut`` all, then count.
    cdef bint cut(self, TableState* table, uint32_t number) noexcept nogil
    cdef void count(self) noexcept nogil
    cdef void end(self, TableState* table, uint32_t number) noexcept nogil

    # The members have formed anew: no checkpoint is being made, and all have made so many cuts.
    cdef void restart(self, TableState** tables, uint32_t table_count, uint32_t made) noexcept nogil

    # private
    cdef inline int32_t _lead(self, uint8_t flags) noexcept nogil:
        """How many cuts the origin had made more than this rank: -1, 0 or 1."""
        return <int32_t>(((<uint32_t>flags >> CUT_SHIFT) - self.made + 1) & 3) - 1

    cdef void _open(self, TableState* table, uint32_t number) noexcept nogil


# Whether what an answer with these flags says of a snapshot is about this one.
cdef inline bint is_of(const Snapshot* snapshot, uint8_t flags) noexcept nogil:
    return (snapshot.number & 3) == (<uint32_t>flags >> CUT_SHIFT)


# What an answer says of the snapshot its rows belong to.
cdef inline uint8_t snapshot_flags(const TableState* table) noexcept nogil:
    return <uint8_t>(table.snapshot.number << CUT_SHIFT) if table.snapshot != NULL else <uint8_t>0
