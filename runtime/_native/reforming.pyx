"""This rank's side of forming anew without ranks that were lost, as Python drives it (runtime/reforming.py): what ranks tell
each other, and what becomes of keys and of what was under way.

Guarantee: nothing here waits holding the engine's lock, and every wait ends with the view or with the job.
Assumption: one thread at a time.
"""

from libc.stdint cimport int64_t, uint8_t, uint16_t, uint32_t, uint64_t
from libc.string cimport memcpy
from libcpp.string cimport string
from libcpp.vector cimport vector

import numpy as np

from intentpm.foundation.deadlines import wait_ns
from intentpm.runtime._native import mutations

from intentpm.foundation.primitives cimport store_release
from intentpm.runtime._native.directory cimport home_of, home_rank
from intentpm.runtime._native.engine cimport Engine
from intentpm.runtime._native.holder_restart cimport become_owner, forget_replica, restart_holder, resume_holder
from intentpm.runtime._native.membership cimport ENGINE_FORMING, ENGINE_RUNNING, ENGINE_TELLS, Membership
from intentpm.runtime._native.mutations cimport is_planted
from intentpm.runtime._native.requests cimport OPERATION_RANK_LOST
from intentpm.runtime._native.state cimport STATE_REPLICA, KeyRefs
from intentpm.runtime._native.steps cimport set_stored_atomic
from intentpm.runtime._native.store cimport Table
from intentpm.runtime._native.table_state cimport TableState, key_state, slot_of
from intentpm.runtime._native.turns cimport Turns

cdef extern from "Python.h":
    int PyGC_Disable()
    int PyGC_Enable()

cdef enum:
    SLICE_NS = 50_000_000        # a waiter looks after signals and silent ranks this often

# What is waited for: a step of a view.
cdef struct Asked:
    uint32_t lost_count
    uint32_t step


class ViewChangedError(Exception):
    """Another rank is lost: what was told since the last is void."""


cdef bint _have_told(void* turns, void* argument) noexcept nogil:
    cdef Asked* asked = <Asked*>argument
    return ((<Turns>turns).membership.state != ENGINE_FORMING
            or (<Turns>turns).membership.lost_count != asked.lost_count
            or (<Turns>turns).membership.have_told(asked.step))


cdef bint _never(void* turns, void* argument) noexcept nogil:
    return False


cdef class Reforming:
    cdef Engine engine
    cdef Membership membership
    cdef uint32_t lost_count             # of the view that this rank forms in
    cdef uint32_t step
    cdef int64_t longest_ns

    def __init__(self, Engine engine not None, make_loss, longest_s: float):
        """make_loss: called with two ``formed``; makes the RankLost of what was lost between them. longest_s: that others may
        take for a step.
        """
        self.engine = engine
        self.longest_ns = wait_ns(longest_s)
        self.membership = engine.membership
        engine.calls.make_loss = make_loss

    # -- who is lost -----------------------------------------------------------------------------------------------------

    def is_due(self) -> bool:
        return self.membership.state == ENGINE_FORMING

    def formed(self) -> int:
        """How often the ranks have formed anew."""
        return self.membership.formed

    def begin(self) -> None:
        """Takes the newest view; what is told next is its first step."""
        with nogil:
            self.engine.monitor.acquire()
            self.lost_count = self.membership.lost_count
            self.step = 0
            self.engine.monitor.release()

    def is_over(self) -> bool:
        """All ranks have left, this one too, or were lost: there is nobody to form anew with, and nothing to do it for."""
        cdef bint is_over
        with nogil:
            self.engine.monitor.acquire()
            is_over = self.engine.control.may_go()
            self.engine.monitor.release()
        return is_over

    def view(self) -> int:
        """How many ranks are lost in the view that this rank forms in: of two that it has formed in, the later has more."""
        return self.lost_count

    def lost(self) -> dict:
        """Of all ranks that are lost: why."""
        cdef vector[string] why
        cdef vector[uint8_t] lost
        with nogil:
            self.engine.monitor.acquire()
            lost = self.membership.lost
            why = self.membership.why
            self.engine.monitor.release()
        return {rank: why[rank].decode("utf-8", "replace") for rank in range(self.membership.size) if lost[rank]}

    # -- telling ---------------------------------------------------------------------------------------------------------

    def exchange(self, bytes payload not None) -> dict:
        """The payloads of all that are left, by rank. Raises ViewChangedError, what keeps the engine from working."""
        cdef const char* data = payload
        cdef size_t size_bytes = len(payload)
        cdef Asked asked
        cdef bint is_void
        cdef dict said = {}
        cdef uint32_t rank
        asked.lost_count = self.lost_count
        asked.step = self.step
        with nogil:
            self.engine.monitor.acquire()
            is_void = self._is_void()
            if not is_void:
                self.membership.tell(asked.step, data, size_bytes)
                self.engine.monitor.arm_sleeper()
            self.engine.monitor.release()
        if not is_void:
            self.engine.calls.wait(_have_told, &asked, self.longest_ns, "the other ranks to form anew")
        with nogil:
            self.engine.monitor.acquire()
        try:
            is_void = self._is_void()
            for rank in range(0 if is_void else self.membership.size):
                if self.membership.said.count(<uint64_t>asked.step << 32 | rank):
                    payload = self.membership.said[<uint64_t>asked.step << 32 | rank]
                    said[rank] = payload
        finally:
            self.engine.monitor.release()
        if is_void:
            self._raise_void()
        self.step += 1
        return said

    cdef bint _is_void(self) noexcept nogil:
        return self.membership.state != ENGINE_FORMING or self.membership.lost_count != self.lost_count

    cdef _raise_void(self):
        if self.membership.state != ENGINE_FORMING:
            self.engine.calls.raise_state()
        raise ViewChangedError

    def pause(self, seconds: float) -> None:
        """Lets time pass, and messages come. Raises as ``exchange``."""
        cdef int64_t until = self.engine.transport.now_ns() + wait_ns(seconds)
        cdef bint is_void = False
        while not is_void and self.engine.transport.now_ns() < until:
            with nogil:
                self.engine.monitor.acquire()
                self.engine.wheel.drive(_never, NULL, until)
                is_void = self._is_void()
                self.engine.monitor.release()
        if is_void:
            self._raise_void()

    def counts(self) -> tuple:
        """Messages (sent to, received from) each rank. uint64 [N] each, of one moment."""
        sent = np.empty(self.membership.size, np.uint64)
        received = np.empty(self.membership.size, np.uint64)
        cdef uint64_t[::1] to = sent
        cdef uint64_t[::1] source = received
        with nogil:
            self.engine.monitor.acquire()
            memcpy(&to[0], self.membership.sent_to.data(), self.membership.size * sizeof(uint64_t))
            memcpy(&source[0], self.membership.received_from.data(), self.membership.size * sizeof(uint64_t))
            self.engine.monitor.release()
        return sent, received

    def numbers(self) -> tuple:
        """(collectives entered, answered, checkpoints cut, saves called for)."""
        cdef uint64_t entered, answered, made, called
        with nogil:
            self.engine.monitor.acquire()
            entered, answered = self.engine.control.entered, self.engine.control.answered
            made, called = self.engine.remote.cuts.made, self.engine.dispatch.side.called
            self.engine.monitor.release()
        return entered, answered, made, called

    def tables(self) -> list:
        return list(self.engine.tables)

    def last_result(self) -> tuple:
        """Of the newest collective that this rank has an answer of: (answer, flags, the ranks that it is of)."""
        cdef string result
        cdef vector[uint32_t] ranks
        cdef uint32_t flags
        with nogil:
            self.engine.monitor.acquire()
            result = self.engine.control.result
            ranks = self.engine.control.result_ranks
            flags = self.engine.control.result_flags
            self.engine.monitor.release()
        return <bytes>result, flags, list(ranks)

    def take_result(self, bytes result not None, uint32_t flags, list ranks not None) -> None:
        """The answer of the collective that this rank is in, which another has had."""
        cdef vector[uint32_t] answered = ranks
        cdef const char* data = result
        cdef size_t size_bytes = len(result)
        with nogil:
            self.engine.monitor.acquire()
            if not self._is_void():
                self.engine.control.complete(data, size_bytes, flags, answered)
                self.engine.turns.wake_finished()
            self.engine.monitor.release()

    # -- what was under way ----------------------------------------------------------------------------------------------

    def give_up(self) -> list:
        """No message is under way: ends all calls that wait for others with RankLost, and forgets what ranks owe each other.

        Returns [(table id, keys int64 [K])]: replicas here of which the owner has not taken all that was written.
        """
        cdef KeyRefs untaken
        cdef uint32_t rank
        cdef size_t i
        cdef dict keys = {}
        with nogil:
            self.engine.monitor.acquire()
            if not self._is_void():
                self.engine.requests.fail(NULL, OPERATION_RANK_LOST)
                self.engine.rounds.sync.restart()
                self.engine.remote.parking.clear()
                self.engine.remote.step_waiting()
                restart_holder(self.engine.rounds.holder, untaken)
                self.engine.rounds.hints.restart()
                self.engine.rounds.news.end_flushes()
                for rank in range(self.membership.size):
                    if self.membership.lost[rank]:
                        self.engine.rounds.news.forget(rank)
                self.engine.turns.wake_finished()
            self.engine.monitor.release()
        for i in range(untaken.size()):
            keys.setdefault(untaken[i].table, []).append(untaken[i].key)
        return [(table, np.array(sorted(found), np.int64)) for table, found in keys.items()]

    # -- keys ------------------------------------------------------------------------------------------------------------

    def moves(self, Table table not None) -> tuple:
        """(the newest epoch of a key, of which keys this rank has heard that they have moved bool [num_keys])."""
        moved = np.empty(table.num_keys, np.bool_)
        cdef unsigned char[::1] out = moved.view(np.uint8)
        cdef uint32_t newest = 0
        cdef int64_t key
        with nogil:
            self.engine.monitor.acquire()
            for key in range(table.state.num_keys):
                newest = max(newest, table.state.records[key].epoch)
                out[key] = table.state.records[key].epoch != 0
            self.engine.monitor.release()
        return newest, moved

    def versions(self, Table table not None, const int64_t[::1] keys) -> np.ndarray:
        """Of which version of the owner's row the replicas of ``keys`` here are, -1 where there is none. int64 [K]."""
        versions = np.full(keys.shape[0], -1, np.int64)
        cdef int64_t[::1] out = versions
        cdef TableState* state = table.state
        cdef int64_t i
        with nogil:
            self.engine.monitor.acquire()
            for i in range(keys.shape[0]):
                if key_state(state, keys[i]) == STATE_REPLICA:
                    out[i] = state.replicas[slot_of(state, keys[i])].seen_version
            self.engine.monitor.release()
        return versions

    def forget_replicas(self, Table table not None, const int64_t[::1] keys) -> None:
        cdef int64_t i
        with nogil:
            self.engine.monitor.acquire()
            for i in range(keys.shape[0]):
                if key_state(table.state, keys[i]) == STATE_REPLICA:
                    forget_replica(self.engine.rounds.holder, table.state, <uint32_t>keys[i])
            self.engine.monitor.release()

    def promote(self, Table table not None, const int64_t[::1] keys, const uint32_t[::1] versions) -> None:
        """Replicas here become the main copies, as they are; of versions later than these."""
        cdef int64_t i
        with nogil:
            self.engine.monitor.acquire()
            for i in range(keys.shape[0]):
                become_owner(self.engine.rounds.holder, table.state, <uint32_t>keys[i], versions[i])
            self.engine.monitor.release()

    def adopt(self, Table table not None, const int64_t[::1] keys, rows) -> None:
        """This rank owns ``keys``, absent here, from now on. rows: as ``Table.adopt``, or of ``table.stored_dtype``."""
        cdef const unsigned char[::1] stored = None
        cdef int64_t i
        cdef int collects
        if table.stored_dtype is not None and rows.dtype == table.stored_dtype:
            stored = np.ascontiguousarray(rows).view(np.uint8)
            rows = np.ascontiguousarray(rows["weights"])
        collects = self._acquire_for_python()
        try:
            table.adopt(keys, rows)
            for i in range(keys.shape[0] if stored is not None else 0):
                set_stored_atomic(table.state, keys[i], <const char*>&stored[<size_t>i * table.state.stored_bytes])
        finally:
            self._release_for_python(collects)

    def agree_on_owners(
            self, Table table not None, const uint16_t[::1] owners, const uint8_t[::1] moved, uint32_t epoch) -> None:
        """The same on all ranks, or epochs would not be: owners of all keys; of which keys any rank has heard that they have
        moved ([num_keys] each); epoch: later than any that a rank knows of a key of the table.
        """
        cdef int64_t key
        with nogil:
            self.engine.monitor.acquire()
            for key in range(table.state.num_keys):
                if moved[key] or home_rank(key, table.state.size) != owners[key]:        # else it needs no record
                    table.state.records[key].owner = owners[key]
                    table.state.records[key].epoch = epoch
            self.engine.monitor.release()

    def refused(self) -> int:
        """Messages of an earlier epoch of membership, or of lost ranks."""
        return self.membership.refused

    def forget_holder(self, Table table not None, uint32_t rank, const uint8_t[::1] holds=None) -> None:
        """holds: of which keys it does hold replicas [num_keys]; None: of none."""
        cdef const uint8_t* which = NULL
        if holds is not None:
            which = &holds[0]
        with nogil:
            self.engine.monitor.acquire()
            self.engine.rounds.owner.forget_holder(table.state, rank, which)
            self.engine.monitor.release()

    def move_homes(self, Table table not None) -> np.ndarray:
        """Has who stands in for lost ranks be the home of their keys. Returns all keys' homes: uint16 [num_keys]."""
        homes = np.empty(table.num_keys, np.uint16)
        cdef uint16_t[::1] out = homes
        cdef int64_t key
        cdef int collects
        stand_ins = self.engine.stand_ins()
        collects = self._acquire_for_python()
        try:
            table.set_stand_ins(stand_ins)
        finally:
            self._release_for_python(collects)
        for key in range(table.state.num_keys):
            out[key] = <uint16_t>home_of(table.state, key)
        return homes

    cdef int _acquire_for_python(self) except? -1:
        """The engine's lock, for a few calls of Python: were garbage collected meanwhile, a worker's end would wait for it."""
        cdef int collects = PyGC_Disable()
        with nogil:
            self.engine.monitor.acquire()
        return collects

    cdef void _release_for_python(self, int collects) noexcept:
        self.engine.monitor.release()
        if collects:
            PyGC_Enable()

    # -- the end ---------------------------------------------------------------------------------------------------------

    def admit(self, uint64_t collectives, uint32_t cuts, uint64_t first_exchange) -> None:
        """The view is in force here: messages are of its epoch. All ranks begin to count anew from these numbers."""
        with nogil:
            self.engine.monitor.acquire()
            if not self._is_void():
                self.membership.admit()
                self.engine.control.restart(collectives)
                self.engine.remote.cuts.restart(self.engine.remote.tables, self.engine.remote.table_count, cuts)
                self.engine.dispatch.side.restart(first_exchange, cuts)
            self.engine.monitor.release()

    def resume(self, uint32_t formed) -> bool:
        """The ranks have formed, so often by now on all of them: service goes on. False: another rank is lost."""
        cdef bint is_void
        with nogil:
            self.engine.monitor.acquire()
            is_void = self._is_void()
            if not is_void:
                self.membership.formed = formed
                self.membership.said.clear()
                store_release(&self.membership.state, ENGINE_TELLS)
                resume_holder(self.engine.rounds.holder)
                self.engine.rounds.intents.look()
                self.engine.turns.step()
                self.engine.turns.wake_waiters()
                self.engine.monitor.arm_sleeper()
            self.engine.monitor.release()
        return not is_void

    def wake_by(self, int event_fd) -> None:
        """An eventfd that is written to when ranks are lost; -1: none."""
        with nogil:
            self.engine.monitor.acquire()
            self.membership.wake_fd = event_fd
            self.membership.wake_former()
            self.engine.monitor.release()

    def all_told(self, uint32_t formed) -> None:
        """Every worker has been told of the first ``formed`` times: if there was none since, they need not look any more."""
        with nogil:
            self.engine.monitor.acquire()
            if self.membership.state == ENGINE_TELLS and self.membership.formed == formed:
                store_release(&self.membership.state, ENGINE_RUNNING)
            self.engine.monitor.release()

    def has_defect(self, name: str) -> bool:
        """That one of ``mutations.OF_LOSSES`` is planted."""
        return is_planted(mutations.OF_LOSSES[name])
