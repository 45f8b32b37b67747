"""The network without us: plain socket loops, the baseline next to which doctor and the benches print numbers.

Every function takes the descriptor of a connected blocking stream socket, sets nothing on it, and raises OSError when
the connection ends early. Set a receive timeout (SO_RCVTIMEO) on the socket for a deadline; ``polling`` has none.
"""

from libc.errno cimport EAGAIN, EINTR, errno
from libc.stdint cimport int64_t
from posix.time cimport CLOCK_MONOTONIC, clock_gettime, timespec

import os

import numpy as np

cdef extern from "<sys/socket.h>" nogil:
    enum: MSG_DONTWAIT, MSG_NOSIGNAL, MSG_WAITALL
    ssize_t send(int fd, const void* buffer, size_t length, int flags)
    ssize_t recv(int fd, void* buffer, size_t length, int flags)


cdef int64_t _now_ns() noexcept nogil:
    cdef timespec t
    clock_gettime(CLOCK_MONOTONIC, &t)
    return <int64_t>t.tv_sec * 1000000000 + t.tv_nsec


cdef bint _send_all(int fd, const char* data, size_t size_bytes) noexcept nogil:
    cdef ssize_t sent
    while size_bytes > 0:
        sent = send(fd, data, size_bytes, MSG_NOSIGNAL)
        if sent < 0 and errno != EINTR:
            return False
        if sent > 0:
            data += sent
            size_bytes -= sent
    return True


cdef bint _receive_all(int fd, char* data, size_t size_bytes, bint polling=False) noexcept nogil:
    cdef ssize_t received
    cdef int flags = MSG_DONTWAIT if polling else MSG_WAITALL
    while size_bytes > 0:
        received = recv(fd, data, size_bytes, flags)
        if received == 0 or (received < 0 and errno != EINTR and not (polling and errno == EAGAIN)):
            return False
        if received > 0:
            data += received
            size_bytes -= received
    return True


cdef char[::1] _make_body(size_t size_bytes):
    return np.zeros(max(size_bytes, 1), np.uint8).view(np.int8)


def _check(bint ok):
    if not ok:
        raise OSError(errno, f"the baseline's connection ended early: {os.strerror(errno)}")


def raw_pingpong(int fd, size_t size_bytes, int iterations, bint polling=False):
    """Round trips of ``size_bytes`` each way. Returns ndarray int64 (iterations,), nanoseconds. Without the GIL.

    polling: never sleep while receiving. The blocking form often runs both sides on one core, which is faster.
    """
    cdef int64_t[::1] samples = np.empty(iterations, np.int64)
    cdef char[::1] body = _make_body(size_bytes)
    cdef int64_t begin_ns
    cdef bint ok = True
    cdef int index
    with nogil:
        for index in range(iterations):
            begin_ns = _now_ns()
            ok = _send_all(fd, &body[0], size_bytes) and _receive_all(fd, &body[0], size_bytes, polling)
            if not ok:
                break
            samples[index] = _now_ns() - begin_ns
    _check(ok)
    return np.asarray(samples)


def raw_echo(int fd, size_t size_bytes, int iterations, bint polling=False) -> None:
    """The other side of ``raw_pingpong``."""
    cdef char[::1] body = _make_body(size_bytes)
    cdef bint ok = True
    cdef int _index
    with nogil:
        for _index in range(iterations):
            ok = _receive_all(fd, &body[0], size_bytes, polling) and _send_all(fd, &body[0], size_bytes)
            if not ok:
                break
    _check(ok)


def raw_stream(int fd, size_t size_bytes, int count) -> float:
    """Sends ``count`` times ``size_bytes``; returns the seconds until the other side has said that it has them all."""
    cdef char[::1] body = _make_body(size_bytes)
    cdef int64_t begin_ns = _now_ns()
    cdef bint ok = True
    cdef int _index
    with nogil:
        for _index in range(count):
            ok = _send_all(fd, &body[0], size_bytes)
            if not ok:
                break
        ok = ok and _receive_all(fd, &body[0], 1)
    _check(ok)
    return (_now_ns() - begin_ns) * 1e-9


def raw_sink(int fd, size_t size_bytes, int count) -> None:
    """The other side of ``raw_stream``."""
    cdef char[::1] body = _make_body(size_bytes)
    cdef bint ok = True
    cdef int _index
    with nogil:
        for _index in range(count):
            ok = _receive_all(fd, &body[0], size_bytes)
            if not ok:
                break
        ok = ok and _send_all(fd, &body[0], 1)
    _check(ok)
