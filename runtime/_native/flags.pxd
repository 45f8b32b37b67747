"""What management remembers of a key besides its word and record: a byte of ``TableState.flags``. All zero: nothing.

Guarded by the engine's lock. All but KEY_USED and KEY_TRACED are the holder's (``holder.pyx``). KEY_OFFERED is of replicas and
KEY_USED of owned keys: they share a bit.
"""


cdef enum KeyFlags:
    KEY_QUEUED = 1               # waits for a round, or for writes to end before it may
    KEY_IN_FLIGHT = 2            # a record of it is unanswered
    KEY_MISSED = 4               # a refresh was not applied, or the owner knows of no replica here: ask again
    KEY_OFFERED = 8              # the owner offers it: ask again
    KEY_ONCE = 16                # asked for, or here as a replica, for one use: fetched (holder.pxd)
    KEY_USED = 8                 # of a key owned here: intended here since it came, or since it was lent (policy.pxd)
    KEY_COLOUR = 32              # while busy: counted in Holder.busy[1], else in busy[0]
    KEY_FRESH = 64               # of the old colour, and its record was sent after the colour was flipped
    KEY_TRACED = 128             # what happens to it is noted (journal.pxd)
