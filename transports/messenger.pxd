"""A transport for Python callers: messages become Python objects, waits sleep without the GIL.

Called by: tests, through Mailbox (``mailbox``), which adds measurements; ``doctor`` and the benches through that too.

Guarantees
    * Every wait has a deadline, sleeps on the transport's event descriptor when there is nothing to do, and raises
      WaitTimeoutError naming what it waited for.
    * Buffers of a message are exported, so that nobody can resize them, until the transport is done with them.
Assumption: one thread at a time uses a messenger, and nothing else uses its transport. That guards every field.
"""

cimport cython
from libc.stddef cimport size_t
from libc.stdint cimport int64_t, uint8_t, uint32_t, uint64_t
from libcpp.vector cimport vector

from intentpm.transports.base cimport Piece, Transport


cdef enum:
    FIRST_OWN_ID = 250              # message ids from here on are a subclass's


cdef struct SendState:
    int done_calls
    int status
    int* finished                   # the messenger's count


cdef class SendHandle:
    cdef SendState state
    cdef Messenger messenger
    cdef uint32_t destination
    cdef vector[Py_buffer] views
    cdef vector[Piece] pieces

    cdef void release_buffers(self)


@cython.no_gc_clear
cdef class Messenger:
    cdef readonly Transport transport
    cdef readonly list lost
    cdef public bint auto_echo
    cdef public bint auto_drop
    cdef readonly uint64_t echoed_messages
    cdef int finished_sends             # since the last _settle()
    cdef object arrived                 # messages not taken yet
    cdef list unfinished                # SendHandles that the transport still reads from

    # When ``timeout_s`` is over. Raises ConfigError (no number).
    cdef int64_t deadline(self, timeout_s) except -1
    # Progress, or sleep until there may be some. Raises WaitTimeoutError after ``deadline_ns``.
    cdef int step(self, int64_t deadline_ns, str what, double timeout_s) except -1
    cdef void advance(self, bint may_sleep, int64_t deadline_ns) noexcept nogil
    # Drops a rank; ``loss``: one that is given at most this rank.
    cdef void give_up(self, uint32_t rank, int loss) noexcept nogil
    # A message has arrived; runs inside progress().
    cdef void take(
        self, uint32_t source, uint8_t message_id,
        const char* header, size_t header_bytes, const char* body, size_t body_bytes) noexcept nogil
    cdef void send_back(
        self, uint32_t source, uint8_t message_id,
        const char* header, size_t header_bytes, const char* body, size_t body_bytes) noexcept nogil
