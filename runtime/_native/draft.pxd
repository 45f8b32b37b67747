"""A ROUND, ANSWER or REFRESH while it is being built: rows go straight into the body, the other sections lie beside it.

    memory = draft.begin(most, rows_bytes, u32_sections)   # room for so many entries, and rows; NULL: out of memory
    ...                                                    # rows into memory, entries into keys, codes and so on
    draft.send(...) or unstage(memory, 1)

Called by Holder, Owner and News, each of which has a draft of its own: one message at a time.
Assumption: every method is called under the engine's lock.
"""

cimport cython
from libc.stdint cimport int64_t, uint8_t, uint16_t, uint32_t
from libcpp.vector cimport vector

from intentpm.runtime._native.messages cimport RoundHeader
from intentpm.runtime._native.table_state cimport TableState
from intentpm.transports.base cimport Transport

cdef enum:
    MESSAGE_RECORDS = 16384


cdef inline uint32_t records_per_message(const TableState* table) noexcept nogil:
    return <uint32_t>min(
        <size_t>MESSAGE_RECORDS, max(<size_t>1, table.message_bytes // max(table.stored_bytes, table.record_bytes)))


@cython.final
cdef class Draft:
    cdef Transport transport
    cdef vector[uint32_t] keys
    cdef vector[uint32_t] epochs                 # as many as keys in an ANSWER, a REFRESH, and a ROUND that is forwarded
    cdef vector[uint32_t] versions               # as many as keys
    cdef vector[uint8_t] codes                   # records or results, as many as keys
    cdef vector[uint16_t] holders                # of an ANSWER with HOLDERS

    # holders: room for so many.
    cdef char* begin(self, size_t most, size_t rows_bytes, uint32_t u32_sections, size_t holders=*) noexcept nogil
    # Adds the sections behind the rows in ``memory`` and sends it. The header says how many entries and rows there are.
    cdef void send(
        self, uint32_t to, uint8_t message_id, const TableState* table, const RoundHeader* header, char* memory,
        bint epochs, int64_t ahead_ns=*) noexcept nogil
