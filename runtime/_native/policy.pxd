"""What an owner decides when a rank asks for a key; pure (DESIGN section 6, after AdaPM section 4.1).

Exactly one rank has active intent: relocate to it. Several: the owner stays and each of the others gets a replica for as
long as its intent is active. No intent anywhere: stay put. The other modes exist for comparison.
"""


cdef enum Management:
    MANAGE_ADAPTIVE = 0
    MANAGE_RELOCATE = 1
    MANAGE_REPLICATE = 2
    MANAGE_STATIC = 3
    MANAGE_FULL_REPLICATION = 4

cdef enum Decision:
    DECIDE_REPLICATE = 0
    DECIDE_RELOCATE = 1


cdef inline Decision decide(int management, bint owner_intends, bint others_hold) noexcept nogil:
    """A rank with active intent asks. ``others_hold``: replicas exist at ranks other than it."""
    if management == MANAGE_RELOCATE:
        return DECIDE_RELOCATE
    if management == MANAGE_ADAPTIVE and not owner_intends and not others_hold:
        return DECIDE_RELOCATE
    return DECIDE_REPLICATE


cdef inline bint uses_intents(int management) noexcept nogil:
    return management < MANAGE_STATIC


cdef inline bint may_relocate(int management) noexcept nogil:
    return management == MANAGE_ADAPTIVE or management == MANAGE_RELOCATE
