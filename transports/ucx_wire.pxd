"""What the ucx transport puts in front of its messages, and which it takes for its own.

Called by: ``ucx_sends`` (writes it), ``ucx_arrivals`` and ``ucx_greetings`` (read it), ``ucx_worker`` (its size).
"""

from libc.stddef cimport size_t
from libc.stdint cimport uint32_t

from intentpm.transports.base cimport MAX_HEADER_BYTES


cdef enum ActiveMessage:
    AM_MESSAGE = 0             # the engine's messages
    AM_CONTROL = 1             # hello and goodbye

# In front of every active message's header.
cdef struct Prefix:
    uint32_t source
    uint32_t tag_and_id        # bits 8-31: the job's tag; bits 0-7: message id (or ControlKind)

cdef struct WireHeader:
    Prefix prefix
    char bytes[MAX_HEADER_BYTES]

# Of a job: who this is in it, to tell its messages from those of another job or of nobody.
cdef struct JobMark:
    uint32_t tag               # already in bits 8-31
    uint32_t rank
    uint32_t size


cdef inline bint is_foreign(const JobMark* job, const WireHeader* wire, size_t wire_bytes) noexcept nogil:
    return (
        wire_bytes < sizeof(Prefix) or wire_bytes > sizeof(WireHeader) or
        wire.prefix.tag_and_id >> 8 != job.tag >> 8 or
        wire.prefix.source >= job.size or wire.prefix.source == job.rank)
