"""A message of management while it is being built; ``draft.pxd`` is the contract."""

from libc.stdint cimport int64_t, uint8_t, uint16_t, uint32_t
from libc.string cimport memcpy

from intentpm.runtime._native.messages cimport (
    FLAG_HOLDERS, RoundBody, RoundHeader, holders_bytes, indices_bytes, padded, round_body,
)
from intentpm.runtime._native.staging cimport PATIENT_NS, send_staged, stage
from intentpm.transports.base cimport Transport


cdef class Draft:
    def __init__(self, Transport transport not None):
        self.transport = transport

    cdef char* begin(self, size_t most, size_t rows_bytes, uint32_t u32_sections, size_t holders=0) noexcept nogil:
        self.keys.clear()
        self.epochs.clear()
        self.versions.clear()
        self.codes.clear()
        self.holders.clear()
        return stage(
            self.transport, padded(rows_bytes) + u32_sections * indices_bytes(<uint32_t>most) + padded(most)
            + holders_bytes(holders))

    cdef void send(
            self, uint32_t to, uint8_t message_id, const TableState* table, const RoundHeader* header, char* memory,
            bint epochs, int64_t ahead_ns=PATIENT_NS) noexcept nogil:
        cdef RoundBody body = round_body(memory, header, epochs)
        memcpy(body.keys, self.keys.data(), header.count * sizeof(uint32_t))
        if epochs:
            memcpy(body.epochs, self.epochs.data(), header.count * sizeof(uint32_t))
        memcpy(body.versions, self.versions.data(), header.count * sizeof(uint32_t))
        memcpy(body.codes, self.codes.data(), header.count)
        if header.flags & FLAG_HOLDERS:
            memcpy(body.holders, self.holders.data(), self.holders.size() * sizeof(uint16_t))
            body.size_bytes += holders_bytes(self.holders.size())
        send_staged(self.transport, to, message_id, header, sizeof(RoundHeader), memory, body.size_bytes, ahead_ns)
