"""The seeded scheduler of a simulation and its tasks; ``sim_tasks.pxd`` is the contract."""

import os
import queue
import sys
import threading
import traceback

from cpython.exc cimport PyErr_CheckSignals
from libc.errno cimport EINTR, errno
from libcpp.vector cimport vector
from posix.time cimport CLOCK_REALTIME, clock_gettime, timespec

from intentpm.foundation.deadlines import wait_ns, wait_s

from intentpm.transports.sim_time cimport EVENT_WAKE, NEVER, Event, random_ns

cdef extern from "<semaphore.h>" nogil:
    int sem_init(sem_t*, int shared, unsigned int value)
    int sem_post(sem_t*)
    int sem_wait(sem_t*)
    int sem_timedwait(sem_t*, const timespec* until)
    int sem_destroy(sem_t*)

cdef enum:
    RUN_CHUNK = 4096             # events between two looks at signals
    TASK_TIMEOUT_S = 120         # of real time that a task may run without waiting
    LAST_EVENTS = 200_000        # for the tasks to end after a stop


class SimulationError(Exception):
    """A simulated run could not go on: out of budget, or nothing left that could happen. Names the seed."""


class OverBudgetError(SimulationError):
    """It took more events, or more virtual time, than it was allowed."""


cdef class TaskScheduler(Timeline):
    """A timeline with tasks. See ``SimNetwork``, which adds the ranks that they work for.

    wake_delay_us: a task goes on up to so long after what it waited for has come.
    """

    def __cinit__(self):
        sem_init(&self._handed_over, 0, 0)

    def __init__(self, seed: int, max_events: int, max_virtual_s, wake_delay_us):
        super().__init__(seed)
        self._max_events = max_events
        self._max_ns = wait_ns(max_virtual_s, "max_virtual_s")
        self._wake_delay_ns = wait_s(wake_delay_us, "wake_delay_us") * 1e3
        self._tasks = []

    def __dealloc__(self):
        sem_destroy(&self._handed_over)

    # -- public: tasks -----------------------------------------------------------------------------------------------

    def spawn(self, function, rank: int, name: str = "") -> "Task":
        """A task of ``rank`` that will call ``function()`` on a thread of its own, when ``run`` lets it.

        May be called by the scheduler and by tasks.
        """
        cdef Task task = Task.__new__(Task)
        task._scheduler = self
        task.name = name or getattr(function, "__name__", "task")
        task._function = function
        task.state.rank = rank
        self._tasks.append(task)
        if task.state.rank >= self._waiting.size():
            self._waiting.resize(task.state.rank + 1)
        self._active += 1
        task._runner = _take_runner()
        task._runner.put(task)
        self._schedule_wake(&task.state, self.now + random_ns(&self.random_state, self._wake_delay_ns))
        return task

    def pause(self, duration_us=0.0) -> None:
        """Called by a task: lets ``duration_us`` of virtual time pass (and a random delay, as the model says)."""
        cdef TaskState* task = self._own_state()
        cdef int64_t duration_ns = <int64_t>(<double>wait_s(duration_us, "duration_us") * 1e3)
        with nogil:
            self._schedule_wake(task, self.now + duration_ns + random_ns(&self.random_state, self._wake_delay_ns))
            self._hand_over(task)

    def park(self) -> None:
        """Called by a task: waits until somebody calls ``unpark`` with it."""
        cdef TaskState* task = self._own_state()
        with nogil:
            task.waiting = PARKED
            self._active -= 1
            self._hand_over(task)

    def unpark(self, Task task not None) -> None:
        if task.state.waiting == PARKED:
            task.state.waiting = NOT_WAITING
            self._active += 1
            self._schedule_wake(&task.state, self.now + random_ns(&self.random_state, self._wake_delay_ns))

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
                if self._failures or self.stopped or not self.run_event(NEVER):
                    break
                ran += 1
        self._raise_problem()
        return ran

    def _run_while_active(self, while_active: bool):
        cdef bint wait_for_tasks = while_active
        cdef bint more = True
        cdef int _i
        self._check_scheduler()
        while more and not self._failures and not self.stopped:
            with nogil:
                for _i in range(RUN_CHUNK):
                    more = self._active > 0 or not wait_for_tasks
                    more = more and not self._failures and not self.stopped and self.run_event(NEVER)
                    if not more:
                        break
            PyErr_CheckSignals()
        if wait_for_tasks and self._active > 0 and not self._failures and not self.stopped:
            self._stop("nothing is left to happen, but tasks wait")
        self._raise_problem()

    def _check_scheduler(self):
        if self.current != NULL:
            raise RuntimeError("a task cannot run the simulation it is part of")

    # -- the end of a run --------------------------------------------------------------------------------------------

    def _raise_problem(self):
        """Ends the other tasks, then raises the first problem, if there is one."""
        if not self._failures and not self.stopped:
            return
        waiting = self._waiting_tasks()
        if not self.stopped:
            self._stop("another task failed")
        self._end_tasks()
        for task in self._tasks:
            if task.failure is not None and not task.failed_after_stop:
                task.failure.add_note(f"in task {task.name!r} of simulation seed {self.seed}")
                raise task.failure
        kind = OverBudgetError if self.is_over_budget else SimulationError
        raise kind(f"simulation seed {self.seed}: {self.stopped_why.decode()}\n{waiting}")

    def _stop(self, why: str):
        cdef bytes text = why.encode()
        cdef const char* data = text
        with nogil:
            self.stop(data)

    def _end_tasks(self):
        cdef int _i
        with nogil:
            for _i in range(LAST_EVENTS):
                if self._active == 0 or not self.run_event(NEVER):
                    break
        if self._active > 0:
            raise SimulationError(
                f"simulation seed {self.seed}: {self.stopped_why.decode()}; then tasks did not end\n"
                f"{self._waiting_tasks()}")

    def _waiting_tasks(self) -> str:
        frames = sys._current_frames()
        lines = []
        for task in self._tasks:
            if not task.finished:
                frame = frames.get(task.thread_id)
                stack = "".join(traceback.format_stack(frame)[-6:]) if frame else ""
                lines.append(f"task {task.name!r} waits in\n{stack}")
        return "".join(lines)

    cdef void stop(self, const char* why) noexcept nogil:
        if self.stopped:
            return
        self.stopped = True
        self.stopped_why.assign(why)
        self._tell_stopped(why)

    # -- events ------------------------------------------------------------------------------------------------------

    cdef bint run_event(self, int64_t until_ns) noexcept nogil:
        cdef Event event
        if not self.is_due(until_ns):
            return False
        if not self.stopped and self._over_budget():
            return True
        event = self.take_next()
        if event.kind == EVENT_WAKE:
            self.record(EVENT_WAKE, event.rank, event.rank, 0, 0, 0)
            self._resume(<TaskState*>event.item)
        else:
            self.running_event = True
            self._happen(&event)
            self.running_event = False
        self.look_at_waiting(event.rank)
        return True

    cdef bint _over_budget(self) noexcept nogil:
        if self.events >= self._max_events:
            self.stop("the run is over its budget of events (max_events)")
        elif self.next_ns() > self._max_ns:
            self.stop("the run is over its budget of virtual time (max_virtual_s)")
        self.is_over_budget = self.stopped
        return self.stopped

    cdef void _happen(self, const Event* event) noexcept nogil:
        pass

    cdef void _tell_stopped(self, const char* why) noexcept nogil:
        pass

    # -- waiting -----------------------------------------------------------------------------------------------------

    cdef void run_until(
            self, condition_fn condition, void* context, void* argument, int64_t until_ns) noexcept nogil:
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
        self._waiting[task.rank].push_back(task)
        self._schedule_wake(task, until_ns)
        self._hand_over(task)

    cdef void look_at_waiting(self, uint32_t rank) noexcept nogil:
        cdef size_t i = 0
        cdef TaskState* task
        if rank >= self._waiting.size():
            return                       # it never had a task
        while i < self._waiting[rank].size():
            task = self._waiting[rank][i]
            if task.condition(task.context, task.argument):
                self._stop_waiting(task)
                self._schedule_wake(task, self.now + random_ns(&self.random_state, self._wake_delay_ns))
            else:
                i += 1

    cdef void _stop_waiting(self, TaskState* task) noexcept nogil:
        cdef vector[TaskState*]* waiting = &self._waiting[task.rank]
        cdef size_t i
        task.waiting = NOT_WAITING
        for i in range(waiting.size()):
            if waiting[0][i] == task:
                waiting.erase(waiting.begin() + i)
                return

    cdef void _schedule_wake(self, TaskState* task, int64_t at_ns) noexcept nogil:
        if task.has_wake:
            self.cancel(task.wake)
        task.has_wake = True
        task.wake = self.schedule(at_ns, EVENT_WAKE, task.rank, task.rank, task)

    # -- the turn ----------------------------------------------------------------------------------------------------

    cdef void _hand_over(self, TaskState* task) noexcept nogil:
        """On the task's thread: the scheduler runs, until it resumes this task."""
        self.current = NULL
        sem_post(&self._handed_over)
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
        while sem_timedwait(&self._handed_over, &until) != 0:
            if errno != EINTR:
                # The thread cannot be stopped: the process is of no use any more, but it can say why.
                with gil:
                    _give_up(self, f"a task has run for {TASK_TIMEOUT_S} s without waiting\n{self._waiting_tasks()}")


def _give_up(TaskScheduler scheduler, why):
    print(f"simulation seed {scheduler.seed}: {why}", file=sys.stderr, flush=True)
    os._exit(70)


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
        cdef TaskScheduler scheduler = self._scheduler
        self.thread_id = threading.get_ident()
        with nogil:
            while sem_wait(&self.state.go) != 0:
                pass
        try:
            self.value = self._function()
        except BaseException as failure:     # the scheduler raises it
            self.failure = failure
            self.failed_after_stop = scheduler.stopped
            scheduler._failures += not scheduler.stopped
        self.finished = True
        self._function = None
        self.state.waiting = FINISHED
        scheduler._active -= 1
        scheduler.current = NULL
        _idle_runners.append(self._runner)
        sem_post(&scheduler._handed_over)
