"""For how long the progress thread may leave messages unread: a part of a clock, where clocks are long.

A message that finds the thread asleep wakes it: a system call at the sender, a switch of threads here, and a worker that loses
its core where there are few. Management sends many small ones, and has time: where a clock takes milliseconds, those that
come in a part of one may as well be read at once. So the thread naps. The transport is not armed meanwhile, so that who
sends has nobody to wake.

Guarantees
    * No nap is longer than an eighth of the shortest clock of this rank's workers and of the ranks that begin rounds with it,
      nor than MOST_NAP_NS. None is taken where that is too short to gain anything, or where no clock is known.
    * None follows soon on a message that is not management's: who accesses rows here, syncs or meets others in a barrier, waits
      for answers. Nor is one taken while much is moving, or something waits to be sent.
    * A worker of this rank that wants something ends it (``Monitor.nap``).

Called by: Wheel, under the engine's lock.
"""

cimport cython
from libc.stdint cimport int64_t, uint64_t

from intentpm.runtime._native.rounds cimport Rounds
from intentpm.transports.base cimport Transport


@cython.final
cdef class Naps:
    cdef Transport transport
    cdef Rounds rounds
    # guarded by: engine lock
    cdef readonly uint64_t taken     # since start
    cdef uint64_t others_seen        # messages that were not management's
    cdef int64_t others_ns           # when the last of them was seen
    cdef uint64_t moved_bytes        # when it was last asked

    # After messages have come and nothing is left to do: for how long; 0: not at all. step_at_ns: when management wants its
    # next step.
    cdef int64_t allowed_ns(self, int64_t now_ns, int64_t step_at_ns) noexcept nogil
    # private
    cdef int64_t _bearable_ns(self, int64_t now_ns) noexcept nogil
    cdef bint _is_quiet(self, int64_t now_ns, int64_t nap_ns) noexcept nogil
