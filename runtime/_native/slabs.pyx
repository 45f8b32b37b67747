"""The memory of a table; ``slabs.pxd`` is the contract."""

from libc.stdint cimport int32_t, int64_t, uint8_t, uint32_t
from posix.mman cimport (
    MADV_DONTNEED, MADV_HUGEPAGE, MADV_NOHUGEPAGE, MAP_ANONYMOUS, MAP_FAILED, MAP_NORESERVE, MAP_PRIVATE, PROT_READ, PROT_WRITE,
    madvise, mmap, munmap,
)

from intentpm.foundation.errors import MemoryBudgetError

from intentpm.runtime._native.row_pool cimport RowPool
from intentpm.runtime._native.state cimport KeyPlace
from intentpm.runtime._native.table_state cimport (
    CACHE_LINE_BYTES, Holding, KeyRecord, ReplicaRecord, TableState,
)

cdef enum:
    HUGE_PAGE_BYTES = 2 << 20
    PAGE_BYTES = 64 << 10        # of the largest that systems use but for huge ones
    SMALL_PAGE_BYTES = 4 << 10


def stride_for(stored_bytes: int) -> int:
    """Bytes from one row to the next: a power of two below a cache line, whole cache lines above."""
    if stored_bytes >= CACHE_LINE_BYTES:
        return (stored_bytes + CACHE_LINE_BYTES - 1) // CACHE_LINE_BYTES * CACHE_LINE_BYTES
    return 1 << max(stored_bytes - 1, 0).bit_length()


cdef int map_arrays(TableState* table) except -1:
    cdef size_t keys = table.num_keys
    table.stride_bytes = stride_for(table.stored_bytes)
    table.places = <KeyPlace*>_map(keys * sizeof(KeyPlace), True)
    table.key_of = <int32_t*>_map(keys * sizeof(int32_t), False)
    table.rows = <char*>_map(keys * table.stride_bytes, _has_huge_rows(table))
    # What only keys with intents, replicas or relocations touch; a one-rank job touches none of it.
    table.holdings_room = min(keys * (table.size - 1) + 1, <size_t>0xffffffff)
    table.records = <KeyRecord*>_map(keys * sizeof(KeyRecord), True)
    table.flags = <uint8_t*>_map(keys, False)
    table.dirty_next = <int32_t*>_map(keys * sizeof(int32_t), False)
    table.replicas = <ReplicaRecord*>_map(keys * sizeof(ReplicaRecord), False)
    table.holdings_at = <uint32_t*>_map(keys * sizeof(uint32_t), False)
    table.holdings = <Holding*>_map(table.holdings_room * sizeof(Holding), False)
    _map_pool(&table.pending, keys, table.row_bytes)
    if table.optimiser != NULL:
        _map_pool(&table.kept, keys, table.optimiser.kept_bytes + table.optimiser.gradient_bytes)
    table.free_slots = <int32_t*>_map(keys * sizeof(int32_t), False)
    table.fixed_bytes = _fixed_bytes(table)
    return 0


cdef int64_t _fixed_bytes(const TableState* table) noexcept:
    """Arrays per key, as if all of them were touched, and of each array per slot a page that is partly used."""
    cdef size_t keys = table.num_keys
    cdef size_t fixed = _pages(keys * sizeof(KeyPlace)) + _rows_page_bytes(table) + PAGE_BYTES
    if table.size > 1:                   # the rest is for management
        fixed += _pages(keys * sizeof(KeyRecord)) + _pages(keys) + _pages(keys * sizeof(int32_t)) + 5 * PAGE_BYTES
    return <int64_t>fixed


cdef inline bint _has_huge_rows(const TableState* table) noexcept nogil:
    """A rank that has few of the rows would take huge pages for them that stay all but empty."""
    return table.num_keys * table.stride_bytes >= table.size * <size_t>HUGE_PAGE_BYTES


cdef inline size_t _rows_page_bytes(const TableState* table) noexcept nogil:
    return HUGE_PAGE_BYTES if _has_huge_rows(table) else PAGE_BYTES


cdef inline size_t _pages(size_t size_bytes) noexcept:
    cdef size_t page_bytes = HUGE_PAGE_BYTES if size_bytes >= HUGE_PAGE_BYTES else SMALL_PAGE_BYTES
    return (size_bytes + page_bytes - 1) // page_bytes * page_bytes


cdef void unmap_arrays(TableState* table) noexcept:
    cdef size_t keys = table.num_keys
    _unmap(table.places, keys * sizeof(KeyPlace))
    _unmap(table.key_of, keys * sizeof(int32_t))
    _unmap(table.rows, keys * table.stride_bytes)
    _unmap(table.records, keys * sizeof(KeyRecord))
    _unmap(table.flags, keys)
    _unmap(table.dirty_next, keys * sizeof(int32_t))
    _unmap(table.replicas, keys * sizeof(ReplicaRecord))
    _unmap(table.holdings_at, keys * sizeof(uint32_t))
    _unmap(table.holdings, table.holdings_room * sizeof(Holding))
    _unmap(table.pending.rows, keys * table.pending.stride)
    _unmap(table.kept.rows, keys * table.kept.stride)
    _unmap(table.free_slots, keys * sizeof(int32_t))


cdef void give_back_slots(TableState* table, int64_t end, int64_t kept) noexcept nogil:
    # A reader that comes too late for a row copies zeros, and then finds that its key's word has changed. What else there is of
    # a free slot is zero or not looked at.
    cdef int64_t touched = table.slots_touched
    _give_back(table.rows, end * table.stride_bytes, _touched_bytes(table), _rows_page_bytes(table))
    _give_back(table.key_of, end * sizeof(int32_t), touched * sizeof(int32_t), PAGE_BYTES)
    _give_back(table.replicas, end * sizeof(ReplicaRecord), touched * sizeof(ReplicaRecord), PAGE_BYTES)
    _give_back(table.free_slots, kept * sizeof(int32_t), table.free_count * sizeof(int32_t), PAGE_BYTES)


cdef inline size_t _touched_bytes(const TableState* table) noexcept nogil:
    """Of ``rows``: whole huge pages, where there are any."""
    cdef size_t touched = table.slots_touched * table.stride_bytes
    return _mapped_bytes(touched) if _has_huge_rows(table) else touched


cdef void give_back_rows(TableState* table) noexcept nogil:
    _give_back(table.rows, 0, _touched_bytes(table), _rows_page_bytes(table))


cdef void give_back_holdings(TableState* table) noexcept nogil:
    _give_back(table.holdings, 0, (table.holdings_touched + 1) * sizeof(Holding), PAGE_BYTES)
    table.holdings_touched = table.holdings_free = 0


cdef void give_back_pool(RowPool* pool) noexcept nogil:
    if pool.rows != NULL:
        _give_back(pool.rows, 0, pool.touched * pool.stride, PAGE_BYTES)
    pool.touched = pool.free = 0


cdef int _map_pool(RowPool* pool, size_t most, size_t row_bytes) except -1:
    pool.stride = max(<size_t>8, <size_t>stride_for(row_bytes))
    pool.rows = <char*>_map(most * pool.stride, False)
    return 0


cdef void* _map(size_t size_bytes, bint huge) except? NULL:
    """huge: by pages of 2 MiB where it is large enough. Such memory begins and ends at a multiple of them, for the kernel
    gives none to the rest.
    """
    cdef size_t mapped_bytes = _mapped_bytes(size_bytes)
    cdef size_t slack = HUGE_PAGE_BYTES if huge and size_bytes >= HUGE_PAGE_BYTES else 0
    cdef size_t before
    cdef char* memory = <char*>mmap(
        NULL, mapped_bytes + slack, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0)
    if memory == <char*>MAP_FAILED:
        raise MemoryBudgetError(
            f"the system refused {size_bytes / 2**30:.1f} GiB of address space for a table: "
            "raise `ulimit -v`, set vm.overcommit_memory to 0 or 1, or use fewer or shorter rows")
    if slack == 0:
        madvise(memory, mapped_bytes, MADV_NOHUGEPAGE)   # also where the system takes huge pages by itself: budget.pxd counts
        return memory
    before = -<size_t>memory % <size_t>HUGE_PAGE_BYTES
    if before > 0:
        munmap(memory, before)
    if before < slack:
        munmap(memory + before + mapped_bytes, slack - before)
    madvise(memory + before, mapped_bytes, MADV_HUGEPAGE)
    return memory + before


cdef inline size_t _mapped_bytes(size_t size_bytes) noexcept nogil:
    """Whole huge pages for what is at least one."""
    if size_bytes < HUGE_PAGE_BYTES:
        return max(size_bytes, <size_t>1)
    return (size_bytes + HUGE_PAGE_BYTES - 1) // HUGE_PAGE_BYTES * HUGE_PAGE_BYTES


cdef void _give_back(void* memory, size_t begin, size_t end, size_t page_bytes) noexcept nogil:
    """The pages that lie in [begin, end) of an array are zero afterwards, and not resident."""
    begin = (begin + page_bytes - 1) // page_bytes * page_bytes
    end = end // page_bytes * page_bytes
    if begin < end:
        madvise(<char*>memory + begin, end - begin, MADV_DONTNEED)


cdef void _unmap(void* memory, size_t size_bytes) noexcept nogil:
    if memory != NULL:
        munmap(memory, _mapped_bytes(size_bytes))
