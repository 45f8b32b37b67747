"""The ucx transport: UCP active messages, called from code that never needs the GIL. ``docs/ucx.md`` says why so.

Guarantees (beyond ``base.pxd``)
    * A small message is handed to ``on_message`` straight from UCX's receive buffer; a large one (rendezvous) lands in
      pooled, registered memory first. At most RECEIVE_BUDGET_BYTES of rendezvous are in progress; the rest waits at
      its sender.
    * ``done`` runs inside ``send`` (of a message that left at once), ``progress`` and ``close`` only.
    * A send that waits for progress() (a full queue, a rendezvous) wakes whoever sleeps on event_fd, and so does the
      end of a peer's process on this host.
    * A message of another job, or of nobody (wrong tag, rank or kind), is counted and ignored.
Assumptions
    * Calls are serialised by the caller; UCX is told so (thread mode SERIALIZED) and takes no locks.
    * The process is not forked after construction; the child's Python-level calls raise ForkError.
"""

import hashlib

cimport cython
from cpython.exc cimport PyErr_CheckSignals
from cpython.mem cimport PyMem_Calloc, PyMem_Free
from libc.stdint cimport int64_t, uint8_t, uint32_t, uint64_t, uintptr_t
from libc.stdlib cimport free, malloc
from libc.string cimport memcmp, memcpy, memset, strncpy
from posix.time cimport CLOCK_MONOTONIC, timespec
from posix.unistd cimport close, getpid, pid_t

from intentpm.foundation.errors import ClosedError, ForkError, TransportError
from intentpm.transports import ucp as ucp_module
from intentpm.transports import ucx_address, ucx_library, ucx_limits
from intentpm.transports.process_watch import process_table

from intentpm.transports.base cimport (
    BODY_ALIGNMENT,
    CUDA_MEMORY,
    HOST_MEMORY,
    MAX_HEADER_BYTES,
    SEND_NO_MEMORY,
    SEND_OK,
    SEND_PEER_LOST,
    Piece,
    SendStatus,
    Transport,
    done_fn,
)
from intentpm.transports.process_watch cimport ProcessWatch
from intentpm.transports.ucp cimport *
from intentpm.transports.ucx_pool cimport RegisteredPool
from intentpm.transports.ucx_records cimport *
from intentpm.transports.ucx_worker cimport UcxWorker

cdef extern from "<sys/timerfd.h>" nogil:
    cdef struct itimerspec:
        timespec it_value
    int timerfd_create(int clock, int flags)
    int timerfd_settime(int fd, int flags, const itimerspec* new, itimerspec* old)
    enum: TFD_NONBLOCK, TFD_CLOEXEC

cdef extern from "<poll.h>" nogil:
    cdef struct pollfd:
        int fd
        short events
    int poll(pollfd* waited, unsigned long count, int timeout_ms)
    enum:
        POLLIN


cdef enum:
    AM_MESSAGE = 0                      # active message ids: of the engine's messages,
    AM_CONTROL = 1                      # and of hello and goodbye
    PROOF_BYTES = 16
    HELLO_BYTES = 512
    RECEIVE_BUDGET_BYTES = 256 << 20
    CALLS_PER_CHECK = 1024              # of progress(), between two looks at the processes of peers
    CALLS_PER_ARM_CHECK = 64            # the same when arm() is called: a system call on the path of a pull
    IDLE_CALLS_BEFORE_TIMER = 50        # of progress(), before stuck sends are polled by timer
    STUCK_SEND_POLL_NS = 200_000
    IDLE_CALLS_AFTER_END = 8            # of progress(), before a peer whose process has ended counts as lost

cdef enum Wait:                         # what connect() and close() wait for
    FOR_HELLOS = 0
    FOR_SENDS = 1
    FOR_BYES = 2
    FOR_ENDPOINTS = 3

cdef const char* PROCESS_ENDED = "its process has ended"
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
    cdef bytes _hello_proofs                # PROOF_BYTES per rank
    cdef const char* _proofs                # _hello_proofs' bytes
    cdef uint32_t _tag                      # the job's, already in bits 8-31
    cdef list _addresses                    # PeerAddress of every rank: keeps what Peer.address points to
    cdef Peer* _peers                       # one per rank
    cdef RegisteredPool _pool
    cdef ProcessWatch _watch                # of the peers on this host
    cdef int _idle_calls                    # of progress(), in a row
    cdef int _unchecked_calls               # of progress(), since the watch was asked
    cdef uint32_t _ended_peers              # whose process has ended but whose last messages may still be here

    cdef int _timer_fd                      # wakes a sleeper whose sends UCX cannot watch
    cdef bint _timer_is_set
    cdef bint _armed                        # arm() succeeded and no progress() came since
    cdef bint _delivering                   # connected and not closing: messages go to on_message
    cdef bint _closing
    cdef bint _closed
    cdef Sendings _sends                    # not finished by UCX
    cdef ArrivalQueue _inbox                # whole messages to deliver in the next progress()
    cdef ArrivalQueue _waiting              # rendezvous that wait for memory
    cdef ArrivalQueue _spare_arrivals
    cdef size_t _receiving_bytes            # of rendezvous in progress
    cdef uint32_t _failing_peers
    cdef uint32_t _missing_hellos
    cdef uint32_t _closing_endpoints
    cdef int _events                        # of this progress(): messages delivered, sends finished
    cdef int64_t _heard_ns                  # clock of this progress(), 0: not read yet
    cdef char* _aligned                     # scratch for misaligned bodies
    cdef size_t _aligned_bytes
    cdef readonly uint64_t foreign_messages  # ignored: of another job, or malformed
    cdef readonly uint64_t realigned_messages
    cdef readonly uint64_t rendezvous_messages

    def __cinit__(self):
        self._timer_fd = -1
        self._process = getpid()

    def __init__(self, int64_t rank, int64_t size, bytes secret, *, double peer_timeout_s=10.0, options=None):
        if not 0 <= rank < size <= 0xFFFF_FFFF:
            raise ValueError(f"rank={rank}, size={size}: rank must be from 0 to size - 1")
        self.rank, self.size, self.name = rank, size, "ucx"
        self._secret = secret
        self._tag = ucx_address.job_tag(secret) << 8
        self._hello_proofs = b"".join([ucx_address.hello_proof(secret, peer, size) for peer in range(size)])
        self._proofs = self._hello_proofs
        self._pool = RegisteredPool()
        self._watch = ProcessWatch()
        self._allocate_peers()
        self._ucx = UcxWorker(size, peer_timeout_s, dict(options or {}))
        self._ucp = self._ucx.ucp
        self._worker = self._ucx.handle
        self._pool.attach(self._ucp, self._ucx.context)
        self._ucx.receive(AM_MESSAGE, _message_arrived, <void*>self)
        self._ucx.receive(AM_CONTROL, _control_arrived, <void*>self)
        self._timer_fd = timerfd_create(CLOCK_MONOTONIC, TFD_NONBLOCK | TFD_CLOEXEC)
        self._watch.add_descriptor(self._timer_fd)
        self._watch.add_descriptor(self._ucx.event_fd)

    # -- start -------------------------------------------------------------------------------------------------------
    cdef int _allocate_peers(self) except -1:
        cdef uint32_t i
        self._peers = <Peer*>PyMem_Calloc(self.size, sizeof(Peer))
        if self._peers == NULL:
            raise MemoryError
        for i in range(self.size):
            self._peers[i].transport = <void*>self
            self._peers[i].rank = i
        return 0

    # -- connect -----------------------------------------------------------------------------------------------------
    def address(self) -> bytes:
        self._check_usable()
        return ucx_address.pack_address(
            self._secret, self.rank, self.size,
            ucx_address.PeerAddress(self._ucx.address(), self._process, _table_digest()))

    def connect(self, addresses, timeout_s: float) -> None:
        """See ``Transport.connect``. Also raises VersionMismatchError. A failed transport can only be closed."""
        cdef int64_t deadline_ns = self.now_ns() + <int64_t>(timeout_s * 1e9)
        self._check_usable()
        if len(addresses) != self.size:
            raise TransportError(f"{len(addresses)} addresses for {self.size} ranks")
        unpacked = [
            ucx_address.unpack_address(self._secret, rank, self.size, bytes(address))
            for rank, address in enumerate(addresses)]
        self._missing_hellos = self.size - 1
        self._addresses = unpacked
        for peer_rank, address in enumerate(unpacked):
            if peer_rank != self.rank:
                self._open_endpoint(&self._peers[<uint32_t>peer_rank], address.worker_address)
                self._watch_process(&self._peers[<uint32_t>peer_rank], address)
        if not self._wait(FOR_HELLOS, deadline_ns):
            raise self._not_connected(timeout_s)
        for peer_rank in range(self.size):
            paths = self._ucx.paths(self._peers[<uint32_t>peer_rank].endpoint)
            self._peers[<uint32_t>peer_rank].shares_memory = bool(paths) and all(
                path.endswith("/memory") for path in paths)
        self._delivering = True

    cdef ucs_status_t _create_endpoint(self, Peer* peer) noexcept nogil:
        cdef ucp_ep_params_t params
        memset(&params, 0, sizeof(params))
        params.field_mask = (
            UCP_EP_PARAM_FIELD_REMOTE_ADDRESS | UCP_EP_PARAM_FIELD_ERR_HANDLING_MODE | UCP_EP_PARAM_FIELD_ERR_HANDLER)
        params.address = <const ucp_address_t*>peer.address
        params.err_mode = UCP_ERR_HANDLING_MODE_PEER
        params.err_handler.cb = _endpoint_failed
        params.err_handler.arg = peer
        return self._ucp.ep_create(self._worker, &params, &peer.endpoint)

    cdef int _open_endpoint(self, Peer* peer, bytes worker_address) except -1:
        cdef ucs_status_t status
        peer.address = worker_address
        status = self._create_endpoint(peer)
        if status != UCS_OK:
            raise TransportError(
                f"UCX finds no way from rank {self.rank} to rank {peer.rank}: {text_of(self._ucp, status)}; both need "
                f"one network in common that survives the loss of a peer ({ucx_library.describe_settings()}; "
                f"{self._ucx.settings})")
        peer.state = ALIVE
        peer.heard_ns = self.now_ns()
        return self._say_hello(peer)

    cdef int _say_hello(self, Peer* peer) except -1:
        # Padded beyond UCX's shortest protocol: shared memory attaches the peer's buffers at the first longer message,
        # and that one waits for a progress(). Better here than in the first real message.
        cdef bytes hello = self._hello_proofs[self.rank * PROOF_BYTES:(self.rank + 1) * PROOF_BYTES].ljust(HELLO_BYTES)
        self._send_control(peer, HELLO, hello, HELLO_BYTES)
        return 0

    cdef int _watch_process(self, Peer* peer, address) except -1:
        if address.process_table == _table_digest() and address.process != self._process:
            if not self._watch.watch(peer.rank, address.process):
                self._fail(peer, PROCESS_ENDED)
        return 0

    cdef object _not_connected(self, double timeout_s):
        lost, silent = [], []
        for i in range(self.size):
            if self._peers[i].why[0]:
                lost.append(f"rank {i}: {self._peers[i].why.decode()}")
            elif i != self.rank and not self._peers[i].said_hello:
                silent.append(i)
        if silent:
            lost.append(f"no hello within {timeout_s:g} s from rank(s) {', '.join(map(str, silent))}")
        return TransportError(
            f"rank {self.rank} of {self.size} could not connect over UCX ({ucx_library.describe_settings()}): "
            f"{'; '.join(lost) or 'sends not finished'}")

    # -- close -------------------------------------------------------------------------------------------------------
    def close(self, timeout_s: float = 5.0) -> None:
        """See ``Transport.close``. A peer that is not told (dead, or never answers) costs at most ``timeout_s``."""
        cdef int64_t now_ns = self.now_ns()
        cdef int64_t deadline_ns = now_ns + <int64_t>(timeout_s * 1e9)
        cdef uint32_t i
        if self._closed or getpid() != self._process:
            self._check_process()
            return
        self._closing = True
        self._delivering = False
        try:
            self._wait(FOR_SENDS, deadline_ns)
            for i in range(self.size):
                if self._reachable(&self._peers[i]):
                    self._send_control(&self._peers[i], BYE, NULL, 0)
            self._wait(FOR_BYES, min(deadline_ns, self.now_ns() + GOODBYE_WAIT_NS))
            for i in range(self.size):
                if self._close_endpoint(&self._peers[i], _endpoint_closed):
                    self._closing_endpoints += 1
            self._wait(FOR_ENDPOINTS, self.now_ns() + ENDPOINT_WAIT_NS)
        finally:
            self._stop_worker()

    cdef void _stop_worker(self):
        self._closed = True
        self._delivering = False
        self._ucx.stop()
        self._worker = NULL
        self._finish_rest()
        self._watch.close()
        if self._timer_fd >= 0:
            close(self._timer_fd)
            self._timer_fd = -1
        self._pool.unregister()
        self._ucx.release_context()

    cdef void _finish_rest(self) noexcept nogil:
        """What UCX had not finished when its worker was destroyed."""
        while self._sends.in_flight != NULL:
            self._finish_send(self._sends.in_flight, UCS_ERR_CANCELED)
        while self._sends.abandoned != NULL:
            self._finish_send(self._sends.abandoned, UCS_ERR_CANCELED)
        while self._inbox.first != NULL:
            self._recycle_arrival(pop_arrival(&self._inbox))
        while self._waiting.first != NULL:
            self._recycle_arrival(pop_arrival(&self._waiting))

    def __dealloc__(self):
        # In a forked child UCX belongs to the parent: leave everything as it is.
        if getpid() != self._process:
            return
        self.on_message = NULL
        self.on_lost = NULL
        if not self._closed and self._ucx is not None:
            self._forget_callbacks()
            self._stop_worker()
        free_sendings(&self._sends)
        while self._spare_arrivals.first != NULL:
            free(pop_arrival(&self._spare_arrivals))
        free(self._aligned)
        PyMem_Free(self._peers)

    cdef void _forget_callbacks(self) noexcept nogil:
        # Whoever sent may be gone before an object that was never closed.
        cdef Sending* sending = self._sends.in_flight
        while sending != NULL:
            sending.done = NULL
            sending = sending.next

    # -- waiting in connect() and close() -----------------------------------------------------------------------------
    cdef bint _wait(self, Wait what, int64_t deadline_ns) except -1:
        """Progresses until ``what`` has happened (True) or cannot happen in time (False)."""
        cdef bint happened = False
        cdef int64_t slice_end_ns
        while not happened and self.now_ns() < deadline_ns:
            slice_end_ns = min(deadline_ns, self.now_ns() + 50_000_000)
            with nogil:
                happened = self._wait_slice(what, slice_end_ns)
            PyErr_CheckSignals()
            if what == FOR_HELLOS and self._failing_peers:
                return False
        return happened or self._has_happened(what)

    cdef bint _wait_slice(self, Wait what, int64_t end_ns) noexcept nogil:
        cdef int idle = 0
        while not self._has_happened(what):
            if what == FOR_HELLOS and self._failing_peers:
                return False
            if self._ucp.worker_progress(self._worker) != 0:
                idle = 0
                if self._closing:
                    self._reap_failing()
                continue
            self._idle_calls += 1
            idle += 1
            if self.now_ns() >= end_ns:
                return False
            if idle > 100 and (self._ucp.worker_arm(self._worker) == UCS_OK or self._sends_are_stuck()):
                self._sleep_until(min(end_ns, self.now_ns() + 2_000_000))
        return True

    cdef void _sleep_until(self, int64_t end_ns) noexcept nogil:
        cdef pollfd waited
        waited.fd = self._watch.wake_fd
        waited.events = POLLIN
        poll(&waited, 1, <int>max(1, (end_ns - self.now_ns()) // 1_000_000))

    cdef bint _has_happened(self, Wait what) noexcept nogil:
        cdef uint32_t i
        if what == FOR_HELLOS:
            return self._missing_hellos == 0 and self._sends.in_flight == NULL
        if what == FOR_SENDS:
            return self._sends.in_flight == NULL
        if what == FOR_ENDPOINTS:
            return self._closing_endpoints == 0
        for i in range(self.size):
            if self._reachable(&self._peers[i]) and not self._peers[i].said_bye:
                return False
        return True

    # -- send --------------------------------------------------------------------------------------------------------
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
        if not self._delivering or destination >= self.size:
            return SEND_PEER_LOST
        if destination == self.rank:
            return self._send_to_self(message_id, header, header_bytes, pieces, piece_count, body_bytes, done, argument)
        peer = &self._peers[destination]
        if not self._reachable(peer):
            return SEND_PEER_LOST
        sending = self._new_sending(peer, body_bytes, done, argument)
        if sending == NULL:
            return SEND_NO_MEMORY
        sending.wire.prefix.tag_and_id = self._tag | message_id
        memcpy(sending.wire.bytes, header, header_bytes)
        self.sent_messages += 1
        self.sent_bytes += header_bytes + body_bytes
        return self._post(sending, AM_MESSAGE, header_bytes, pieces, piece_count)

    cdef SendStatus _post(
            self, Sending* sending, unsigned int message, size_t header_bytes,
            const Piece* pieces, size_t piece_count) noexcept nogil:
        """Gives a message to UCX: one piece as it is, a few small ones copied together, others as a gather list."""
        cdef ucp_request_param_t param
        cdef const void* data = NULL
        cdef size_t count = 0
        cdef ucs_status_ptr_t result
        param.op_attr_mask = (
            UCP_OP_ATTR_FIELD_CALLBACK | UCP_OP_ATTR_FIELD_USER_DATA | UCP_OP_ATTR_FIELD_DATATYPE |
            UCP_OP_ATTR_FIELD_MEMORY_TYPE)
        param.cb.send = _send_finished
        param.user_data = sending
        param.datatype = contiguous_bytes()
        param.memory_type = UCS_MEMORY_TYPE_HOST
        if piece_count == 1:
            data = pieces[0].data
            count = pieces[0].size_bytes
            if pieces[0].memory == CUDA_MEMORY:
                param.memory_type = UCS_MEMORY_TYPE_CUDA
        elif piece_count and sending.size_bytes <= PACKED_BYTES and pieces[0].memory != CUDA_MEMORY:
            data = sending.packed
            count = pack_pieces(sending.packed, pieces, piece_count)
        elif piece_count:
            if not gather_pieces(sending, pieces, piece_count):
                give_sending(&self._sends, sending)
                return SEND_NO_MEMORY
            data = sending.gather
            count = piece_count
            param.datatype = UCP_DATATYPE_IOV
            if pieces[0].memory == CUDA_MEMORY:
                param.memory_type = UCS_MEMORY_TYPE_CUDA
        result = self._ucp.am_send_nbx(
            sending.peer.endpoint, message, &sending.wire, sizeof(Prefix) + header_bytes, data, count, &param)
        return self._posted(sending, result)

    cdef SendStatus _posted(self, Sending* sending, ucs_status_ptr_t result) noexcept nogil:
        cdef Peer* peer = sending.peer
        if is_request(result):
            link_sending(&self._sends.in_flight, sending)
            peer.backlog_bytes += sending.size_bytes
            self._wake_sleeper()
            return SEND_OK
        if status_of(result) == UCS_OK:
            if sending.done != NULL:
                sending.done(sending.argument, 0)
            give_sending(&self._sends, sending)
            return SEND_OK
        give_sending(&self._sends, sending)
        if status_of(result) == UCS_ERR_NO_MEMORY:
            return SEND_NO_MEMORY
        self._fail_status(peer, status_of(result))
        return SEND_PEER_LOST

    cdef void _wake_sleeper(self) noexcept nogil:
        # A message that waits for progress() must not wait for a thread that slept before it was sent.
        if self._armed:
            self._armed = False
            self._ucp.worker_signal(self._worker)

    cdef void _finish_send(self, Sending* sending, ucs_status_t status) noexcept nogil:
        unlink_sending(&self._sends, sending)
        if not sending.is_abandoned:
            self._settle_send(sending, status)
        give_sending(&self._sends, sending)

    cdef void _settle_send(self, Sending* sending, ucs_status_t status) noexcept nogil:
        sending.peer.backlog_bytes -= sending.size_bytes
        self._events += 1
        if status != UCS_OK and not self._closing:
            # A message that did not arrive is a peer lost, whatever the reason.
            self._fail_status(sending.peer, status)
        if sending.done != NULL:
            sending.done(sending.argument, status)

    cdef void _abandon_sends(self, Peer* peer) noexcept nogil:
        # UCX completes the sends of a closed endpoint, but not those that wait behind the full shared-memory queue of a
        # dead process (it waits for room first). What it no longer reads may be reused.
        cdef Sending* sending = self._sends.in_flight
        cdef Sending* following
        while sending != NULL:
            following = sending.next
            if sending.peer == peer:
                unlink_sending(&self._sends, sending)
                sending.is_abandoned = True
                link_sending(&self._sends.abandoned, sending)
                self._settle_send(sending, UCS_ERR_CONNECTION_RESET)
            sending = following

    cdef SendStatus _send_to_self(
            self, uint8_t message_id, const char* header, size_t header_bytes, const Piece* pieces, size_t piece_count,
            size_t body_bytes, done_fn done, void* argument) noexcept nogil:
        # Not through UCX: its loopback would run on_message inside send().
        cdef Arrival* arrival = self._new_arrival(self.rank, message_id, header, header_bytes, body_bytes)
        if arrival == NULL or not self._give_memory(arrival):
            self._recycle_arrival(arrival)
            return SEND_NO_MEMORY
        pack_pieces(arrival.body, pieces, piece_count)
        push_arrival(&self._inbox, arrival)
        self._wake_sleeper()
        if done != NULL:
            done(argument, 0)
        return SEND_OK

    cdef void _send_control(self, Peer* peer, ControlKind kind, const char* body, size_t body_bytes) noexcept nogil:
        cdef Piece piece
        cdef Sending* sending = self._new_sending(peer, body_bytes, NULL, NULL)
        if sending == NULL:
            return
        sending.wire.prefix.tag_and_id = self._tag | kind
        # Copied: the caller's bytes need not live until UCX has sent them.
        memcpy(sending.packed, body, body_bytes)
        piece.data = sending.packed
        piece.size_bytes = body_bytes
        piece.memory = HOST_MEMORY
        self._post(sending, AM_CONTROL, 0, &piece, 1 if body_bytes else 0)

    # -- progress ----------------------------------------------------------------------------------------------------
    cdef int progress(self) noexcept nogil:
        cdef unsigned int moved
        if not self._delivering:
            return 0
        self._events = 0
        self._heard_ns = 0
        self._armed = False
        if self._timer_is_set:
            self._set_timer(0)
        while self._inbox.first != NULL:
            self._deliver_arrival(pop_arrival(&self._inbox))
        moved = self._ucp.worker_progress(self._worker)
        self._unchecked_calls += 1
        if self._unchecked_calls > CALLS_PER_CHECK:
            self._note_ended()
        if self._ended_peers:
            self._fail_ended()
        if self._failing_peers:
            self._reap_failing()
        if self._waiting.first != NULL:
            self._start_waiting()
        if self._events or moved:
            self._idle_calls = 0
            return self._events if self._events else 1
        self._idle_calls += 1
        return 0

    cdef int event_fd(self) noexcept nogil:
        return self._watch.wake_fd

    cdef bint arm(self) noexcept nogil:
        if self._inbox.first != NULL or self._failing_peers or not self._delivering:
            return False
        if self._unchecked_calls > CALLS_PER_ARM_CHECK:      # until then an end keeps waking whoever sleeps on event_fd
            self._note_ended()
        self._armed = self._ended_peers == 0 and (
            self._ucp.worker_arm(self._worker) == UCS_OK or self._sends_are_stuck())
        return self._armed

    cdef bint _sends_are_stuck(self) noexcept nogil:
        # UCX refuses to arm while shared-memory queues of slow (or dead) receivers are full: nothing would say when
        # there is room. Looking a few thousand times a second beats spinning.
        if self._sends.in_flight == NULL and self._sends.abandoned == NULL:
            return False
        if self._idle_calls < IDLE_CALLS_BEFORE_TIMER:
            return False
        self._set_timer(STUCK_SEND_POLL_NS)
        return True

    cdef void _set_timer(self, int64_t delay_ns) noexcept nogil:
        cdef itimerspec timing
        memset(&timing, 0, sizeof(timing))
        timing.it_value.tv_nsec = delay_ns
        timerfd_settime(self._timer_fd, 0, &timing, NULL)
        self._timer_is_set = delay_ns != 0

    cdef bint is_alive(self, uint32_t rank) noexcept nogil:
        if rank == self.rank:
            return not self._closed
        return rank < self.size and self._reachable(&self._peers[rank])

    cdef int64_t last_heard_ns(self, uint32_t rank) noexcept nogil:
        return self.now_ns() if rank == self.rank else self._peers[rank].heard_ns

    cdef size_t backlog_bytes(self, uint32_t rank) noexcept nogil:
        return self._peers[rank].backlog_bytes

    cdef char* allocate(self, size_t size_bytes) noexcept nogil:
        return self._pool.allocate(size_bytes)

    cdef void release(self, char* data, size_t size_bytes) noexcept nogil:
        self._pool.release(data, size_bytes)

    # -- receive -----------------------------------------------------------------------------------------------------
    cdef ucs_status_t _receive(
            self, const WireHeader* wire, size_t wire_bytes, void* data, size_t body_bytes,
            bint rendezvous) noexcept nogil:
        cdef uint8_t message_id
        cdef uint32_t source
        cdef size_t header_bytes
        if self._is_foreign(wire, wire_bytes):
            self.foreign_messages += 1
            return UCS_ERR_REJECTED if rendezvous else UCS_OK
        source = wire.prefix.source
        message_id = wire.prefix.tag_and_id & 0xFF
        header_bytes = wire_bytes - sizeof(Prefix)
        if self._closing or not self._reachable(&self._peers[source]):
            return UCS_OK
        if rendezvous:
            return self._receive_rendezvous(source, message_id, wire.bytes, header_bytes, data, body_bytes)
        if not self._delivering:
            return self._keep_early(source, message_id, wire.bytes, header_bytes, data, body_bytes)
        if <uintptr_t>data % BODY_ALIGNMENT and body_bytes:
            data = self._realign(data, body_bytes)
            if data == NULL:
                self._fail(&self._peers[source], "out of memory for its message")
                return UCS_OK
        self._deliver(source, message_id, wire.bytes, header_bytes, <const char*>data, body_bytes)
        return UCS_OK

    cdef bint _is_foreign(self, const WireHeader* wire, size_t wire_bytes) noexcept nogil:
        return (
            wire_bytes < sizeof(Prefix) or wire_bytes > sizeof(WireHeader) or
            wire.prefix.tag_and_id >> 8 != self._tag >> 8 or
            wire.prefix.source >= self.size or wire.prefix.source == self.rank)

    cdef void _deliver(
            self, uint32_t source, uint8_t message_id, const char* header, size_t header_bytes,
            const char* body, size_t body_bytes) noexcept nogil:
        if self._heard_ns == 0:
            self._heard_ns = self.now_ns()
        self._peers[source].heard_ns = self._heard_ns
        if source != self.rank:
            self.received_messages += 1
            self.received_bytes += header_bytes + body_bytes
        self._events += 1
        if self.on_message != NULL:
            self.on_message(self.context, source, message_id, header, header_bytes, body, body_bytes)

    cdef void _deliver_arrival(self, Arrival* arrival) noexcept nogil:
        self._deliver(
            arrival.source, arrival.message_id, arrival.header, arrival.header_bytes, arrival.body, arrival.body_bytes)
        self._recycle_arrival(arrival)

    cdef void* _realign(self, const void* data, size_t size_bytes) noexcept nogil:
        if size_bytes > self._aligned_bytes:
            free(self._aligned)
            self._aligned_bytes = 2 * size_bytes
            self._aligned = <char*>malloc(self._aligned_bytes)
            if self._aligned == NULL:
                self._aligned_bytes = 0
                return NULL
        memcpy(self._aligned, data, size_bytes)
        self.realigned_messages += 1
        return self._aligned

    cdef ucs_status_t _keep_early(
            self, uint32_t source, uint8_t message_id, const char* header, size_t header_bytes,
            const void* data, size_t body_bytes) noexcept nogil:
        # A peer that connected before us sends already; on_message runs inside progress() only.
        cdef Arrival* arrival = self._new_arrival(source, message_id, header, header_bytes, body_bytes)
        if arrival == NULL or not self._give_memory(arrival):
            self._recycle_arrival(arrival)
            self._fail(&self._peers[source], "out of memory for its message")
            return UCS_OK
        memcpy(arrival.body, data, body_bytes)
        push_arrival(&self._inbox, arrival)
        return UCS_OK

    # -- rendezvous: the body stays with its sender until memory for it is ready here ---------------------------------
    cdef ucs_status_t _receive_rendezvous(
            self, uint32_t source, uint8_t message_id, const char* header, size_t header_bytes,
            void* descriptor, size_t body_bytes) noexcept nogil:
        cdef Arrival* arrival = self._new_arrival(source, message_id, header, header_bytes, body_bytes)
        if arrival == NULL:
            self._fail(&self._peers[source], "out of memory for its message")
            return UCS_ERR_NO_MEMORY
        arrival.descriptor = descriptor
        push_arrival(&self._waiting, arrival)
        if self._delivering:
            self._start_waiting()
        return UCS_INPROGRESS

    cdef void _start_waiting(self) noexcept nogil:
        cdef Arrival* arrival
        while self._waiting.first != NULL:
            if self._receiving_bytes and self._receiving_bytes + self._waiting.first.body_bytes > RECEIVE_BUDGET_BYTES:
                return
            arrival = pop_arrival(&self._waiting)
            if not self._reachable(&self._peers[arrival.source]):
                self._recycle_arrival(arrival)
            elif not self._give_memory(arrival):
                self._fail(&self._peers[arrival.source], "out of memory for its message")
                self._recycle_arrival(arrival)
            else:
                self._start_receiving(arrival)

    cdef void _start_receiving(self, Arrival* arrival) noexcept nogil:
        cdef ucp_request_param_t param
        cdef ucs_status_ptr_t result
        cdef void* descriptor = arrival.descriptor
        param.op_attr_mask = (
            UCP_OP_ATTR_FIELD_CALLBACK | UCP_OP_ATTR_FIELD_USER_DATA | UCP_OP_ATTR_FIELD_DATATYPE |
            UCP_OP_ATTR_FIELD_MEMORY_TYPE)
        param.cb.recv_am = _rendezvous_finished
        param.user_data = arrival
        param.datatype = contiguous_bytes()
        param.memory_type = UCS_MEMORY_TYPE_HOST
        arrival.descriptor = NULL
        self._receiving_bytes += arrival.body_bytes
        self.rendezvous_messages += 1
        result = self._ucp.am_recv_data_nbx(self._worker, descriptor, arrival.body, arrival.body_bytes, &param)
        if not is_request(result):
            self._finish_rendezvous(arrival, status_of(result))

    cdef void _finish_rendezvous(self, Arrival* arrival, ucs_status_t status) noexcept nogil:
        self._receiving_bytes -= arrival.body_bytes
        if status != UCS_OK and not self._closing:
            self._fail_status(&self._peers[arrival.source], status)
        if status == UCS_OK and self._delivering and self._reachable(&self._peers[arrival.source]):
            self._deliver_arrival(arrival)
        else:
            self._recycle_arrival(arrival)

    # -- peers -------------------------------------------------------------------------------------------------------
    cdef void _receive_control(
            self, const WireHeader* wire, size_t wire_bytes, const char* body, size_t body_bytes) noexcept nogil:
        cdef Peer* peer
        cdef uint8_t kind
        if self._is_foreign(wire, wire_bytes):
            self.foreign_messages += 1
            return
        peer = &self._peers[wire.prefix.source]
        kind = wire.prefix.tag_and_id & 0xFF
        peer.heard_ns = self.now_ns()
        if kind == HELLO:
            self._receive_hello(peer, body, body_bytes)
        elif kind == BYE:
            self._receive_bye(peer)
        elif kind == BYE_SEEN:
            peer.said_bye = True
        elif kind == GIVEN_UP:
            self._fail(peer, "it gave this rank up as lost")
        else:
            self.foreign_messages += 1

    cdef void _receive_hello(self, Peer* peer, const char* body, size_t body_bytes) noexcept nogil:
        if body_bytes != HELLO_BYTES or memcmp(body, self._proofs + peer.rank * PROOF_BYTES, PROOF_BYTES) != 0:
            self.foreign_messages += 1
        elif not peer.said_hello:
            peer.said_hello = True
            self._missing_hellos -= 1

    cdef void _receive_bye(self, Peer* peer) noexcept nogil:
        peer.said_bye = True
        if self._reachable(peer):
            self._send_control(peer, BYE_SEEN, NULL, 0)
        # Also while closing: a peer that closes discards what it still gets, so nothing waits for it.
        self._fail(peer, "it closed its transport")

    cdef void expect_close(self, uint32_t rank) noexcept nogil:
        self._peers[rank].expected = True

    cdef void drop(self, uint32_t rank, const char* why) noexcept nogil:
        if rank >= self.size or not self._reachable(&self._peers[rank]):
            return
        # Told at once if nothing is queued in front, else by the end of its connection, or by _say_given_up().
        if self._peers[rank].backlog_bytes == 0:
            self._send_control(&self._peers[rank], GIVEN_UP, NULL, 0)
        else:
            self._peers[rank].was_dropped = self._peers[rank].shares_memory
        self._fail(&self._peers[rank], why)
        self._wake_sleeper()

    cdef inline bint _reachable(self, Peer* peer) noexcept nogil:
        return peer.state == ALIVE and not peer.failing

    cdef void _note_ended(self) noexcept nogil:
        cdef int64_t rank = self._watch.next_ended()
        self._unchecked_calls = 0
        while rank >= 0:
            if self._reachable(&self._peers[rank]):
                self._peers[rank].ended = True
                self._ended_peers += 1
                self._idle_calls = 0
            rank = self._watch.next_ended()

    cdef void _fail_ended(self) noexcept nogil:
        # Race: a peer says goodbye and ends; its end is seen before its last messages. They are all in our memory by
        # now, so a few calls without any come after them.
        cdef uint32_t i
        if self._idle_calls < IDLE_CALLS_AFTER_END:
            return
        self._ended_peers = 0
        for i in range(self.size):
            if self._peers[i].ended:
                self._fail(&self._peers[i], PROCESS_ENDED)

    cdef void _fail_status(self, Peer* peer, ucs_status_t status) noexcept nogil:
        if status == UCS_ERR_CONNECTION_RESET:
            self._fail(peer, "it closed the connection (its process has ended?)")
        elif status == UCS_ERR_ENDPOINT_TIMEOUT:
            self._fail(peer, "its process has ended, or it can no longer be reached")
        else:
            self._fail(peer, self._ucp.status_string(status))

    cdef void _fail(self, Peer* peer, const char* why) noexcept nogil:
        # Only noted: this may run deep inside UCX. _reap_failing() does the rest when UCX has returned.
        if peer.state != ALIVE or peer.failing:
            return
        peer.failing = True
        strncpy(peer.why, why, REASON_BYTES - 1)
        self._failing_peers += 1

    cdef void _reap_failing(self) noexcept nogil:
        cdef uint32_t i
        for i in range(self.size):
            if self._peers[i].failing:
                self._lose(&self._peers[i])

    cdef void _lose(self, Peer* peer) noexcept nogil:
        peer.failing = False
        peer.state = GONE
        self._failing_peers -= 1
        self._close_endpoint(peer, _lost_endpoint_closed)
        self._abandon_sends(peer)
        if peer.was_dropped:
            self._say_given_up(peer)
        self._events += 1
        if self._delivering and not peer.expected and self.on_lost != NULL:
            self.on_lost(self.context, peer.rank, peer.why)

    cdef void _say_given_up(self, Peer* peer) noexcept nogil:
        # Through an endpoint of its own: the old one was closed with all that waited in front of this message.
        # Only over shared memory: a second TCP connection to a peer that is just losing its first crashes UCX 1.21 (its
        # event loop calls an endpoint that it freed in the same batch of events).
        if self._create_endpoint(peer) == UCS_OK:
            self._send_control(peer, GIVEN_UP, NULL, 0)
            self._abandon_sends(peer)       # nobody waits for it

    cdef bint _close_endpoint(self, Peer* peer, ucp_send_nbx_callback_t closed) noexcept nogil:
        """True: ``closed`` will be called."""
        cdef ucp_request_param_t param
        cdef ucp_ep_h endpoint = peer.endpoint
        if endpoint == NULL:
            return False
        peer.endpoint = NULL
        peer.state = GONE
        param.op_attr_mask = UCP_OP_ATTR_FIELD_FLAGS | UCP_OP_ATTR_FIELD_CALLBACK | UCP_OP_ATTR_FIELD_USER_DATA
        param.flags = UCP_EP_CLOSE_FLAG_FORCE
        param.cb.send = closed
        param.user_data = <void*>self
        return is_request(self._ucp.ep_close_nbx(endpoint, &param))

    cdef void _endpoint_let_go(self, void* request, bint was_waited_for) noexcept nogil:
        self._closing_endpoints -= was_waited_for
        self._ucp.request_free(request)

    # -- records -----------------------------------------------------------------------------------------------------
    cdef Sending* _new_sending(self, Peer* peer, size_t size_bytes, done_fn done, void* argument) noexcept nogil:
        cdef Sending* sending = take_sending(&self._sends)
        if sending == NULL:
            return NULL
        sending.peer = peer
        sending.done = done
        sending.argument = argument
        sending.size_bytes = size_bytes
        sending.is_abandoned = False
        sending.wire.prefix.source = self.rank
        sending.gather = NULL
        return sending

    cdef Arrival* _new_arrival(
            self, uint32_t source, uint8_t message_id, const char* header, size_t header_bytes,
            size_t body_bytes) noexcept nogil:
        cdef Arrival* arrival = pop_arrival(&self._spare_arrivals)
        if arrival == NULL:
            arrival = <Arrival*>malloc(sizeof(Arrival))
            if arrival == NULL:
                return NULL
        arrival.transport = <void*>self
        arrival.descriptor = NULL
        arrival.source = source
        arrival.message_id = message_id
        arrival.header_bytes = header_bytes
        arrival.body_bytes = body_bytes
        arrival.body = NULL
        memcpy(arrival.header, header, header_bytes)
        return arrival

    cdef bint _give_memory(self, Arrival* arrival) noexcept nogil:
        if arrival.body_bytes:
            arrival.body = self._pool.allocate(arrival.body_bytes)
        return arrival.body_bytes == 0 or arrival.body != NULL

    cdef void _recycle_arrival(self, Arrival* arrival) noexcept nogil:
        if arrival == NULL:
            return
        if arrival.descriptor != NULL and self._worker != NULL:
            self._ucp.am_data_release(self._worker, arrival.descriptor)
        if arrival.body != NULL:
            self._pool.release(arrival.body, arrival.body_bytes)
        push_arrival(&self._spare_arrivals, arrival)

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
            "paths": {i: self._ucx.paths(self._peers[i].endpoint) for i in range(self.size) if i != self.rank},
            "registered_bytes": self._pool.registered_bytes,
            "staging_bytes": self._pool.slab_bytes,
            "realigned_messages": self.realigned_messages,
            "rendezvous_messages": self.rendezvous_messages,
            "foreign_messages": self.foreign_messages,
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
        if self._closed:
            raise ClosedError(f"the ucx transport of rank {self.rank} is closed")


def _table_digest() -> bytes:
    return hashlib.sha256(process_table()).digest()[:16]


# -- called by UCX: plain functions that find their object -----------------------------------------------------------
cdef ucs_status_t _message_arrived(
        void* arg, const void* header, size_t header_length, void* data, size_t length,
        const ucp_am_recv_param_t* param) noexcept nogil:
    return (<UcxTransport>arg)._receive(
        <const WireHeader*>header, header_length, data, length, (param.recv_attr & UCP_AM_RECV_ATTR_FLAG_RNDV) != 0)


cdef ucs_status_t _control_arrived(
        void* arg, const void* header, size_t header_length, void* data, size_t length,
        const ucp_am_recv_param_t* param) noexcept nogil:
    if param.recv_attr & UCP_AM_RECV_ATTR_FLAG_RNDV:
        return UCS_ERR_REJECTED
    (<UcxTransport>arg)._receive_control(<const WireHeader*>header, header_length, <const char*>data, length)
    return UCS_OK


cdef void _rendezvous_finished(void* request, ucs_status_t status, size_t length, void* user_data) noexcept nogil:
    cdef Arrival* arrival = <Arrival*>user_data
    (<UcxTransport>arrival.transport)._finish_rendezvous(arrival, status)
    (<UcxTransport>arrival.transport)._ucp.request_free(request)


cdef void _send_finished(void* request, ucs_status_t status, void* user_data) noexcept nogil:
    cdef Sending* sending = <Sending*>user_data
    (<UcxTransport>sending.peer.transport)._ucp.request_free(request)
    (<UcxTransport>sending.peer.transport)._finish_send(sending, status)


cdef void _endpoint_failed(void* arg, ucp_ep_h endpoint, ucs_status_t status) noexcept nogil:
    cdef Peer* peer = <Peer*>arg
    (<UcxTransport>peer.transport)._fail_status(peer, status)


cdef void _endpoint_closed(void* request, ucs_status_t status, void* user_data) noexcept nogil:
    (<UcxTransport>user_data)._endpoint_let_go(request, True)


cdef void _lost_endpoint_closed(void* request, ucs_status_t status, void* user_data) noexcept nogil:
    (<UcxTransport>user_data)._endpoint_let_go(request, False)


# Importing this module without a usable UCX fails at once, with the reason: the registry then offers tcp.
load_functions()
