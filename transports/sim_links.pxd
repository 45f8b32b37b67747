"""The wires of a simulated network: when what is sent arrives, which ranks are cut off, and how much each has sent.

Called by: SimNetwork, once when a message is sent and once when it reaches its destination's link.

A message occupies its sender's link, travels (latency, jitter, sometimes slowly), then occupies its receiver's link.

Guarantees: with ``fifo``, messages between two ranks reach the link in the order of sending; else they may overtake.
Assumption: one thread at a time runs (``sim_tasks``), which guards every field.
"""

cimport cython
from libc.stddef cimport size_t
from libc.stdint cimport int64_t, uint8_t, uint32_t, uint64_t
from libcpp.vector cimport vector


@cython.final
cdef class Links:
    cdef uint32_t _size
    # the model, in nanoseconds
    cdef double latency_ns
    cdef double _ns_per_byte
    cdef double _message_ns
    cdef double _jitter_ns
    cdef double _slow_share
    cdef double _slow_ns
    cdef bint _fifo
    # per rank
    cdef vector[int64_t] ingress_free    # the link is busy until then
    cdef vector[int64_t] _egress_free
    cdef vector[uint8_t] silent          # nothing gets through to or from it
    cdef vector[uint8_t] cut             # [source * size + destination]: nothing gets through
    cdef vector[int64_t] _last_arrival   # [source * size + destination]
    cdef vector[uint64_t] _kind_messages  # [rank * 256 + message_id], sent
    cdef vector[uint64_t] _kind_bytes

    cdef void count(self, uint32_t source, uint8_t message_id, size_t size_bytes) noexcept nogil
    # When a message sent now reaches the destination's link; ``delay_ns``: besides what the model says.
    cdef int64_t arrival_ns(
        self, int64_t now, uint64_t* random_state, uint32_t source, uint32_t destination, size_t size_bytes,
        int64_t delay_ns) noexcept nogil
    # When a message that reached the destination's link now has passed it.
    cdef int64_t passed_ns(self, int64_t now, uint32_t destination, size_t size_bytes) noexcept nogil
    # When the last message sent so far will have reached the link. 0: none was sent.
    cdef int64_t last_arrival_ns(self, uint32_t source, uint32_t destination) noexcept nogil
    cdef bint are_cut(self, uint32_t source, uint32_t destination) noexcept nogil
