"""The order between a stream of ours and the caller's; ``caller_stream.pxd`` is the contract."""

from contextlib import contextmanager

cimport cython
from libc.stddef cimport size_t
from libc.stdint cimport int64_t

from intentpm.gpu.libraries import is_ordered_by_streams

from intentpm.gpu.device cimport Device, StreamHandle, now_ns, rest

cdef enum:
    MOMENT_NS = 20_000_000

DEFECTS = ("caller not awaited", "caller goes on", "rows wait for the caller")

cdef int planted = 0                     # a bit per defect; set while no other thread runs


@contextmanager
def plant(name: str):
    """Leaves out what one of DEFECTS says, inside the with block. For tests of tests only."""
    global planted
    planted = 1 << DEFECTS.index(name)
    try:
        yield
    finally:
        planted = 0


cdef bint rows_always_wait() noexcept nogil:
    return planted & 4


@cython.no_gc_clear                      # __dealloc__ needs the device
cdef class CallerStream:
    """Raises MemoryError."""

    def __init__(self, Device device not None):
        self.device = device
        self.event = device.new_event()
        if self.event == NULL:
            raise MemoryError(f"{device.name}: no event: {device.failure}")

    def __dealloc__(self):
        if self.event != NULL:
            self.device.release_event(self.event)

    cdef int collect(self, object array) except -1:
        cdef object stream = self.device.stream_of(array)
        self.is_known = stream is not None
        self.stream = <StreamHandle><size_t>(stream or 0)
        self.host_waits_after = stream is None or not is_ordered_by_streams(array)
        return 0

    cdef bint before(self, StreamHandle own) noexcept nogil:
        return self.mark() and self.before_marked(own)

    cdef bint before_marked(self, StreamHandle own) noexcept nogil:
        return planted & 1 or not self.is_known or self.device.wait(own, self.event)

    cdef bint after(self, StreamHandle own) noexcept nogil:
        return self.mark_own(own) and self.after_marked()

    cdef bint mark_own(self, StreamHandle own) noexcept nogil:
        return planted & 2 or self.device.record(own, self.event)

    cdef bint after_marked(self) noexcept nogil:
        if planted & 2:
            return True
        if self.is_known and not self.device.wait(self.stream, self.event):
            return False
        return not self.host_waits_after or self.device.synchronize(
            self.event, b"what a call does with an array in its memory")

    cdef bint mark(self) noexcept nogil:
        return planted & 1 or not self.is_known or self.device.record(self.stream, self.event)

    cdef bint has_done(self) noexcept nogil:
        return planted & 1 or not self.is_known or self.device.has_happened(self.event)

    cdef bint has_done_soon(self) noexcept nogil:
        cdef int64_t begun_ns = now_ns()
        cdef int64_t waited_ns = 0
        while not self.has_done():
            waited_ns = now_ns() - begun_ns
            if waited_ns >= MOMENT_NS:
                return False
            rest(waited_ns)
        return True
