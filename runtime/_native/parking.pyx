"""Messages that wait for a key; ``parking.pxd`` is the contract."""

from cython.operator cimport dereference as deref
from libc.stdint cimport uint8_t, uint32_t, uint64_t
from libc.stdlib cimport calloc, free
from libc.string cimport memcpy
from libcpp.vector cimport vector

from intentpm.runtime._native.message_rows cimport written_bytes
from intentpm.runtime._native.messages cimport AccessHeader, RoundHeader, carried_bytes
from intentpm.runtime._native.mutations cimport MUTATION_PARKING_DROPPED, MUTATION_PARKING_REFUSED, is_planted
from intentpm.runtime._native.table_state cimport TableState


cdef inline uint64_t _name(const TableState* table, uint32_t key) noexcept nogil:
    return (<uint64_t>table.table_id << 32) | key


cdef ParkedMessage* _new(const char* rows, size_t rows_bytes) noexcept nogil:
    cdef ParkedMessage* message
    if is_planted(MUTATION_PARKING_REFUSED):
        return NULL
    message = <ParkedMessage*>calloc(1, sizeof(ParkedMessage) + rows_bytes)
    if message != NULL:
        message.row = <char*>(message + 1)
        if rows_bytes > 0:
            memcpy(message.row, rows, rows_bytes)
    return message


cdef void unpark(ParkedMessage* message) noexcept nogil:
    """Frees a message that was taken and served."""
    free(message)


cdef class Parking:
    def __dealloc__(self):
        self.clear()

    cdef void clear(self) noexcept nogil:
        cdef size_t i
        for entry in self.messages:
            for i in range(entry.second.size()):
                free(entry.second[i])
            self.parked_now -= entry.second.size()
        self.messages.clear()

    cdef bint park_access(
            self, TableState* table, uint32_t key, const AccessHeader* header, uint32_t index, uint32_t epoch, double lr,
            const char* row) noexcept nogil:
        cdef size_t row_bytes = carried_bytes(header.kind, table.row_bytes, table.stored_bytes)
        cdef ParkedMessage* message = _new(row, row_bytes if row != NULL else 0)
        if message == NULL:
            return False
        message.is_access = True
        message.has_row = row != NULL
        message.access = header[0]
        message.index = index
        message.epoch = epoch
        message.lr = lr
        return self._put(table, key, message)

    cdef bint park_record(
            self, TableState* table, uint32_t key, const RoundHeader* header, uint8_t record, uint32_t epoch,
            uint32_t version, const char* rows) noexcept nogil:
        cdef ParkedMessage* message = _new(rows, written_bytes(table, record))
        if message == NULL:
            return False
        message.round = header[0]
        message.record = record
        message.epoch = epoch
        message.version = version
        return self._put(table, key, message)

    cdef bint _put(self, TableState* table, uint32_t key, ParkedMessage* message) noexcept nogil:
        if is_planted(MUTATION_PARKING_DROPPED):
            free(message)
            return True
        self.messages[_name(table, key)].push_back(message)
        self.parked_now += 1
        self.parked_ever += 1
        return True

    cdef bint any(self, const TableState* table, uint32_t key) noexcept nogil:
        return not self.messages.empty() and self.messages.count(_name(table, key)) > 0

    cdef uint32_t count(self, const TableState* table, uint32_t key) noexcept nogil:
        return <uint32_t>self.messages[_name(table, key)].size() if self.any(table, key) else 0

    cdef void take(self, const TableState* table, uint32_t key, vector[ParkedMessage*]& out) noexcept nogil:
        found = self.messages.find(_name(table, key))
        if found == self.messages.end():
            return
        out.swap(deref(found).second)
        self.parked_now -= out.size()
        self.messages.erase(found)
