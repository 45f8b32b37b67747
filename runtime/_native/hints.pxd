"""Hints: two things an owner tells others that can wait.

    MOVED {keys, epochs, owners}   to ranks that neither gave nor took the keys: until they know, they ask a rank that forwards
    OFFER {keys}                   "you alone still hold these": asked for again, they move

They are gathered for HINT_GAP_NS: sent with every message that causes them they were half of all messages. What is no longer
true by then is left out. Losing one would cost detours, not values.

Assumption: every method is called under the engine's lock.
"""

cimport cython
from libc.stdint cimport int64_t, uint8_t, uint32_t
from libcpp.vector cimport vector

from intentpm.runtime._native.journal cimport Journal
from intentpm.runtime._native.messages cimport MSG_MOVED, RoundHeader, indices_bytes, keys_fit
from intentpm.runtime._native.remote cimport RemoteAccess
from intentpm.runtime._native.state cimport KeyRefs
from intentpm.runtime._native.table_state cimport TableState
from intentpm.transports.base cimport Transport


cdef enum:
    WELL_KNOWN_RANKS = 8             # in a job of at most so many, all are told where keys move, not only their home ranks


cdef inline uint32_t told_of_moves(uint32_t size) noexcept nogil:
    """How many ranks hear that a key has moved, in a job of that many."""
    return 1 if size > WELL_KNOWN_RANKS else size - 2 if size > 2 else 0


cdef inline size_t hint_bytes(uint8_t message_id, uint32_t count) noexcept nogil:
    """Of a body; u32 sections."""
    return (3 if message_id == MSG_MOVED else 1) * indices_bytes(count)


cdef inline bint hint_fits(
        const TableState* table, uint8_t message_id, const RoundHeader* header, const uint32_t* numbers,
        size_t body_bytes) noexcept nogil:
    """Whether a body that came is what its header says."""
    return body_bytes == hint_bytes(message_id, header.count) and keys_fit(numbers, header.count, table.num_keys)


@cython.final
cdef class Hints:
    cdef Transport transport
    cdef RemoteAccess remote
    cdef Journal journal
    cdef int management
    cdef int64_t due_ns                          # NEVER: there are none
    cdef vector[KeyRefs] offers                  # per holder: not sent yet
    cdef vector[KeyRefs] moved                   # per rank: the same
    cdef vector[uint32_t] keys                   # scratch: of the message being built

    # Sends the hints when they are due; returns when that will be.
    cdef int64_t step(self, int64_t now_ns) noexcept nogil
    # ``key`` was given to ``owner``.
    cdef void note_move(self, TableState* table, uint32_t key, uint32_t owner) noexcept nogil
    # No intent here for a key owned here: when exactly one other rank still has one, it shall be the owner.
    cdef void offer_to_last_holder(self, TableState* table, uint32_t key) noexcept nogil
    # A MOVED that came, and fits. False: it names ranks that do not exist.
    cdef bint learn_moves(self, TableState* table, const RoundHeader* header, const uint32_t* numbers) noexcept nogil
    # Forgets all hints: who owns what was agreed on anew.
    cdef void restart(self) noexcept nogil
    # private
    cdef void _note(self, TableState* table, uint32_t key, KeyRefs& hints) noexcept nogil
    cdef void _send(self, uint32_t peer, uint8_t message_id, KeyRefs& hints) noexcept nogil
    cdef size_t _send_of_table(
        self, uint32_t peer, uint8_t message_id, const KeyRefs& hints, size_t at) noexcept nogil
    cdef bint _is_true(self, TableState* table, uint8_t message_id, uint32_t key, uint32_t peer) noexcept nogil
