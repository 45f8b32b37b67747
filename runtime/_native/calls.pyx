"""Calls that wait for other ranks; ``calls.pxd`` is the contract."""

from cpython.exc cimport PyErr_CheckSignals
from libc.stdint cimport int64_t, uint32_t

from intentpm.foundation.errors import (
    ClosedError, ForkError, MemoryBudgetError, PeerLostError, RankLost, WaitTimeoutError, save_interrupted,
)
from intentpm.foundation.losses import sentence

from intentpm.foundation.losses cimport LOSS_OUT_OF_MEMORY, loss_text
from intentpm.foundation.deadlines cimport FOREVER_NS
from intentpm.foundation.primitives cimport load_acquire
from intentpm.runtime._native.membership cimport (
    ENGINE_CLOSED, ENGINE_FAILED, ENGINE_FORKED, ENGINE_FORMING,
)
from intentpm.runtime._native.remote cimport WINDOW_FULL, RemoteAccess, Submission, SubmitResult
from intentpm.runtime._native.requests cimport (
    OPERATION_ABANDONED, OPERATION_NO_MEMORY, OPERATION_PEER_LOST, OPERATION_RANK_LOST, Operation,
)
from intentpm.runtime._native.turns cimport Turns, is_over
from intentpm.runtime._native.wheel cimport Wheel
from intentpm.transports.base cimport condition_fn

cdef enum:
    WAIT_SLICE_NS = 50_000_000   # a waiter looks after signals and silent peers this often


# -- what a wait can be for ----------------------------------------------------------------------------------------------

cdef bint _operation_done(void* turns, void* argument) noexcept nogil:
    return load_acquire(&(<Operation*>argument).done) != 0


cdef bint _window_open(void* turns, void* argument) noexcept nogil:
    cdef uint32_t rank = (<Submission*>argument).blocked_on
    return is_over(<Turns>turns) or (
        (<Turns>turns).requests.in_flight_to[rank] < (<Turns>turns).rounds.holder.budget.window_requests)


cdef bint _is_reported(void* turns, void* argument) noexcept nogil:
    """Of every rank that the transport knows to be lost."""
    cdef uint32_t rank
    if is_over(<Turns>turns) or not (<Turns>turns).membership.continues:
        return is_over(<Turns>turns)
    for rank in range((<Turns>turns).membership.size):
        if (<Turns>turns).membership.is_member(rank) and not (<Turns>turns).transport.is_alive(rank):
            return False
    return True


cdef bint _is_formed(void* turns, void* argument) noexcept nogil:
    return (<Turns>turns).membership.state != ENGINE_FORMING


cdef str _text(object what):
    return what() if callable(what) else what


cdef class Calls:
    def __init__(self, Wheel wheel not None, RemoteAccess remote not None):
        self.wheel = wheel
        self.turns = wheel.turns
        self.membership = wheel.turns.membership
        self.monitor = wheel.monitor
        self.transport = wheel.transport
        self.control = wheel.turns.control
        self.rounds = wheel.turns.rounds
        self.requests = wheel.turns.requests
        self.remote = remote

    # -- sent, given up --------------------------------------------------------------------------------------------------

    cdef void submit(
            self, Operation* operation, Submission* submission, const uint32_t* positions, bint will_wait) noexcept nogil:
        cdef SubmitResult result = WINDOW_FULL
        cdef int64_t started = self.transport.now_ns()
        cdef bint drives
        self.monitor.acquire()
        # The wheel is taken before anything is sent: an answer that comes before this thread waits for it, since the other
        # side ran on its core meanwhile, would wake the progress thread, which then stands in the way of both.
        drives = will_wait and not self.wheel.worker_drives and not self.transport.virtual_time
        if drives:
            self.wheel.take()
        if is_over(self.turns):
            operation.status = self._why_over()
        elif not self.remote.group_by_owner(operation, submission.keys, positions, submission.count):
            operation.status = OPERATION_NO_MEMORY
        else:
            result = self.remote.submit(operation, submission)
            while result == WINDOW_FULL and not is_over(self.turns):
                if drives:
                    drives = False
                    self.wheel.leave()
                if not self.wheel.drive(_window_open, submission, self.transport.now_ns() + WAIT_SLICE_NS):
                    self.control.check_silence(started)
                    self.turns.wake_finished()
                if not is_over(self.turns):
                    result = self.remote.submit(operation, submission)
            if is_over(self.turns):
                operation.status = self._why_over()
        self.requests.close_submission(operation)
        self.turns.step()
        if drives:
            self.wheel.poll_until(_operation_done, operation, started + WAIT_SLICE_NS)
            self.wheel.leave()
        elif self.wheel.worker_drives or not will_wait:    # else this thread drives next
            self.monitor.arm_sleeper()
        self.monitor.release()

    cdef void sync(self, Operation* operation, bint settles=False) noexcept nogil:
        self.monitor.acquire()
        if is_over(self.turns):
            operation.status = self._why_over()
            self.requests.close_submission(operation)
        else:
            if settles:
                self.rounds.sync.begin_settling(operation)
            else:
                self.rounds.sync.begin(operation)
            self.turns.look_and_step()
            self.monitor.arm_sleeper()
        self.monitor.release()

    cdef void abandon(self, Operation* operation) noexcept nogil:
        if load_acquire(&self.membership.state) == ENGINE_FORKED:
            return                       # nobody is left to answer, nor perhaps to release the lock
        self.monitor.acquire()
        self.requests.fail(operation, OPERATION_ABANDONED)
        self.rounds.sync.abandon(operation)
        if self.control.waiting == operation:
            self.control.abandon()
        self.turns.wake_finished()
        self.monitor.release()

    # -- waited for ------------------------------------------------------------------------------------------------------

    cdef int wait_operation(self, Operation* operation, int64_t limit_ns, object what, bint is_patient=True) except -1:
        if not load_acquire(&operation.done):
            try:
                self.wait(_operation_done, operation, limit_ns, what)
            except BaseException:
                with nogil:
                    self.abandon(operation)
                raise
        if operation.status == OPERATION_RANK_LOST and not is_patient:
            raise save_interrupted()
        if operation.status == OPERATION_RANK_LOST:
            self.raise_state()
            self._raise_lost(self.membership.formed - 1)
        elif operation.status == OPERATION_PEER_LOST:
            self.raise_state()
            # A transport refuses to send as soon as it knows of a loss; it reports it, with the reason, a little later; or
            # has done so, and the others have formed anew since.
            self.wait(_is_reported, NULL, self.control.peer_timeout_ns, "the report of a lost rank")
            self.raise_state()
            if self.membership.continues:
                self._raise_lost(self.membership.formed - 1)
        elif operation.status == OPERATION_NO_MEMORY:
            raise MemoryBudgetError(f"out of memory while sending for {_text(what)}")
        return 0

    cdef wait(self, condition_fn ready, void* argument, int64_t limit_ns, object what):
        cdef int64_t started = self.transport.now_ns()
        cdef int64_t deadline = started + limit_ns
        cdef int64_t slice_ns = min(<int64_t>WAIT_SLICE_NS, self.control.peer_timeout_ns // 20)
        cdef uint32_t formed = self.membership.formed
        cdef bint done
        while True:
            with nogil:
                self.monitor.acquire()
                done = self.wheel.drive(ready, argument, min(self.transport.now_ns() + slice_ns, deadline))
                if not done:
                    self.control.check_silence(started)
                    self.turns.wake_finished()
                self.monitor.release()
            if done:
                return
            PyErr_CheckSignals()
            if self.membership.formed != formed:
                self._raise_lost(formed)     # what it waits for was asked of ranks of which one was lost
            if self.transport.now_ns() >= deadline:
                raise WaitTimeoutError(f"rank {self.transport.rank} waited {limit_ns * 1e-9:g} s for {_text(what)}")

    cdef int _why_over(self) noexcept nogil:
        """Of an operation that cannot begin."""
        return OPERATION_PEER_LOST if self.control.failed or self.membership.state >= ENGINE_CLOSED else OPERATION_RANK_LOST

    cdef _raise_lost(self, uint32_t formed):
        raise self.make_loss(formed, self.membership.formed)

    cdef int raise_state(self) except -1:
        cdef uint32_t state = load_acquire(&self.membership.state)
        while state == ENGINE_FORMING:
            try:
                self.wait(_is_formed, NULL, FOREVER_NS, "the ranks to form anew")
            except RankLost:
                pass                         # they have
            state = load_acquire(&self.membership.state)
        if state < ENGINE_FAILED and load_acquire(&self.control.failed):
            state = ENGINE_FAILED
        if state == ENGINE_FAILED and self.control.failed_rank == self.transport.rank and self.transport.out_of_memory:
            raise MemoryBudgetError(
                f"rank {self.transport.rank} {loss_text(LOSS_OUT_OF_MEMORY).decode()}; the job cannot go on: restart it with "
                "more memory")
        if state == ENGINE_FAILED:
            raise PeerLostError(self.control.failed_rank, sentence(
                self.control.failed_rank, self.control.failed_why.decode("utf-8", "replace"), self.transport.rank))
        if state == ENGINE_CLOSED:
            raise ClosedError("the parameter manager is closed: call intentpm.init() again, on every rank")
        if state == ENGINE_FORKED:
            raise ForkError(
                "this process is a fork of one that uses intentpm: start child processes with the spawn or forkserver method")
        return 0
