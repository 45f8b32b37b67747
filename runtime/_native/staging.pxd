"""Staged message bodies: allocated from the transport, released by it when sent.

When memory runs out, a worker's call that was about to send fails alone. Any other message is one that another rank waits
for, or relies on: without it the job cannot go on. ``Transport.out_of_memory`` tells the engine, which ends it.

Called by whatever sends (engine lock held). No state but what lies before each body.
"""

from libc.stdint cimport int64_t, uint8_t, uint32_t

from intentpm.transports.base cimport Transport

cdef enum:
    PATIENT_NS = 250_000_000     # what nobody waits for: the others first, but no longer than that


# NULL: out of memory. try_stage: the caller has a worker to tell. stage: it has none, and need not do more than stop here.
cdef char* try_stage(Transport transport, size_t size_bytes) noexcept nogil
cdef char* stage(Transport transport, size_t size_bytes) noexcept nogil
# Gives a staged body back (also the transport's way to say it was sent).
cdef void unstage(void* body, int status) noexcept nogil
# Sends and gives the body away, whatever the result. NULL: there was no memory for it. ahead_ns: when it is needed, unless at
# once.
# False: the peer is lost, or memory has run out; either ends the job.
cdef bint send_staged(
    Transport transport, uint32_t destination, uint8_t message_id, const void* header, size_t header_bytes,
    char* body, size_t body_bytes, int64_t ahead_ns=*) noexcept nogil
