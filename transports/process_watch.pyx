"""Watches processes of this host; ``process_watch.pxd`` is the contract."""

import os
import pathlib

cimport cython
from libc.errno cimport ESRCH, errno
from libc.stdint cimport int64_t, uint32_t

from intentpm.foundation.system cimport (
    EPOLL_CLOEXEC, EPOLL_CTL_ADD, EPOLLIN, EPOLLONESHOT, epoll_create1, epoll_ctl, epoll_event, epoll_wait)

cdef extern from "<sys/syscall.h>" nogil:
    enum: SYS_pidfd_open
    long syscall(long number, ...)


def process_table() -> bytes:
    """Names the table that this process's number belongs to: equal for two ranks iff they may watch each other."""
    boot = pathlib.Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    namespace = os.stat("/proc/self/ns/pid").st_ino
    return f"{boot}/{namespace}".encode()


@cython.no_gc_clear      # __dealloc__ needs the dict; of numbers, so it is in no cycle
cdef class ProcessWatch:
    def __cinit__(self):
        self._ended_fd = epoll_create1(EPOLL_CLOEXEC)
        self.wake_fd = epoll_create1(EPOLL_CLOEXEC)
        self._pidfds = {}
        if self._ended_fd < 0 or self.wake_fd < 0:
            self.close()
            raise OSError(errno, "epoll_create1: " + os.strerror(errno))
        self.add_descriptor(self._ended_fd)

    def __dealloc__(self):
        self.close()

    cdef int add_descriptor(self, int fd) except -1:
        cdef epoll_event event
        event.events = EPOLLIN
        if epoll_ctl(self.wake_fd, EPOLL_CTL_ADD, fd, &event) < 0:
            raise OSError(errno, "epoll_ctl: " + os.strerror(errno))
        return 0

    cdef bint watch(self, uint32_t rank, int process) except -1:
        cdef epoll_event event
        cdef int pidfd = <int>syscall(SYS_pidfd_open, process, 0)
        if pidfd < 0:
            return errno != ESRCH
        self._pidfds[rank] = pidfd
        event.events = EPOLLIN | EPOLLONESHOT      # each end is told once
        event.data.u64 = rank
        if epoll_ctl(self._ended_fd, EPOLL_CTL_ADD, pidfd, &event) < 0:
            raise OSError(errno, "epoll_ctl: " + os.strerror(errno))
        return True

    cdef int64_t next_ended(self) noexcept nogil:
        cdef epoll_event event
        if epoll_wait(self._ended_fd, &event, 1, 0) <= 0:
            return -1
        return <int64_t>event.data.u64

    cdef void close(self):
        for fd in (*self._pidfds.values(), self._ended_fd, self.wake_fd):
            if fd >= 0:
                os.close(fd)
        self._pidfds = {}
        self._ended_fd = self.wake_fd = -1
