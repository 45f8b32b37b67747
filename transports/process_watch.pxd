"""Notices at once that a process of this host has ended: by pidfd, also while it is a zombie.

UCX's own check of shared-memory peers takes two keep-alive intervals, and it takes a zombie for alive.

Assumptions: calls are serialised by the caller. Without pidfd (Linux before 5.3, some sandboxes) nothing is noticed.
"""

from libc.stdint cimport int64_t, uint32_t


cdef class ProcessWatch:
    cdef int _ended_fd             # epoll set of pidfds: readable when one has ended
    cdef readonly int wake_fd      # epoll set of that and of one other descriptor
    cdef dict _pidfds              # rank -> pidfd, read and written with the GIL only

    # One descriptor more that makes ``wake_fd`` readable.
    cdef int add_descriptor(self, int fd) except -1
    # False: the process has ended already.
    cdef bint watch(self, uint32_t rank, int process) except -1
    # A rank whose process has ended and was not named before, or -1. One system call.
    cdef int64_t next_ended(self) noexcept nogil
    cdef void close(self)
