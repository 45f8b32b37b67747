"""The ucx transport: UCP active messages, called from code that never needs the GIL. ``docs/ucx.md`` says why so.

Called by: ``registry``, which makes it; the engine, per message.

    ucx_peers       endpoints, and who can be reached        ucx_worker  UCX itself, started with our settings
    ucx_greetings   hello and goodbye                        ucx_pool    registered staging memory
    ucx_sends       the way out                              ucx_wire    what stands in front of each message
    ucx_arrivals    the way in
    ucx_losses      losing a peer
    ucx_sleep       waiting: event descriptor, timer

Guarantees (beyond ``base.pxd`` and what those files state)
    * ``done`` runs inside ``send`` (of a message that left at once), ``progress`` and ``close`` only.
    * A send that waits for progress() (a full queue, a rendezvous) wakes whoever sleeps on event_fd, and so does the
      end of a peer's process on this host.
Assumptions
    * Calls are serialised by the caller; UCX is told so (thread mode SERIALIZED) and takes no locks. That guards every
      field.
    * The process is not forked after construction; the child's Python-level calls raise ForkError.
"""

import hashlib

cimport cython
from cpython.exc cimport PyErr_CheckSignals
from libc.stdint cimport int64_t, uint8_t, uint32_t
from libc.string cimport memcpy
from posix.unistd cimport getpid, pid_t

from intentpm.foundation.deadlines import wait_ns, wait_s
from intentpm.foundation.errors import ClosedError, ForkError, TransportError
from intentpm.transports import ucp as ucp_module
from intentpm.transports import ucx_address, ucx_library, ucx_limits
from intentpm.transports.process_watch import process_table

from intentpm.transports.base cimport (
    MAX_HEADER_BYTES, SEND_NO_MEMORY, SEND_OK, SEND_PEER_LOST, Piece, SendStatus, Transport, done_fn)
from intentpm.transports.ucp cimport UcpFunctions, load_functions, ucp_worker_h
from intentpm.transports.ucx_arrivals cimport UcxArrivals
from intentpm.transports.ucx_greetings cimport UcxGreetings
from intentpm.transports.ucx_losses cimport UcxLosses
from intentpm.transports.ucx_peers cimport CLOSED, CLOSING, DELIVERING, Peer, UcxPeers, is_reachable
from intentpm.transports.ucx_pool cimport RegisteredPool
from intentpm.transports.ucx_sends cimport Sending, UcxSends, are_waiting, new_sending
from intentpm.transports.ucx_sleep cimport UcxSleep
from intentpm.transports.ucx_wire cimport AM_MESSAGE
from intentpm.transports.ucx_worker cimport UcxWorker


cdef enum:
    CALLS_PER_CHECK = 1024              # of progress(), between two looks at the processes of peers
    CALLS_PER_ARM_CHECK = 64            # the same when arm() is called: a system call on the path of a pull

cdef enum Wait:                         # what connect() and close() wait for
    FOR_HELLOS = 0
    FOR_SENDS = 1
    FOR_BYES = 2
    FOR_ENDPOINTS = 3

cdef int64_t WAIT_SLICE_NS = 50_000_000         # between two looks at signals
cdef int64_t NAP_NS = 2_000_000
cdef int64_t GOODBYE_WAIT_NS = 250_000_000      # for the answers to BYE
cdef int64_t ENDPOINT_WAIT_NS = 1_000_000_000   # for closed endpoints to let go


@cython.no_gc_clear
cdef class UcxTransport(Transport):
    """One rank's UCX worker and its endpoints to every other rank.

    Parameters:
        rank, size: of this process in the job; ``secret``: the job's.
        peer_timeout_s: a peer whose process dies is reported lost well within it (UCX checks every quarter of it,
            unless UCX_KEEPALIVE_INTERVAL says otherwise).
        options: UCX settings by name without ``UCX_``, for this transport alone (``{"TLS": "tcp"}``). All ``UCX_*``
            variables are UCX's to read and win over our defaults, not over ``options``.
    Raises:
        TransportUnavailableError: no UCX library, or UCX cannot start here, and why.
        ConfigError: an option UCX does not know, or INTENTPM_UCX_LIBRARY names no file.
    Threads: the constructor, connect() and close() may be called by any thread, one at a time; they release the GIL
        while they wait and can be interrupted (Ctrl-C).
    """

    cdef UcxWorker _ucx
    cdef const UcpFunctions* _ucp           # of _ucx
    cdef ucp_worker_h _worker               # of _ucx; NULL: stopped
    cdef pid_t _process
    cdef bytes _secret
    cdef RegisteredPool _pool
    cdef UcxPeers _peers
    cdef UcxSleep _sleep
    cdef UcxSends _sends
    cdef UcxArrivals _arrivals
    cdef UcxGreetings _greetings
    cdef UcxLosses _losses                  # made last: if it is there, all is

    def __cinit__(self):
        self._process = getpid()

    def __init__(self, int64_t rank, int64_t size, bytes secret, *, peer_timeout_s=10.0, options=None):
        if not 0 <= rank < size <= 0xFFFF_FFFF:
            raise ValueError(f"rank={rank}, size={size}: rank must be from 0 to size - 1")
        self.rank, self.size, self.name = rank, size, "ucx"
        self._secret = secret
        self._ucx = UcxWorker(size, wait_s(peer_timeout_s, "peer_timeout_s"), dict(options or {}))
        self._ucp = self._ucx.ucp
        self._worker = self._ucx.handle
        self._pool = RegisteredPool()
        self._pool.attach(self._ucp, self._ucx.context)
        self._peers = UcxPeers(self._ucx, rank, size, ucx_address.job_tag(secret))
        self._sleep = UcxSleep(self._ucx)
        self._sends = UcxSends(self._peers, self._sleep)
        self._arrivals = UcxArrivals(self, self._ucx, self._peers, self._pool)
        self._greetings = UcxGreetings(self, self._ucx, self._peers, self._sends, secret)
        self._losses = UcxLosses(self, self._peers, self._sends, self._sleep)
        self._arrivals.start()
        self._greetings.start()

    def __dealloc__(self):
        # In a forked child UCX belongs to the parent: leave everything as it is.
        if getpid() != self._process:
            return
        self.on_message = NULL
        self.on_lost = NULL
        if self._losses is None:
            self._stop_ucx()
        elif self._peers.phase != CLOSED:
            self._sends.forget_callbacks()      # whoever sent may be gone before an object that was never closed
            self._stop_worker()

    # -- connect -----------------------------------------------------------------------------------------------------

    def address(self) -> bytes:
        self._check_usable()
        return ucx_address.pack_address(
            self._secret, self.rank, self.size,
            ucx_address.PeerAddress(self._ucx.address(), self._process, _table_digest()))

    def connect(self, addresses, timeout_s) -> None:
        """See ``Transport.connect``. Also raises VersionMismatchError. A failed transport can only be closed."""
        cdef int64_t deadline_ns = self.now_ns() + <int64_t>wait_ns(timeout_s)
        self._check_usable()
        if len(addresses) != self.size:
            raise TransportError(f"{len(addresses)} addresses for {self.size} ranks")
        unpacked = [
            ucx_address.unpack_address(self._secret, rank, self.size, bytes(address))
            for rank, address in enumerate(addresses)]
        for rank, address in enumerate(unpacked):
            if rank != self.rank:
                self._peers.open(rank, address.worker_address, self.now_ns())
                self._greetings.say_hello(rank)
                if address.process_table == _table_digest() and address.process != self._process:
                    self._losses.watch_process(rank, address.process)
        if not self._wait(FOR_HELLOS, deadline_ns):
            raise self._not_connected(timeout_s)
        self._peers.note_paths()
        self._peers.phase = DELIVERING

    cdef object _not_connected(self, double timeout_s):
        cdef uint32_t rank
        lost, silent = [], []
        for rank in range(self.size):
            if self._peers.all[rank].why[0]:
                lost.append(f"rank {rank} {self._peers.all[rank].why.decode()}")
            elif rank != self.rank and not self._peers.all[rank].said_hello:
                silent.append(rank)
        if silent:
            lost.append(f"no hello within {timeout_s:g} s from rank(s) {', '.join(map(str, silent))}")
        return TransportError(
            f"rank {self.rank} of {self.size} could not connect over UCX ({ucx_library.describe_settings()}): "
            f"{'; '.join(lost) or 'sends not finished'}")

    # -- close -------------------------------------------------------------------------------------------------------

    def close(self, timeout_s=5.0) -> None:
        """See ``Transport.close``. A peer that is not told (dead, or never answers) costs at most ``timeout_s``."""
        cdef int64_t deadline_ns = self.now_ns() + <int64_t>wait_ns(timeout_s)
        cdef uint32_t rank
        if self._peers.phase == CLOSED or getpid() != self._process:
            self._check_process()
            return
        self._peers.phase = CLOSING
        try:
            self._wait(FOR_SENDS, deadline_ns)
            self._greetings.say_goodbye()
            self._wait(FOR_BYES, min(deadline_ns, self.now_ns() + GOODBYE_WAIT_NS))
            for rank in range(self.size):
                self._peers.close_endpoint(&self._peers.all[rank], True)
            self._wait(FOR_ENDPOINTS, self.now_ns() + ENDPOINT_WAIT_NS)
        finally:
            self._stop_worker()

    cdef void _stop_worker(self):
        self._peers.phase = CLOSED
        self._ucx.stop()
        self._worker = NULL
        self._sends.finish_rest()
        self._arrivals.recycle_all()
        self._sleep.close()
        self._stop_ucx()

    cdef void _stop_ucx(self):
        """Also of a transport whose constructor failed."""
        if self._ucx is not None:
            self._ucx.stop()
            if self._pool is not None:
                self._pool.unregister()
            self._ucx.release_context()

    # -- waiting in connect() and close() -----------------------------------------------------------------------------

    cdef bint _wait(self, Wait what, int64_t deadline_ns) except -1:
        """Progresses until ``what`` has happened (True) or cannot happen in time (False)."""
        cdef bint happened = False
        cdef int64_t slice_end_ns
        while not happened and self.now_ns() < deadline_ns:
            slice_end_ns = min(deadline_ns, self.now_ns() + WAIT_SLICE_NS)
            with nogil:
                happened = self._wait_slice(what, slice_end_ns)
            PyErr_CheckSignals()
            if what == FOR_HELLOS and self._peers.failing:
                return False
        return happened or self._has_happened(what)

    cdef bint _wait_slice(self, Wait what, int64_t end_ns) noexcept nogil:
        cdef int idle = 0
        while not self._has_happened(what):
            if what == FOR_HELLOS and self._peers.failing:
                return False
            if self._ucp.worker_progress(self._worker) != 0:
                idle = 0
                if self._peers.phase == CLOSING:
                    self._losses.reap()
                continue
            self._sleep.idle_calls += 1
            idle += 1
            if self.now_ns() >= end_ns:
                return False
            if idle > 100 and self._sleep.prepare(are_waiting(self._sends)):
                self._sleep.wait_for(min(end_ns - self.now_ns(), NAP_NS))
        return True

    cdef bint _has_happened(self, Wait what) noexcept nogil:
        if what == FOR_HELLOS:
            return self._greetings.missing_hellos == 0 and self._sends.in_flight == NULL
        if what == FOR_SENDS:
            return self._sends.in_flight == NULL
        if what == FOR_ENDPOINTS:
            return self._peers.closing_endpoints == 0
        return self._greetings.all_said_goodbye()

    # -- messages ----------------------------------------------------------------------------------------------------

    cdef SendStatus send(
            self, uint32_t destination, uint8_t message_id, const char* header, size_t header_bytes,
            const Piece* pieces, size_t piece_count, done_fn done, void* argument) noexcept nogil:
        cdef Sending* sending
        cdef Peer* peer
        cdef size_t body_bytes = 0
        cdef size_t i
        for i in range(piece_count):
            body_bytes += pieces[i].size_bytes
        if header_bytes > MAX_HEADER_BYTES:
            return SEND_NO_MEMORY
        if self._peers.phase != DELIVERING or destination >= self.size:
            return SEND_PEER_LOST
        if destination == self.rank:
            if not self._arrivals.keep_own(message_id, header, header_bytes, pieces, piece_count, body_bytes):
                return SEND_NO_MEMORY
            self._sleep.wake()
            if done != NULL:
                done(argument, 0)
            return SEND_OK
        peer = &self._peers.all[destination]
        if not is_reachable(peer):
            return SEND_PEER_LOST
        sending = new_sending(self._sends, peer, message_id, body_bytes, done, argument)
        if sending == NULL:
            return SEND_NO_MEMORY
        memcpy(sending.wire.bytes, header, header_bytes)
        self.sent_messages += 1
        self.sent_bytes += header_bytes + body_bytes
        return self._sends.post(sending, AM_MESSAGE, header_bytes, pieces, piece_count)

    cdef int progress(self) noexcept nogil:
        cdef unsigned int moved
        cdef int events = 0
        if self._peers.phase != DELIVERING:
            return 0
        self._sends.finished = 0
        self._arrivals.delivered = 0
        self._arrivals.heard_ns = 0
        self._sleep.armed = False
        if self._sleep.timer_is_set:
            self._sleep.stop_timer()
        if self._arrivals.inbox.first != NULL:
            self._arrivals.deliver_inbox()
        moved = self._ucp.worker_progress(self._worker)
        self._losses.unchecked_calls += 1
        if self._losses.unchecked_calls > CALLS_PER_CHECK:
            self._losses.note_ended()
        if self._losses.ended_peers:
            self._losses.fail_ended()
        if self._peers.failing:
            events = self._losses.reap()
        if self._arrivals.waiting.first != NULL:
            self._arrivals.start_waiting()
        events += self._arrivals.delivered + self._sends.finished
        if events or moved:
            self._sleep.idle_calls = 0
            return events if events else 1
        self._sleep.idle_calls += 1
        return 0

    cdef int event_fd(self) noexcept nogil:
        return self._sleep.watch.wake_fd

    cdef bint arm(self) noexcept nogil:
        if self._arrivals.inbox.first != NULL or self._peers.failing or self._peers.phase != DELIVERING:
            return False
        if self._losses.unchecked_calls > CALLS_PER_ARM_CHECK:   # until then an end keeps waking who sleeps on event_fd
            self._losses.note_ended()
        self._sleep.armed = self._losses.ended_peers == 0 and self._sleep.prepare(are_waiting(self._sends))
        return self._sleep.armed

    # -- peers -------------------------------------------------------------------------------------------------------

    cdef bint is_alive(self, uint32_t rank) noexcept nogil:
        if rank == self.rank:
            return self._peers.phase != CLOSED
        return rank < self.size and is_reachable(&self._peers.all[rank])

    cdef int64_t last_heard_ns(self, uint32_t rank) noexcept nogil:
        return self.now_ns() if rank == self.rank else self._peers.all[rank].heard_ns

    cdef size_t backlog_bytes(self, uint32_t rank) noexcept nogil:
        return self._peers.all[rank].backlog_bytes

    cdef void expect_close(self, uint32_t rank) noexcept nogil:
        self._peers.all[rank].expected = True

    cdef void drop(self, uint32_t rank, const char* why) noexcept nogil:
        if rank < self.size:
            self._losses.drop(&self._peers.all[rank], why)

    cdef char* allocate(self, size_t size_bytes) noexcept nogil:
        return self._pool.allocate(size_bytes)

    cdef void release(self, char* data, size_t size_bytes) noexcept nogil:
        self._pool.release(data, size_bytes)

    # -- reports -----------------------------------------------------------------------------------------------------

    def describe(self) -> dict:
        self._check_process()
        ours = {f"UCX_{name}": value for name, value in self._ucx.settings.items()}
        return {
            "name": self.name,
            "protocol": ucx_address.PROTOCOL_VERSION,
            "ucx_version": ".".join(map(str, ucp_module.version())),
            "ucx_library": str(ucx_library.loaded_library()),
            "settings": {**ucx_library.settings_in_force(), **ours},
            "paths": {rank: self._peers.paths(rank) for rank in range(self.size) if rank != self.rank},
            "registered_bytes": self._pool.registered_bytes,
            "staging_bytes": self._pool.slab_bytes,
            "realigned_messages": self._arrivals.realigned_messages,
            "rendezvous_messages": self._arrivals.rendezvous_messages,
            "foreign_messages": self._arrivals.foreign_messages + self._greetings.foreign_messages,
            "notes": self._notes(),
        }

    def _notes(self):
        notes = ucx_limits.explain_limits()
        if self._pool.failed_registrations:
            notes.append("UCX could not register staging memory (locked-memory limit?): RDMA falls back to copies")
        return notes

    def _check_process(self):
        if getpid() != self._process:
            raise ForkError(
                f"the ucx transport of process {self._process} was used in its forked child {getpid()}: UCX does not "
                "survive a fork; start children with multiprocessing's spawn or forkserver, or before intentpm.init()")

    def _check_usable(self):
        self._check_process()
        if self._peers.phase == CLOSED:
            raise ClosedError(f"the ucx transport of rank {self.rank} is closed")


def _table_digest() -> bytes:
    return hashlib.sha256(process_table()).digest()[:16]


# Importing this module without a usable UCX fails at once, with the reason: the registry then offers tcp.
load_functions()
