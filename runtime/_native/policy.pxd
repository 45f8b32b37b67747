"""What an owner decides when a rank asks for a key; pure (DESIGN section 6). ``policy.pyx`` shows it to Python.

There are four ways to let a rank use a key, and each is weighed by what it costs on the wire until its window is over:

    relocate        ownership moves. Only where nobody else intends the key, or it would have to come back
    replicate       a copy that is kept fresh, for as long as its rank intends the key
    fetch once      a copy for one clock: no refresh is sent, and what was written comes back with the release
    leave remote    nothing is done ahead: the access is a round trip, and a write another. What could have been sent meanwhile
                    counts as if it had been

The cheapest is taken, and of two that cost the same the one that stands first. An owner that is asked does not leave the key
remote: the question has been paid for, and fetching costs the same without the wait. That is for keys that nobody asks for:
without intent, or over the memory budget. Its cost is there to compare.

The other modes exist for comparison; "adapm" is the rule of AdaPM (section 4.1): relocate where nobody else intends the key,
else replicate.

A rank's *load* is what it keeps fresh for others: the bytes of all rows of its holders' replicas. An owner whose load is
clearly more than that of the rank that asks hands keys over to it that both intend, until they differ less (hand_over.pxd).
"""

from libc.stdint cimport int64_t, uint16_t, uint32_t

cdef enum Management:
    MANAGE_ADAPTIVE = 0
    MANAGE_RELOCATE = 1
    MANAGE_REPLICATE = 2
    MANAGE_STATIC = 3
    MANAGE_FULL_REPLICATION = 4
    MANAGE_ADAPM = 5

# Mirrored in runtime/events.py.
cdef enum Way:
    WAY_RELOCATE = 0
    WAY_FETCH = 1
    WAY_REPLICATE = 2
    WAY_REMOTE = 3
    WAYS = 4

# What a decision is made of; all of it is known or measured where it is made.
cdef struct Situation:
    size_t row_bytes             # as it moves between ranks
    size_t fetched_bytes         # of it, as it is copied for one use
    size_t written_bytes         # of what is written to it at once, as its owner is told
    size_t news_bytes            # of it, as it is refreshed
    bint owner_intends
    bint others_hold             # ranks other than the owner and the one that asks
    bint once                    # it asks for one clock
    bint returns                 # the owner has used it since it lent it last, and may well do so before that clock
    uint32_t told                # ranks that hear of a relocation
    double astray                # share of the records here that had been sent to a rank that no longer owned their key
    double with_row              # share of the answers to deltas that had to bring the row, since others had written too
    double stall_bytes           # what this rank sends on average while a message goes to another and is answered

cdef enum:
    RECORD_BYTES = 32            # of a record and its answer, beside the row
    HINT_BYTES = 12              # that a key has moved
    NO_WAY = 0                   # in place of a cost: it cannot be


cdef inline void weigh(const Situation* s, double* costs) noexcept nogil:
    """What each way costs, bytes. The use is a read and a write, once."""
    cdef bint contended = s.owner_intends or s.others_hold
    cdef double asked = s.row_bytes + RECORD_BYTES, written = s.written_bytes + RECORD_BYTES
    # Where the row could come for good, a part of it that comes and goes with every use is not taken for cheaper.
    cdef double fetched = (s.fetched_bytes if contended or s.returns else s.row_bytes) + RECORD_BYTES
    costs[<int>WAY_RELOCATE] = NO_WAY
    costs[<int>WAY_FETCH] = NO_WAY
    if not contended:
        costs[<int>WAY_RELOCATE] = asked + s.told * HINT_BYTES + s.astray * (s.row_bytes + RECORD_BYTES)
        if s.returns:
            costs[<int>WAY_RELOCATE] *= 2        # and back again
    if s.once:
        costs[<int>WAY_FETCH] = fetched + written
    costs[<int>WAY_REPLICATE] = asked + written + s.with_row * s.news_bytes + RECORD_BYTES
    costs[<int>WAY_REMOTE] = fetched + written + 2 * s.stall_bytes


cdef inline Way cheapest(const double* costs) noexcept nogil:
    """Of those that an owner can take."""
    cdef int way, best = WAY_REPLICATE
    for way in range(WAY_REPLICATE - 1, -1, -1):
        if costs[way] != NO_WAY and costs[way] <= costs[best]:
            best = way
    return <Way>best


cdef inline Way fixed_way(int management, const Situation* s) noexcept nogil:
    """In the modes that weigh nothing."""
    if management == MANAGE_RELOCATE or management == MANAGE_ADAPM and not s.owner_intends and not s.others_hold:
        return WAY_RELOCATE
    return WAY_REPLICATE


cdef inline bint uses_intents(int management) noexcept nogil:
    return management < MANAGE_STATIC or management == MANAGE_ADAPM


cdef inline bint may_relocate(int management) noexcept nogil:
    return management != MANAGE_REPLICATE and uses_intents(management)


cdef enum:
    LOAD_UNIT_BYTES = 64         # so that a load fits 32 bits
    LEAST_SURPLUS = 64           # units: less is not worth a hand-over


cdef inline uint32_t holding_load(size_t stored_bytes) noexcept nogil:
    """Of one replica of one row."""
    return <uint32_t>((stored_bytes + RECORD_BYTES + LOAD_UNIT_BYTES - 1) // LOAD_UNIT_BYTES)


cdef inline uint16_t packed_load(uint32_t load) noexcept nogil:
    """Its upper 11 bits, and by how many places they were shifted."""
    cdef uint32_t places = 0
    while load >> places > 0x7ff:
        places += 1
    return <uint16_t>(places << 11 | load >> places)


cdef inline uint32_t unpacked_load(uint16_t packed) noexcept nogil:
    return <uint32_t>(packed & 0x7ff) << (packed >> 11)


cdef inline int64_t surplus_load(uint32_t own, uint32_t their, uint32_t size) noexcept nogil:
    """How much an owner should hand over now to the rank that asks. size: ranks in the job.

    Nothing until the loads differ by a quarter: keys shall not go back and forth. Then a share of the difference: any of the
    others may be handing over to the same rank, and what it says of its load is a round old.
    """
    cdef int64_t difference = <int64_t>own - their
    if difference < LEAST_SURPLUS or 4 * difference < their:
        return 0
    return difference // (2 * (<int64_t>size - 1))


cdef inline bint evens_out(uint32_t own, uint32_t their, int64_t load) noexcept nogil:
    """Whether loads differ less when so much of it changes sides."""
    return 2 * load <= <int64_t>own - their
