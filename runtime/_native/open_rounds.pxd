"""Rounds of a holder with one owner that are not answered yet: two at most.

A round is all records that are sent before an answer to any of them is taken. The second begins when half of the first is
answered: where a round is many messages, as it is on a link that is full, the link would stand empty from its last answer
until the next round has come to the owner (and that waits behind what the link has to carry already). A round of one message
is answered at once, so small rounds follow each other as if one could be open.

    NEWEST, other closed    half of it answered -> begin: the other one is the newest
    NEWEST, other open      neither may begin, until one of them is closed

Guarded by: engine lock.
"""

from libc.stdint cimport int64_t, uint8_t, uint32_t

cdef struct OpenRound:
    uint32_t sent                # records, ...
    uint32_t open                # ... of which these are not answered. 0: no such round
    size_t asked_bytes           # of rows that it may bring
    int64_t began_ns

cdef struct OpenRounds:
    OpenRound rounds[2]      # MOST_ROUNDS
    uint8_t newest               # which of them
    bint growing                 # the newest has been begun by this step, and may be added to


cdef enum:
    MOST_ROUNDS = 2

cdef inline OpenRound* newest_round(OpenRounds* rounds) noexcept nogil:
    return &rounds.rounds[rounds.newest]


cdef inline bint may_begin(const OpenRounds* rounds) noexcept nogil:
    cdef const OpenRound* newest = &rounds.rounds[rounds.newest]
    return newest.open == 0 or (rounds.rounds[rounds.newest ^ 1].open == 0 and 2 * newest.open <= newest.sent)


cdef inline void begin_round(OpenRounds* rounds, int64_t now_ns) noexcept nogil:
    """If ``may_begin``."""
    cdef OpenRound* begun
    if newest_round(rounds).open:
        rounds.newest ^= 1
    begun = newest_round(rounds)
    begun.sent = begun.open = 0
    begun.asked_bytes = 0
    begun.began_ns = now_ns


cdef inline void add_records(OpenRound* round, uint32_t count, size_t asked_bytes) noexcept nogil:
    round.sent += count
    round.open += count
    round.asked_bytes += asked_bytes


cdef inline size_t asked_of(const OpenRounds* rounds) noexcept nogil:
    """Bytes of rows that may come."""
    cdef size_t i, asked = 0
    for i in range(2):
        if rounds.rounds[i].open:
            asked += rounds.rounds[i].asked_bytes
    return asked


cdef inline bint close_of(OpenRounds* rounds, uint8_t number, uint32_t count) noexcept nogil:
    """So many records of that round are answered. True: the last of them."""
    rounds.rounds[number].open -= count
    return rounds.rounds[number].open == 0


cdef inline int64_t began_beside(const OpenRounds* rounds, uint8_t number) noexcept nogil:
    """When the round began that is open beside that one; 0: none is."""
    return rounds.rounds[number ^ 1].began_ns if rounds.rounds[number ^ 1].open else 0


cdef inline void forget_rounds(OpenRounds* rounds) noexcept nogil:
    """Nobody will answer."""
    rounds.rounds[0].open = rounds.rounds[1].open = 0
    rounds.growing = False
