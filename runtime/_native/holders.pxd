"""Which ranks hold replicas of a row owned here, and what they lack of it: a chain of holdings per slot, one per rank.

A holding takes 12 bytes, whatever the number of ranks in the job, and is there only while its rank holds the key. The key's
word says whether there is any (SHARED): no need to look at the chains of most keys. Guarded by the engine's lock.
"""

from libc.stdint cimport int32_t, int64_t, uint8_t, uint16_t, uint32_t

from intentpm.runtime._native.state cimport WORD_SHARED
from intentpm.runtime._native.table_state cimport Holding, TableState, slot_of, word_of

cdef enum HoldingFlags:
    HOLDING_NEWS = 1             # lacks what others wrote, since ``since``
    HOLDING_LISTED = 2           # is in News.unsent of its rank
    HOLDING_ROUNDED = 4          # only a flush has to send it: its row is right but for rounding, or for one use
    HOLDING_ROUNDED_LISTED = 8   # is in News.rounded of its rank
    HOLDING_ONCE = 16            # for one use: it is sent no news but by a flush

cdef enum:
    TICK_SHIFT = 16              # a tick is 65.5 us; they wrap after three days, news are never half as old


cdef enum:
    # Rests are counted in 4.2 ms, in a byte; they last 126 ms at most. One that is over is forgotten (``News._rests``), else it
    # would be taken for one to come a second later.
    REST_SHIFT = 22
    LONGEST_REST = 30


cdef inline uint8_t rest_until(int64_t now_ns, int64_t left_ns) noexcept nogil:
    """Of a replica that is not used before then; 0: is never meant."""
    cdef uint8_t rest = <uint8_t>((now_ns + min(left_ns, <int64_t>LONGEST_REST << REST_SHIFT)) >> REST_SHIFT)
    return rest if rest else <uint8_t>1


cdef inline bint is_resting(const Holding* holding, int64_t now_ns) noexcept nogil:
    """Whether the replica is first used later than ``now_ns``."""
    cdef uint8_t left
    if holding.rests_until == 0:
        return False
    left = <uint8_t>(holding.rests_until - <uint8_t>(now_ns >> REST_SHIFT))
    return 0 < left <= LONGEST_REST


cdef inline uint32_t tick_of(int64_t now_ns) noexcept nogil:
    return <uint32_t>(now_ns >> TICK_SHIFT)


cdef inline int64_t ns_since(uint32_t tick, int64_t now_ns) noexcept nogil:
    """0 for a tick that is still to come: a worker's write may be later than the time the progress thread has looked at."""
    return <int64_t>max(<int32_t>(tick_of(now_ns) - tick), 0) << TICK_SHIFT


cdef inline bint is_shared(const TableState* table, uint32_t key) noexcept nogil:
    """Whether any rank holds a replica."""
    return (word_of(table, key) & WORD_SHARED) != 0


cdef inline Holding* first_holding(const TableState* table, uint32_t key) noexcept nogil:
    """Of a key owned here; NULL: nobody holds a replica."""
    return &table.holdings[table.holdings_at[slot_of(table, key)]] if is_shared(table, key) else NULL


cdef inline Holding* next_holding(const TableState* table, const Holding* holding) noexcept nogil:
    return &table.holdings[holding.next] if holding.next else NULL


cdef inline Holding* holding_of(const TableState* table, uint32_t key, uint32_t rank) noexcept nogil:
    """That of one rank; NULL: it holds no replica."""
    cdef Holding* holding = first_holding(table, key)
    while holding != NULL and holding.rank != rank:
        holding = next_holding(table, holding)
    return holding


cdef inline bint others_hold(const TableState* table, uint32_t key, uint32_t rank) noexcept nogil:
    cdef const Holding* holding = first_holding(table, key)
    return holding != NULL and (holding.rank != rank or holding.next != 0)


cdef inline int64_t only_holder(const TableState* table, uint32_t key) noexcept nogil:
    """The rank that alone holds a replica; -1: none or several."""
    cdef const Holding* holding = first_holding(table, key)
    return holding.rank if holding != NULL and holding.next == 0 else -1


cdef inline void begin_holdings(TableState* table, uint32_t key) noexcept nogil:
    """Of a key that is SHARED already, whose holders are about to be added."""
    table.holdings_at[slot_of(table, key)] = 0


cdef inline Holding* add_holding(TableState* table, uint32_t key, uint32_t rank) noexcept nogil:
    """Of a rank that has none. The caller marks the key SHARED. NULL: out of memory."""
    cdef uint32_t at = table.holdings_free
    cdef uint32_t* chain = &table.holdings_at[slot_of(table, key)]
    cdef Holding* holding
    if at:
        table.holdings_free = table.holdings[at].next
    elif table.holdings_touched + 1 < table.holdings_room:
        table.holdings_touched += 1
        at = table.holdings_touched
    else:
        return NULL
    table.holdings_used += 1
    holding = &table.holdings[at]
    holding.next = chain[0] if is_shared(table, key) else 0
    holding.since = 0
    holding.rank = <uint16_t>rank
    holding.flags = 0
    holding.rests_until = 0
    chain[0] = at
    return holding


cdef inline void remove_holdings(TableState* table, uint32_t key) noexcept nogil:
    """All of them; the caller takes SHARED away."""
    cdef Holding* holding = first_holding(table, key)
    cdef uint32_t at
    while holding != NULL:
        at = holding.next
        holding.next = table.holdings_free
        table.holdings_free = <uint32_t>(holding - table.holdings)
        table.holdings_used -= 1
        holding = &table.holdings[at] if at else NULL


cdef inline bint remove_holding(TableState* table, uint32_t key, uint32_t rank) noexcept nogil:
    """Of a rank that has one. True: it was the last, and the caller takes SHARED away."""
    cdef uint32_t* link = &table.holdings_at[slot_of(table, key)]
    cdef uint32_t at
    while table.holdings[link[0]].rank != rank:
        link = &table.holdings[link[0]].next
    at = link[0]
    link[0] = table.holdings[at].next
    table.holdings[at].next = table.holdings_free
    table.holdings_free = at
    table.holdings_used -= 1
    return table.holdings_at[slot_of(table, key)] == 0
