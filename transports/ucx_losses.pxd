"""Losing a peer of the ucx transport: how its end is noticed, and what is done about it.

Called by: UcxTransport (connect, progress, arm, close, drop).

Guarantees
    * ``on_lost`` is called once per lost peer, inside progress() only, after ``done`` of all that it has not got.
    * A process of this host that ends is noticed by its pidfd, after its last messages were delivered.
    * A dropped peer is told, unless its connection ends anyway.
Assumption: calls are serialised by the caller (the engine's lock), which guards every field.
"""

cimport cython
from libc.stdint cimport uint32_t

from intentpm.transports.ucx_peers cimport Peer, UcxPeers
from intentpm.transports.ucx_sends cimport UcxSends
from intentpm.transports.ucx_sleep cimport UcxSleep


@cython.final
@cython.no_gc                  # in no cycle
cdef class UcxLosses:
    cdef int unchecked_calls           # of progress(), since the processes were looked at
    cdef uint32_t ended_peers          # whose process has ended but whose last messages may still be here
    cdef void* _transport              # the Transport, for on_lost; borrowed: it owns this
    cdef UcxPeers _peers
    cdef UcxSends _sends
    cdef UcxSleep _sleep

    # Notices the end of the process, if it is of this host.
    cdef int watch_process(self, uint32_t rank, int process) except -1
    # Looks which processes have ended: one system call.
    cdef void note_ended(self) noexcept nogil
    # After ``note_ended``: those from which nothing comes any more are lost.
    cdef void fail_ended(self) noexcept nogil
    # Carries out the losses noted in UcxPeers; returns how many.
    cdef int reap(self) noexcept nogil
    cdef void drop(self, Peer* peer, const char* why) noexcept nogil

    cdef void _lose(self, Peer* peer) noexcept nogil
    cdef void _say_given_up(self, Peer* peer) noexcept nogil
