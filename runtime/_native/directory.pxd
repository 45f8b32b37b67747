"""Where keys are: the home rank, the owner last heard of, and its epoch.

Every rank keeps, per key, the last known owner and the epoch (number of relocations) at which it learned it. A key's home
rank is told of every relocation, so it converges to the newest. Invariant I3: epochs only grow.
When ranks are lost and the others go on, each lost one has a stand-in as a home (``home_of``), and all ranks agree anew on who
owns what: each key whose home was lost has a record from then on (reforming.pyx), so ``known_owner`` looks for no stand-in.
All of it is guarded by the engine's lock, except ``home_rank``, which is pure.
"""

from libc.stdint cimport int64_t, uint16_t, uint32_t, uint64_t

from intentpm.runtime._native.table_state cimport TableState


cdef inline uint32_t home_rank(int64_t key, uint32_t size) noexcept nogil:
    """The key's home: a multiplicative hash (Knuth; golden ratio of 2^32), scaled to [0, size) without division.

    The product is a bijection on 32 bits, so homes are spread evenly over any run of keys.
    """
    return <uint32_t>((<uint64_t>(<uint32_t>key * <uint32_t>2654435769) * size) >> 32)


cdef inline uint32_t home_of(const TableState* table, int64_t key) noexcept nogil:
    """The key's home, or who stands in for it."""
    cdef uint32_t home = home_rank(key, table.size)
    return table.stand_ins[home] if table.stand_ins != NULL else home


cdef inline uint32_t known_owner(const TableState* table, int64_t key) noexcept nogil:
    # Until it first moves a key is at its home; so the records of keys that never do need no memory.
    return table.records[key].owner if table.records[key].epoch else home_rank(key, table.size)


cdef inline bint learn_owner(TableState* table, int64_t key, uint32_t owner, uint32_t epoch) noexcept nogil:
    """Remembers that ``owner`` owns the key since ``epoch``; older news is ignored (I3). True: it was news."""
    if epoch <= table.records[key].epoch:
        return False
    table.records[key].owner = <uint16_t>owner
    table.records[key].epoch = epoch
    return True
