"""Memory and content of simulated messages, and what is planted in them; ``sim_messages.pxd`` is the contract."""

from libc.stdlib cimport free, malloc
from libc.string cimport memcpy, memset

from intentpm.transports.base cimport pack_pieces
from intentpm.transports.sim_time cimport mixed

_ACTIONS = {"drop": MUTATE_DROP, "duplicate": MUTATE_DUPLICATE, "corrupt": MUTATE_CORRUPT, "delay": MUTATE_DELAY}


cdef Message* new_message(
        uint32_t source, uint32_t destination, uint8_t message_id, const char* header, size_t header_bytes,
        const Piece* pieces, size_t piece_count) noexcept nogil:
    cdef Message* message = <Message*>malloc(sizeof(Message))
    cdef size_t i
    if message == NULL:
        return NULL
    memset(message, 0, sizeof(Message))
    message.source = source
    message.destination = destination
    message.message_id = message_id
    message.header_bytes = header_bytes
    memcpy(message.header, header, header_bytes)
    message.pieces = <Piece*>malloc(max(piece_count, 1) * sizeof(Piece))
    if message.pieces == NULL:
        free(message)
        return NULL
    message.piece_count = piece_count
    for i in range(piece_count):
        message.pieces[i] = pieces[i]
        message.body_bytes += pieces[i].size_bytes
    return message


cdef bint gather_message(Message* message) noexcept nogil:
    message.body = <char*>malloc(message.body_bytes + 8)
    if message.body == NULL:
        return False
    pack_pieces(message.body, message.pieces, message.piece_count)
    return True


cdef Message* copy_message(const Message* message) noexcept nogil:
    cdef Message* copy = <Message*>malloc(sizeof(Message))
    if copy == NULL:
        return NULL
    copy[0] = message[0]
    copy.pieces = NULL
    copy.piece_count = 0
    copy.body = <char*>malloc(message.body_bytes + 8)
    if copy.body == NULL:
        free(copy)
        return NULL
    memcpy(copy.body, message.body, message.body_bytes)
    return copy


cdef void corrupt_message(Message* message) noexcept nogil:
    # All of the last item, not one bit: that could vanish by rounding.
    cdef size_t i
    for i in range(message.body_bytes - min(<size_t>8, message.body_bytes), message.body_bytes):
        message.body[i] ^= 0x55


cdef uint64_t _hash_bytes(uint64_t hash, const char* data, size_t size_bytes) noexcept nogil:
    cdef uint64_t word
    cdef size_t at = 0
    while at + 8 <= size_bytes:
        memcpy(&word, data + at, 8)
        hash = mixed(hash, word)
        at += 8
    word = size_bytes
    memcpy(&word, data + at, size_bytes - at)
    return mixed(hash, word)


cdef uint64_t hash_message(const Message* message) noexcept nogil:
    return _hash_bytes(
        _hash_bytes(message.message_id, message.header, message.header_bytes), message.body, message.body_bytes)


cdef void settle_message(Message* message, int status) noexcept nogil:
    if message.done != NULL:
        message.done(message.argument, status)
    if message.body != NULL:
        memset(message.body, DEAD_BYTE, message.body_bytes)
    free(message.body)
    free(message.pieces)
    free(message)


cdef bint _is_match(void* matches, const Message* message) noexcept with gil:
    cdef bytes body = b"".join([
        message.pieces[i].data[:message.pieces[i].size_bytes] for i in range(message.piece_count)])
    return (<object>matches)(message.source, message.destination, message.header[:message.header_bytes], body)


cdef class Mutations:
    """Defects of the network: of each, which message is treated wrongly, and how."""

    def __cinit__(self):
        self._kept = []

    cdef int plant(self, str action, uint8_t message_id, uint64_t nth, object matches) except -1:
        cdef Mutation mutation
        mutation.action = _ACTIONS[action]
        mutation.message_id = message_id
        mutation.nth = nth
        mutation.applied = False
        mutation.matches = <void*>matches if matches is not None else NULL
        self._kept.append(matches)
        self._planted.push_back(mutation)
        return 0

    cdef MutationAction take(self, const Message* message) noexcept nogil:
        cdef size_t i
        for i in range(self._planted.size()):
            if self._planted[i].applied or self._planted[i].message_id != message.message_id:
                continue
            if self._planted[i].action == MUTATE_CORRUPT and message.body_bytes == 0:
                continue
            if self._planted[i].matches != NULL and not _is_match(self._planted[i].matches, message):
                continue
            if self._planted[i].nth > 0:
                self._planted[i].nth -= 1
                continue
            self._planted[i].applied = True
            self.applied += 1
            return self._planted[i].action
        return MUTATE_NOTHING

    cdef int clear(self) except -1:
        self._planted.clear()
        self._kept = []
        return 0
