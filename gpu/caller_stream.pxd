"""The stream on which a caller's array is used, and its order with ours.

    caller's stream -event-> ours: the array is read or written -event-> caller's stream

So what was enqueued for the array before a call is done before ours touches it; and what the caller enqueues after the call,
the reuse of the array's memory too, comes after ours.

``before`` leaves the waiting to our stream. What is enqueued there next then waits for the caller's work too, which may wait
for other ranks (a sum over all of them): nobody whom these need may wait for such a stream. Otherwise the host waits first,
holding nothing (``has_done``).

Guarded by: whoever owns it; the owner of ``own`` for what is enqueued there.
"""

from intentpm.gpu.device cimport Device, EventHandle, StreamHandle


# A planted defect: whoever else may need the rows.
cdef bint rows_always_wait() noexcept nogil


cdef class CallerStream:
    cdef Device device
    cdef EventHandle event
    cdef StreamHandle stream
    cdef bint is_known                   # else there is none: the host uses the array's memory, or nobody knows who does
    cdef readonly bint host_waits_after  # for ours: a stream of the caller's would not do, or there is none

    # The stream of a call with this array; None: of one that is made for it. Raises what its library does.
    cdef int collect(self, object array) except -1
    # ``own`` comes after what the caller's stream has to do now, or had when it was marked. False: the device has failed, or
    # the stream is none.
    cdef bint before(self, StreamHandle own) noexcept nogil
    cdef bint before_marked(self, StreamHandle own) noexcept nogil
    # The caller's stream, or the host, goes on after what ``own`` has to do now, or had when it was marked.
    cdef bint after(self, StreamHandle own) noexcept nogil
    cdef bint mark_own(self, StreamHandle own) noexcept nogil
    cdef bint after_marked(self) noexcept nogil
    # Whether what the caller's stream had to do when ``mark`` was called is done: then whatever is enqueued from now on comes
    # after it. ``mark``: False: the device has failed.
    cdef bint mark(self) noexcept nogil
    cdef bint has_done(self) noexcept nogil
    # The same, once it has waited for up to 20 ms.
    cdef bint has_done_soon(self) noexcept nogil
