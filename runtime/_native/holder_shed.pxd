"""Replicas that are given up, though they are intended, because a rank has more memory than it may (budget.pxd).

Called by: Rounds. Assumption: the engine's lock is held.
"""

from intentpm.runtime._native.holder cimport Holder


# Looks whether too much memory is taken, and queues so many replicas then that it will not be. True: it is.
cdef bint shed_replicas(Holder holder) noexcept nogil
