"""Who progresses the transport; ``wheel.pxd`` is the contract."""

from libc.stdint cimport int64_t, uint32_t, uint64_t
from posix.unistd cimport read

from intentpm.foundation.deadlines import wait_ns

from intentpm.foundation.primitives cimport load_acquire_i64, load_relaxed, store_release_i64
from intentpm.foundation.system cimport epoll_event, epoll_wait, intentpm_prefer_latency, sched_yield, set_timer
from intentpm.runtime._native.membership cimport ENGINE_CLOSED
from intentpm.runtime._native.naps cimport Naps
from intentpm.runtime._native.turns cimport Turns

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
    MOST_YIELDS = 200            # to threads that wait for the lock
    LEAVING_POLLS = 16           # a worker that leaves the wheel serves what has come meanwhile, but not for ever
    STREAK_GAP_NS = 20_000       # waits that follow each other so closely ...
    STREAK_WAIT_NS = 16_000      # ... and are so short make a streak
    MOST_STREAK = 64
    DISTURBANCE_COSTS = 2
    STREAK_WAITS = 16            # after more than so many, the wheel is kept between two of them ...
    LEASE_NS = 100_000           # ... but not longer than this


cdef class Wheel:
    def __init__(self, Turns turns not None, worker_spin_us: float, thread_spin_us: float):
        self.turns = turns
        self.monitor = turns.monitor
        self.transport = turns.transport
        self.naps = Naps(turns.rounds)
        self.no_spin_ns = LEAST_NO_SPIN_NS
        self.worker_spin_ns = wait_ns(worker_spin_us * 1e-6, "spin_us")
        self.thread_spin_ns = wait_ns(thread_spin_us * 1e-6, "spin_us")

    # -- a worker drives -------------------------------------------------------------------------------------------------

    cdef bint drive(self, condition_fn ready, void* argument, int64_t until_ns) noexcept nogil:
        if self.transport.virtual_time:  # the transport runs all ranks; the lock is free meanwhile, as it is in a sleep
            self.monitor.release()
            self.transport.run_until(ready, <void*>self.turns, argument, until_ns)
            self.monitor.acquire()
            return ready(<void*>self.turns, argument)
        while not ready(<void*>self.turns, argument):
            if self.worker_drives:
                self.monitor.follow(until_ns)
            else:
                self.take()
                self.poll_until(ready, argument, until_ns)
                self.leave()
            if self.transport.now_ns() >= until_ns:
                return ready(<void*>self.turns, argument)
        return True

    cdef void poll_until(self, condition_fn ready, void* argument, int64_t until_ns) noexcept nogil:
        cdef int64_t now = self.transport.now_ns()
        cdef int64_t spin_until = now + self.worker_spin_ns
        while not ready(<void*>self.turns, argument):
            if self.transport.progress() > 0:
                self.turns.step()
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
                self.monitor.sleep_driving(until_ns - now)
                spin_until = 0           # woken for a reason: progress, then sleep again

    cdef void _let_others_in(self, bint polls_on) noexcept nogil:
        self.polls += 1
        self.idle_polls += 1
        if load_relaxed(&self.monitor.contenders) == 0 and (not polls_on or self.polls % POLLS_PER_YIELD and (
                self.idle_polls < PROMPT_POLLS or self.idle_polls % IDLE_POLLS_PER_YIELD)):
            return
        # A mutex is not fair, so whoever polls steps back until the waiting threads had their turn. And it yields the core
        # even when nobody waits: the thread that would answer may have been woken on this very core, and a poll that does
        # not yield keeps it from running for as long as the poll lasts (measured: 129 us for a 9 us round trip).
        cdef int _turn
        self.monitor.release()
        sched_yield()
        for _turn in range(MOST_YIELDS):
            if load_relaxed(&self.monitor.contenders) == 0:
                break
            sched_yield()
        self.monitor.acquire()

    cdef void take(self) noexcept nogil:
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
            self.monitor.watch_transport(False)

    cdef void leave(self) noexcept nogil:
        cdef int _turn
        self.worker_drives = False
        store_release_i64(&self.left_ns, self.transport.now_ns())
        if self.turns.membership.state >= ENGINE_CLOSED:
            self.monitor.wake_followers()
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
                self.turns.step()        # what has come may have given management something to do
        else:
            self.monitor.wake_thread()   # messages keep coming: they are not for this worker
        self.monitor.watch_transport(True)
        self.turns.wake_finished()
        self.monitor.wake_followers()    # one of them may drive now

    cdef void _shorten_streak(self) noexcept nogil:
        """A wait, or the time before it, was long. One that was disturbed, by the timer of the lease say, does not end it."""
        self.streak -= min(self.streak, <uint32_t>DISTURBANCE_COSTS)

    # -- leases ----------------------------------------------------------------------------------------------------------
    # To hand the wheel over costs more than half of a small round trip: the descriptor out of the set and back, arming it, and
    # at the server a system call to wake who is not asleep. A worker that waits again and again keeps it in between. Should
    # it not come back, the lease ends by a timer, which is set once and moved by the progress thread, not by the worker.

    cdef void _lease(self) noexcept nogil:
        self.leased = True
        self.leases += 1
        if not self.lease_is_timed:
            self.lease_is_timed = True
            set_timer(self.monitor.lease_fd, self.left_ns + LEASE_NS)
        self.turns.wake_finished()
        self.monitor.wake_followers()

    cdef bint _lease_goes_on(self) noexcept nogil:
        """From the progress thread, without the lock, which it would take from the worker: moves the timer if need be."""
        cdef uint64_t count
        cdef int64_t end_ns = load_acquire_i64(&self.left_ns) + LEASE_NS
        if self.transport.now_ns() >= end_ns:
            return False
        read(self.monitor.lease_fd, &count, sizeof(count))
        set_timer(self.monitor.lease_fd, end_ns)
        return True

    cdef void _end_lease(self) noexcept nogil:
        """From the progress thread, when the timer has fired: takes the wheel back."""
        self.lease_is_timed = False
        if not self.leased:
            return
        if self.transport.now_ns() < self.left_ns + LEASE_NS:
            self.lease_is_timed = True
            set_timer(self.monitor.lease_fd, self.left_ns + LEASE_NS)
            return
        self.leased = False
        self.monitor.watch_transport(True)

    # -- the progress thread ---------------------------------------------------------------------------------------------

    cdef void run(self) noexcept nogil:
        cdef epoll_event events[MOST_EVENTS]
        cdef uint64_t count
        cdef int timeout_ms, came, i
        cdef int64_t nap_ns
        cdef bint message = False
        # Beside a training thread that computes without end, the scheduler would let a request wait for the rest of that
        # thread's slice, some milliseconds.
        intentpm_prefer_latency(THREAD_SLICE_NS)
        self.monitor.acquire()
        while not self.stopping:
            nap_ns = self._serve_for_a_while(message)
            timeout_ms = self.turns.begin_sleep_ms()
            self.monitor.thread_sleeps = True
            self.monitor.thread_naps = nap_ns > 0
            self.monitor.release()
            if nap_ns > 0:
                timeout_ms = 0
                self.monitor.nap(nap_ns)
            came = epoll_wait(self.monitor.epoll_fd, events, MOST_EVENTS, timeout_ms)
            while came == 1 and events[0].data.fd == self.monitor.lease_fd and timeout_ms < 0 and self._lease_goes_on():
                came = epoll_wait(self.monitor.epoll_fd, events, MOST_EVENTS, timeout_ms)
            self.monitor.acquire()
            self.monitor.thread_sleeps = self.monitor.thread_naps = message = False
            for i in range(came):
                if events[i].data.fd == self.transport.event_fd():
                    message = True
                    continue
                read(events[i].data.fd, &count, sizeof(count))
                if events[i].data.fd == self.monitor.lease_fd:
                    self._end_lease()
        self.monitor.release()

    cdef void stop(self) noexcept nogil:
        self.monitor.acquire()
        self.stopping = True
        self.monitor.release()
        self.monitor.wake_thread()

    cdef int64_t _serve_for_a_while(self, bint more_expected) noexcept nogil:
        """Progress until nothing has come for the spin time, or a worker drives. After a message more are expected.

        Returns for how long the thread may nap; 0: it sleeps, and the transport is armed.
        """
        cdef int64_t now = self.transport.now_ns()
        cdef int64_t spin_until = now + self._spin_allowed(now) if more_expected else 0
        cdef int64_t before, nap_ns
        cdef bint came = False
        self.turns.look_and_step()
        if self.worker_drives:
            self.monitor.arm_sleeper()
        while not self.stopping and not self.worker_drives and not self.leased:
            before = now
            if self.transport.progress() > 0:
                self.turns.step()
                came = True
                now = self.transport.now_ns()
                spin_until = now + self._spin_allowed(now)
                self.idle_polls = 0
            else:
                now = self.transport.now_ns()
                if now >= spin_until:
                    nap_ns = self.naps.allowed_ns(now, self.turns.step_at_ns) if came else 0
                    if nap_ns > 0 or self.transport.arm():
                        return nap_ns
            self._let_others_in(now < spin_until)
            self._note_preemption(before)
        return 0

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
