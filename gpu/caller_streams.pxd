"""The order between a stream of ours and those on which the caller's arrays are used: by events, and the host waits for none.

    caller's streams -event-> ours: their arrays are read and written -event-> caller's streams

So what was enqueued for an array before a call is done before ours touches it; and what the caller enqueues after the call, the
reuse of the array's memory too, comes after ours.

Guarded by: whoever owns it; the owner of ``own`` for what is enqueued there.
"""

from libcpp.vector cimport vector

from intentpm.gpu.device cimport Device, EventHandle, StreamHandle


cdef class CallerStreams:
    cdef Device device
    cdef vector[StreamHandle] streams
    cdef bint host_is_caller             # of an emulated device: it uses the arrays' memory itself

    # The streams of a call with these arrays; None: of one that is made for it. Raises what their libraries do.
    cdef int collect(self, tuple arrays) except -1
    # ``own`` comes after the caller's; then the caller's after ``own``. False: the device has failed.
    cdef bint order_before(self, StreamHandle own, EventHandle event) noexcept nogil
    cdef bint order_after(self, StreamHandle own, EventHandle event) noexcept nogil
