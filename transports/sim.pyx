"""The ``sim`` transport; ``sim.pxd`` is the contract."""

import os
import queue
import sys
import threading
import traceback

from cpython.exc cimport PyErr_CheckSignals
from cython.operator cimport dereference, preincrement
from libc.errno cimport EINTR, errno
from libc.stdint cimport int64_t, uint8_t, uint32_t, uint64_t
from libc.stdlib cimport free, malloc
from libc.string cimport memcpy, memset
from libcpp.pair cimport pair
from posix.time cimport CLOCK_REALTIME, clock_gettime, timespec

from intentpm.transports.base cimport (
    SEND_NO_MEMORY, SEND_OK, SEND_PEER_LOST, Piece, SendStatus, Transport, condition_fn, done_fn)

from intentpm.foundation.errors import TransportError
from intentpm.transports.sim_model import NetworkModel

cdef extern from "<semaphore.h>" nogil:
    int sem_init(sem_t*, int shared, unsigned int value)
    int sem_post(sem_t*)
    int sem_wait(sem_t*)
    int sem_timedwait(sem_t*, const timespec* until)
    int sem_destroy(sem_t*)

cdef extern from "<stdlib.h>" nogil:
    void* aligned_alloc(size_t alignment, size_t size)

cdef enum:
    FRESH_BYTE = 0xA5            # what memory holds before its owner wrote it ...
    DEAD_BYTE = 0xDD             # ... and after it was given back
    HAPPENINGS = 256             # kept for reports
    RUN_CHUNK = 4096             # events between two looks at signals
    TASK_TIMEOUT_S = 120         # of real time that a task may run without waiting
    LAST_EVENTS = 200_000        # for the tasks to end after a stop
    MUTATED_DELAY_NS = 50_000_000

cdef int64_t NEVER = 0x7fffffffffffffff

_ACTIONS = {"drop": MUTATE_DROP, "duplicate": MUTATE_DUPLICATE, "corrupt": MUTATE_CORRUPT, "delay": MUTATE_DELAY}
_EVENT_NAMES = ("deliver", "step", "lost", "wake")


class SimulationError(Exception):
    """A simulated run could not go on: out of budget, or nothing left that could happen. Names the seed."""


cdef inline uint64_t _mixed(uint64_t hash, uint64_t word) noexcept nogil:
    hash = (hash ^ word) * <uint64_t>0x9E3779B97F4A7C15
    return hash ^ (hash >> 29)


cdef uint64_t _content_hash(uint64_t hash, const char* data, size_t size_bytes) noexcept nogil:
    cdef uint64_t word
    cdef size_t at = 0
    while at + 8 <= size_bytes:
        memcpy(&word, data + at, 8)
        hash = _mixed(hash, word)
        at += 8
    word = size_bytes
    memcpy(&word, data + at, size_bytes - at)
    return _mixed(hash, word)


cdef bint _gather(Message* message) noexcept nogil:
    """Copies the body from where the sender has it. False: out of memory."""
    cdef size_t i, at = 0
    message.body = <char*>malloc(message.body_bytes + 8)
    if message.body == NULL:
        return False
    for i in range(message.piece_count):
        memcpy(message.body + at, message.pieces[i].data, message.pieces[i].size_bytes)
        at += message.pieces[i].size_bytes
    return True


cdef void _free_message(Message* message) noexcept nogil:
    if message.body != NULL:
        memset(message.body, DEAD_BYTE, message.body_bytes)
    free(message.body)
    free(message.pieces)
    free(message)


cdef class SimNetwork:
    """``size`` ranks in one process, in virtual time.

    Parameters
        seed: any integer; decides every delay and order.
        model: NetworkModel. Default: a fast cluster network without disorder.
        max_events, max_virtual_s: the budget of a run; past it the run ends with SimulationError.
    Threads: one thread makes it and runs it; the tasks it starts use the transports.
    """

    def __cinit__(self):
        sem_init(&self.scheduler, 0, 0)

    def __init__(self, size: int, seed: int, model=None, max_events: int = 2_000_000, max_virtual_s: float = 600.0):
        if not 1 <= size <= 65535:
            raise ValueError(f"size={size}: a simulation has 1 to 65535 ranks")
        self.size = size
        self.seed = seed
        self.model = NetworkModel() if model is None else model
        self.max_events = max_events
        self.max_ns = <int64_t>(max_virtual_s * 1e9)
        self.random_state = <uint64_t>(hash(int(seed)) & 0xffffffffffffffff) ^ <uint64_t>0x5851F42D4C957F2D
        self._take_model()
        self.egress_free.resize(size, 0)
        self.ingress_free.resize(size, 0)
        self.silent.resize(size, 0)
        self.follow_up_due.resize(size, 0)
        self.step_due_ns.resize(size, NEVER)
        self.last_arrival.resize(<size_t>size * size, 0)
        self.allocations.resize(size, 0)
        self.fails_from.resize(size, NEVER)
        self.fails_until.resize(size, NEVER)
        self.kind_messages.resize(<size_t>size * 256, 0)
        self.kind_bytes.resize(<size_t>size * 256, 0)
        self.tasks = []
        self.kept = []
        self.transports = []
        for rank in range(size):
            transport = SimTransport(self, rank)
            self.transports.append(transport)
            self.endpoints.push_back(<void*>transport)

    def __dealloc__(self):
        sem_destroy(&self.scheduler)

    def _take_model(self):
        model = self.model
        self.latency_ns = model.latency_us * 1e3
        self.ns_per_byte = 1.0 / model.bandwidth_gbytes_per_s
        self.message_ns = model.message_us * 1e3
        self.jitter_ns = model.jitter_us * 1e3
        self.slow_share = model.slow_share
        self.slow_ns = model.slow_us * 1e3
        self.fifo = model.fifo
        self.late_done_share = model.late_done_share
        self.step_delay_ns = model.step_delay_us * 1e3
        self.wake_delay_ns = model.wake_delay_us * 1e3

    # -- public: ranks and tasks -------------------------------------------------------------------------------------

    def transport(self, rank: int) -> "SimTransport":
        """The transport of one rank, connected to all others."""
        return self.transports[rank]

    def spawn(self, function, rank: int, name: str = "") -> "Task":
        """A task of ``rank`` that will call ``function()`` on a thread of its own, when ``run`` lets it.

        May be called by the scheduler and by tasks.
        """
        cdef Task task = Task.__new__(Task)
        task.network = self
        task.name = name or getattr(function, "__name__", "task")
        task.function = function
        task.state.rank = rank
        self.tasks.append(task)
        self.active += 1
        task.runner = _take_runner()
        task.runner.put(task)
        self._schedule_wake(&task.state, self.now + self._random_ns(self.wake_delay_ns))
        return task

    def pause(self, duration_us: float = 0.0) -> None:
        """Called by a task: lets ``duration_us`` of virtual time pass (and a random delay, as the model says)."""
        cdef TaskState* task = self._own_state()
        with nogil:
            self._schedule_wake(task, self.now + <int64_t>(duration_us * 1e3) + self._random_ns(self.wake_delay_ns))
            self._hand_over(task)

    def park(self) -> None:
        """Called by a task: waits until somebody calls ``unpark`` with it."""
        cdef TaskState* task = self._own_state()
        with nogil:
            task.waiting = PARKED
            self.active -= 1
            self._hand_over(task)

    def unpark(self, Task task not None) -> None:
        if task.state.waiting == PARKED:
            task.state.waiting = NOT_WAITING
            self.active += 1
            self._schedule_wake(&task.state, self.now + self._random_ns(self.wake_delay_ns))

    cdef TaskState* _own_state(self) except NULL:
        if self.current == NULL:
            raise RuntimeError("only a task of the simulation may wait in it")
        return self.current

    # -- public: running ---------------------------------------------------------------------------------------------

    def run(self) -> None:
        """Runs until every task has finished or is parked.

        Raises what a task raised first; SimulationError when the run cannot go on. Either way all tasks have ended.
        """
        self._run_while_active(True)

    def settle(self) -> None:
        """``run``, then until nothing is left to happen: no message under way, no step asked for."""
        self._run_while_active(True)
        self._run_while_active(False)

    def run_events(self, count: int) -> int:
        """Runs at most ``count`` events; returns how many there were. Raises as ``run``."""
        cdef int64_t _i, limit = count
        cdef int64_t ran = 0
        self._check_scheduler()
        with nogil:
            for _i in range(limit):
                if self.failures or self.stopped or not self.run_event(NEVER):
                    break
                ran += 1
        self._raise_problem()
        return ran

    def _run_while_active(self, while_active: bool):
        cdef bint wait_for_tasks = while_active
        cdef bint more = True
        cdef int _i
        self._check_scheduler()
        while more and not self.failures and not self.stopped:
            with nogil:
                for _i in range(RUN_CHUNK):
                    more = self.active > 0 or not wait_for_tasks
                    more = more and not self.failures and not self.stopped and self.run_event(NEVER)
                    if not more:
                        break
            PyErr_CheckSignals()
        if wait_for_tasks and self.active > 0 and not self.failures and not self.stopped:
            self._stop("nothing is left to happen, but tasks wait")
        self._raise_problem()

    def _check_scheduler(self):
        if self.current != NULL:
            raise RuntimeError("a task cannot run the simulation it is part of")

    def _raise_problem(self):
        """Ends the other tasks, then raises the first problem, if there is one."""
        if not self.failures and not self.stopped:
            return
        waiting = self._waiting_tasks()
        if not self.stopped:
            self._stop("another task failed")
        self._end_tasks()
        for task in self.tasks:
            if task.failure is not None and not task.failed_after_stop:
                task.failure.add_note(f"in task {task.name!r} of simulation seed {self.seed}")
                raise task.failure
        raise SimulationError(f"simulation seed {self.seed}: {self.stopped_why.decode()}\n{waiting}")

    def _stop(self, why: str):
        cdef bytes text = why.encode()
        cdef const char* data = text
        with nogil:
            self.stop(data)

    def _end_tasks(self):
        cdef int _i
        with nogil:
            for _i in range(LAST_EVENTS):
                if self.active == 0 or not self.run_event(NEVER):
                    break
        if self.active > 0:
            raise SimulationError(
                f"simulation seed {self.seed}: {self.stopped_why.decode()}; then tasks did not end\n"
                f"{self._waiting_tasks()}")

    def _waiting_tasks(self) -> str:
        frames = sys._current_frames()
        lines = []
        for task in self.tasks:
            if not task.finished:
                frame = frames.get(task.thread_id)
                stack = "".join(traceback.format_stack(frame)[-4:]) if frame else ""
                lines.append(f"task {task.name!r} waits in\n{stack}")
        return "".join(lines)

    def close(self) -> None:
        """Frees what is under way and lets go of transports and tasks. The managers must be closed."""
        cdef Event event
        cdef pair[Moment, Event] entry
        for entry in self.queue:
            event = entry.second
            if event.kind == EVENT_DELIVER:
                self._settle_message(<Message*>event.item, 1)
        self.queue.clear()
        self.endpoints.clear()
        self.transports = []
        self.tasks = []
        self.kept = []
        self.mutations.clear()

    # -- public: trouble ---------------------------------------------------------------------------------------------

    def mutate(self, action: str, message_id: int, nth: int = 0, matches=None) -> None:
        """Plants a defect of the network: the ``nth`` message (from 0) of a kind is treated wrongly.

        action: "drop", "duplicate", "corrupt" (the body's last 8 bytes) or "delay" (by 50 ms; not a defect).
        matches: None, or a callable(source, destination, header: bytes, body: bytes) -> bool: which messages to count.
        """
        cdef Mutation mutation
        mutation.action = _ACTIONS[action]
        mutation.message_id = message_id
        mutation.nth = nth
        mutation.applied = False
        mutation.matches = <void*>matches if matches is not None else NULL
        self.kept.append(matches)
        self.mutations.push_back(mutation)

    def kill(self, rank: int, notice_us: float = 100.0) -> None:
        """The rank's process dies: its connections break, which each peer sees within ``notice_us``."""
        cdef SimTransport transport = self.transports[rank]
        transport._end(<int64_t>(notice_us * 1e3))

    def silence(self, rank: int) -> None:
        """Nothing gets to or from the rank any more, and nobody is told."""
        self.silent[rank] = 1

    def fail_allocations(self, rank: int, nth: int, count: int | None = None) -> None:
        """The rank's memory for messages runs out: of its allocations from now on, the ``nth`` (from 0) fails.

        Allocations are what the transport allocates for the layer above, and one for each message it is given to send.
        count: how many fail in a row. None: all from then on.
        """
        self.fails_from[rank] = self.allocations[rank] + nth
        self.fails_until[rank] = NEVER if count is None else self.fails_from[rank] + count

    # -- public: looking at it ---------------------------------------------------------------------------------------

    @property
    def trace_hash(self) -> str:
        """Of everything that happened: times, orders, contents of messages."""
        return f"{self.trace:016x}"

    def history(self, names=None) -> list:
        """The last things that happened, as text. names: of message ids."""
        cdef Happening happening
        cdef uint64_t first = max(0, <int64_t>self.events - <int64_t>self.happenings.size())
        lines = []
        for number in range(first, self.events):
            happening = self.happenings[number % HAPPENINGS]
            what = _EVENT_NAMES[happening.kind]
            if happening.kind == EVENT_DELIVER:
                kind = (names or {}).get(happening.message_id, happening.message_id)
                what = f"message {kind} {happening.source} -> {happening.rank}, {happening.body_bytes} B"
            elif happening.kind == EVENT_LOST:
                what += f" {happening.source}"
            lines.append(f"{happening.at_ns / 1e3:12.3f} us  rank {happening.rank}: {what}")
        return lines

    def traffic(self) -> dict:
        """Per message id: (messages, bytes) sent, one entry per rank each."""
        found = {}
        for message_id in range(256):
            messages = [self.kind_messages[<size_t>rank * 256 + message_id] for rank in range(self.size)]
            if any(messages):
                found[message_id] = (
                    messages, [self.kind_bytes[<size_t>rank * 256 + message_id] for rank in range(self.size)])
        return found

    def __repr__(self):
        return f"<SimNetwork of {self.size} ranks, seed {self.seed}, {self.now / 1e9:.6f} s, {self.events} events>"

    # -- memory ------------------------------------------------------------------------------------------------------

    cdef bint allocation_fails(self, uint32_t rank) noexcept nogil:
        """To be asked once per allocation of a rank."""
        cdef int64_t number = self.allocations[rank]
        self.allocations[rank] += 1
        if number < self.fails_from[rank] or number >= self.fails_until[rank]:
            return False
        self.allocations_failed += 1
        return True

    # -- chance ------------------------------------------------------------------------------------------------------

    cdef uint64_t _random(self) noexcept nogil:
        # splitmix64
        cdef uint64_t z
        self.random_state += <uint64_t>0x9E3779B97F4A7C15
        z = self.random_state
        z = (z ^ (z >> 30)) * <uint64_t>0xBF58476D1CE4E5B9
        z = (z ^ (z >> 27)) * <uint64_t>0x94D049BB133111EB
        return z ^ (z >> 31)

    cdef double _random_share(self) noexcept nogil:
        """Uniform in [0, 1)."""
        return (self._random() >> 11) * (1.0 / (<uint64_t>1 << 53))

    cdef int64_t _random_ns(self, double limit_ns) noexcept nogil:
        return <int64_t>(self._random_share() * limit_ns) if limit_ns > 0 else 0

    # -- events ------------------------------------------------------------------------------------------------------

    cdef Moment _schedule(self, int64_t at_ns, uint8_t kind, uint32_t rank, uint32_t source, void* item) noexcept nogil:
        cdef Moment moment
        cdef Event event
        moment.first = max(at_ns, self.now)
        moment.second = self.scheduled
        self.scheduled += 1
        event.kind = kind
        event.rank = rank
        event.source = source
        event.item = item
        self.queue[moment] = event
        return moment

    cdef void schedule_step(self, uint32_t rank, int64_t at_ns) noexcept nogil:
        # Not if an earlier one is due: the rank asks again then. Else each message would add one more step for good.
        cdef int64_t at = max(at_ns, self.now) + self._random_ns(self.step_delay_ns)
        if at < self.step_due_ns[rank]:
            self.step_due_ns[rank] = at
            self._schedule(at, EVENT_STEP, rank, rank, NULL)

    cdef void schedule_lost(self, uint32_t rank, uint32_t peer, int64_t at_ns) noexcept nogil:
        self._schedule(at_ns, EVENT_LOST, rank, peer, NULL)

    cdef bint run_event(self, int64_t until_ns) noexcept nogil:
        """Runs the next event if it is not after ``until_ns``. False: there is none."""
        cdef Event event
        if self.queue.empty() or dereference(self.queue.begin()).first.first > until_ns:
            return False
        if not self.stopped and self._over_budget():
            return True
        self.now = dereference(self.queue.begin()).first.first
        event = dereference(self.queue.begin()).second
        self.queue.erase(self.queue.begin())
        if event.kind == EVENT_WAKE:
            self._record(EVENT_WAKE, event.rank, event.rank, NULL)
            self._resume(<TaskState*>event.item)
        else:
            self.running_event = True
            self._happen(&event)
            self.running_event = False
        self._look_at_waiting(event.rank)
        return True

    cdef void _happen(self, const Event* event) noexcept nogil:
        cdef Message* message
        if event.kind == EVENT_DELIVER:
            message = <Message*>event.item
            if self.stopped:
                self._settle_message(message, 1)
            elif not self._reaches_link_later(message):
                self._deliver(message)
                self._follow_up(event.rank)
        elif self.stopped:
            return
        elif event.kind == EVENT_LOST:
            if self.ingress_free[event.rank] >= self.now:    # what the peer sent before may still be on the link
                self.schedule_lost(event.rank, event.source, self.ingress_free[event.rank] + 1)
            else:
                self._record(EVENT_LOST, event.rank, event.source, NULL)
                self._report_lost(event.rank, event.source, self._why_lost(event.rank, event.source))
                self._follow_up(event.rank)
        elif not (<SimTransport>self.endpoints[event.rank]).closed:
            self._record(EVENT_STEP, event.rank, event.rank, NULL)
            self.follow_up_due[event.rank] = 0
            if self.now >= self.step_due_ns[event.rank]:
                self.step_due_ns[event.rank] = NEVER
            (<SimTransport>self.endpoints[event.rank]).on_step((<SimTransport>self.endpoints[event.rank]).context)

    cdef void _follow_up(self, uint32_t rank) noexcept nogil:
        """A message was delivered: its rank steps soon, maybe after more messages, as a thread that polls would."""
        if (<SimTransport>self.endpoints[rank]).on_step != NULL and not self.follow_up_due[rank]:
            self.follow_up_due[rank] = 1
            self._schedule(self.now + self._random_ns(self.step_delay_ns), EVENT_STEP, rank, rank, NULL)

    cdef bint _over_budget(self) noexcept nogil:
        if self.events >= self.max_events:
            self.stop("the run is over its budget of events (max_events)")
        elif dereference(self.queue.begin()).first.first > self.max_ns:
            self.stop("the run is over its budget of virtual time (max_virtual_s)")
        return self.stopped

    cdef void stop(self, const char* why) noexcept nogil:
        """Tells every rank that its peers are lost, so that everything that waits ends."""
        cdef void* endpoint
        cdef uint32_t rank
        if self.stopped:
            return
        self.stopped = True
        self.stopped_why.assign(why)
        for rank in range(self.size):
            endpoint = self.endpoints[rank]
            if not (<SimTransport>endpoint).closed and (<SimTransport>endpoint).on_lost != NULL:
                (<SimTransport>endpoint).on_lost((<SimTransport>endpoint).context, (rank + 1) % self.size, why)
            self._look_at_waiting(rank)

    cdef void _report_lost(self, uint32_t rank, uint32_t peer, const char* why) noexcept nogil:
        cdef void* endpoint = self.endpoints[rank]
        if (<SimTransport>endpoint).closed or (<SimTransport>endpoint).lost[peer]:
            return
        (<SimTransport>endpoint).lost[peer] = 1
        if not (<SimTransport>endpoint).ending[peer] and (<SimTransport>endpoint).on_lost != NULL:
            (<SimTransport>endpoint).on_lost((<SimTransport>endpoint).context, peer, why)

    cdef const char* _why_lost(self, uint32_t rank, uint32_t peer) noexcept nogil:
        cdef uint64_t way = <uint64_t>rank * self.size + peer
        if self.drop_reasons.count(way):
            return self.drop_reasons[way].c_str()
        return "closed its connection"

    cdef void _record(self, uint8_t kind, uint32_t rank, uint32_t source, const Message* message) noexcept nogil:
        cdef Happening happening
        happening.at_ns = self.now
        happening.kind = kind
        happening.rank = rank
        happening.source = source
        happening.message_id = 0
        happening.body_bytes = 0
        happening.content = 0
        if message != NULL:
            happening.message_id = message.message_id
            happening.body_bytes = <uint32_t>message.body_bytes
            happening.content = _content_hash(
                _content_hash(message.message_id, message.header, message.header_bytes),
                message.body, message.body_bytes)
        if self.happenings.size() < HAPPENINGS:
            self.happenings.push_back(happening)
        else:
            self.happenings[self.events % HAPPENINGS] = happening
        self.events += 1
        self.trace = _mixed(self.trace, <uint64_t>happening.at_ns)
        self.trace = _mixed(self.trace, (<uint64_t>kind << 56) | (<uint64_t>rank << 24) | source)
        self.trace = _mixed(self.trace, happening.content)

    # -- messages ----------------------------------------------------------------------------------------------------

    cdef SendStatus send(
            self, uint32_t source, uint32_t destination, uint8_t message_id, const char* header, size_t header_bytes,
            const Piece* pieces, size_t piece_count, done_fn done, void* argument) noexcept nogil:
        cdef Message* message = <Message*>malloc(sizeof(Message))
        cdef Message* twin
        cdef size_t i
        cdef int action
        if message == NULL:
            return SEND_NO_MEMORY
        memset(message, 0, sizeof(Message))
        message.source = source
        message.destination = destination
        message.message_id = message_id
        message.header_bytes = header_bytes
        memcpy(message.header, header, header_bytes)
        message.pieces = <Piece*>malloc(max(piece_count, 1) * sizeof(Piece))
        if message.pieces == NULL:
            _free_message(message)
            return SEND_NO_MEMORY
        message.piece_count = piece_count
        for i in range(piece_count):
            message.pieces[i] = pieces[i]
            message.body_bytes += pieces[i].size_bytes
        self.kind_messages[<size_t>source * 256 + message_id] += 1
        self.kind_bytes[<size_t>source * 256 + message_id] += header_bytes + message.body_bytes
        action = self._mutation_for(message)
        if action < 0 and self._random_share() < self.late_done_share:
            message.done = done
            message.argument = argument
            self._post(message, 0)
            return SEND_OK
        if not _gather(message):
            _free_message(message)
            return SEND_NO_MEMORY
        if done != NULL:
            done(argument, 0)
        if action == MUTATE_DROP or self.silent[source] or self.silent[destination]:
            _free_message(message)
            return SEND_OK
        if action == MUTATE_CORRUPT:
            # All of the last item, not one bit: that could vanish by rounding.
            for i in range(message.body_bytes - min(<size_t>8, message.body_bytes), message.body_bytes):
                message.body[i] ^= 0x55
        if action == MUTATE_DUPLICATE:
            twin = _copy_of(message)
            if twin != NULL:
                self._post(twin, 0)
        self._post(message, MUTATED_DELAY_NS if action == MUTATE_DELAY else 0)
        return SEND_OK

    cdef void _post(self, Message* message, int64_t delay_ns) noexcept nogil:
        cdef size_t size_bytes = message.header_bytes + message.body_bytes
        self._schedule(
            self._arrival_ns(message.source, message.destination, size_bytes, delay_ns),
            EVENT_DELIVER, message.destination, message.source, message)

    cdef int64_t _arrival_ns(
            self, uint32_t source, uint32_t destination, size_t size_bytes, int64_t delay_ns) noexcept nogil:
        cdef int64_t at = max(self.now, self.egress_free[source])
        cdef size_t way = <size_t>source * self.size + destination
        at += <int64_t>(self.message_ns + size_bytes * self.ns_per_byte)
        self.egress_free[source] = at
        at += <int64_t>self.latency_ns + self._random_ns(self.jitter_ns) + delay_ns
        if self.slow_share > 0 and self._random_share() < self.slow_share:
            at += self._random_ns(self.slow_ns)
        if self.fifo:
            at = max(at, self.last_arrival[way])
        self.last_arrival[way] = max(at, self.last_arrival[way])
        return at

    cdef bint _reaches_link_later(self, Message* message) noexcept nogil:
        """A message occupies the receiver's link before it is delivered. True: it will be back when it has passed."""
        cdef int64_t at
        if message.on_link:
            return False
        message.on_link = True
        at = max(self.now, self.ingress_free[message.destination])
        at += <int64_t>(self.message_ns + (message.header_bytes + message.body_bytes) * self.ns_per_byte)
        self.ingress_free[message.destination] = at
        if at <= self.now:
            return False
        self._schedule(at, EVENT_DELIVER, message.destination, message.source, message)
        return True

    cdef void _deliver(self, Message* message) noexcept nogil:
        cdef void* endpoint = self.endpoints[message.destination]
        cdef bint reaches = not ((<SimTransport>endpoint).closed or (<SimTransport>endpoint).lost[message.source])
        if self.silent[message.destination] or self.silent[message.source]:
            reaches = False
        if reaches and message.body == NULL and not _gather(message):
            self.stop("out of memory")
            reaches = False
        if reaches:
            self._record(EVENT_DELIVER, message.destination, message.source, message)
            (<SimTransport>endpoint).receive(message)
        self._settle_message(message, 0)

    cdef void _settle_message(self, Message* message, int status) noexcept nogil:
        if message.done != NULL:
            message.done(message.argument, status)
        _free_message(message)

    cdef void release_sender(self, uint32_t source) noexcept nogil:
        """The rank closes: what it sent no longer reads its memory."""
        cdef Message* message
        cdef ordered_map[Moment, Event].iterator at = self.queue.begin()
        while at != self.queue.end():
            if dereference(at).second.kind == EVENT_DELIVER and dereference(at).second.source == source:
                message = <Message*>dereference(at).second.item
                if message.body == NULL and _gather(message) and message.done != NULL:
                    message.done(message.argument, 0)
                    message.done = NULL
            preincrement(at)

    cdef int _mutation_for(self, const Message* message) noexcept nogil:
        """What to do to this message; -1: nothing."""
        cdef size_t i
        for i in range(self.mutations.size()):
            if self.mutations[i].applied or self.mutations[i].message_id != message.message_id:
                continue
            if self.mutations[i].action == MUTATE_CORRUPT and message.body_bytes == 0:
                continue
            if self.mutations[i].matches != NULL and not _is_match(self.mutations[i].matches, message):
                continue
            if self.mutations[i].nth > 0:
                self.mutations[i].nth -= 1
                continue
            self.mutations[i].applied = True
            self.mutations_applied += 1
            return self.mutations[i].action
        return -1

    # -- tasks -------------------------------------------------------------------------------------------------------

    cdef void run_until(
            self, condition_fn condition, void* context, void* argument, int64_t until_ns) noexcept nogil:
        """The calling thread waits: a task hands over; the scheduler itself runs the network meanwhile."""
        cdef TaskState* task = self.current
        if task == NULL:
            while not condition(context, argument) and self.now < until_ns:
                if not self.run_event(until_ns):
                    self.now = until_ns
            return
        if condition(context, argument) or self.now >= until_ns:
            return
        task.condition = condition
        task.context = context
        task.argument = argument
        task.waiting = WAITS_FOR_CONDITION
        self.waiting.push_back(task)
        self._schedule_wake(task, until_ns)
        self._hand_over(task)

    cdef void _look_at_waiting(self, uint32_t rank) noexcept nogil:
        """Something happened at ``rank``: its tasks may go on."""
        cdef size_t i = 0
        cdef TaskState* task
        while i < self.waiting.size():
            task = self.waiting[i]
            if task.rank == rank and task.condition(task.context, task.argument):
                self._stop_waiting(task)
                self._schedule_wake(task, self.now + self._random_ns(self.wake_delay_ns))
            else:
                i += 1

    cdef void _stop_waiting(self, TaskState* task) noexcept nogil:
        cdef size_t i
        task.waiting = NOT_WAITING
        for i in range(self.waiting.size()):
            if self.waiting[i] == task:
                self.waiting.erase(self.waiting.begin() + i)
                return

    cdef void _schedule_wake(self, TaskState* task, int64_t at_ns) noexcept nogil:
        if task.has_wake:
            self.queue.erase(task.wake)
        task.has_wake = True
        task.wake = self._schedule(at_ns, EVENT_WAKE, task.rank, task.rank, task)

    cdef void _hand_over(self, TaskState* task) noexcept nogil:
        """On the task's thread: the scheduler runs, until it resumes this task."""
        self.current = NULL
        sem_post(&self.scheduler)
        while sem_wait(&task.go) != 0:
            pass                         # interrupted by a signal

    cdef void _resume(self, TaskState* task) noexcept nogil:
        """On the scheduler's thread: the task runs, until it hands over."""
        cdef timespec until
        task.has_wake = False
        if task.waiting == WAITS_FOR_CONDITION:
            self._stop_waiting(task)
        self.current = task
        sem_post(&task.go)
        clock_gettime(CLOCK_REALTIME, &until)
        until.tv_sec += TASK_TIMEOUT_S
        while sem_timedwait(&self.scheduler, &until) != 0:
            if errno != EINTR:
                # The thread cannot be stopped: the process is of no use any more, but it can say why.
                with gil:
                    _give_up(self, f"a task has run for {TASK_TIMEOUT_S} s without waiting\n{self._waiting_tasks()}")


cdef bint _is_match(void* matches, const Message* message) noexcept with gil:
    cdef bytes body = b"".join([
        message.pieces[i].data[:message.pieces[i].size_bytes] for i in range(message.piece_count)])
    return (<object>matches)(message.source, message.destination, message.header[:message.header_bytes], body)


cdef Message* _copy_of(const Message* message) noexcept nogil:
    """Of a message that holds its own body."""
    cdef Message* copy = <Message*>malloc(sizeof(Message))
    if copy == NULL:
        return NULL
    copy[0] = message[0]
    copy.pieces = NULL
    copy.piece_count = 0
    copy.body = <char*>malloc(message.body_bytes + 8)
    if copy.body == NULL:
        free(copy)
        return NULL
    memcpy(copy.body, message.body, message.body_bytes)
    return copy


def _give_up(SimNetwork network, why):
    print(f"simulation seed {network.seed}: {why}", file=sys.stderr, flush=True)
    os._exit(70)


# -- a rank's end of it ------------------------------------------------------------------------------------------------

cdef class SimTransport(Transport):
    """One rank of a simulated network. Made by ``SimNetwork``; connected from the start."""

    def __init__(self, SimNetwork network not None, rank: int):
        self.network = network
        self.rank = rank
        self.size = network.size
        self.name = "sim"
        self.virtual_time = True
        self.lost.resize(self.size, 0)
        self.ending.resize(self.size, 0)
        self.heard_ns.resize(self.size, 0)

    def address(self) -> bytes:
        return b"%d" % self.rank

    def connect(self, addresses, timeout_s: float) -> None:
        """The ranks of a simulation are connected by construction."""
        if len(addresses) != self.size:
            raise TransportError(f"{len(addresses)} addresses for {self.size} simulated ranks")

    def close(self, timeout_s: float = 5.0) -> None:
        if not self.closed:
            self._end(<int64_t>self.network.latency_ns)

    def _end(self, notice_ns: int):
        """Ends this rank's connections; each peer notices after what was sent to it, ``notice_ns`` late at most."""
        cdef SimNetwork network = self.network
        cdef int64_t notice = notice_ns
        cdef uint32_t peer
        cdef int64_t at
        self.closed = True
        network.release_sender(self.rank)
        for peer in range(self.size):
            if peer != self.rank:
                at = max(network.now, network.last_arrival[<size_t>self.rank * self.size + peer])
                network.schedule_lost(peer, self.rank, at + 1 + network._random_ns(<double>notice))

    def describe(self) -> dict:
        return {"name": self.name, "seed": self.network.seed, "model": self.network.model}

    cdef SendStatus send(
            self, uint32_t destination, uint8_t message_id, const char* header, size_t header_bytes,
            const Piece* pieces, size_t piece_count, done_fn done, void* argument) noexcept nogil:
        cdef SendStatus status
        cdef size_t i
        if self.closed or self.lost[destination] or self.network.stopped:
            return SEND_PEER_LOST
        if self.network.allocation_fails(self.rank):
            return SEND_NO_MEMORY
        status = self.network.send(
            self.rank, destination, message_id, header, header_bytes, pieces, piece_count, done, argument)
        if status == SEND_OK:
            self.sent_messages += 1
            self.sent_bytes += header_bytes
            for i in range(piece_count):
                self.sent_bytes += pieces[i].size_bytes
        return status

    cdef void receive(self, const Message* message) noexcept nogil:
        self.received_messages += 1
        self.received_bytes += message.header_bytes + message.body_bytes
        self.heard_ns[message.source] = self.network.now
        if self.on_message != NULL:
            self.on_message(
                self.context, message.source, message.message_id, message.header, message.header_bytes,
                message.body, message.body_bytes)

    cdef int progress(self) noexcept nogil:
        # A task lets the network run by waiting (run_until); inside a callback it must not run at all.
        if self.network.current != NULL or self.network.running_event:
            return 0
        return self.network.run_event(NEVER)

    cdef bint is_alive(self, uint32_t rank) noexcept nogil:
        return not self.lost[rank]

    cdef int64_t last_heard_ns(self, uint32_t rank) noexcept nogil:
        return self.heard_ns[rank]

    cdef void expect_close(self, uint32_t rank) noexcept nogil:
        self.ending[rank] = 1

    cdef void drop(self, uint32_t rank, const char* why) noexcept nogil:
        # on_lost runs inside progress() only; the peer sees its end of the connection break.
        self.network.drop_reasons[<uint64_t>self.rank * self.size + rank].assign(why)
        self.network.schedule_lost(self.rank, rank, self.network.now)
        self.network.schedule_lost(rank, self.rank, self.network.now + <int64_t>self.network.latency_ns)

    cdef int64_t now_ns(self) noexcept nogil:
        return self.network.now

    cdef bint request_step(self, int64_t at_ns) noexcept nogil:
        if not self.closed and self.on_step != NULL:
            self.network.schedule_step(self.rank, at_ns)
        return True

    cdef void run_until(
            self, condition_fn condition, void* context, void* argument, int64_t until_ns) noexcept nogil:
        self.network.run_until(condition, context, argument, until_ns)

    cdef char* allocate(self, size_t size_bytes) noexcept nogil:
        cdef char* memory = NULL
        if not self.network.allocation_fails(self.rank):
            memory = <char*>aligned_alloc(64, (size_bytes + 63) & ~<size_t>63)
        if memory != NULL:
            memset(memory, FRESH_BYTE, size_bytes)
            self.network.allocated_bytes += size_bytes
        return memory

    cdef void release(self, char* data, size_t size_bytes) noexcept nogil:
        memset(data, DEAD_BYTE, size_bytes)
        self.network.allocated_bytes -= size_bytes
        free(data)


# -- a task's thread ---------------------------------------------------------------------------------------------------

# Threads that wait for their next task; starting one takes longer than most tasks. Guarded by: GIL.
_idle_runners = []


def _take_runner():
    if _idle_runners:
        return _idle_runners.pop()
    runner = queue.SimpleQueue()
    threading.Thread(target=_run_tasks, args=(runner,), name="intentpm-sim-task", daemon=True).start()
    return runner


def _run_tasks(runner):
    while True:
        task = runner.get()
        task._run()
        task = None                      # before the next get: nothing of a past simulation stays alive


cdef class Task:
    """A worker's thread in the simulation. Made by ``SimNetwork.spawn``."""

    def __cinit__(self):
        sem_init(&self.state.go, 0, 0)

    def __dealloc__(self):
        sem_destroy(&self.state.go)

    def _run(self):
        cdef SimNetwork network = self.network
        self.thread_id = threading.get_ident()
        with nogil:
            while sem_wait(&self.state.go) != 0:
                pass
        try:
            self.value = self.function()
        except BaseException as failure:     # the scheduler raises it
            self.failure = failure
            self.failed_after_stop = network.stopped
            network.failures += not network.stopped
        self.finished = True
        self.function = None
        self.state.waiting = FINISHED
        network.active -= 1
        network.current = NULL
        _idle_runners.append(self.runner)
        sem_post(&network.scheduler)
