"""The wheel: who progresses the transport of a rank, when it polls, and when it sleeps.

Guarantees
    * Remote requests are served, and calls of workers answered, whether or not a Python thread holds the GIL.
    * At most one thread polls at a time; one that has polled for its spin time without a message sleeps.

    THREAD    the progress thread: sleeps in epoll on {transport, wake_fd, look_fd, lease_fd}, or naps for a moment without
        looking at the transport (naps.pxd). The state when no worker waits and there is no lease.
    WORKER    a worker that waits drives itself, for the shortest latency: it takes the transport's descriptor out of the
        epoll set of the progress thread, which sleeps on the others alone; polls, then sleeps on {transport, driver_fd}. When
        done it puts the descriptor back (THREAD) or leaves it out (LEASED).
    LEASED    after a streak of short waits: the descriptor stays out for the next one, which takes it without a system call.
        LEASE_NS after the last wait the timer lease_fd has the progress thread take the wheel back.
    Other workers that wait meanwhile sleep on the condition ``answered``; whoever completes a call signals it, and so does a
    worker that leaves the wheel, for one of them may drive now.
    In every state a worker that notices an overdue look may progress once (``Turns.help``). It leaves the wheel where it is.
    With virtual time there is no thread and no wheel: the transport runs all ranks.

Called by ``Calls`` (take, leave, drive, poll_until; from workers, engine lock held) and by the progress thread (``run``).
"""

cimport cython
from libc.stdint cimport int64_t, uint32_t, uint64_t

from intentpm.runtime._native.monitor cimport Monitor
from intentpm.runtime._native.naps cimport Naps
from intentpm.runtime._native.turns cimport Turns
from intentpm.transports.base cimport Transport, condition_fn


@cython.final
cdef class Wheel:
    cdef Transport transport
    cdef Monitor monitor
    cdef Turns turns             # the context of the conditions that are waited for
    cdef readonly Naps naps
    # guarded by: engine lock
    cdef bint worker_drives
    cdef bint leased             # nobody drives, and the progress thread does not watch the transport either
    cdef readonly uint64_t leases  # taken since start
    cdef bint lease_is_timed     # lease_fd is set; leased implies it
    cdef int64_t left_ns         # when a worker last left the wheel; atomic: stored under the lock / the thread may look
    cdef int64_t taken_ns        # when one last took it
    cdef uint32_t streak         # short waits since there was a long time between two; disturbances take some off
    cdef uint32_t polls          # all, and those since something came: to yield now and then
    cdef uint32_t idle_polls
    cdef bint stopping
    # fixed after construction
    cdef int64_t worker_spin_ns
    cdef int64_t thread_spin_ns
    # the progress thread alone
    cdef int64_t no_spin_until_ns    # it does not poll before that time ...
    cdef int64_t no_spin_ns          # ... nor for so long after it was preempted again

    # Waits until ``ready``; the lock is held before and after. False: it is ``until_ns`` and not ready.
    cdef bint drive(self, condition_fn ready, void* argument, int64_t until_ns) noexcept nogil
    # The parts of it, for who takes the wheel before it sends what it will wait for. Nobody else drives.
    cdef void take(self) noexcept nogil
    cdef void poll_until(self, condition_fn ready, void* argument, int64_t until_ns) noexcept nogil
    cdef void leave(self) noexcept nogil
    # The progress thread's life, until ``stop`` (any thread, without the lock).
    cdef void run(self) noexcept nogil
    cdef void stop(self) noexcept nogil
    # private
    cdef void _let_others_in(self, bint polls_on) noexcept nogil
    cdef void _shorten_streak(self) noexcept nogil
    cdef void _lease(self) noexcept nogil
    cdef bint _lease_goes_on(self) noexcept nogil
    cdef void _end_lease(self) noexcept nogil
    cdef int64_t _serve_for_a_while(self, bint more_expected) noexcept nogil
    cdef int64_t _spin_allowed(self, int64_t now_ns) noexcept nogil
    cdef void _note_preemption(self, int64_t before_ns) noexcept nogil
