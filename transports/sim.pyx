"""The ``sim`` transport; ``sim.pxd`` is the contract."""

from libc.stdio cimport snprintf
from libc.stdlib cimport free
from libc.string cimport memset

from intentpm.foundation.deadlines import wait_s
from intentpm.foundation.errors import TransportError
from intentpm.transports.sim_model import NetworkModel
from intentpm.transports.sim_tasks import OverBudgetError, SimulationError

from intentpm.foundation.losses cimport LOSS_CONNECTION_CLOSED, LOSS_SIMULATION_ENDED, loss_text
from intentpm.foundation.system cimport aligned_alloc
from intentpm.transports.base cimport (
    SEND_NO_MEMORY, SEND_OK, SEND_PEER_LOST, Piece, SendStatus, Transport, condition_fn, done_fn)
from intentpm.transports.sim_messages cimport (
    DEAD_BYTE, FRESH_BYTE, MUTATE_CORRUPT, MUTATE_DELAY, MUTATE_DROP, MUTATE_DUPLICATE, MUTATE_NOTHING, Message,
    MutationAction, Mutations, copy_message, corrupt_message, gather_message, hash_message, new_message, settle_message)
from intentpm.transports.sim_links cimport Links
from intentpm.transports.sim_tasks cimport TaskScheduler
from intentpm.transports.sim_time cimport (
    EVENT_DELIVER, EVENT_LOST, EVENT_STEP, NEVER, Event, random_ns, random_share)

__all__ = ["OverBudgetError", "SimNetwork", "SimTransport", "SimulationError"]

cdef enum:
    MUTATED_DELAY_NS = 50_000_000


cdef class SimNetwork(TaskScheduler):
    """``size`` ranks in one process, in virtual time.

    Parameters
        seed: any integer; decides every delay and order.
        model: NetworkModel. Default: a fast cluster network without disorder.
        max_events, max_virtual_s: the budget of a run; past it the run ends with SimulationError.
    Threads: one thread makes it and runs it; the tasks it starts use the transports.
    """

    def __init__(self, size: int, seed: int, model=None, max_events: int = 2_000_000, max_virtual_s=600.0):
        if not 1 <= size <= 32767:
            raise ValueError(f"size={size}: a simulation has 1 to 32767 ranks")
        self.size = size
        self.model = NetworkModel() if model is None else model
        TaskScheduler.__init__(self, seed, max_events, max_virtual_s, self.model.wake_delay_us)
        self.links = Links(size, self.model)
        self._mutations = Mutations()
        self._late_done_share = self.model.late_done_share
        self._step_delay_ns = wait_s(self.model.step_delay_us, "step_delay_us") * 1e3
        self._follow_up_due.resize(size, 0)
        self._step_due_ns.resize(size, NEVER)
        self._allocations.resize(size, 0)
        self._fails_from.resize(size, NEVER)
        self._fails_until.resize(size, NEVER)
        self.transports = []
        for rank in range(size):
            transport = SimTransport(self, rank)
            self.transports.append(transport)
            self._endpoints.push_back(<void*>transport)

    def transport(self, rank: int) -> "SimTransport":
        """The transport of one rank, connected to all others."""
        return self.transports[rank]

    def close(self) -> None:
        """Frees what is under way and lets go of transports and tasks. The managers must be closed."""
        cdef size_t i
        for i in range(self.slots.size()):
            if self.slots[i].kind == EVENT_DELIVER:
                settle_message(<Message*>self.slots[i].item, 1)
        self.clear_events()
        self._endpoints.clear()
        self.transports = []
        self._tasks = []
        self._mutations.clear()

    # -- public: trouble ---------------------------------------------------------------------------------------------

    def mutate(self, action: str, message_id: int, nth: int = 0, matches=None) -> None:
        """Plants a defect of the network: the ``nth`` message (from 0) of a kind is treated wrongly.

        action: "drop", "duplicate", "corrupt" (the body's last 8 bytes) or "delay" (by 50 ms; not a defect).
        matches: None, or a callable(source, destination, header: bytes, body: bytes) -> bool: which messages to count.
        """
        self._mutations.plant(action, message_id, nth, matches)

    def kill(self, rank: int, notice_us=100.0, refuses: bool = False) -> None:
        """The rank's process dies: its connections break, which each peer sees within ``notice_us``.

        refuses: what is sent to it until then is refused, as by tcp, which may know before it has said so.
        """
        cdef SimTransport transport = self.transports[rank]
        transport.closed = True
        for peer in self.transports if refuses else ():
            (<SimTransport>peer).broken[<uint32_t>rank] = 1
        self.leave(rank, <int64_t>(<double>wait_s(notice_us, "notice_us") * 1e3))

    def silence(self, rank: int) -> None:
        """Nothing gets to or from the rank any more, and nobody is told."""
        self.links.silent[<uint32_t>rank] = 1

    def cut(self, rank: int, peer: int, notice_us=None) -> None:
        """Nothing gets through between the two any more. notice_us: both see their connection break within that time; None:
        nobody is told.
        """
        cdef size_t one = rank, two = peer
        cdef double notice_ns
        self.links.cut[one * self.size + two] = self.links.cut[two * self.size + one] = 1
        if notice_us is not None:
            notice_ns = <double>wait_s(notice_us, "notice_us") * 1e3
            self._schedule_lost(rank, peer, self.now + random_ns(&self.random_state, notice_ns))
            self._schedule_lost(peer, rank, self.now + random_ns(&self.random_state, notice_ns))

    def fail_allocations(self, rank: int, nth: int, count: int | None = None) -> None:
        """The rank's memory for messages runs out: of its allocations from now on, the ``nth`` (from 0) fails.

        Allocations are what the transport allocates for the layer above, and one for each message it is given to send.
        count: how many fail in a row. None: all from then on.
        """
        self._fails_from[rank] = self._allocations[rank] + nth
        self._fails_until[rank] = NEVER if count is None else self._fails_from[rank] + count

    # -- public: looking at it ---------------------------------------------------------------------------------------

    @property
    def mutations_applied(self) -> int:
        return self._mutations.applied

    def traffic(self) -> dict:
        """Per message id: (messages, bytes) sent, one entry per rank each."""
        return self.links.traffic()

    def __repr__(self):
        return f"<SimNetwork of {self.size} ranks, seed {self.seed}, {self.now / 1e9:.6f} s, {self.events} events>"

    # -- memory ------------------------------------------------------------------------------------------------------

    cdef bint allocation_fails(self, uint32_t rank) noexcept nogil:
        cdef int64_t number = self._allocations[rank]
        self._allocations[rank] += 1
        if number < self._fails_from[rank] or number >= self._fails_until[rank]:
            return False
        self.allocations_failed += 1
        return True

    # -- what happens to a rank --------------------------------------------------------------------------------------

    cdef void _happen(self, const Event* event) noexcept nogil:
        if event.kind == EVENT_DELIVER:
            self._deliver_event(<Message*>event.item)
        elif self.stopped:
            return
        elif event.kind == EVENT_LOST:
            self._lose_event(event.rank, event.source)
        else:
            self._step_event(event.rank)

    cdef void _deliver_event(self, Message* message) noexcept nogil:
        cdef uint32_t rank = message.destination
        if self.stopped:
            settle_message(message, 1)
        elif not self._passes_link_later(message):
            self._deliver(message)
            self._follow_up(rank)

    cdef void _lose_event(self, uint32_t rank, uint32_t peer) noexcept nogil:
        if self.links.ingress_free[rank] >= self.now:    # what the peer sent before may still be on the link
            self._schedule_lost(rank, peer, self.links.ingress_free[rank] + 1)
            return
        self.record(EVENT_LOST, rank, peer, 0, 0, 0)
        (<SimTransport>self._endpoints[rank]).lose(peer, self._why_lost(rank, peer))
        self._follow_up(rank)

    cdef void _step_event(self, uint32_t rank) noexcept nogil:
        cdef void* endpoint = self._endpoints[rank]
        if (<SimTransport>endpoint).closed:
            return
        self.record(EVENT_STEP, rank, rank, 0, 0, 0)
        self._follow_up_due[rank] = 0
        if self.now >= self._step_due_ns[rank]:
            self._step_due_ns[rank] = NEVER
        (<SimTransport>endpoint).on_step((<SimTransport>endpoint).context)

    cdef void _follow_up(self, uint32_t rank) noexcept nogil:
        """A message was delivered: its rank steps soon, maybe after more messages, as a thread that polls would."""
        if (<SimTransport>self._endpoints[rank]).on_step != NULL and not self._follow_up_due[rank]:
            self._follow_up_due[rank] = 1
            self.schedule(self.now + random_ns(&self.random_state, self._step_delay_ns), EVENT_STEP, rank, rank, NULL)

    cdef void schedule_step(self, uint32_t rank, int64_t at_ns) noexcept nogil:
        # Not if an earlier one is due: the rank asks again then. Else each message would add one more step for good.
        cdef int64_t at = max(at_ns, self.now) + random_ns(&self.random_state, self._step_delay_ns)
        if at < self._step_due_ns[rank]:
            self._step_due_ns[rank] = at
            self.schedule(at, EVENT_STEP, rank, rank, NULL)

    cdef void _tell_stopped(self, const char* why) noexcept nogil:
        cdef char ended[160]
        cdef void* endpoint
        cdef uint32_t rank
        snprintf(ended, sizeof(ended), loss_text(LOSS_SIMULATION_ENDED), why)
        for rank in range(self.size):
            endpoint = self._endpoints[rank]
            if not (<SimTransport>endpoint).closed and (<SimTransport>endpoint).on_lost != NULL:
                (<SimTransport>endpoint).on_lost((<SimTransport>endpoint).context, (rank + 1) % self.size, ended)
            self.look_at_waiting(rank)

    # -- losing a peer -----------------------------------------------------------------------------------------------

    cdef void part(self, uint32_t rank, uint32_t peer, const char* why) noexcept nogil:
        self._drop_reasons[<uint64_t>rank * self.size + peer].assign(why)
        self._schedule_lost(rank, peer, self.now)
        # Of what was sent just before, some does not arrive: it may have waited in a queue, or be cleared away unread.
        self._schedule_lost(peer, rank, self.now + random_ns(&self.random_state, 2 * self.links.latency_ns))

    cdef void leave(self, uint32_t rank, int64_t notice_ns) noexcept nogil:
        cdef uint32_t peer
        cdef int64_t at
        if self._late_done_share > 0:    # else nothing under way is still in its sender's memory
            self._release_sender(rank)
        for peer in range(self.size):
            if peer != rank and not (<SimTransport>self._endpoints[peer]).closed:
                at = max(self.now, self.links.last_arrival_ns(rank, peer))
                self._schedule_lost(peer, rank, at + 1 + random_ns(&self.random_state, <double>notice_ns))

    cdef void _schedule_lost(self, uint32_t rank, uint32_t peer, int64_t at_ns) noexcept nogil:
        self.schedule(at_ns, EVENT_LOST, rank, peer, NULL)

    cdef const char* _why_lost(self, uint32_t rank, uint32_t peer) noexcept nogil:
        cdef uint64_t way = <uint64_t>rank * self.size + peer
        if self._drop_reasons.count(way):
            return self._drop_reasons[way].c_str()
        return loss_text(LOSS_CONNECTION_CLOSED)

    # -- messages ----------------------------------------------------------------------------------------------------

    cdef SendStatus send(
            self, uint32_t source, uint32_t destination, uint8_t message_id, const char* header, size_t header_bytes,
            const Piece* pieces, size_t piece_count, done_fn done, void* argument) noexcept nogil:
        cdef Message* message = new_message(
            source, destination, message_id, header, header_bytes, pieces, piece_count)
        cdef MutationAction action
        if message == NULL:
            return SEND_NO_MEMORY
        self.links.count(source, message_id, header_bytes + message.body_bytes)
        action = self._mutations.take(message)
        if action == MUTATE_NOTHING and random_share(&self.random_state) < self._late_done_share:
            message.done = done
            message.argument = argument
            self._post(message, 0)
            return SEND_OK
        if not gather_message(message):
            settle_message(message, 0)
            return SEND_NO_MEMORY
        if done != NULL:
            done(argument, 0)
        self._send_mutated(message, action)
        return SEND_OK

    cdef void _send_mutated(self, Message* message, MutationAction action) noexcept nogil:
        """Sends a message that holds its own body, or what becomes of it."""
        cdef Message* twin
        if action == MUTATE_DROP or self.links.are_cut(message.source, message.destination):
            settle_message(message, 0)
            return
        if action == MUTATE_CORRUPT:
            corrupt_message(message)
        if action == MUTATE_DUPLICATE:
            twin = copy_message(message)
            if twin != NULL:
                self._post(twin, 0)
        self._post(message, MUTATED_DELAY_NS if action == MUTATE_DELAY else 0)

    cdef void _post(self, Message* message, int64_t delay_ns) noexcept nogil:
        cdef int64_t at = self.links.arrival_ns(
            self.now, &self.random_state, message.source, message.destination,
            message.header_bytes + message.body_bytes, delay_ns)
        self.schedule(at, EVENT_DELIVER, message.destination, message.source, message)

    cdef bint _passes_link_later(self, Message* message) noexcept nogil:
        """A message occupies the receiver's link before it is delivered. True: it will be back when it has passed."""
        cdef int64_t at
        if message.on_link:
            return False
        message.on_link = True
        at = self.links.passed_ns(self.now, message.destination, message.header_bytes + message.body_bytes)
        if at <= self.now:
            return False
        self.schedule(at, EVENT_DELIVER, message.destination, message.source, message)
        return True

    cdef void _deliver(self, Message* message) noexcept nogil:
        cdef void* endpoint = self._endpoints[message.destination]
        cdef bint reaches = not (
            (<SimTransport>endpoint).closed or not (<SimTransport>endpoint).is_alive(message.source) or
            self.links.are_cut(message.source, message.destination))
        if reaches and message.body == NULL and not gather_message(message):
            self.stop("out of memory")
            reaches = False
        if reaches:
            self.record(
                EVENT_DELIVER, message.destination, message.source, message.message_id, message.body_bytes,
                hash_message(message))
            (<SimTransport>endpoint).receive(message)
        settle_message(message, 0)

    cdef void _release_sender(self, uint32_t source) noexcept nogil:
        cdef Message* message
        cdef size_t i
        for i in range(self.slots.size()):
            if self.slots[i].kind == EVENT_DELIVER and self.slots[i].source == source:
                message = <Message*>self.slots[i].item
                if message.body == NULL and gather_message(message) and message.done != NULL:
                    message.done(message.argument, 0)
                    message.done = NULL


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
        self.broken.resize(self.size, 0)
        self.heard_ns.resize(self.size, 0)

    def address(self) -> bytes:
        return b"%d" % self.rank

    def connect(self, addresses, timeout_s) -> None:
        """The ranks of a simulation are connected by construction."""
        if len(addresses) != self.size:
            raise TransportError(f"{len(addresses)} addresses for {self.size} simulated ranks")

    def close(self, timeout_s=5.0) -> None:
        if not self.closed:
            self.closed = True
            self.network.leave(self.rank, <int64_t>self.network.links.latency_ns)

    def has_ended(self, rank: int) -> bool:
        return (<SimTransport>self.network.transports[rank]).closed

    def describe(self) -> dict:
        return {"name": self.name, "seed": self.network.seed, "model": self.network.model}

    cdef SendStatus send(
            self, uint32_t destination, uint8_t message_id, const char* header, size_t header_bytes,
            const Piece* pieces, size_t piece_count, done_fn done, void* argument) noexcept nogil:
        cdef SendStatus status
        cdef size_t i
        if self.closed or not self.is_alive(destination) or self.network.stopped:
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
        return not (self.lost[rank] or self.broken[rank])

    cdef int64_t last_heard_ns(self, uint32_t rank) noexcept nogil:
        return self.heard_ns[rank]

    cdef void expect_close(self, uint32_t rank) noexcept nogil:
        self.ending[rank] = 1

    cdef void lose(self, uint32_t peer, const char* why) noexcept nogil:
        if self.closed or self.lost[peer]:
            return
        self.lost[peer] = 1
        if not self.ending[peer] and self.on_lost != NULL:
            self.on_lost(self.context, peer, why)

    cdef void drop(self, uint32_t rank, const char* why) noexcept nogil:
        # on_lost runs inside progress() only; the peer sees its end of the connection break.
        if self.is_alive(rank):
            self.broken[rank] = 1
            self.network.part(self.rank, rank, why)

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
