"""The lock of a rank's engine, and sleeping without it: who sleeps on what, and how it is woken.

Guarantees
    * Nobody sleeps in the kernel holding the lock, and nobody but ``Engine.close`` waits for the GIL holding it.
    * Who is woken while going to sleep does not sleep. An idle rank sleeps: no polling, no timers.
Assumption: nobody waits for the lock holding the GIL.

The lock guards the transport, the objects of the protocol (``engine.pxd`` lists them) and the directory. It is held for one
step at a time: one ``progress``, one submission.

Who sleeps:
    progress thread    in epoll on {transport while ``thread_watches``, wake_fd, look_fd, lease_fd}; a nap is without transport
    driving worker     in poll on {transport, driver_fd}
    followers          other workers that wait, on the condition ``answered``
Called by ``Turns`` and ``Wheel``, who say what the sleeps are for, and by whoever takes the lock.
"""

cimport cython
from libc.stdint cimport int64_t, uint32_t

from intentpm.foundation.system cimport pthread_cond_t, pthread_mutex_t
from intentpm.transports.base cimport Transport


@cython.final
cdef class Monitor:
    cdef Transport transport
    cdef pthread_mutex_t lock
    cdef uint32_t contenders     # atomic: threads waiting for the lock
    cdef pthread_cond_t answered
    # guarded by: lock
    cdef uint32_t followers
    cdef bint driver_sleeps
    cdef bint thread_sleeps
    cdef bint thread_naps        # it sleeps, and looks at the transport by itself soon
    cdef bint thread_watches     # the transport's descriptor: nobody drives, and there is no lease
    # descriptors, fixed after construction
    cdef int epoll_fd
    cdef int wake_fd             # wakes the progress thread
    cdef int look_fd             # a timer: wakes the progress thread to look, a while after it last did
    cdef int lease_fd            # a timer: wakes the progress thread to end a lease
    cdef int driver_fd           # wakes the driving worker

    cdef void acquire(self) noexcept nogil
    cdef bint try_acquire(self) noexcept nogil
    cdef void release(self) noexcept nogil
    # Sleeps; the lock is held before and after. follow: until somebody finished something, or the driver left.
    cdef void follow(self, int64_t until_ns) noexcept nogil
    cdef void sleep_driving(self, int64_t timeout_ns) noexcept nogil
    # The progress thread, without the lock: whatever the transport has, until somebody or a timer wakes it.
    cdef void nap(self, int64_t nap_ns) noexcept nogil
    # Wakes who sleeps. wake_thread: any thread, without the lock.
    cdef void wake_followers(self) noexcept nogil
    cdef void wake_driver(self) noexcept nogil
    cdef void wake_thread(self) noexcept nogil
    # Puts the transport's descriptor into the progress thread's sleep, or takes it out.
    cdef void watch_transport(self, bint watch) noexcept nogil
    # After sends that no poll of this thread follows.
    cdef void arm_sleeper(self) noexcept nogil
    cdef void close_descriptors(self) noexcept nogil
