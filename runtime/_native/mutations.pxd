"""Planted defects, for the tests of the tests: each must be found by the random programs of ``tests/protocol``.

None is planted unless a test asks for it. They are looked at in cold places only: never per key of an access.

    if is_planted(MUTATION_WRITES_NOT_SETTLED):
        return

To add one: a bit here, its name in ``mutations.pyx``, and the line that breaks the code. The tests take it from there.
"""

from libc.stdint cimport uint64_t


cdef enum Mutation:
    MUTATION_WRITES_NOT_SETTLED = 1 << 0     # a worker does not wait for its own asynchronous writes before it reads
    MUTATION_PARKING_DROPPED = 1 << 1        # what waits for a key on its way is forgotten
    MUTATION_DELTAS_TWICE = 1 << 2           # the owner applies what a round brings twice
    MUTATION_FENCE_OPEN = 1 << 3             # keys are asked for while earlier writes to them are under way
    MUTATION_HOME_NOT_TOLD = 1 << 4          # of a relocation
    MUTATION_RECORDS_FIRST = 1 << 5          # parked records are served before parked accesses
    MUTATION_SYNC_WITHOUT_NEWS = 1 << 6      # wait_sync does not ask for what others wrote
    MUTATION_PARKING_REFUSED = 1 << 7        # there is no memory for what waits for a key on its way
    MUTATION_SAME_ALWAYS = 1 << 8            # a holder that wrote is told that its row is right, though others have written
    MUTATION_NEWS_NEVER_RIPE = 1 << 9        # no refresh is sent but by a flush
    MUTATION_ROUNDING_FORGOTTEN = 1 << 10    # a flush does not send rows that are right but for rounding
    MUTATION_HOLDERS_NOT_PASSED_ON = 1 << 11     # a key is handed over without the list of who holds it
    MUTATION_LAST_NEWS_UNTOLD = 1 << 12      # who hands a key over does not tell its holders what they lack
    MUTATION_WRITES_NOT_SPREAD = 1 << 13     # who is given a key does not tell its holders what it wrote meanwhile
    MUTATION_FETCHED_KEPT = 1 << 14          # a copy for one use is not given back
    MUTATION_RELEASES_MISCOUNTED = 0x80000000000     # releases beside a round are answered as records of it
    MUTATION_GATHERED_KEPT = 0x100000000000  # a collection at once leaves the writes that are gathered
    MUTATION_RESTS_FOR_GOOD = 1 << 15        # a copy that is used is taken for one that is not: it is sent no refresh
    MUTATION_KEPT_LOST = 1 << 22             # a replica is given up without the steps it has kept
    MUTATION_KEPT_TWICE = 1 << 23            # the owner takes a block of kept steps twice
    MUTATION_STEPS_RECOUNTED = 1 << 21       # a record that is forwarded counts its steps twice
    MUTATION_LATE_WRITE_LOST = 1 << 16       # a write from before a cut is not made on the copy for the checkpoint
    MUTATION_COPY_LEFT_OUT = 1 << 17         # a row that moves does not take its copy for the checkpoint along
    MUTATION_SAVED_TWICE = 1 << 18           # a row that was left to the checkpoint is written by its new owner, too
    MUTATION_CUT_UNSETTLED = 1 << 19         # a cut does not wait for what replicas have for their owners
    MUTATION_CUT_UNTOLD = 1 << 20            # messages do not say that their origin has made a cut
    MUTATION_COPY_UNCOUNTED = 0x80000000        # a copy does not count towards the memory budget
    MUTATION_PRESSURE_IGNORED = 0x100000000      # a copy is asked for though it does not fit
    MUTATION_STATE_FORGOTTEN = 0x1000000000      # a flush does not send rows of which the holder got the weights alone
    MUTATION_LAG_UNTOLD = 0x2000000000           # a holder says that it has the owner's row, though its state is older
    # Of jobs that go on without a rank.
    MUTATION_OLD_EPOCH_HEARD = 0x200000000       # a message of an earlier epoch of membership is not refused
    MUTATION_OLDER_REPLICA = 0x400000000         # a lost row comes back from the oldest replica
    MUTATION_KEY_LEFT_LOST = 0x800000000         # a lost row without a replica does not come back
    MUTATION_HOLDINGS_KEPT = 0x20000000000       # an owner goes on to count on a lost rank as a holder
    MUTATION_OLDER_CHECKPOINT = 0x40000000000    # a lost row comes back from an older checkpoint than there is
    MUTATION_ROLLBACK_UNTOLD = 0x4000000000      # RankLost does not name the keys that came back from a replica here
    MUTATION_UNSURE_UNTOLD = 0x8000000000        # nor those whose writes were under way to a lost rank
    MUTATION_OLD_EPOCH_KEPT = 0x10000000000      # a rank goes on to send messages of the earlier epoch of membership
    # Of tables with rows on a device.
    MUTATION_ROW_LEFT_AWAY = 1 << 24         # a row is read in ``rows`` though the device has a newer one
    MUTATION_WRITE_UNNOTED = 1 << 25         # what is written in ``rows`` does not make the device's row void
    MUTATION_EXCHANGE_NOT_AWAITED = 1 << 26  # rows from the device are taken before the event that says they have come
    # Of those with some rows on a device.
    MUTATION_ARRIVAL_NOT_AWAITED = 1 << 27   # rows are put in their seats before the event that says they have come
    MUTATION_INTENDED_EVICTED = 1 << 28      # a row of a window gives way
    MUTATION_MOVING_ROW_WRITTEN = 1 << 29    # batches write a row on the device that is moving out
    MUTATION_DIRTY_ROW_DROPPED = 1 << 30     # a row that gives way is not written back


cdef uint64_t planted            # set while no other thread runs


cdef inline bint is_planted(Mutation mutation) noexcept nogil:
    return planted & <uint64_t>mutation != 0
