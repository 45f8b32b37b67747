"""What an owner decides when a rank asks for a key; pure (DESIGN section 6, after AdaPM section 4.1).

Exactly one rank has active intent: relocate to it. Several: the owner stays and each of the others gets a replica for as
long as its intent is active. No intent anywhere: stay put. The other modes exist for comparison; "adapm" is that rule and
nothing else.

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

cdef enum Decision:
    DECIDE_REPLICATE = 0
    DECIDE_RELOCATE = 1


cdef inline Decision decide(int management, bint owner_intends, bint others_hold) noexcept nogil:
    """A rank with active intent asks. ``others_hold``: replicas exist at ranks other than it."""
    if management == MANAGE_RELOCATE:
        return DECIDE_RELOCATE
    if (management == MANAGE_ADAPTIVE or management == MANAGE_ADAPM) and not owner_intends and not others_hold:
        return DECIDE_RELOCATE
    return DECIDE_REPLICATE


cdef inline bint uses_intents(int management) noexcept nogil:
    return management < MANAGE_STATIC or management == MANAGE_ADAPM


cdef inline bint may_relocate(int management) noexcept nogil:
    return management != MANAGE_REPLICATE and uses_intents(management)


cdef enum:
    LOAD_UNIT_BYTES = 64         # so that a load fits 32 bits
    RECORD_BYTES = 32            # of a record and its answer, beside the row
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
