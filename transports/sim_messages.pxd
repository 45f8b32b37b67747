"""Messages under way in a simulation, and the defects planted among them.

Called by: SimNetwork, for every message sent.

Guarantees
    * A message owns its memory, except for a body that was not gathered yet: that is still its sender's (``done``).
    * The bytes of a freed message are destroyed first, so that whoever still reads them reads nonsense, the same for
      each seed.
Assumption: one thread at a time runs (``sim_tasks``), which guards messages and mutations.
"""

cimport cython
from libc.stddef cimport size_t
from libc.stdint cimport uint8_t, uint32_t, uint64_t
from libcpp.vector cimport vector

from intentpm.transports.base cimport MAX_HEADER_BYTES, Piece, done_fn

cdef enum:
    FRESH_BYTE = 0xA5            # what memory holds before its owner wrote it ...
    DEAD_BYTE = 0xDD             # ... and after it was given back

cdef struct Message:
    uint32_t source
    uint32_t destination
    uint8_t message_id
    bint on_link                 # reached the destination's link; delivered at the next event
    size_t header_bytes
    char header[MAX_HEADER_BYTES]
    size_t body_bytes
    char* body                   # own copy; NULL: still at ``pieces``
    Piece* pieces                # own copy of the list, not of the bytes
    size_t piece_count
    done_fn done                 # to be called; NULL: called already, or none
    void* argument

# NULL: out of memory.
cdef Message* new_message(
    uint32_t source, uint32_t destination, uint8_t message_id, const char* header, size_t header_bytes,
    const Piece* pieces, size_t piece_count) noexcept nogil
# Copies the body from where the sender has it. False: out of memory.
cdef bint gather_message(Message* message) noexcept nogil
# Of a message that holds its own body. NULL: out of memory.
cdef Message* copy_message(const Message* message) noexcept nogil
# The body's last item becomes another.
cdef void corrupt_message(Message* message) noexcept nogil
# Of header and body, which must be gathered.
cdef uint64_t hash_message(const Message* message) noexcept nogil
# The message is over: its sender may have its memory back, with ``status``.
cdef void settle_message(Message* message, int status) noexcept nogil


cdef enum MutationAction:
    MUTATE_NOTHING = -1
    MUTATE_DROP = 0
    MUTATE_DUPLICATE = 1
    MUTATE_CORRUPT = 2
    MUTATE_DELAY = 3

cdef struct Mutation:
    MutationAction action
    uint8_t message_id
    uint64_t nth                 # counts down the messages that match; 0: this one
    bint applied
    void* matches                # borrowed from Mutations._kept; NULL: all messages


@cython.final
cdef class Mutations:
    cdef readonly uint64_t applied
    cdef vector[Mutation] _planted
    cdef list _kept              # keeps alive what mutations point to

    cdef int plant(self, str action, uint8_t message_id, uint64_t nth, object matches) except -1
    # What is to happen to this message, once.
    cdef MutationAction take(self, const Message* message) noexcept nogil
    cdef int clear(self) except -1
