"""Sleeping and waking of a ucx transport; ``ucx_sleep.pxd`` states what it guarantees."""

from libc.string cimport memset
from posix.time cimport CLOCK_MONOTONIC, itimerspec
from posix.unistd cimport close as close_descriptor

from intentpm.foundation.system cimport POLLIN, TFD_CLOEXEC, TFD_NONBLOCK, poll, pollfd, timerfd_create, timerfd_settime
from intentpm.transports.ucp cimport UCS_OK

cdef enum:
    IDLE_CALLS_BEFORE_TIMER = 50        # of progress(), before stuck sends are polled by timer
    STUCK_SEND_POLL_NS = 200_000


cdef class UcxSleep:
    """Watches the worker ``ucx``; processes are added to ``watch``."""

    def __cinit__(self, UcxWorker ucx not None):
        self._timer_fd = -1
        self._ucx = ucx
        self._ucp = ucx.ucp
        self.watch = ProcessWatch()
        self._timer_fd = timerfd_create(CLOCK_MONOTONIC, TFD_NONBLOCK | TFD_CLOEXEC)
        self.watch.add_descriptor(self._timer_fd)
        self.watch.add_descriptor(ucx.event_fd)

    def __dealloc__(self):
        self._close_timer()

    cdef bint prepare(self, bint sends_wait) noexcept nogil:
        return self._ucp.worker_arm(self._ucx.handle) == UCS_OK or self._look_by_timer(sends_wait)

    cdef bint _look_by_timer(self, bint sends_wait) noexcept nogil:
        # UCX refuses to arm while shared-memory queues of slow (or dead) receivers are full: nothing would say when
        # there is room. Looking a few thousand times a second beats spinning.
        if not sends_wait or self.idle_calls < IDLE_CALLS_BEFORE_TIMER:
            return False
        self._set_timer(STUCK_SEND_POLL_NS)
        return True

    cdef void wake(self) noexcept nogil:
        # A message that waits for progress() must not wait for a thread that slept before it was sent.
        if self.armed:
            self.armed = False
            self._ucp.worker_signal(self._ucx.handle)

    cdef void stop_timer(self) noexcept nogil:
        self._set_timer(0)

    cdef void _set_timer(self, int64_t delay_ns) noexcept nogil:
        cdef itimerspec timing
        memset(&timing, 0, sizeof(timing))
        timing.it_value.tv_nsec = delay_ns
        timerfd_settime(self._timer_fd, 0, &timing, NULL)
        self.timer_is_set = delay_ns != 0

    cdef void wait_for(self, int64_t duration_ns) noexcept nogil:
        cdef pollfd waited
        waited.fd = self.watch.wake_fd
        waited.events = POLLIN
        poll(&waited, 1, <int>max(1, duration_ns // 1_000_000))

    cdef void close(self):
        self.watch.close()
        self._close_timer()

    cdef void _close_timer(self) noexcept nogil:
        if self._timer_fd >= 0:
            close_descriptor(self._timer_fd)
            self._timer_fd = -1
