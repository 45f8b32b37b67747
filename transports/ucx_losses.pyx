"""Noticing and reporting lost peers; ``ucx_losses.pxd`` states what it guarantees."""

from libc.stdint cimport int64_t

from intentpm.foundation.losses cimport LOSS_PROCESS_ENDED
from intentpm.transports.base cimport Transport
from intentpm.transports.ucp cimport UCS_OK
from intentpm.transports.ucx_greetings cimport GIVEN_UP
from intentpm.transports.ucx_peers cimport DELIVERING, GONE, is_reachable

cdef enum:
    IDLE_CALLS_AFTER_END = 8            # of progress(), before a peer whose process has ended counts as lost


cdef class UcxLosses:
    """The losses of ``transport``'s peers."""

    def __cinit__(
            self, Transport transport not None, UcxPeers peers not None, UcxSends sends not None,
            UcxSleep sleep not None):
        self._transport = <void*>transport
        self._peers = peers
        self._sends = sends
        self._sleep = sleep

    # -- processes of this host --------------------------------------------------------------------------------------

    cdef int watch_process(self, uint32_t rank, int process) except -1:
        if not self._sleep.watch.watch(rank, process):
            self._peers.fail_for(&self._peers.all[rank], LOSS_PROCESS_ENDED)
        return 0

    cdef void note_ended(self) noexcept nogil:
        cdef int64_t rank = self._sleep.watch.next_ended()
        self.unchecked_calls = 0
        while rank >= 0:
            if is_reachable(&self._peers.all[rank]):
                self._peers.all[rank].ended = True
                self.ended_peers += 1
                self._sleep.idle_calls = 0
            rank = self._sleep.watch.next_ended()

    cdef void fail_ended(self) noexcept nogil:
        # Race: a peer says goodbye and ends; its end is seen before its last messages. They are all in our memory by
        # now, so a few calls without any come after them.
        cdef uint32_t i
        if self._sleep.idle_calls < IDLE_CALLS_AFTER_END:
            return
        self.ended_peers = 0
        for i in range(self._peers.job.size):
            if self._peers.all[i].ended:
                self._peers.fail_for(&self._peers.all[i], LOSS_PROCESS_ENDED)

    # -- carrying out ------------------------------------------------------------------------------------------------

    cdef int reap(self) noexcept nogil:
        cdef int lost = 0
        cdef uint32_t i
        for i in range(self._peers.job.size):
            if self._peers.all[i].failing:
                self._lose(&self._peers.all[i])
                lost += 1
        return lost

    cdef void _lose(self, Peer* peer) noexcept nogil:
        cdef void* transport = self._transport
        peer.failing = False
        peer.state = GONE
        self._peers.failing -= 1
        self._peers.close_endpoint(peer, False)
        self._sends.abandon(peer)
        if peer.was_dropped:
            self._say_given_up(peer)
        if self._peers.phase == DELIVERING and not peer.expected and (<Transport>transport).on_lost != NULL:
            (<Transport>transport).on_lost((<Transport>transport).context, peer.rank, peer.why)

    cdef void drop(self, Peer* peer, const char* why) noexcept nogil:
        if not is_reachable(peer):
            return
        # Told at once if nothing is queued in front, else by the end of its connection, or by _say_given_up().
        if peer.backlog_bytes == 0:
            self._sends.post_control(peer, GIVEN_UP, NULL, 0)
        else:
            peer.was_dropped = peer.shares_memory
        self._peers.fail(peer, why)
        self._sleep.wake()

    cdef void _say_given_up(self, Peer* peer) noexcept nogil:
        # Through an endpoint of its own: the old one was closed with all that waited in front of this message.
        # Only over shared memory: a second TCP connection to a peer that is just losing its first crashes UCX 1.21 (its
        # event loop calls an endpoint that it freed in the same batch of events).
        if self._peers.create_endpoint(peer) == UCS_OK:
            self._sends.post_control(peer, GIVEN_UP, NULL, 0)
            self._sends.abandon(peer)       # nobody waits for it
