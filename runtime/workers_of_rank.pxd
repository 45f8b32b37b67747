"""The workers of a rank: what they write together, and what they have counted.

The gate: while it is closed, calls that write wait before they begin (``cuts.pxd`` says what for). Nothing else does, and what
has begun goes on, so it is closed for as long as one write takes.

Guarded by: the GIL, but for ``gate`` and ``writing``, which a waiting call looks at without it.
"""

from libc.stdint cimport uint32_t

from intentpm.runtime._native.batches cimport AccessCounts
from intentpm.runtime._native.engine cimport Engine
from intentpm.runtime._native.membership cimport Membership


cdef class CountedWorker:
    """What its rank's other parts see of a worker."""

    cdef object __weakref__
    cdef AccessCounts* counts            # per table id; written by this worker only, read relaxed by whoever asks
    cdef list writes                     # futures of asynchronous writes not known to be done
    cdef bint is_counted                 # it is in use: once closed, the rank has its counts
    cdef Membership membership           # set once
    cdef uint32_t told                   # of so many of ``Membership.formed``: RankLost is raised once of each
    cdef bint is_watched                 # with on_loss="continue": every call comes by ``check_state``. Set once
    cdef unsigned long thread_id         # that used it last; 0: nobody has. With the GIL

    cdef join(self, Membership membership, manager)
    # Raises what keeps the worker from working, and RankLost once.
    cdef int check_state(self, Engine engine, manager) except -1
    cpdef uint32_t take_told(self)


cdef class WorkersOfRank:
    """The workers of a rank, as long as somebody has them, and what those that are closed have counted."""

    cdef readonly object members         # weakly
    cdef uint32_t gate                   # closed
    cdef uint32_t writing                # calls that are past the gate
    cdef list writes                     # asynchronous ones of workers that are gone, not known to be done
    cdef AccessCounts* past              # per table id
    cdef uint32_t of_devices             # workers of devices that it has made

    # Of a call that writes, before it does: from here on to ``leave_gate`` a cut waits for it.
    cdef int pass_gate(self, Engine engine) except -1
    cdef int leave_gate(self, Engine engine) except -1
    # A worker is closed.
    cdef take(self, CountedWorker worker, uint32_t table_count)
