"""One rank: the parts of it put together, tables that come and go, calls that all ranks make together, and its end.

Who does what, from the ground up; each part is called by those below it in this list:
    Monitor    the lock, and sleeping without it
    Membership    who is in the job
    Budget, RequestPool, RemoteAccess, Serving, Control, Rounds, Inquiry    the protocol: no thread, no wait
    Turns      when management has its turn, and waiters see what has finished
    Dispatch   which part a message is for
    Wheel      who progresses the transport
    Calls      the waits of workers and of Python
    Engine     the manager's side. No state of its own

Guarantee: threads, time and the transport are touched by these alone.
Called by the manager; its workers use the parts. Any thread, holding the GIL and not the lock.
"""

cimport cython
from libc.stdint cimport uint32_t
from libcpp.vector cimport vector

from intentpm.runtime._native.budget cimport Budget
from intentpm.runtime._native.calls cimport Calls
from intentpm.runtime._native.control cimport Control
from intentpm.runtime._native.dispatch cimport Dispatch
from intentpm.runtime._native.inquiry cimport Inquiry
from intentpm.runtime._native.membership cimport Membership
from intentpm.runtime._native.monitor cimport Monitor
from intentpm.runtime._native.remote cimport RemoteAccess
from intentpm.runtime._native.requests cimport RequestPool
from intentpm.runtime._native.rounds cimport Rounds
from intentpm.runtime._native.serving cimport Serving
from intentpm.runtime._native.turns cimport Turns
from intentpm.runtime._native.wheel cimport Wheel
from intentpm.transports.base cimport Transport


@cython.final
cdef class Engine:
    cdef object __weakref__
    # Set once; what they hold is guarded by the lock of ``monitor``, unless said there.
    cdef Transport transport
    cdef Monitor monitor
    cdef RequestPool requests
    cdef readonly Budget budget
    cdef RemoteAccess remote
    cdef Serving serving
    cdef Membership membership
    cdef Control control
    cdef readonly Rounds rounds
    cdef Inquiry inquiry
    cdef Turns turns
    cdef Dispatch dispatch
    cdef readonly Wheel wheel
    cdef Calls calls
    cdef list tables             # guarded by: GIL. Keeps alive whose states ``remote.tables`` points to
    # private
    cdef list _collect(self, bytes payload, str what, object timeout_s, object formed)
    cdef bint _may_go(self) noexcept
    cdef list _payloads(self)
    cdef list _copied(self, const vector[uint32_t]* ranks)
    cdef _sync(self, bint settles, object timeout_s, str what)
