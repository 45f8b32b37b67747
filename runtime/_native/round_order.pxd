"""In which order keys that are queued for another rank go.

Called by: Holder, Hints, under the engine's lock.
"""

from libc.stdint cimport uint32_t
from libcpp.algorithm cimport is_sorted, stable_sort

from intentpm.runtime._native.prefetching cimport PREFETCH_ENTRIES, prefetch_entries
from intentpm.runtime._native.state cimport STATE_REPLICA, STATE_REQUESTED, KeyRef, KeyRefs
from intentpm.runtime._native.table_state cimport TableState, key_state


cdef enum First:
    ASKS_FIRST                       # keys that are asked for: messages that bring no rows are urgent
    RELEASES_FIRST                   # replicas that nobody here intends


cdef inline bint _is_first(const TableState* table, uint32_t key, First first) noexcept nogil:
    if first == ASKS_FIRST:
        return key_state(table, key) == STATE_REQUESTED
    return key_state(table, key) == STATE_REPLICA and table.records[key].intent_refs == 0


cdef inline size_t put_first(TableState** tables, KeyRefs& references, First first) noexcept nogil:
    """Puts those in front, and keeps the order otherwise; returns how many."""
    cdef KeyRefs others
    cdef KeyRef ahead
    cdef size_t i, count = 0
    for i in range(references.size()):
        if i + PREFETCH_ENTRIES < references.size():
            ahead = references[i + PREFETCH_ENTRIES]
            prefetch_entries(tables[ahead.table], ahead.key)
        if _is_first(tables[references[i].table], references[i].key, first):
            references[count] = references[i]
            count += 1
        else:
            others.push_back(references[i])
    for i in range(others.size()):
        references[count + i] = others[i]
    return count


cdef inline bint _is_of_earlier(const KeyRef& left, const KeyRef& right) noexcept nogil:
    return left.table < right.table


cdef inline void group_by_table(KeyRefs& references, size_t begin, size_t end) noexcept nogil:
    """Of those from ``begin`` on; keeps the order of each table's. A message is of one table, so these are fewer."""
    if not is_sorted(references.begin() + begin, references.begin() + end, _is_of_earlier):
        stable_sort(references.begin() + begin, references.begin() + end, _is_of_earlier)
