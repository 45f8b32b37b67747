"""Slots: which key's row lies where, and the states a key goes through on this rank.

Guarantees
    * A slot has one key; one that is free is bound again before memory is touched that never was.
    * Whoever still copies from a slot that was taken from its key finds that key's word changed (``state.pxd``).
Assumption: management calls all of it, under the engine's lock (``Table.adopt``: before the engine knows the table).
"""

from libc.stdint cimport int32_t, int64_t, uint8_t, uint32_t

from intentpm.runtime._native.state cimport KeyState
from intentpm.runtime._native.table_state cimport TableState


# Of a key that is not here: the caller fills the row of the slot, which nobody else can find, then publishes. There is a slot
# for every key.
cdef int32_t bind_slot(TableState* table, int64_t key) noexcept nogil
cdef void publish(TableState* table, int64_t key, KeyState state) noexcept nogil
# A relocated row continues the versions of its former owner, so that holders can tell which of two rows is newer, whoever
# sent it; and those of the key here, so that readers can tell that it was bound anew (``continue_version``).
cdef void publish_owned(TableState* table, int64_t key, uint32_t version, bint shared) noexcept nogil
# Of a key that is not here: ABSENT <-> REQUESTED.
cdef void change_state(TableState* table, int64_t key, KeyState state) noexcept nogil
# Makes a replica absent unless something is pending or kept (then False, and nothing is changed).
cdef bint drop_replica(TableState* table, int64_t key) noexcept nogil
# Makes an owned key absent, its row moved into ``out``; returns its last version. ``apart``: what leave_apart says of it, and
# behind the row its copy, if that goes along.
cdef uint32_t move_out(TableState* table, int64_t key, char* out, uint8_t* apart) noexcept nogil
# The same, but it stays as a replica of the row it had.
cdef uint32_t keep_as_replica(TableState* table, int64_t key, char* out, uint8_t* apart) noexcept nogil
# Moves rows down into free slots, up to ``most`` of them, so that what is free lies behind them, and gives it back. Not while
# the table is saved or a device has rows of it. Returns how many slots were given back.
cdef int64_t pack_slots(TableState* table, int64_t most) noexcept nogil
# Gives the memory of free slots behind all others back to the system, when it is ``least_bytes`` of rows or more and none of
# them was bound since this was last called. Returns the number of slots.
cdef int64_t trim_slots(TableState* table, size_t least_bytes) noexcept nogil
