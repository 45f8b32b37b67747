"""The engine: the one place of a rank that touches threads, time and the transport.

Guarantees
    * Remote requests are served, and calls of workers answered, whether or not a Python thread holds the GIL.
    * No wait is endless: whoever waits checks the peers it waits for (``Control.check_silence``) and a lost peer ends it.
    * An idle rank sleeps in the kernel: no polling, no timers.

The lock guards the transport, the protocol objects (``RemoteAccess``, ``Control``, ``RequestPool``) and the directory. It is
held for one step at a time (one ``progress``, one submission) and never while sleeping; nobody waits for it holding the GIL,
and nobody but ``close`` waits for the GIL holding it.

Who progresses the transport (the *wheel*):
    THREAD    the progress thread: sleeps in epoll on {transport, wake_fd, look_fd, lease_fd}. The state when no worker waits
        and there is no lease.
    WORKER    a worker that waits drives itself, for the shortest latency: it takes the transport's descriptor out of the
        epoll set of the progress thread, which sleeps on the others alone; polls, then sleeps on {transport, driver_fd}. When
        done it puts the descriptor back (THREAD) or leaves it out (LEASED).
    LEASED    after a streak of short waits: the descriptor stays out for the next one, which takes it without a system call.
        LEASE_NS after the last wait the timer lease_fd has the progress thread take the wheel back.
    Other workers that wait meanwhile sleep on the condition ``answered``; whoever completes a call signals it, and so does a
    worker that leaves the wheel, for one of them may drive now.
    In every state a worker that notices an overdue look may progress once (``help``). It leaves the wheel where it is.
    With virtual time there is no thread and no wheel: the transport runs all ranks.
"""

cimport cython
from libc.stdint cimport int64_t, uint32_t, uint64_t

from intentpm.runtime._native.control cimport Control
from intentpm.runtime._native.inquiry cimport Inquiry
from intentpm.runtime._native.remote cimport RemoteAccess, Submission
from intentpm.runtime._native.requests cimport Operation, RequestPool
from intentpm.runtime._native.rounds cimport Rounds
from intentpm.runtime._native.table_state cimport TableState
from intentpm.foundation.system cimport pthread_cond_t, pthread_mutex_t
from intentpm.transports.base cimport Transport

# What a wait is for. Called under the lock.
ctypedef bint (*ready_fn)(void* engine, void* argument) noexcept nogil

cdef enum EngineState:
    ENGINE_RUNNING = 0
    ENGINE_FAILED = 1            # a rank is lost
    ENGINE_CLOSED = 2
    ENGINE_FORKED = 3            # this process is a forked child


@cython.final
cdef class Engine:
    cdef object __weakref__
    cdef readonly Transport transport
    cdef readonly RequestPool requests
    cdef readonly RemoteAccess remote
    cdef readonly Control control
    cdef readonly Rounds rounds
    cdef readonly Inquiry inquiry
    cdef uint32_t state          # atomic: EngineState; workers look at it before every call
    cdef pthread_mutex_t lock
    cdef pthread_cond_t answered
    cdef uint32_t contenders     # atomic: threads waiting for the lock
    # guarded by: lock
    cdef bint worker_drives
    cdef bint leased             # nobody drives, and the progress thread does not watch the transport either
    cdef readonly uint64_t leases  # taken since start
    cdef bint lease_is_timed     # lease_fd is set; leased implies it
    cdef int64_t left_ns         # when a worker last left the wheel; atomic: stored under the lock / the thread may look
    cdef int64_t taken_ns        # when one last took it
    cdef uint32_t streak         # short waits since there was a long time between two; disturbances take some off
    cdef bint driver_sleeps
    cdef uint32_t followers      # workers asleep on ``answered``
    cdef uint64_t seen_finished  # RequestPool.finished when waiters were last woken
    cdef bint stopping
    cdef uint32_t polls          # all, and those since something came: to yield now and then
    cdef uint32_t idle_polls
    cdef int64_t step_at_ns      # when management wants its next step
    cdef int64_t thread_wakes_ns  # when the progress thread's sleep, present or next, ends by itself
    cdef bint thread_sleeps
    cdef uint32_t kicked         # atomic: a worker has told the engine to look at its intents or writes
    cdef int64_t look_gap_ns     # guarded by: lock
    cdef int64_t look_due_ns     # atomic: when a kick that was not answered yet should have been
    cdef int64_t look_again_ns   # atomic: no kick has it look before, but an urgent one; the engine stores / workers load
    # descriptors, fixed after construction
    cdef int epoll_fd
    cdef int wake_fd             # wakes the progress thread
    cdef int look_fd             # a timer: wakes the progress thread to look, a while after it last did
    cdef int lease_fd            # a timer: wakes the progress thread to end a lease
    cdef int driver_fd           # wakes the driving worker
    cdef int64_t worker_spin_ns
    cdef int64_t thread_spin_ns
    cdef int64_t no_spin_until_ns    # the progress thread alone: it does not poll before that time ...
    cdef int64_t no_spin_ns          # ... nor for so long after it was preempted again

    cdef void acquire(self) noexcept nogil
    cdef void release(self) noexcept nogil
    # Waits until ``ready``; the lock is held before and after. False: it is ``until_ns`` and not ready.
    cdef bint drive(self, ready_fn ready, void* argument, int64_t until_ns) noexcept nogil
    # After progress or a submission outside drive: lets waiters see what has finished.
    cdef void wake_finished(self) noexcept nogil
    # Any thread, without the lock: something is due for management. It looks at once if that is urgent, else within
    # look_gap_ns. True: it should have looked long ago; call ``help`` (which does not wait for the lock).
    cdef bint kick(self, bint urgent) noexcept nogil
    cdef void help(self) noexcept nogil
    cdef void sync(self, Operation* operation) noexcept nogil
    # From a worker thread holding the GIL: waits for an operation, looks after signals; raises what went wrong.
    cdef int wait_operation(self, Operation* operation, double timeout_s, object what) except -1
    # Sends what an operation needs from other ranks; waits (driving) while a destination's window is full.
    cdef void submit(
        self, Operation* operation, Submission* submission, const uint32_t* positions, bint will_wait) noexcept nogil
    # Ends an operation's interest in its answers. Afterwards nothing writes to the caller's memory.
    cdef void abandon(self, Operation* operation) noexcept nogil
    cdef int raise_state(self) except -1
    cdef void step(self) noexcept nogil
    cdef void look_and_step(self) noexcept nogil
    # private
    cdef void _let_others_in(self, bint polls_on) noexcept nogil
    cdef void _follow(self, int64_t until_ns) noexcept nogil
    cdef void _poll_until(self, ready_fn ready, void* argument, int64_t until_ns) noexcept nogil
    cdef void _sleep_driving(self, int64_t timeout_ns) noexcept nogil
    cdef void _wake_waiters(self) noexcept nogil
    cdef void _watch_transport(self, bint watch) noexcept nogil
    cdef void _take_wheel(self) noexcept nogil
    cdef void _shorten_streak(self) noexcept nogil
    cdef void _leave_wheel(self) noexcept nogil
    cdef void _lease(self) noexcept nogil
    cdef bint _lease_goes_on(self) noexcept nogil
    cdef void _end_lease(self) noexcept nogil
    cdef void _wake_thread(self) noexcept nogil
    cdef void _wake_driver(self) noexcept nogil
    cdef void _arm_sleeper(self) noexcept nogil
    cdef void _run(self) noexcept nogil
    cdef void _serve_for_a_while(self, bint more_expected) noexcept nogil
    cdef _wait(self, ready_fn ready, void* argument, double timeout_s, object what)
    cdef _payloads(self)
    cdef int _sleep_ms(self) noexcept nogil
    cdef int64_t _spin_allowed(self, int64_t now_ns) noexcept nogil
    cdef void _note_preemption(self, int64_t before_ns) noexcept nogil
    cdef void _close_descriptors(self) noexcept nogil
