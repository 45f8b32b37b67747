"""The transport interface: what the engine may ask of a network, and nothing more.

Guarantees (every transport)
    * A message is delivered once and whole, or its peer is reported lost. Two messages to the same rank may arrive in
      any order: nothing above may depend on their order.
    * ``on_message`` and ``on_lost`` run only inside ``progress()``, on the thread that called it, never nested.
    * ``send`` may be called from inside ``on_message``; ``progress`` may not.
Assumptions
    * The caller serialises every call on one transport object (the engine's lock). A transport owns no threads.
    * ``on_message`` does not keep the pointers it is given: they are dead when it returns.
"""

from libc.stddef cimport size_t
from libc.stdint cimport int64_t, uint8_t, uint32_t, uint64_t
from libc.string cimport memcpy


cdef enum MemoryType:
    HOST_MEMORY = 0
    CUDA_MEMORY = 1


cdef enum SendStatus:
    SEND_OK = 0          # accepted: ``done`` was or will be called exactly once
    SEND_PEER_LOST = 1   # refused: the peer is gone; ``done`` will not be called
    SEND_NO_MEMORY = 2   # refused: out of memory; ``done`` will not be called


cdef struct Piece:
    # One piece of a gathered message body. It stays untouched until ``done`` is called.
    const char* data
    size_t size_bytes
    MemoryType memory


# Copies pieces (of host memory) one after the other; returns the bytes.
cdef inline size_t pack_pieces(char* target, const Piece* pieces, size_t piece_count) noexcept nogil:
    cdef size_t i
    cdef size_t size_bytes = 0
    for i in range(piece_count):
        if pieces[i].size_bytes:        # an empty one may have no address
            memcpy(target + size_bytes, pieces[i].data, pieces[i].size_bytes)
            size_bytes += pieces[i].size_bytes
    return size_bytes


# A message arrived. ``header`` and ``body`` are contiguous and valid during the call only; ``body`` is 8-byte aligned.
ctypedef void (*message_fn)(
    void* context, uint32_t source, uint8_t message_id,
    const char* header, size_t header_bytes, const char* body, size_t body_bytes) noexcept nogil
# The pieces of one ``send`` may be reused. ``status``: 0 sent (or copied), else the peer was lost first.
ctypedef void (*done_fn)(void* argument, int status) noexcept nogil
# A peer is gone for good; called once per peer. ``why``: a zero-ended text valid during the call.
ctypedef void (*lost_fn)(void* context, uint32_t rank, const char* why) noexcept nogil


# What a caller waits for: true when it may go on.
ctypedef bint (*condition_fn)(void* context, void* argument) noexcept nogil
# A time asked for by request_step has come, or a message was delivered; called from inside progress().
ctypedef void (*step_fn)(void* context) noexcept nogil


cdef enum:
    MAX_HEADER_BYTES = 256       # of one message; the body is limited by max_body_bytes
    BODY_ALIGNMENT = 8


cdef class Transport:
    cdef readonly uint32_t rank
    cdef readonly uint32_t size
    cdef readonly str name
    cdef readonly bint virtual_time    # now_ns() is virtual: waits go through run_until, and there is no progress thread
    cdef message_fn on_message
    cdef step_fn on_step               # only a transport with virtual time calls it
    cdef lost_fn on_lost
    cdef void* context                 # first argument of on_message and on_lost
    # Counters since start, guarded by the engine's lock.
    cdef readonly uint64_t sent_messages
    cdef readonly uint64_t sent_bytes
    cdef readonly uint64_t received_messages
    cdef readonly uint64_t received_bytes
    # Headers and bodies per message id (modulo 32), kept by the layer above, which alone knows what the ids mean.
    cdef uint64_t sent_bytes_of[32]
    cdef uint64_t received_bytes_of[32]
    # Of the layer above, too: when what it sends next is needed, on now_ns()'s clock; 0: at once. Where messages to a rank
    # have to wait, a transport may send the soonest first.
    cdef int64_t due_ns
    # Of the layer above, too (membership.pxd): set in the ids of its messages; per rank, how many it has sent. NULL: not
    # counted.
    cdef uint8_t id_mark
    cdef uint64_t* sent_to
    # Memory for messages ran out; the layer above notes it here, and ends the job because of it. Under the callers' lock.
    cdef bint out_of_memory

    # -- data path: nogil, serialised by the caller ------------------------------------------------------------------
    cdef SendStatus send(
        self, uint32_t destination, uint8_t message_id, const char* header, size_t header_bytes,
        const Piece* pieces, size_t piece_count, done_fn done, void* argument) noexcept nogil
    # Moves data; returns the number of messages delivered and sends finished (0: nothing to do).
    cdef int progress(self) noexcept nogil
    # The descriptor that becomes readable when progress() has work, after a successful arm(). -1: there is none.
    cdef int event_fd(self) noexcept nogil
    # Prepares to sleep on event_fd. False: work is waiting, call progress() instead of sleeping.
    cdef bint arm(self) noexcept nogil
    cdef bint is_alive(self, uint32_t rank) noexcept nogil
    # Nanoseconds of network silence: when the last byte from ``rank`` was seen, on now_ns()'s clock.
    cdef int64_t last_heard_ns(self, uint32_t rank) noexcept nogil
    # The peer has said goodbye: from now on its disconnection is no loss.
    cdef void expect_close(self, uint32_t rank) noexcept nogil
    # Declares a peer lost (silence, an error above): drops its queue and calls on_lost as a disconnection would.
    cdef void drop(self, uint32_t rank, const char* why) noexcept nogil
    # Bytes accepted by send() for ``rank`` and not yet handed to the network.
    cdef size_t backlog_bytes(self, uint32_t rank) noexcept nogil
    # For any rank.
    cdef bint has_backlog(self) noexcept nogil
    # Monotonic time. Virtual on the sim transport, so nothing above may read another clock.
    cdef int64_t now_ns(self) noexcept nogil
    # Transports with virtual time (sim) run the ranks themselves: they call on_step at ``at_ns`` (or soon, if past), for
    # there is no progress thread that would wake. False: this transport has real time, wake your thread yourself.
    cdef bint request_step(self, int64_t at_ns) noexcept nogil
    # Virtual time only: the network runs until ``condition(context, argument)`` or ``until_ns``. Called without the lock.
    cdef void run_until(
        self, condition_fn condition, void* context, void* argument, int64_t until_ns) noexcept nogil
    # Staging memory for message bodies, registered with the network where that matters. NULL: out of memory.
    cdef char* allocate(self, size_t size_bytes) noexcept nogil
    cdef void release(self, char* data, size_t size_bytes) noexcept nogil
