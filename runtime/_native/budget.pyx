"""What a rank may take of memory; ``budget.pxd`` is the contract."""

from libc.stdint cimport int32_t, int64_t, uint32_t
from intentpm.foundation.primitives cimport load_acquire_pointer, load_relaxed, load_relaxed_i64, store_relaxed_i64
from intentpm.runtime._native.mutations cimport MUTATION_COPY_UNCOUNTED, MUTATION_PRESSURE_IGNORED, is_planted
from intentpm.runtime._native.snapshot cimport Snapshot
from intentpm.runtime._native.table_state cimport Holding, ReplicaRecord, TableState

cdef enum:
    CHUNK_BYTES = 256 << 10      # small enough that copying and sending overlap
    FEWEST_CHUNK_BYTES = 2 << 10
    WINDOW_REQUESTS = 32
    ROUND_BYTES = 8 << 20
    # Of what a peer's messages may take, a half are accesses (as many asked as served), an eighth each: rounds, refreshes; a
    # quarter answers, which may bring two rows for a key.
    CHUNKS_PER_PEER = 64
    WHOLE_AHEAD = 256
    KEY_BYTES = 16               # of a message, beside a row

cdef size_t UNLIMITED = <size_t>1 << 62


cdef size_t slot_bytes(const TableState* table) noexcept nogil:
    # key_of, free_slots, holdings_at, and the mark of a snapshot
    return table.stride_bytes + 4 * sizeof(int32_t) + sizeof(ReplicaRecord)


cdef int64_t bytes_of(const TableState* table) noexcept nogil:
    cdef int64_t slots = table.slots_used + table.slots_promised
    cdef int64_t copies = slots - table.rows_owned
    # A copy may be written to at any time: what it keeps for its owner is promised with it.
    return (
        table.fixed_bytes + max(slots, table.slots_touched) * <int64_t>slot_bytes(table) + copies * LIST_BYTES
        + max(copies, <int64_t>load_relaxed(&table.pending.touched)) * <int64_t>table.pending.stride
        + max(copies, <int64_t>load_relaxed(&table.kept.touched)) * <int64_t>table.kept.stride
        + <int64_t>table.holdings_touched * <int64_t>(sizeof(Holding) + HOLDING_LISTS_BYTES))


cdef int64_t copies_waiting(Budget budget) noexcept nogil:
    cdef int64_t waiting = 0
    cdef TableState* table
    cdef Snapshot* snapshot
    cdef size_t i
    for i in range(budget.tables.size()):
        table = budget.tables[i]
        snapshot = <Snapshot*>load_acquire_pointer(<void**>&table.snapshot)
        if snapshot != NULL and snapshot.sealed:
            waiting += load_relaxed_i64(&snapshot.copies_held) * <int64_t>snapshot.stride_bytes
    return waiting


cdef class Budget:
    def __init__(self, size: int, limit_bytes: int):
        self.size = size
        self.limit_bytes = limit_bytes
        self.chunk_bytes = CHUNK_BYTES
        self.window_requests = WINDOW_REQUESTS
        self.round_bytes = ROUND_BYTES
        self.peer_bytes = self.answer_bytes = UNLIMITED
        self.intents.ahead_256 = WHOLE_AHEAD
        self.copies.most_bytes = <int64_t>UNLIMITED
        if limit_bytes > 0:
            self.table_bytes = limit_bytes * 3 // 4
            self.message_bytes = limit_bytes // 8
            self.save_bytes = self.copies.most_bytes = limit_bytes // 16
            self.intents.most_bytes = limit_bytes // 32
            self.narrow(self.message_bytes // max(1, size - 1))

    cdef int64_t taken(self) noexcept nogil:
        cdef int64_t taken = self.claimed_bytes + self.kept_bytes
        cdef size_t i
        for i in range(self.tables.size()):
            taken += bytes_of(self.tables[i])
        return taken + max(<int64_t>0, load_relaxed_i64(&self.copies.held_bytes) - self.save_bytes)

    cdef int64_t least(self) noexcept nogil:
        cdef int64_t least = self.claimed_bytes + self.kept_bytes
        cdef size_t i
        for i in range(self.tables.size()):
            least += self.tables[i].fixed_bytes + self.tables[i].rows_owned * <int64_t>slot_bytes(self.tables[i])
        return least

    cdef bint promise(self, TableState* table) noexcept nogil:
        if is_planted(MUTATION_COPY_UNCOUNTED):
            return True
        table.slots_promised += 1
        if self.excess() == 0 or is_planted(MUTATION_PRESSURE_IGNORED):
            return True
        table.slots_promised -= 1
        return False

    cdef int64_t excess(self) noexcept nogil:
        if self.limit_bytes == 0:
            return 0
        return max(<int64_t>0, self.taken() - self.table_bytes)

    cdef bint can_shrink(self) noexcept nogil:
        cdef TableState* table
        cdef size_t i
        for i in range(self.tables.size()):
            table = self.tables[i]
            if table.slots_used + table.slots_promised > table.rows_owned or (
                    table.free_count > 0 and table.tier == NULL and table.snapshot == NULL):
                return True
        return False

    cdef void set_ahead(self) noexcept nogil:
        # All of it while a quarter of what tables may take is free, none when all is taken.
        cdef int64_t free_bytes = max(<int64_t>0, self.table_bytes - self.taken())
        store_relaxed_i64(&self.intents.ahead_256, min(
            <int64_t>WHOLE_AHEAD, free_bytes * 4 * WHOLE_AHEAD // max(<int64_t>1, self.table_bytes)))

    cdef void make_copy_room(self) noexcept nogil:
        if self.limit_bytes > 0:
            store_relaxed_i64(
                &self.copies.most_bytes, self.save_bytes + max(<int64_t>0, self.table_bytes - self.taken()) // 2)

    cdef void add_table(self, TableState* table) noexcept nogil:
        self.set_message_bytes(table)
        self.tables.push_back(table)
        self.claimed_bytes = 0

    cdef void remove_table(self, TableState* table) noexcept nogil:
        cdef size_t i, kept = 0
        for i in range(self.tables.size()):
            if self.tables[i] != table:
                self.tables[kept] = self.tables[i]
                kept += 1
        self.tables.resize(kept)

    cdef void narrow(self, size_t peer_bytes) noexcept nogil:
        cdef size_t i
        if peer_bytes >= self.peer_bytes:
            return
        self.peer_bytes = peer_bytes
        self.chunk_bytes = max(<size_t>FEWEST_CHUNK_BYTES, min(<size_t>CHUNK_BYTES, peer_bytes // CHUNKS_PER_PEER))
        self.window_requests = <uint32_t>max(<size_t>1, min(<size_t>WINDOW_REQUESTS, peer_bytes // 4 // self.chunk_bytes))
        # However few there may be, one goes on its way.
        self.answer_bytes = max(<size_t>1, peer_bytes // 8)
        self.round_bytes = min(<size_t>ROUND_BYTES, self.answer_bytes)
        for i in range(self.tables.size()):
            self.set_message_bytes(self.tables[i])

    cdef void set_message_bytes(self, TableState* table) noexcept nogil:
        cdef size_t row_bytes = max(table.stored_bytes, <size_t>4)
        table.message_bytes = self.chunk_bytes
        if self.peer_bytes < UNLIMITED:
            table.message_bytes = self.chunk_bytes * row_bytes // (row_bytes + KEY_BYTES)
