"""One rank; ``engine.pxd`` is the contract."""

import os
import weakref

from libc.stdint cimport int64_t, uint16_t, uint32_t, uint64_t
from libcpp.vector cimport vector

import numpy as np

from intentpm.foundation.deadlines import wait_ns
from intentpm.foundation.errors import CollectiveMismatchError, Error, WaitTimeoutError
from intentpm.foundation.handles import refuse_to_cross

from intentpm.foundation.deadlines cimport FOREVER_NS
from intentpm.foundation.primitives cimport load_acquire, store_release
from intentpm.runtime._native.budget cimport Budget
from intentpm.runtime._native.calls cimport Calls
from intentpm.runtime._native.control cimport Control
from intentpm.runtime._native.dispatch cimport Dispatch
from intentpm.runtime._native.inquiry cimport Inquiry
from intentpm.runtime._native.intents cimport IntentQueue
from intentpm.runtime._native.membership cimport ENGINE_CLOSED, ENGINE_FORKED, ENGINE_FORMING, Membership
from intentpm.runtime._native.messages cimport FLAG_SAME
from intentpm.runtime._native.monitor cimport Monitor
from intentpm.runtime._native.policy cimport MANAGE_RELOCATE
from intentpm.runtime._native.remote cimport MAX_TABLES, RemoteAccess
from intentpm.runtime._native.requests cimport (
    OPERATION_ABANDONED, OPERATION_PEER_LOST, Operation, RequestPool, begin_operation,
)
from intentpm.runtime._native.rounds cimport Rounds
from intentpm.runtime._native.serving cimport Serving
from intentpm.runtime._native.store cimport Table
from intentpm.runtime._native.turns cimport Turns, is_over
from intentpm.runtime._native.wheel cimport Wheel
from intentpm.transports.base cimport Transport

cdef enum:
    TRIM_BYTES = 4 << 20         # of rows: for less it is not worth the calls
    ROLL_CALL_NS = 2_000_000_000  # rank 0's progress thread answers at once, unless it is lost


cdef bint _all_left(void* turns, void* argument) noexcept nogil:
    # Ranks that form anew may find, meanwhile, that all of them have left.
    return ((<Turns>turns).control.may_go() or (<Turns>turns).control.failed
            or (is_over(<Turns>turns) and (<Turns>turns).membership.state != ENGINE_FORMING))


cdef bint _roll_called(void* turns, void* argument) noexcept nogil:
    return is_over(<Turns>turns) or (<Turns>turns).control.roll_called


cdef bint _news_flushed(void* turns, void* argument) noexcept nogil:
    return is_over(<Turns>turns) or (<Turns>turns).rounds.sync.is_flushed()


_engines = weakref.WeakSet()


def _mark_forked():
    # The child has none of the parent's threads and must not touch its connections.
    for engine in _engines:
        (<Engine>engine).membership.state = ENGINE_FORKED


os.register_at_fork(after_in_child=_mark_forked)


cdef class Engine:
    def __init__(
            self, Transport transport not None, peer_timeout_s: float, worker_spin_us: float, thread_spin_us: float,
            management: int, sync_interval_s: float, sync_threshold: float, budget_bytes: int, continues: bool = False):
        self.transport = transport
        self.monitor = Monitor(transport)
        self.requests = RequestPool(transport.size)
        self.budget = Budget(transport.size, budget_bytes)
        self.remote = RemoteAccess(transport, self.requests, self.budget)
        self.serving = Serving(self.remote)
        self.membership = Membership(transport, continues)
        self.control = Control(self.membership, self.requests, peer_timeout_s)
        self.rounds = Rounds(
            self.serving, management, wait_ns(sync_interval_s, "sync_interval"), sync_threshold)
        self.inquiry = Inquiry(self.rounds)
        self.turns = Turns(self.monitor, self.control, self.rounds)
        self.wheel = Wheel(self.turns, worker_spin_us, thread_spin_us)
        self.calls = Calls(self.wheel, self.remote)
        self.dispatch = Dispatch(self.turns, self.serving, self.inquiry)
        self.tables = []
        _engines.add(self)

    # -- tables and workers ----------------------------------------------------------------------------------------------

    def add_table(self, Table table not None) -> None:
        """Makes a table known, and keeps it alive: from now on its keys can be asked for by other ranks. Its id is the next
        free one.
        """
        if self.remote.table_count >= MAX_TABLES:
            raise Error(f"a job has at most {MAX_TABLES} tables")
        self.tables.append(table)
        with nogil:
            self.monitor.acquire()
            self.remote.tables[table.table_id] = table.state
            if table.state.tier != NULL:
                table.state.tier.job_fails = &self.turns.device_failed
            self.remote.table_count = table.table_id + 1
            self.budget.add_table(table.state)
            self.monitor.release()

    def remove_table(self, Table table not None) -> None:
        """Takes back ``add_table`` of the last table: the ranks did not agree on it, so nobody has used it."""
        if table not in self.tables:
            return
        with nogil:
            self.monitor.acquire()
            self.remote.table_count = table.table_id
            self.remote.tables[table.table_id] = NULL
            self.budget.remove_table(table.state)
            self.monitor.release()
        self.tables.remove(table)

    def replicate_all(self, Table table not None) -> None:
        """Management "full_replication": asks for a replica of every key of a new table."""
        with nogil:
            self.monitor.acquire()
            self.rounds.intents.replicate_all(table)
            self.turns.step()
            self.monitor.arm_sleeper()
            self.monitor.release()

    def trim(self, least_bytes: int = TRIM_BYTES) -> None:
        """Gives free memory of tables back to the system where it was not needed since the last call."""
        cdef size_t least = least_bytes
        with nogil:
            self.monitor.acquire()
            self.rounds.trim(least)
            self.monitor.release()

    def add_worker(self, IntentQueue queue not None) -> None:
        """Has management look after a worker's intents."""
        queue.room = &self.budget.intents
        self.rounds.intents.keep(queue)
        with nogil:
            self.monitor.acquire()
            self.rounds.intents.add_worker(queue)
            self.monitor.release()

    def remove_worker(self, IntentQueue queue not None) -> None:
        """Ends the intents of a worker that is closed. Of a closed or forked engine nothing is left to end."""
        if load_acquire(&self.membership.state) >= ENGINE_CLOSED:
            return                       # ``close`` runs Python with the lock held: do not wait for it here
        with nogil:
            self.monitor.acquire()
            self.rounds.intents.remove_worker(queue)
            self.turns.step()
            self.monitor.arm_sleeper()
            self.monitor.release()
        self.rounds.intents.release(queue)

    # -- collective calls ------------------------------------------------------------------------------------------------

    def exchange(self, payload: bytes, what: str, timeout_s=None, formed=None) -> list:
        """Collective: gives every rank the payloads of all ranks, in rank order.

        Raises PeerLostError, CollectiveMismatchError when a rank has left instead, WaitTimeoutError after ``timeout_s``
        (None: as long as the peers are alive). A call whose wait ended without an answer is to be joined again (``rejoin``).
        RankLost where the ranks have formed anew since they had ``formed`` so often: the call that it is of has failed.
        """
        return self._collect(payload, what, timeout_s, formed)

    def rejoin(self, what: str, timeout_s=None, formed=None) -> list:
        """The answer of the newest ``exchange``, which was given up, or ``amend``. Raises as ``exchange``."""
        return self._collect(None, what, timeout_s, formed)

    def amend(self, payload: bytes, number: int) -> None:
        """Puts another payload in the place of what this rank gave to collective ``number``, or would have given. Has no
        effect where all ranks have come to it. Does not wait.
        """
        cdef const char* data = payload
        cdef size_t size_bytes = len(payload)
        cdef uint64_t call = number
        with nogil:
            self.monitor.acquire()
            if not is_over(self.turns):
                self.control.amend(call, data, size_bytes)
                self.turns.wake_finished()
                self.monitor.arm_sleeper()
            self.monitor.release()

    def entered(self) -> int:
        """How many collectives this rank has contributed to."""
        return self.control.entered

    def answered(self) -> list:
        """The ranks of which the newest answer to an ``exchange`` has the payloads, in their order."""
        return self._copied(&self.control.result_ranks)

    def formed(self) -> int:
        """How often the ranks have formed anew without some that were lost."""
        return self.membership.formed

    cdef list _collect(self, bytes payload, str what, object timeout_s, object formed):
        """payload: None: rejoin."""
        cdef Operation operation
        cdef bint again = payload is None
        cdef bytes given = b"" if again else payload
        cdef const char* data = given
        cdef size_t size_bytes = len(given)
        cdef int64_t limit_ns = FOREVER_NS if timeout_s is None else wait_ns(timeout_s)
        cdef uint32_t expected
        self.calls.raise_state()
        expected = self.membership.formed if formed is None else formed
        begin_operation(&operation, NULL, 0, NULL, NULL)
        with nogil:
            self.monitor.acquire()
            if is_over(self.turns) or self.membership.formed != expected:
                operation.status = self.calls._why_over()
                self.requests.close_submission(&operation)
            elif again:
                self.control.rejoin(&operation)
            else:
                self.control.enter(&operation, data, size_bytes)
            self.turns.wake_finished()
            self.monitor.arm_sleeper()
            self.monitor.release()
        self.calls.wait_operation(&operation, limit_ns, lambda: self._missing_for(what))
        if operation.status == OPERATION_ABANDONED:
            raise CollectiveMismatchError(
                f"rank {self.transport.rank} called {what}, but rank {self.control.left_early} has closed its parameter "
                "manager: every rank must make the same collective calls")
        return self._payloads()

    def _missing_for(self, what: str) -> str:
        cdef vector[uint32_t] absent
        with nogil:
            self.monitor.acquire()
            if not is_over(self.turns):
                self.control.call_roll()
                self.turns.wake_finished()
                self.monitor.arm_sleeper()
            self.monitor.release()
        try:
            self.calls.wait(_roll_called, NULL, ROLL_CALL_NS, f"rank {self.membership.root} to say who has not come")
        except WaitTimeoutError:
            return f"{what}: rank {self.membership.root}, which knows which ranks have not come, does not answer"
        with nogil:
            self.monitor.acquire()
            absent = self.control.absent
            self.monitor.release()
        who = f"ranks {list(absent)} have not come" if absent.size() else "all ranks have come by now"
        return f"{what}: {who}; call it again to go on waiting"

    cdef list _payloads(self):
        cdef uint32_t size = <uint32_t>self.control.result_ranks.size()
        cdef bytes raw = self.control.result
        if self.control.result_flags & FLAG_SAME:
            return [raw[4:]] * size
        payloads = []
        at = 4 * size
        for length in memoryview(raw)[:at].cast("I").tolist():
            payloads.append(raw[at:at + length])
            at += length
        return payloads

    def may_hold_replicas(self) -> bool:
        """It holds some, or has asked for keys."""
        cdef bint held
        with nogil:
            self.monitor.acquire()
            held = self.rounds.holder.holds_replicas() or (
                self.rounds.management != MANAGE_RELOCATE and self.rounds.holder.is_busy())
            self.monitor.release()
        return held

    def refresh_replicas(self, timeout_s=None) -> None:
        """Waits until this rank's replicas hold what the owners have now. Raises PeerLostError, WaitTimeoutError."""
        self._sync(False, timeout_s, "replicas here to be refreshed")

    def settle_records(self, timeout_s=None) -> None:
        """Waits until the owners have answered what this rank's replicas have for them now, and what was asked of them.
        Raises PeerLostError, WaitTimeoutError.
        """
        self._sync(True, timeout_s, "the owners to answer what was asked of them")

    cdef _sync(self, bint settles, object timeout_s, str what):
        cdef Operation operation
        cdef int64_t limit_ns = FOREVER_NS if timeout_s is None else wait_ns(timeout_s)
        self.calls.raise_state()
        begin_operation(&operation, NULL, 0, NULL, NULL)
        with nogil:
            self.calls.sync(&operation, settles)
        self.calls.wait_operation(&operation, limit_ns, what)

    def flush_news(self, timeout_s=None) -> None:
        """Waits until every replica of this rank's rows, as they are now, is up to date. Raises PeerLostError,
        WaitTimeoutError.
        """
        cdef int64_t limit_ns = FOREVER_NS if timeout_s is None else wait_ns(timeout_s)
        with nogil:
            self.monitor.acquire()
            self.rounds.sync.flush()
            self.turns.step()
            self.monitor.arm_sleeper()
            self.monitor.release()
        self.calls.wait(_news_flushed, NULL, limit_ns, "replicas at other ranks to be refreshed")
        self.calls.raise_state()

    # -- life and end ----------------------------------------------------------------------------------------------------

    def run(self) -> None:
        """The progress thread's life, until ``stop``. Without the GIL throughout."""
        with nogil:
            self.wheel.run()

    def stop(self) -> None:
        """Ends ``run`` soon."""
        with nogil:
            self.wheel.stop()

    def check(self) -> None:
        """Raises what keeps the engine from working, if anything does."""
        self.calls.raise_state()

    def stand_ins(self):
        """Per rank, who has its duties as a home: uint16 [N]. None: no rank was lost."""
        cdef vector[uint16_t] stand_ins
        cdef bint are_all
        with nogil:
            self.monitor.acquire()
            are_all = self.membership.members.size() == self.membership.size
            stand_ins = self.membership.stand_ins
            self.monitor.release()
        return None if are_all else np.array(stand_ins, np.uint16)

    def living(self) -> list:
        """The ranks that are members of the job, ascending."""
        return self._copied(&self.membership.members)

    cdef list _copied(self, const vector[uint32_t]* ranks):
        """guarded by: engine lock."""
        cdef vector[uint32_t] copied
        with nogil:
            self.monitor.acquire()
            copied = ranks[0]
            self.monitor.release()
        return list(copied)

    def root(self) -> int:
        """The first of the members: does what one has to do for all. Cheap."""
        return self.membership.root

    def has_failed(self) -> bool:
        """A rank is lost: every call raises PeerLostError."""
        return load_acquire(&self.control.failed) != 0

    def now_ns(self) -> int:
        """Time on the clock of all waits, events and samples."""
        return self.transport.now_ns()

    def __reduce_ex__(self, protocol):
        refuse_to_cross(self, "each rank has its own")

    def is_forked(self) -> bool:
        """This process is a forked child: the connections and threads are its parent's."""
        return load_acquire(&self.membership.state) == ENGINE_FORKED

    def fail(self, why: str) -> None:
        """Tells every rank that this one gives up, and why. They raise PeerLostError naming this rank."""
        cdef bytes text = why.encode(errors="replace")
        cdef const char* data = text
        cdef size_t size_bytes = len(text)
        with nogil:
            self.monitor.acquire()
            if not self.control.failed and self.membership.state < ENGINE_CLOSED:
                self.control.fail(self.transport.rank, data, size_bytes)
            self.turns.wake_finished()
            self.monitor.arm_sleeper()
            self.monitor.release()

    def look_now(self) -> None:
        """Sees what another thread has noted: that a device has failed, say."""
        with nogil:
            self.monitor.acquire()
            self.turns.wake_finished()
            self.monitor.arm_sleeper()
            self.monitor.release()

    def leave(self) -> bool:
        """Collective end: serves the other ranks until all have left, but those that were lost. Raises PeerLostError; RankLost:
        ranks have formed anew meanwhile, leave again.
        """
        if not self._may_go():
            self.calls.raise_state()
        with nogil:
            self.monitor.acquire()
            if not is_over(self.turns):
                self.control.leave()
                self.dispatch.side.note_left(self.transport.rank)
            self.turns.wake_finished()
            self.monitor.arm_sleeper()
            self.monitor.release()
        self.calls.wait(_all_left, NULL, FOREVER_NS, "the other ranks to close")
        if not self._may_go():
            self.calls.raise_state()
        return self._may_go()

    cdef bint _may_go(self) noexcept:
        cdef bint may_go
        with nogil:
            self.monitor.acquire()
            # Whoever is lost now leaves nothing undone; otherwise a failure is one.
            may_go = self.control.may_go() and (self.membership.continues or not self.control.failed)
            self.monitor.release()
        return may_go

    def close(self, timeout_s) -> None:
        """Closes the transport (``timeout_s``: for what is still to be sent). Calls under way or to come raise ClosedError.

        After ``stop``. Waits for the GIL with the lock held: whoever waits for the lock meanwhile finds the engine closed.
        """
        with nogil:
            self.monitor.acquire()
        try:
            store_release(&self.membership.state, ENGINE_CLOSED)
            self.requests.fail(NULL, OPERATION_PEER_LOST)
            self.rounds.sync.fail(OPERATION_PEER_LOST)
            self.control.close()
            self.turns.wake_waiters()
            self.transport.close(timeout_s)
            if not self.wheel.worker_drives:     # a worker still in a wait uses them; then they go with this object
                self.monitor.close_descriptors()
        finally:
            self.monitor.release()
