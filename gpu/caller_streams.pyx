"""The order between a stream of ours and the caller's; ``caller_streams.pxd`` is the contract."""

from contextlib import contextmanager

from libc.stddef cimport size_t

from intentpm.gpu.device cimport Device, EventHandle, StreamHandle

DEFECTS = ("caller not awaited", "caller goes on")

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


cdef class CallerStreams:
    def __init__(self, Device device not None):
        self.device = device

    cdef int collect(self, tuple arrays) except -1:
        cdef set found = {self.device.stream_of(array) for array in arrays}
        self.host_is_caller = self.device.memory_is_hosts and 0 in found
        self.streams.clear()
        for stream in found:
            if stream or not self.device.memory_is_hosts:
                self.streams.push_back(<StreamHandle><size_t>stream)
        return 0

    cdef bint order_before(self, StreamHandle own, EventHandle event) noexcept nogil:
        cdef size_t i
        if planted & 1:
            return True
        for i in range(self.streams.size()):
            if not self.device.record(self.streams[i], event) or not self.device.wait(own, event):
                return False
        return True

    cdef bint order_after(self, StreamHandle own, EventHandle event) noexcept nogil:
        cdef size_t i
        if planted & 2:
            return True
        if not self.device.record(own, event):
            return False
        for i in range(self.streams.size()):
            if not self.device.wait(self.streams[i], event):
                return False
        return not self.host_is_caller or self.device.synchronize(event, b"what a call does with arrays in its memory")
