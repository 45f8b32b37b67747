"""Which work on a device surely precedes which: what streams, events and the host's waits promise, whatever the clock says.

Per stream the number of each other stream's last work that precedes what is enqueued next. So a use before its event is seen
at once and always, not only when the work happens to run in the wrong order.

Guarded by: whoever owns it.
"""

from libc.stdint cimport uint64_t
from libcpp.vector cimport vector

ctypedef vector[uint64_t] Moment     # per stream: the number of its last work that is past


# Who used a piece of memory last.
cdef struct Uses:
    unsigned writer              # stream
    uint64_t written             # number of its work; 0: nobody wrote yet
    Moment read                  # per stream, as far as it is long; 0: not read since it was written


cdef class HappensBefore:
    cdef vector[Moment] streams
    cdef Moment host

    cdef unsigned add_stream(self) noexcept nogil
    # Begins the next work of a stream: what the host has seen precedes it.
    cdef void begin(self, unsigned stream) noexcept nogil
    # The stream's next work comes after ``moment``; and the host's.
    cdef void after(self, unsigned stream, const Moment& moment) noexcept nogil
    cdef void host_after(self, const Moment& moment) noexcept nogil
    # Of the work that has begun: whether all that it needs precedes it. Notes the use.
    cdef bint reads(self, unsigned stream, Uses* uses) noexcept nogil
    cdef bint writes(self, unsigned stream, Uses* uses) noexcept nogil
    cdef bint host_may_read(self, const Uses* uses) noexcept nogil
    cdef bint host_may_write(self, const Uses* uses) noexcept nogil
