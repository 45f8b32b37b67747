"""How a thread sleeps until the ucx transport has work: UCX's event descriptor, a timer, the ends of peers' processes.

Called by: UcxTransport (arm, progress, connect, close); ``ucx_sends`` and ``ucx_losses``, which wake a sleeper.

Guarantees
    * After a successful ``prepare``, ``watch.wake_fd`` becomes readable when there is work: UCX has some, sends that UCX
      cannot watch are due for a look, or a watched process has ended.
    * ``wake`` makes it readable for whoever armed before a message that waits for progress() was sent.
Assumption: calls are serialised by the caller (the engine's lock), which guards every field; only the descriptors are
waited on outside it.
"""

cimport cython
from libc.stdint cimport int64_t

from intentpm.transports.process_watch cimport ProcessWatch
from intentpm.transports.ucp cimport UcpFunctions
from intentpm.transports.ucx_worker cimport UcxWorker


@cython.final
@cython.no_gc                  # in no cycle
cdef class UcxSleep:
    cdef ProcessWatch watch            # of the peers on this host; ``ucx_losses`` asks it who ended
    cdef bint armed                    # arm() succeeded and no progress() came since
    cdef bint timer_is_set
    cdef int idle_calls                # of progress(), in a row
    cdef UcxWorker _ucx
    cdef const UcpFunctions* _ucp      # of _ucx
    cdef int _timer_fd                 # wakes a sleeper whose sends UCX cannot watch

    # ``sends_wait``: some are not finished. False: there is work now.
    cdef bint prepare(self, bint sends_wait) noexcept nogil
    # Only if ``armed``: worth asking first, it is rare.
    cdef void wake(self) noexcept nogil
    cdef void stop_timer(self) noexcept nogil
    # Sleeps now, in connect() and close().
    cdef void wait_for(self, int64_t duration_ns) noexcept nogil
    cdef void close(self)

    cdef void _close_timer(self) noexcept nogil
    cdef void _set_timer(self, int64_t delay_ns) noexcept nogil
    cdef bint _look_by_timer(self, bint sends_wait) noexcept nogil
