"""The engine's lock, and sleeping without it; ``monitor.pxd`` is the contract."""

from libc.errno cimport errno
from libc.stdint cimport int64_t, uint32_t, uint64_t
from posix.time cimport timespec
from posix.unistd cimport close, read, write

from intentpm.foundation.primitives cimport add_relaxed, pause_cpu
from intentpm.foundation.system cimport (
    CLOCK_MONOTONIC, EFD_CLOEXEC, EFD_NONBLOCK, EPOLL_CLOEXEC, EPOLL_CTL_ADD, EPOLL_CTL_MOD, EPOLLIN, POLLIN, TFD_CLOEXEC,
    TFD_NONBLOCK, epoll_create1, epoll_ctl, epoll_event, eventfd, poll, pollfd, ppoll, pthread_cond_broadcast,
    pthread_cond_destroy, pthread_cond_init, pthread_cond_timedwait, pthread_condattr_destroy, pthread_condattr_init,
    pthread_condattr_setclock, pthread_condattr_t, pthread_mutex_destroy, pthread_mutex_init, pthread_mutex_lock,
    pthread_mutex_trylock, pthread_mutex_unlock, timerfd_create,
)
from intentpm.transports.base cimport Transport

cdef enum:
    LOCK_SPINS = 200             # a holder needs a few microseconds: try that long before sleeping


cdef class Monitor:
    def __cinit__(self):
        self.epoll_fd = self.wake_fd = self.look_fd = self.lease_fd = self.driver_fd = -1

    def __init__(self, Transport transport not None):
        cdef pthread_condattr_t monotonic
        cdef epoll_event event
        self.transport = transport
        self.thread_watches = True
        pthread_mutex_init(&self.lock, NULL)
        pthread_condattr_init(&monotonic)
        pthread_condattr_setclock(&monotonic, CLOCK_MONOTONIC)
        pthread_cond_init(&self.answered, &monotonic)
        pthread_condattr_destroy(&monotonic)
        self.epoll_fd = epoll_create1(EPOLL_CLOEXEC)
        self.wake_fd = eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC)
        self.look_fd = timerfd_create(CLOCK_MONOTONIC, TFD_NONBLOCK | TFD_CLOEXEC)
        self.lease_fd = timerfd_create(CLOCK_MONOTONIC, TFD_NONBLOCK | TFD_CLOEXEC)
        self.driver_fd = eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC)
        if min(self.epoll_fd, self.wake_fd, self.look_fd, self.lease_fd, self.driver_fd) < 0:
            raise OSError(errno, "cannot make event descriptors: raise `ulimit -n`")
        for descriptor in (self.wake_fd, self.look_fd, self.lease_fd, transport.event_fd()):
            if descriptor >= 0:
                event.events = EPOLLIN
                event.data.fd = descriptor
                epoll_ctl(self.epoll_fd, EPOLL_CTL_ADD, descriptor, &event)

    def __dealloc__(self):
        self.close_descriptors()
        pthread_cond_destroy(&self.answered)
        pthread_mutex_destroy(&self.lock)

    cdef void close_descriptors(self) noexcept nogil:
        if self.epoll_fd >= 0:
            close(self.epoll_fd)
        if self.wake_fd >= 0:
            close(self.wake_fd)
        if self.look_fd >= 0:
            close(self.look_fd)
        if self.lease_fd >= 0:
            close(self.lease_fd)
        if self.driver_fd >= 0:
            close(self.driver_fd)
        self.epoll_fd = self.wake_fd = self.look_fd = self.lease_fd = self.driver_fd = -1

    # -- the lock --------------------------------------------------------------------------------------------------------

    cdef void acquire(self) noexcept nogil:
        cdef int _turn
        if pthread_mutex_trylock(&self.lock) == 0:
            return
        add_relaxed(&self.contenders, 1)
        for _turn in range(LOCK_SPINS):
            pause_cpu()
            if pthread_mutex_trylock(&self.lock) == 0:
                add_relaxed(&self.contenders, <uint32_t>-1)
                return
        pthread_mutex_lock(&self.lock)
        add_relaxed(&self.contenders, <uint32_t>-1)

    cdef bint try_acquire(self) noexcept nogil:
        return pthread_mutex_trylock(&self.lock) == 0

    cdef void release(self) noexcept nogil:
        pthread_mutex_unlock(&self.lock)

    # -- sleeping --------------------------------------------------------------------------------------------------------

    cdef void follow(self, int64_t until_ns) noexcept nogil:
        cdef timespec until
        until.tv_sec = until_ns // 1000000000
        until.tv_nsec = until_ns % 1000000000
        self.followers += 1
        pthread_cond_timedwait(&self.answered, &self.lock, &until)
        self.followers -= 1

    cdef void sleep_driving(self, int64_t timeout_ns) noexcept nogil:
        cdef pollfd descriptors[2]
        cdef uint64_t count
        descriptors[0].fd = self.driver_fd
        descriptors[0].events = POLLIN
        descriptors[1].fd = self.transport.event_fd()    # -1 is ignored
        descriptors[1].events = POLLIN
        self.driver_sleeps = True
        self.release()
        poll(descriptors, 2, <int>(timeout_ns // 1000000) + 1)
        self.acquire()
        if self.driver_sleeps:
            self.driver_sleeps = False
        else:
            read(self.driver_fd, &count, sizeof(count))

    cdef void nap(self, int64_t nap_ns) noexcept nogil:
        cdef pollfd descriptors[3]
        cdef timespec duration
        descriptors[0].fd = self.wake_fd
        descriptors[1].fd = self.look_fd
        descriptors[2].fd = self.lease_fd
        descriptors[0].events = descriptors[1].events = descriptors[2].events = POLLIN
        duration.tv_sec = nap_ns // 1000000000
        duration.tv_nsec = nap_ns % 1000000000
        ppoll(descriptors, 3, &duration, NULL)

    cdef void watch_transport(self, bint watch) noexcept nogil:
        cdef epoll_event event
        self.thread_watches = watch
        if self.transport.event_fd() < 0:
            return
        event.events = EPOLLIN if watch else 0
        event.data.fd = self.transport.event_fd()
        epoll_ctl(self.epoll_fd, EPOLL_CTL_MOD, self.transport.event_fd(), &event)

    # -- waking ----------------------------------------------------------------------------------------------------------

    cdef void wake_followers(self) noexcept nogil:
        if self.followers > 0:
            pthread_cond_broadcast(&self.answered)

    cdef void wake_driver(self) noexcept nogil:
        cdef uint64_t one = 1
        if self.driver_sleeps:
            self.driver_sleeps = False
            write(self.driver_fd, &one, sizeof(one))

    cdef void wake_thread(self) noexcept nogil:
        cdef uint64_t one = 1
        write(self.wake_fd, &one, sizeof(one))

    cdef void arm_sleeper(self) noexcept nogil:
        """Who sleeps on the transport must wake when a full socket has room.

        1. driver: arms, sleeps.  2. another thread: sends; the socket takes half of it.  3. nothing watches for room: the
        receiver waits for the other half until the driver's sleep ends by itself.
        """
        if self.driver_sleeps:
            if not self.transport.arm():
                self.wake_driver()
        elif self.thread_sleeps and self.thread_watches and (
                self.transport.has_backlog() if self.thread_naps else not self.transport.arm()):
            self.wake_thread()
