"""When management has its turn, and when those who wait see what has finished.

Guarantees
    * After whatever may give management something to do it has a turn (``step``), or at the time it asked for.
    * What a worker signalled is looked at: at once if it is urgent, else some time after the last look. An overdue look is done
      by the worker that notices.
    * A rank that fails tells every waiter, once.
Called by whoever moved the transport or changed what management looks at (engine lock held): the wheel, calls, the engine;
``kick`` and ``help`` by workers, without the lock.
"""

cimport cython
from libc.stdint cimport int64_t, uint32_t, uint64_t

from intentpm.runtime._native.control cimport Control
from intentpm.runtime._native.membership cimport ENGINE_FORMING, Membership
from intentpm.runtime._native.monitor cimport Monitor
from intentpm.runtime._native.requests cimport RequestPool
from intentpm.runtime._native.rounds cimport Rounds
from intentpm.transports.base cimport Transport


@cython.final
cdef class Turns:
    cdef Transport transport
    cdef RequestPool requests
    cdef Control control
    cdef Rounds rounds
    cdef Monitor monitor
    cdef Membership membership   # whose ``state`` says whether there are turns at all
    # guarded by: engine lock
    cdef uint64_t seen_finished  # RequestPool.finished when waiters were last woken
    cdef int64_t step_at_ns      # when management wants its next step
    cdef int64_t thread_wakes_ns  # when the progress thread's sleep, present or next, ends by itself
    cdef int64_t look_gap_ns
    # atomic
    cdef bint device_failed      # a table's (RowTier.job_fails)
    cdef uint32_t kicked         # a worker has told the engine to look at its intents or writes
    cdef int64_t look_due_ns     # when a kick that was not answered yet should have been
    cdef int64_t look_again_ns   # no kick has it look before, but an urgent one; the engine stores / workers load

    # After something happened: lets management do what is due, and waiters see what has finished.
    cdef void step(self) noexcept nogil
    # The same, when a worker may have something for management.
    cdef void look_and_step(self) noexcept nogil
    # After progress or a submission that no step follows: lets waiters see what has finished.
    cdef void wake_finished(self) noexcept nogil
    cdef void wake_waiters(self) noexcept nogil
    # For how long the progress thread may sleep, which it does now: until the next step; -1: until something happens.
    cdef int begin_sleep_ms(self) noexcept nogil
    # Any thread, without the lock: something is due for management. It looks at once if that is urgent, else within
    # look_gap_ns. True: it should have looked long ago; call ``help`` (which does not wait for the lock).
    cdef bint kick(self, bint urgent) noexcept nogil
    cdef void help(self) noexcept nogil


cdef inline bint is_over(Turns turns) noexcept nogil:
    """Nothing will come any more, of what was asked for. Engine lock held."""
    return turns.control.failed or turns.membership.state >= ENGINE_FORMING
