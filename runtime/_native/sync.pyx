"""wait_sync and the barrier's flush; ``sync.pxd`` is the contract."""

from libc.stdint cimport uint8_t, uint32_t, uint64_t
from libc.string cimport memset

from intentpm.runtime._native.holder cimport Holder
from intentpm.runtime._native.messages cimport MSG_SYNC, MSG_SYNCED, ControlHeader
from intentpm.runtime._native.mutations cimport MUTATION_CUT_UNSETTLED, MUTATION_SYNC_WITHOUT_NEWS, is_planted
from intentpm.runtime._native.news cimport FLUSH_FOR_BARRIER, FLUSH_FOR_SYNC, News
from intentpm.runtime._native.rank_intents cimport RankIntents
from intentpm.runtime._native.rank_writes cimport RankWrites
from intentpm.runtime._native.remote cimport RemoteAccess
from intentpm.runtime._native.requests cimport OPERATION_ABANDONED, OPERATION_RANK_LOST, Operation
from intentpm.runtime._native.staging cimport send_staged, stage


cdef class Sync:
    def __init__(
            self, RemoteAccess remote not None, RankIntents intents not None, Holder holder not None, News news not None,
            RankWrites writes not None):
        self.transport = remote.transport
        self.requests = remote.requests
        self.intents = intents
        self.holder = holder
        self.news = news
        self.writes = writes
        self.rank = remote.transport.rank
        self.size = remote.transport.size

    # -- wait_sync of this rank ------------------------------------------------------------------------------------------

    cdef void begin(self, Operation* operation) noexcept nogil:
        self._add_wait(operation, False)

    cdef void begin_settling(self, Operation* operation) noexcept nogil:
        if is_planted(MUTATION_CUT_UNSETTLED):
            self.requests.close_submission(operation)
        else:
            self._add_wait(operation, True)

    cdef void _add_wait(self, Operation* operation, bint settles) noexcept nogil:
        cdef SyncWait wait
        self.wanted += 1
        wait.ticket = self.wanted
        wait.operation = operation
        wait.settles = settles
        self.waits.push_back(wait)
        self.intents.look()

    cdef void _go_on(self) noexcept nogil:
        while True:
            if self.running == 0:
                if self.wanted == self.done:
                    return
                self._begin_sync()
            if not self.flushed:
                if self.holder.is_old_colour_busy():
                    return
                self.flushed = True
                self._close_waits(self.running, True)
                if self._is_waited_for():
                    self._ask_for_news()
                self.heard = self.synced_missing == 0
            if self.synced_missing > 0:
                return
            if not self.heard:
                # The record of a key that is under way now has the row that a REFRESH missed, or whose news its answer took.
                self.heard = True
                self.holder.flip_colour()
            if self.holder.is_old_colour_busy():
                return
            self._end_sync()

    cdef void _begin_sync(self) noexcept nogil:
        self.running = self.wanted
        self.flushed = False
        self.holder.tells_all = True
        self.writes.collect(self.transport.now_ns(), True)
        self.holder.queue_fetched()
        self.holder.flip_colour()

    cdef void _ask_for_news(self) noexcept nogil:
        cdef uint32_t peer
        if not self.holder.holds_replicas() or is_planted(MUTATION_SYNC_WITHOUT_NEWS):
            return
        for peer in range(self.size):
            if peer == self.rank or (self.transport.sent_to != NULL and not self.transport.is_alive(peer)):
                continue                     # lost, in a job whose others go on (sent_to)
            self.synced_missing += 1
            self._send(peer, MSG_SYNC, self.running)

    cdef bint _is_waited_for(self) noexcept nogil:
        """By any call that wants this rank's replicas refreshed."""
        cdef size_t i
        for i in range(self.waits.size()):
            if self.waits[i].ticket <= self.running:
                return True
        return False

    cdef void _end_sync(self) noexcept nogil:
        self.done = self.running
        self.running = 0
        self.holder.tells_all = False
        self._close_waits(self.done, False)

    cdef void _close_waits(self, uint64_t ticket, bint settling) noexcept nogil:
        """settling: of those that wait for the first half alone; else of all."""
        cdef size_t i = 0
        while i < self.waits.size():
            if self.waits[i].ticket <= ticket and (self.waits[i].settles or not settling):
                self.requests.close_submission(self.waits[i].operation)
                self.waits[i] = self.waits.back()
                self.waits.pop_back()
            else:
                i += 1

    cdef void abandon(self, Operation* operation) noexcept nogil:
        cdef size_t i
        for i in range(self.waits.size()):
            if self.waits[i].operation == operation:
                self.waits[i] = self.waits.back()
                self.waits.pop_back()
                operation.status = OPERATION_ABANDONED
                self.requests.close_submission(operation)    # another thread may wait for it
                return

    cdef void fail(self, int status) noexcept nogil:
        cdef size_t i
        for i in range(self.waits.size()):
            self.waits[i].operation.status = status
            self.requests.close_submission(self.waits[i].operation)
        self.waits.clear()

    cdef void restart(self) noexcept nogil:
        self.fail(OPERATION_RANK_LOST)
        self.done = self.wanted
        self.running = 0
        self.synced_missing = 0
        self.holder.tells_all = False

    # -- other ranks' wait_sync ------------------------------------------------------------------------------------------

    cdef bint on_message(self, uint32_t source, uint8_t message_id) noexcept nogil:
        if message_id == MSG_SYNC:
            self.writes.collect(self.transport.now_ns(), True)
            self.news.ask_flush(source, FLUSH_FOR_SYNC)
        elif message_id == MSG_SYNCED and self.synced_missing > 0:
            self.synced_missing -= 1
        else:
            return False
        return True

    cdef void answer(self, uint32_t peer) noexcept nogil:
        self._send(peer, MSG_SYNCED, 0)

    cdef void _send(self, uint32_t peer, uint8_t message_id, uint64_t sequence) noexcept nogil:
        cdef ControlHeader header
        memset(&header, 0, sizeof(header))
        header.sequence = sequence
        send_staged(self.transport, peer, message_id, &header, sizeof(header), stage(self.transport, 0), 0)

    # -- the barrier -----------------------------------------------------------------------------------------------------

    cdef void flush(self) noexcept nogil:
        cdef uint32_t peer
        self.writes.collect(self.transport.now_ns(), True)
        for peer in range(self.size):
            if peer != self.rank:
                self.news.ask_flush(peer, FLUSH_FOR_BARRIER)

    cdef bint is_flushed(self) noexcept nogil:
        cdef uint32_t peer
        for peer in range(self.size):
            if self.news.flush_asked[peer] & FLUSH_FOR_BARRIER:
                return False
        return True
