"""When management has its turn; ``turns.pxd`` is the contract."""

from libc.stdint cimport int64_t, uint32_t
from libc.string cimport strlen

from intentpm.foundation.losses cimport LOSS_DEVICE, LOSS_OUT_OF_MEMORY, loss_text
from intentpm.foundation.primitives cimport (
    exchange_acquire, load_acquire_i64, load_relaxed, store_release, store_release_i64,
)
from intentpm.foundation.system cimport set_timer
from intentpm.runtime._native.control cimport Control
from intentpm.runtime._native.intents cimport NEVER
from intentpm.runtime._native.membership cimport ENGINE_CLOSED, ENGINE_FAILED, ENGINE_FORMING
from intentpm.runtime._native.monitor cimport Monitor
from intentpm.runtime._native.requests cimport OPERATION_PEER_LOST
from intentpm.runtime._native.rounds cimport Rounds

cdef enum:
    HELP_AFTER_NS = 300_000      # a look so much overdue is done by the worker that notices
    # Between two looks at what workers signalled, unless one is urgent: as long as a round takes; twice as long after each look
    # that led to nothing. At least and at most:
    LOOK_GAP_NS = 400_000
    MOST_LOOK_GAP_NS = 12_800_000
    MOST_SLEEP_MS = 3_600_000    # of the progress thread, which then looks again


cdef class Turns:
    def __init__(self, Monitor monitor not None, Control control not None, Rounds rounds not None):
        self.monitor = monitor
        self.control = control
        self.membership = control.membership
        self.rounds = rounds
        self.transport = control.transport
        self.requests = control.requests
        self.step_at_ns = self.thread_wakes_ns = NEVER
        self.look_gap_ns = LOOK_GAP_NS

    cdef void step(self) noexcept nogil:
        if self.membership.state >= ENGINE_FORMING:
            if self.membership.state == ENGINE_FORMING:
                self.wake_finished()
                self.wake_waiters()          # who waits for what will not come, or for what ranks say while they form anew
            return
        self.step_at_ns = self.rounds.step(self.transport.now_ns())
        self.wake_finished()
        if self.step_at_ns < self.thread_wakes_ns:
            if self.transport.request_step(self.step_at_ns):
                self.thread_wakes_ns = self.step_at_ns
            elif self.monitor.thread_sleeps:
                self.thread_wakes_ns = self.step_at_ns
                self.monitor.wake_thread()

    cdef void look_and_step(self) noexcept nogil:
        # Taken by an exchange: so what a worker did before the kick that is taken back here is seen by what follows.
        if load_relaxed(&self.kicked) and exchange_acquire(&self.kicked, 0):
            self.rounds.intents.look()
            self.step()
            self.look_gap_ns = self.rounds.holder.round_ns if self.rounds.holder.is_busy() else 2 * self.look_gap_ns
            self.look_gap_ns = max(<int64_t>LOOK_GAP_NS, min(self.look_gap_ns, <int64_t>MOST_LOOK_GAP_NS))
            store_release_i64(&self.look_again_ns, self.transport.now_ns() + self.look_gap_ns)
        else:
            self.step()

    cdef void wake_finished(self) noexcept nogil:
        cdef uint32_t state = self.membership.state
        if state == ENGINE_FAILED or state >= ENGINE_CLOSED:
            pass
        elif self.transport.out_of_memory and not self.control.failed:
            self.control.fail(self.transport.rank, loss_text(LOSS_OUT_OF_MEMORY), strlen(loss_text(LOSS_OUT_OF_MEMORY)))
        elif self.device_failed and not self.control.failed:
            self.control.fail(self.transport.rank, loss_text(LOSS_DEVICE), strlen(loss_text(LOSS_DEVICE)))
        if self.control.failed and state != ENGINE_FAILED and state < ENGINE_CLOSED:
            store_release(&self.membership.state, ENGINE_FAILED)
            self.rounds.sync.fail(OPERATION_PEER_LOST)
            self.seen_finished = ~<uint64_t>0
        if self.requests.finished == self.seen_finished:
            return
        self.seen_finished = self.requests.finished
        self.wake_waiters()

    cdef void wake_waiters(self) noexcept nogil:
        self.monitor.wake_followers()
        self.monitor.wake_driver()

    cdef int begin_sleep_ms(self) noexcept nogil:
        self.thread_wakes_ns = self.step_at_ns
        if self.step_at_ns == NEVER:
            return -1
        return <int>max(<int64_t>0, min(
            (self.step_at_ns - self.transport.now_ns() + 999999) // 1000000, <int64_t>MOST_SLEEP_MS))

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
            self.monitor.wake_thread()
        else:
            set_timer(self.monitor.look_fd, look_at)
        return False

    cdef void help(self) noexcept nogil:
        # On a core that it shares with a computing worker, the progress thread gets half of the time, and not when it needs
        # it: after a burst of work it waits until the scheduler's next tick, a millisecond or more.
        if not self.monitor.try_acquire():
            return
        if not is_over(self):
            store_release_i64(&self.look_due_ns, self.transport.now_ns())
            self.transport.progress()
            self.look_and_step()
            self.monitor.arm_sleeper()
        self.monitor.release()
