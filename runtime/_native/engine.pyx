"""The engine; ``engine.pxd`` is the contract."""

import os
import weakref

from cpython.exc cimport PyErr_CheckSignals
from libc.errno cimport errno
from libc.stdint cimport int64_t, uint8_t, uint32_t, uint64_t
from libc.string cimport memcpy, strlen
from libcpp.vector cimport vector
from posix.time cimport timespec
from posix.unistd cimport close, read, write

from intentpm.foundation.errors import (
    ClosedError, CollectiveMismatchError, Error, ForkError, MemoryBudgetError, PeerLostError, WaitTimeoutError,
)

from intentpm.runtime._native.control cimport Control
from intentpm.runtime._native.inquiry cimport Inquiry
from intentpm.runtime._native.intents cimport NEVER, IntentQueue
from intentpm.runtime._native.messages cimport (
    FLAG_SAME, MSG_ACCESS, MSG_COLLECT, MSG_EXPLAIN, MSG_EXPLAINED, MSG_FIRST_ROUND, MSG_REPLY, MSG_SYNC, MSG_SYNCED,
    AccessHeader, ControlHeader, RoundHeader,
)
from intentpm.foundation.primitives cimport (
    add_relaxed, exchange_acquire, load_acquire, load_acquire_i64, load_relaxed, pause_cpu, store_release,
    store_release_i64,
)
from intentpm.runtime._native.remote cimport WINDOW_FULL, WINDOW_REQUESTS, RemoteAccess
from intentpm.runtime._native.remote cimport MAX_TABLES, SubmitResult, Submission
from intentpm.runtime._native.requests cimport (
    OPERATION_ABANDONED, OPERATION_NO_MEMORY, OPERATION_PEER_LOST, Operation, RequestPool, begin_operation,
)
from intentpm.runtime._native.rounds cimport Rounds
from intentpm.runtime._native.store cimport Table
from intentpm.foundation.system cimport (
    CLOCK_MONOTONIC, EFD_CLOEXEC, EFD_NONBLOCK, EPOLL_CLOEXEC, EPOLL_CTL_ADD, EPOLL_CTL_MOD, EPOLLIN, POLLIN, TFD_CLOEXEC,
    TFD_NONBLOCK, epoll_create1, epoll_ctl, epoll_event, epoll_wait, eventfd, intentpm_prefer_latency, poll, pollfd,
    pthread_cond_broadcast, pthread_cond_destroy, pthread_cond_init, pthread_cond_timedwait, pthread_condattr_destroy,
    pthread_condattr_init, pthread_condattr_setclock, pthread_condattr_t, pthread_mutex_destroy, pthread_mutex_init,
    pthread_mutex_lock, pthread_mutex_trylock, pthread_mutex_unlock, sched_yield, set_timer, timerfd_create,
)
from intentpm.transports.base cimport Transport

cdef enum:
    MOST_EVENTS = 4
    THREAD_SLICE_NS = 100_000    # the least the scheduler grants
    PREEMPTED_NS = 300_000       # between two polls: another thread ran meanwhile
    LEAST_NO_SPIN_NS = 50_000_000
    MOST_NO_SPIN_NS = 2_000_000_000
    # A poll takes 0.03 to 0.5 us, a yield 0.4 us or more. An answer from another core comes within the first polls; one that
    # did not may need this core. While messages come, this core does what it is there for.
    POLLS_PER_YIELD = 32
    PROMPT_POLLS = 16
    IDLE_POLLS_PER_YIELD = 4
    LEAVING_POLLS = 16           # a worker that leaves the wheel serves what has come meanwhile, but not for ever
    LOCK_SPINS = 200             # a holder needs a few microseconds: try that long before sleeping
    WAIT_SLICE_NS = 50_000_000   # a waiter looks after signals and silent peers this often
    HELP_AFTER_NS = 300_000      # a look so much overdue is done by the worker that notices
    STREAK_GAP_NS = 20_000       # waits that follow each other so closely ...
    STREAK_WAIT_NS = 16_000      # ... and are so short make a streak
    MOST_STREAK = 64
    DISTURBANCE_COSTS = 2
    STREAK_WAITS = 16            # after more than so many, the wheel is kept between two of them ...
    LEASE_NS = 100_000           # ... but not longer than this
    # Between two looks at what workers signalled, unless one is urgent: as long as a round takes; twice as long after each look
    # that led to nothing. At least and at most:
    LOOK_GAP_NS = 400_000
    MOST_LOOK_GAP_NS = 12_800_000
    TRIM_BYTES = 4 << 20         # of rows: for less it is not worth the calls

cdef const char* NO_MEMORY = "ran out of memory for messages"


# -- what a wait can be for ----------------------------------------------------------------------------------------------

cdef bint _operation_done(void* engine, void* argument) noexcept nogil:
    return load_acquire(&(<Operation*>argument).done) != 0


cdef inline bint _is_over(Engine engine) noexcept nogil:
    """Nothing will come any more. Lock held."""
    return engine.control.failed or engine.state >= ENGINE_CLOSED


cdef bint _window_open(void* engine, void* argument) noexcept nogil:
    cdef uint32_t rank = (<Submission*>argument).blocked_on
    return _is_over(<Engine>engine) or (<Engine>engine).requests.in_flight_to[rank] < WINDOW_REQUESTS


cdef bint _job_failed(void* engine, void* argument) noexcept nogil:
    return _is_over(<Engine>engine)


cdef bint _all_left(void* engine, void* argument) noexcept nogil:
    return _is_over(<Engine>engine) or (<Engine>engine).control.left_count + 1 >= (<Engine>engine).control.size


cdef bint _news_flushed(void* engine, void* argument) noexcept nogil:
    return _is_over(<Engine>engine) or (<Engine>engine).rounds.sync.is_flushed()


# -- what the transport reports --------------------------------------------------------------------------------------------

cdef inline void _count_received(Transport transport, uint8_t message_id, size_t size_bytes) noexcept nogil:
    transport.received_bytes_of[message_id & 31] += size_bytes


cdef void _on_message(
        void* context, uint32_t source, uint8_t message_id, const char* header, size_t header_bytes,
        const char* body, size_t body_bytes) noexcept nogil:
    # Headers are copied out first: the pointer may be unaligned.
    cdef AccessHeader access
    cdef ControlHeader control
    cdef RoundHeader round
    cdef bint understood = False
    _count_received((<Engine>context).transport, message_id, header_bytes + body_bytes)
    if message_id < MSG_COLLECT:
        if header_bytes == sizeof(AccessHeader):
            memcpy(&access, header, sizeof(AccessHeader))
            if message_id == MSG_ACCESS:
                understood = (<Engine>context).remote.serve(source, &access, body, body_bytes)
            elif message_id == MSG_REPLY:
                understood = (<Engine>context).remote.finish(source, &access, body, body_bytes)
    elif message_id >= MSG_FIRST_ROUND:
        if header_bytes == sizeof(RoundHeader):
            memcpy(&round, header, sizeof(RoundHeader))
            understood = (<Engine>context).rounds.on_message(source, message_id, &round, body, body_bytes)
    elif header_bytes == sizeof(ControlHeader):
        memcpy(&control, header, sizeof(ControlHeader))
        if message_id == MSG_SYNC or message_id == MSG_SYNCED:
            understood = (<Engine>context).rounds.sync.on_message(source, message_id)
        elif message_id == MSG_EXPLAIN or message_id == MSG_EXPLAINED:
            understood = (<Engine>context).inquiry.on_message(source, message_id, &control, body, body_bytes)
        else:
            understood = (<Engine>context).control.on_message(source, message_id, &control, body, body_bytes)
    if not understood:
        (<Engine>context).transport.drop(source, "sent a message that makes no sense (a defect)")


cdef void _on_step(void* context) noexcept nogil:
    (<Engine>context).thread_wakes_ns = NEVER
    (<Engine>context).look_and_step()


cdef void _on_lost(void* context, uint32_t rank, const char* why) noexcept nogil:
    (<Engine>context).control.fail(rank, why, strlen(why))


cdef str _text(object what):
    """What is waited for: a text, or a callable that makes one when it is needed."""
    return what() if callable(what) else what


_engines = weakref.WeakSet()


def _mark_forked():
    # The child has none of the parent's threads and must not touch its connections.
    for engine in _engines:
        (<Engine>engine).state = ENGINE_FORKED


os.register_at_fork(after_in_child=_mark_forked)


cdef class Engine:
    def __cinit__(self):
        self.epoll_fd = self.wake_fd = self.look_fd = self.lease_fd = self.driver_fd = -1

    def __init__(
            self, Transport transport not None, peer_timeout_s: float, worker_spin_us: float, thread_spin_us: float,
            management: int, sync_interval_s: float, sync_threshold: float, budget_bytes: int):
        cdef pthread_condattr_t monotonic
        cdef epoll_event event
        self.transport = transport
        self.requests = RequestPool(transport.size)
        self.remote = RemoteAccess(transport, self.requests)
        self.control = Control(transport, self.requests, peer_timeout_s)
        self.rounds = Rounds(
            self.remote, management, <int64_t>(sync_interval_s * 1e9), sync_threshold, budget_bytes)
        self.inquiry = Inquiry(self.rounds)
        self.step_at_ns = self.thread_wakes_ns = NEVER
        self.no_spin_ns = LEAST_NO_SPIN_NS
        self.look_gap_ns = LOOK_GAP_NS
        self.worker_spin_ns = <int64_t>(worker_spin_us * 1000)
        self.thread_spin_ns = <int64_t>(thread_spin_us * 1000)
        pthread_mutex_init(&self.lock, NULL)
        pthread_condattr_init(&monotonic)
        pthread_condattr_setclock(&monotonic, CLOCK_MONOTONIC)
        pthread_cond_init(&self.answered, &monotonic)
        pthread_condattr_destroy(&monotonic)
        self.epoll_fd = epoll_create1(EPOLL_CLOEXEC)
        self.wake_fd = eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC)
        self.look_fd = timerfd_create(CLOCK_MONOTONIC, TFD_NONBLOCK | TFD_CLOEXEC)
        self.lease_fd = timerfd_create(CLOCK_MONOTONIC, TFD_NONBLOCK | TFD_CLOEXEC)
        self.driver_fd = eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC)
        if min(self.epoll_fd, self.wake_fd, self.look_fd, self.lease_fd, self.driver_fd) < 0:
            raise OSError(errno, "cannot make event descriptors: raise `ulimit -n`")
        for descriptor in (self.wake_fd, self.look_fd, self.lease_fd, transport.event_fd()):
            if descriptor >= 0:
                event.events = EPOLLIN
                event.data.fd = descriptor
                epoll_ctl(self.epoll_fd, EPOLL_CTL_ADD, descriptor, &event)
        transport.on_message = _on_message
        transport.on_lost = _on_lost
        transport.on_step = _on_step
        transport.context = <void*>self
        _engines.add(self)

    def __dealloc__(self):
        self._close_descriptors()
        pthread_cond_destroy(&self.answered)
        pthread_mutex_destroy(&self.lock)

    cdef void _close_descriptors(self) noexcept nogil:
        if self.epoll_fd >= 0:
            close(self.epoll_fd)
        if self.wake_fd >= 0:
            close(self.wake_fd)
        if self.look_fd >= 0:
            close(self.look_fd)
        if self.lease_fd >= 0:
            close(self.lease_fd)
        if self.driver_fd >= 0:
            close(self.driver_fd)
        self.epoll_fd = self.wake_fd = self.look_fd = self.lease_fd = self.driver_fd = -1

    # -- the lock --------------------------------------------------------------------------------------------------------

    cdef void acquire(self) noexcept nogil:
        cdef int _turn
        if pthread_mutex_trylock(&self.lock) == 0:
            return
        add_relaxed(&self.contenders, 1)
        for _turn in range(LOCK_SPINS):
            pause_cpu()
            if pthread_mutex_trylock(&self.lock) == 0:
                add_relaxed(&self.contenders, <uint32_t>-1)
                return
        pthread_mutex_lock(&self.lock)
        add_relaxed(&self.contenders, <uint32_t>-1)

    cdef void release(self) noexcept nogil:
        pthread_mutex_unlock(&self.lock)

    cdef void _let_others_in(self, bint polls_on) noexcept nogil:
        self.polls += 1
        self.idle_polls += 1
        if load_relaxed(&self.contenders) == 0 and (not polls_on or self.polls % POLLS_PER_YIELD and (
                self.idle_polls < PROMPT_POLLS or self.idle_polls % IDLE_POLLS_PER_YIELD)):
            return
        # A mutex is not fair, so whoever polls steps back until the waiting threads had their turn. And it yields the core
        # even when nobody waits: the thread that would answer may have been woken on this very core, and a poll that does
        # not yield keeps it from running for as long as the poll lasts (measured: 129 us for a 9 us round trip).
        cdef int _turn
        pthread_mutex_unlock(&self.lock)
        sched_yield()
        for _turn in range(LOCK_SPINS):
            if load_relaxed(&self.contenders) == 0:
                break
            sched_yield()
        self.acquire()

    # -- waiting ---------------------------------------------------------------------------------------------------------

    cdef bint drive(self, ready_fn ready, void* argument, int64_t until_ns) noexcept nogil:
        if self.transport.virtual_time:  # the transport runs all ranks; the lock is free meanwhile, as it is in a sleep
            self.release()
            self.transport.run_until(ready, <void*>self, argument, until_ns)
            self.acquire()
            return ready(<void*>self, argument)
        while not ready(<void*>self, argument):
            if self.worker_drives:
                self._follow(until_ns)
            else:
                self._take_wheel()
                self._poll_until(ready, argument, until_ns)
                self._leave_wheel()
            if self.transport.now_ns() >= until_ns:
                return ready(<void*>self, argument)
        return True

    cdef void _follow(self, int64_t until_ns) noexcept nogil:
        """Sleeps until somebody finished something (or the driver left: then this worker may drive)."""
        cdef timespec until
        until.tv_sec = until_ns // 1000000000
        until.tv_nsec = until_ns % 1000000000
        self.followers += 1
        pthread_cond_timedwait(&self.answered, &self.lock, &until)
        self.followers -= 1

    cdef void _poll_until(self, ready_fn ready, void* argument, int64_t until_ns) noexcept nogil:
        cdef int64_t now = self.transport.now_ns()
        cdef int64_t spin_until = now + self.worker_spin_ns
        while not ready(<void*>self, argument):
            if self.transport.progress() > 0:
                self.step()
                spin_until = self.transport.now_ns() + self.worker_spin_ns
                self.idle_polls = 0
                self._let_others_in(True)
                continue
            now = self.transport.now_ns()
            if now >= until_ns:
                return
            if now < spin_until:
                self._let_others_in(True)
            elif self.transport.arm():
                self._sleep_driving(until_ns - now)
                spin_until = 0           # woken for a reason: progress, then sleep again

    cdef void _sleep_driving(self, int64_t timeout_ns) noexcept nogil:
        cdef pollfd descriptors[2]
        cdef uint64_t count
        descriptors[0].fd = self.driver_fd
        descriptors[0].events = POLLIN
        descriptors[1].fd = self.transport.event_fd()    # -1 is ignored
        descriptors[1].events = POLLIN
        self.driver_sleeps = True
        self.release()
        poll(descriptors, 2, <int>(timeout_ns // 1000000) + 1)
        self.acquire()
        if self.driver_sleeps:
            self.driver_sleeps = False
        else:
            read(self.driver_fd, &count, sizeof(count))

    cdef void wake_finished(self) noexcept nogil:
        if self.transport.out_of_memory and self.state == ENGINE_RUNNING:
            self.control.fail(self.transport.rank, NO_MEMORY, strlen(NO_MEMORY))
        if self.control.failed and self.state == ENGINE_RUNNING:
            store_release(&self.state, ENGINE_FAILED)
            self.rounds.sync.fail(OPERATION_PEER_LOST)
            self.seen_finished = ~<uint64_t>0
        if self.requests.finished == self.seen_finished:
            return
        self.seen_finished = self.requests.finished
        self._wake_waiters()

    cdef void _wake_waiters(self) noexcept nogil:
        if self.followers > 0:
            pthread_cond_broadcast(&self.answered)
        self._wake_driver()

    cdef void _wake_driver(self) noexcept nogil:
        cdef uint64_t one = 1
        if self.driver_sleeps:
            self.driver_sleeps = False
            write(self.driver_fd, &one, sizeof(one))

    # -- the wheel -------------------------------------------------------------------------------------------------------

    cdef void _watch_transport(self, bint watch) noexcept nogil:
        """Puts the transport's descriptor into the progress thread's sleep, or takes it out."""
        cdef epoll_event event
        if self.transport.event_fd() < 0:
            return
        event.events = EPOLLIN if watch else 0
        event.data.fd = self.transport.event_fd()
        epoll_ctl(self.epoll_fd, EPOLL_CTL_MOD, self.transport.event_fd(), &event)

    cdef void _take_wheel(self) noexcept nogil:
        self.worker_drives = True
        self.idle_polls = 0
        self.taken_ns = self.transport.now_ns()
        if self.taken_ns - self.left_ns > LEASE_NS:
            self.streak = 0
        elif self.taken_ns - self.left_ns > STREAK_GAP_NS:
            self._shorten_streak()
        if self.leased:
            self.leased = False
        else:
            self._watch_transport(False)

    cdef void _shorten_streak(self) noexcept nogil:
        """A wait, or the time before it, was long. One that was disturbed, by the timer of the lease say, does not end it."""
        self.streak -= min(self.streak, <uint32_t>DISTURBANCE_COSTS)

    cdef void _leave_wheel(self) noexcept nogil:
        cdef int _turn
        self.worker_drives = False
        store_release_i64(&self.left_ns, self.transport.now_ns())
        if self.state >= ENGINE_CLOSED:
            pthread_cond_broadcast(&self.answered)
            return
        if self.left_ns - self.taken_ns < STREAK_WAIT_NS:
            self.streak = min(self.streak + 1, <uint32_t>MOST_STREAK)
        else:
            self._shorten_streak()
        if self.streak > STREAK_WAITS:
            self._lease()
            return
        for _turn in range(LEAVING_POLLS):
            if self.transport.arm():
                break
            if self.transport.progress() > 0:
                self.step()              # what has come may have given management something to do
        else:
            self._wake_thread()          # messages keep coming: they are not for this worker
        self._watch_transport(True)
        self.wake_finished()
        if self.followers > 0:           # one of them may drive now
            pthread_cond_broadcast(&self.answered)

    # To hand the wheel over costs more than half of a small round trip: the descriptor out of the set and back, arming it, and
    # at the server a system call to wake who is not asleep. A worker that waits again and again keeps it in between. Should
    # it not come back, the lease ends by a timer, which is set once and moved by the progress thread, not by the worker.

    cdef void _lease(self) noexcept nogil:
        self.leased = True
        self.leases += 1
        if not self.lease_is_timed:
            self.lease_is_timed = True
            set_timer(self.lease_fd, self.left_ns + LEASE_NS)
        self.wake_finished()
        if self.followers > 0:
            pthread_cond_broadcast(&self.answered)

    cdef bint _lease_goes_on(self) noexcept nogil:
        """From the progress thread, without the lock, which it would take from the worker: moves the timer if need be."""
        cdef uint64_t count
        cdef int64_t end_ns = load_acquire_i64(&self.left_ns) + LEASE_NS
        if self.transport.now_ns() >= end_ns:
            return False
        read(self.lease_fd, &count, sizeof(count))
        set_timer(self.lease_fd, end_ns)
        return True

    cdef void _end_lease(self) noexcept nogil:
        """From the progress thread, when the timer has fired: takes the wheel back."""
        self.lease_is_timed = False
        if not self.leased:
            return
        if self.transport.now_ns() < self.left_ns + LEASE_NS:
            self.lease_is_timed = True
            set_timer(self.lease_fd, self.left_ns + LEASE_NS)
            return
        self.leased = False
        self._watch_transport(True)

    cdef void _arm_sleeper(self) noexcept nogil:
        """After sends that no poll of this thread follows: who sleeps on the transport must wake when a full socket has room.

        1. driver: arms, sleeps.  2. another thread: sends; the socket takes half of it.  3. nothing watches for room: the
        receiver waits for the other half until the driver's sleep ends by itself.
        """
        if self.driver_sleeps:
            if not self.transport.arm():
                self._wake_driver()
        elif self.thread_sleeps and not self.worker_drives and not self.leased and not self.transport.arm():
            self._wake_thread()

    cdef void _wake_thread(self) noexcept nogil:
        cdef uint64_t one = 1
        write(self.wake_fd, &one, sizeof(one))

    def run(self) -> None:
        """The progress thread's life, until ``stop``. Without the GIL throughout."""
        with nogil:
            self._run()

    cdef void _run(self) noexcept nogil:
        cdef epoll_event events[MOST_EVENTS]
        cdef uint64_t count
        cdef int timeout_ms, came, i
        cdef bint message = False
        # Beside a training thread that computes without end, the scheduler would let a request wait for the rest of that
        # thread's slice, some milliseconds.
        intentpm_prefer_latency(THREAD_SLICE_NS)
        self.acquire()
        while not self.stopping:
            self._serve_for_a_while(message)
            timeout_ms = self._sleep_ms()
            self.thread_wakes_ns = self.step_at_ns
            self.thread_sleeps = True
            self.release()
            came = epoll_wait(self.epoll_fd, events, MOST_EVENTS, timeout_ms)
            while came == 1 and events[0].data.fd == self.lease_fd and timeout_ms < 0 and self._lease_goes_on():
                came = epoll_wait(self.epoll_fd, events, MOST_EVENTS, timeout_ms)
            self.acquire()
            self.thread_sleeps = message = False
            for i in range(came):
                if events[i].data.fd == self.transport.event_fd():
                    message = True
                    continue
                read(events[i].data.fd, &count, sizeof(count))
                if events[i].data.fd == self.lease_fd:
                    self._end_lease()
        self.release()

    cdef int _sleep_ms(self) noexcept nogil:
        """Until management's next step; -1: until something happens."""
        if self.step_at_ns == NEVER:
            return -1
        return <int>max(<int64_t>0, (self.step_at_ns - self.transport.now_ns() + 999999) // 1000000)

    cdef void _serve_for_a_while(self, bint more_expected) noexcept nogil:
        """Progress until nothing has come for the spin time, or a worker drives. After a message more are expected."""
        cdef int64_t now = self.transport.now_ns()
        cdef int64_t spin_until = now + self._spin_allowed(now) if more_expected else 0
        cdef int64_t before
        self.look_and_step()
        if self.worker_drives:
            self._arm_sleeper()
        while not self.stopping and not self.worker_drives and not self.leased:
            before = now
            if self.transport.progress() > 0:
                self.step()
                now = self.transport.now_ns()
                spin_until = now + self._spin_allowed(now)
                self.idle_polls = 0
            else:
                now = self.transport.now_ns()
                if now >= spin_until and self.transport.arm():
                    return
            self._let_others_in(now < spin_until)
            self._note_preemption(before)

    # A progress thread that polls beside a computing thread on the same core uses up its share of it; then the scheduler lets
    # the other run until the next tick (4 ms), and a request waits. One that sleeps is run at once when it is woken. So when
    # a poll took so long that another thread must have run, polling is given up for a while, for longer each time.

    cdef inline int64_t _spin_allowed(self, int64_t now_ns) noexcept nogil:
        return self.thread_spin_ns if now_ns >= self.no_spin_until_ns else 0

    cdef void _note_preemption(self, int64_t before_ns) noexcept nogil:
        cdef int64_t now = self.transport.now_ns()
        if now - before_ns < PREEMPTED_NS:
            return
        if now > self.no_spin_until_ns + 2 * self.no_spin_ns:
            self.no_spin_ns = LEAST_NO_SPIN_NS       # it was quiet for a while
        self.no_spin_until_ns = now + self.no_spin_ns
        self.no_spin_ns = min(2 * self.no_spin_ns, MOST_NO_SPIN_NS)

    # -- management ------------------------------------------------------------------------------------------------------

    cdef void step(self) noexcept nogil:
        """After something happened: lets management do what is due, and waiters see what has finished."""
        if self.state >= ENGINE_CLOSED:
            return
        self.step_at_ns = self.rounds.step(self.transport.now_ns())
        self.wake_finished()
        if self.step_at_ns < self.thread_wakes_ns:
            if self.transport.request_step(self.step_at_ns):
                self.thread_wakes_ns = self.step_at_ns
            elif self.thread_sleeps:
                self.thread_wakes_ns = self.step_at_ns
                self._wake_thread()

    cdef void look_and_step(self) noexcept nogil:
        """The same, when a worker may have something for management."""
        # Taken by an exchange: so what a worker did before the kick that is taken back here is seen by what follows.
        if load_relaxed(&self.kicked) and exchange_acquire(&self.kicked, 0):
            self.rounds.intents.look()
            self.step()
            self.look_gap_ns = self.rounds.holder.round_ns if self.rounds.holder.is_busy() else 2 * self.look_gap_ns
            self.look_gap_ns = max(<int64_t>LOOK_GAP_NS, min(self.look_gap_ns, <int64_t>MOST_LOOK_GAP_NS))
            store_release_i64(&self.look_again_ns, self.transport.now_ns() + self.look_gap_ns)
        else:
            self.step()

    cdef bint kick(self, bint urgent) noexcept nogil:
        # A worker signals and advances its clock many times in a round trip. To wake the thread each time would take the core
        # from the worker (measured: 20 us of every 50 us step), so what can wait is gathered; the action timer counts that in.
        cdef bint kicked = exchange_acquire(&self.kicked, 1) != 0
        cdef int64_t now, due, look_at
        if kicked and self.transport.virtual_time and not urgent:
            return False
        now = self.transport.now_ns()
        due = load_acquire_i64(&self.look_due_ns)
        if kicked and (due <= now or not urgent):
            return now > due + HELP_AFTER_NS
        look_at = now if urgent else max(now, load_acquire_i64(&self.look_again_ns))
        store_release_i64(&self.look_due_ns, look_at)
        if self.transport.request_step(look_at):
            return False
        if look_at == now:
            self._wake_thread()
        else:
            set_timer(self.look_fd, look_at)
        return False

    cdef void help(self) noexcept nogil:
        # On a core that it shares with a computing worker, the progress thread gets half of the time, and not when it needs
        # it: after a burst of work it waits until the scheduler's next tick, a millisecond or more.
        if pthread_mutex_trylock(&self.lock) != 0:
            return
        if not _is_over(self):
            store_release_i64(&self.look_due_ns, self.transport.now_ns())
            self.transport.progress()
            self.look_and_step()
            self._arm_sleeper()
        self.release()

    cdef void sync(self, Operation* operation) noexcept nogil:
        self.acquire()
        if _is_over(self):
            operation.status = OPERATION_PEER_LOST
            self.requests.close_submission(operation)
        else:
            self.rounds.sync.begin(operation)
            self.look_and_step()
            self._arm_sleeper()
        self.release()

    def has_replicas(self) -> bool:
        cdef bint held
        with nogil:
            self.acquire()
            held = self.rounds.holder.holds_replicas()
            self.release()
        return held

    def flush_news(self) -> None:
        """Waits until every replica of this rank's rows, as they are now, is up to date. Raises PeerLostError."""
        with nogil:
            self.acquire()
            self.rounds.sync.flush()
            self.step()
            self._arm_sleeper()
            self.release()
        self._wait(_news_flushed, NULL, -1.0, "replicas at other ranks to be refreshed")
        self.raise_state()

    def trim(self, least_bytes: int = TRIM_BYTES) -> None:
        """Gives free memory of tables back to the system where it was not needed since the last call."""
        cdef size_t least = least_bytes
        with nogil:
            self.acquire()
            self.rounds.trim(least)
            self.release()

    def replicate_all(self, Table table not None) -> None:
        """Management "full_replication": asks for a replica of every key of a new table."""
        with nogil:
            self.acquire()
            self.rounds.intents.replicate_all(table)
            self.step()
            self._arm_sleeper()
            self.release()

    def add_worker(self, IntentQueue queue not None) -> None:
        """Has management look after a worker's intents."""
        self.rounds.intents.keep(queue)
        with nogil:
            self.acquire()
            self.rounds.intents.add_worker(queue)
            self.release()

    def stop(self) -> None:
        """Ends ``run`` soon."""
        with nogil:
            self.acquire()
            self.stopping = True
            self.release()
            self._wake_thread()

    # -- operations ------------------------------------------------------------------------------------------------------

    cdef void submit(
            self, Operation* operation, Submission* submission, const uint32_t* positions, bint will_wait) noexcept nogil:
        cdef SubmitResult result = WINDOW_FULL
        cdef int64_t started = self.transport.now_ns()
        cdef bint drives
        self.acquire()
        # The wheel is taken before anything is sent: an answer that comes before this thread waits for it, since the other
        # side ran on its core meanwhile, would wake the progress thread, which then stands in the way of both.
        drives = will_wait and not self.worker_drives and not self.transport.virtual_time
        if drives:
            self._take_wheel()
        if _is_over(self):
            operation.status = OPERATION_PEER_LOST
        elif not self.remote.group_by_owner(operation, submission.keys, positions, submission.count):
            operation.status = OPERATION_NO_MEMORY
        else:
            result = self.remote.submit(operation, submission)
            while result == WINDOW_FULL and not _is_over(self):
                if drives:
                    drives = False
                    self._leave_wheel()
                if not self.drive(_window_open, submission, self.transport.now_ns() + WAIT_SLICE_NS):
                    self.control.check_silence(started)
                    self.wake_finished()
                if not _is_over(self):
                    result = self.remote.submit(operation, submission)
            if _is_over(self):
                operation.status = OPERATION_PEER_LOST
        self.requests.close_submission(operation)
        self.step()
        if drives:
            self._poll_until(_operation_done, operation, started + WAIT_SLICE_NS)
            self._leave_wheel()
        elif self.worker_drives or not will_wait:    # else this thread drives next
            self._arm_sleeper()
        self.release()

    cdef void abandon(self, Operation* operation) noexcept nogil:
        if load_acquire(&self.state) == ENGINE_FORKED:
            return                       # nobody is left to answer, nor perhaps to release the lock
        self.acquire()
        self.requests.fail(operation, OPERATION_ABANDONED)
        self.rounds.sync.abandon(operation)
        if self.control.waiting == operation:
            self.control.abandon()
        self.wake_finished()
        self.release()

    cdef int wait_operation(self, Operation* operation, double timeout_s, object what) except -1:
        if not load_acquire(&operation.done):
            try:
                self._wait(_operation_done, operation, timeout_s, what)
            except BaseException:
                with nogil:
                    self.abandon(operation)
                raise
        if operation.status == OPERATION_PEER_LOST:
            self.raise_state()
            # A transport refuses to send as soon as it knows of a loss; it reports it, with the reason, a little later.
            self._wait(_job_failed, NULL, self.control.peer_timeout_ns * 1e-9, "the report of a lost rank")
            self.raise_state()
        elif operation.status == OPERATION_NO_MEMORY:
            raise MemoryBudgetError(f"out of memory while sending for {_text(what)}")
        return 0

    cdef _wait(self, ready_fn ready, void* argument, double timeout_s, object what):
        cdef int64_t started = self.transport.now_ns()
        cdef int64_t deadline = started + <int64_t>(timeout_s * 1e9) if timeout_s >= 0 else 0x7fffffffffffffff
        cdef int64_t slice_ns = min(<int64_t>WAIT_SLICE_NS, self.control.peer_timeout_ns // 20)
        cdef bint done
        while True:
            with nogil:
                self.acquire()
                done = self.drive(ready, argument, min(self.transport.now_ns() + slice_ns, deadline))
                if not done:
                    self.control.check_silence(started)
                    self.wake_finished()
                self.release()
            if done:
                return
            PyErr_CheckSignals()
            if self.transport.now_ns() >= deadline:
                raise WaitTimeoutError(f"rank {self.transport.rank} waited {timeout_s:g} s for {_text(what)}")

    cdef int raise_state(self) except -1:
        """Raises what keeps this engine from working; returns when nothing does."""
        cdef uint32_t state = load_acquire(&self.state)
        if state == ENGINE_RUNNING and load_acquire(&self.control.failed):
            state = ENGINE_FAILED
        if state == ENGINE_FAILED and self.control.failed_rank == self.transport.rank and self.transport.out_of_memory:
            raise MemoryBudgetError(
                f"rank {self.transport.rank} {NO_MEMORY.decode()}; the job cannot go on: restart it with more memory")
        if state == ENGINE_FAILED:
            raise PeerLostError(self.control.failed_rank, (
                f"rank {self.transport.rank}: lost rank {self.control.failed_rank}, which "
                f"{self.control.failed_why.decode('utf-8', 'replace')}; the job cannot go on: restart it"))
        if state == ENGINE_CLOSED:
            raise ClosedError("the parameter manager is closed: call intentpm.init() again, on every rank")
        if state == ENGINE_FORKED:
            raise ForkError(
                "this process is a fork of one that uses intentpm: start child processes with the spawn or forkserver method")
        return 0

    # -- collectives, tables, end ----------------------------------------------------------------------------------------

    def exchange(self, payload: bytes, what: str, timeout_s: float | None = None) -> list:
        """Collective: gives every rank the payloads of all ranks, in rank order.

        Raises PeerLostError, CollectiveMismatchError when a rank has left instead, WaitTimeoutError after ``timeout_s``
        (None: as long as the peers are alive).
        """
        cdef Operation operation
        cdef const char* data = payload
        cdef size_t size_bytes = len(payload)
        self.raise_state()
        begin_operation(&operation, NULL, 0, NULL, NULL)
        with nogil:
            self.acquire()
            if _is_over(self):
                operation.status = OPERATION_PEER_LOST
                self.requests.close_submission(&operation)
            else:
                self.control.enter(&operation, data, size_bytes)
                self.wake_finished()
                self._arm_sleeper()
            self.release()
        self.wait_operation(&operation, -1.0 if timeout_s is None else timeout_s, lambda: self._missing_for(what))
        if operation.status == OPERATION_ABANDONED:
            raise CollectiveMismatchError(
                f"rank {self.transport.rank} called {what}, but rank {self.control.left_early} has closed its parameter "
                "manager: every rank must make the same collective calls")
        return self._payloads()

    def _missing_for(self, what: str) -> str:
        cdef vector[uint8_t] contributed
        if self.transport.rank != 0:
            return f"{what} (rank 0 knows which ranks have not come)"
        with nogil:
            self.acquire()
            contributed = self.control.contributed
            self.release()
        missing = [rank for rank in range(self.transport.size) if not contributed[rank]]
        return f"{what}: ranks {missing} have not come"

    cdef _payloads(self):
        cdef uint32_t size = self.transport.size
        cdef bytes raw = self.control.result
        lengths = memoryview(raw)[:4 * size].cast("I").tolist()
        payloads = []
        at = 4 * size
        for length in lengths:
            payloads.append(raw[at:at + length])
            if not self.control.result_flags & FLAG_SAME:
                at += length
        return payloads

    def add_table(self, Table table not None) -> None:
        """Makes a table known: from now on its keys can be asked for by other ranks. Its id is the next free one."""
        if self.remote.table_count >= MAX_TABLES:
            raise Error(f"a job has at most {MAX_TABLES} tables")
        with nogil:
            self.acquire()
            self.remote.tables[table.table_id] = table.state
            self.remote.table_count = table.table_id + 1
            self.rounds.holder.count_rows(table)
            self.release()

    def remove_last_table(self) -> None:
        """Takes back ``add_table``: the ranks did not agree on the table, so nobody has used it."""
        with nogil:
            self.acquire()
            self.remote.table_count -= 1
            self.remote.tables[self.remote.table_count] = NULL
            self.release()

    def fail(self, why: str) -> None:
        """Tells every rank that this one gives up, and why. They raise PeerLostError naming this rank."""
        cdef bytes text = why.encode()
        cdef const char* data = text
        cdef size_t size_bytes = len(text)
        with nogil:
            self.acquire()
            if not _is_over(self):
                self.control.fail(self.transport.rank, data, size_bytes)
            self.wake_finished()
            self._arm_sleeper()
            self.release()

    def leave(self) -> None:
        """Collective end: serves the other ranks until all have left. Raises PeerLostError."""
        self.raise_state()
        with nogil:
            self.acquire()
            self.control.leave()
            self.wake_finished()
            self._arm_sleeper()
            self.release()
        self._wait(_all_left, NULL, -1.0, "the other ranks to close")
        self.raise_state()

    def close(self, timeout_s: float) -> None:
        """Closes the transport (``timeout_s``: for what is still to be sent). Calls under way or to come raise ClosedError.

        After ``stop``. Waits for the GIL with the lock held: whoever waits for the lock meanwhile finds the engine closed.
        """
        with nogil:
            self.acquire()
        try:
            store_release(&self.state, ENGINE_CLOSED)
            self.requests.fail(NULL, OPERATION_PEER_LOST)
            self.rounds.sync.fail(OPERATION_PEER_LOST)
            self.control.close()
            self._wake_waiters()
            self.transport.close(timeout_s)
            if not self.worker_drives:       # a worker still in a wait uses them; then they go with this object
                self._close_descriptors()
        finally:
            self.release()

    def is_forked(self) -> bool:
        """This process is a forked child: the connections and threads are its parent's."""
        return load_acquire(&self.state) == ENGINE_FORKED

    def check(self) -> None:
        """Raises what keeps the engine from working, if anything does."""
        self.raise_state()
