"""Calls that wait for other ranks: sent, waited for, given up. The side of a wait that Python sees.

Guarantees
    * No wait is endless: whoever waits checks the peers it waits for (``Control.check_silence``) and a lost peer ends it.
      Between two slices of a wait it takes the GIL, for signals.
    * After a call raised, or was abandoned, nothing writes to the caller's memory.
Called by workers and futures (operations), by the engine and the inspector (collective calls, questions). Any thread; none of
them holds the lock.
"""

cimport cython
from libc.stdint cimport int64_t, uint32_t

from intentpm.runtime._native.control cimport Control
from intentpm.runtime._native.membership cimport Membership
from intentpm.runtime._native.monitor cimport Monitor
from intentpm.runtime._native.remote cimport RemoteAccess, Submission
from intentpm.runtime._native.requests cimport Operation, RequestPool
from intentpm.runtime._native.rounds cimport Rounds
from intentpm.runtime._native.turns cimport Turns
from intentpm.runtime._native.wheel cimport Wheel
from intentpm.transports.base cimport Transport, condition_fn


@cython.final
cdef class Calls:
    # Set once; what they hold is guarded by the engine's lock.
    cdef Transport transport
    cdef RequestPool requests
    cdef RemoteAccess remote
    cdef Control control
    cdef Rounds rounds
    cdef Monitor monitor
    cdef Turns turns
    cdef Membership membership
    cdef Wheel wheel

    # Sends what an operation needs from other ranks; waits (driving) while a destination's window is full.
    cdef void submit(
        self, Operation* operation, Submission* submission, const uint32_t* positions, bint will_wait) noexcept nogil
    # settles: waits for what this rank has for others alone (``Sync.begin_settling``).
    cdef void sync(self, Operation* operation, bint settles=*) noexcept nogil
    # Ends an operation's interest in its answers. Afterwards nothing writes to the caller's memory.
    cdef void abandon(self, Operation* operation) noexcept nogil
    # Holding the GIL: waits for an operation, looks after signals; raises what went wrong. ``what`` is waited for: a text, or a
    # callable that makes one when it is needed. FOREVER_NS: as long as the peers are alive.
    # is_patient: where ranks form anew, RankLost is raised once they have; else SaveInterruptedError, at once.
    cdef int wait_operation(self, Operation* operation, int64_t limit_ns, object what, bint is_patient=*) except -1
    # The same for any condition, whose context are the ``Turns``.
    cdef wait(self, condition_fn ready, void* argument, int64_t limit_ns, object what)
    # Raises what keeps this rank from working; returns when nothing does. Waits while ranks form anew.
    cdef int raise_state(self) except -1
    # Set by who forms the ranks anew, if anybody does: makes the RankLost of all that was lost since a given ``formed``.
    cdef object make_loss
    # private
    cdef _raise_lost(self, uint32_t formed)
    cdef int _why_over(self) noexcept nogil
