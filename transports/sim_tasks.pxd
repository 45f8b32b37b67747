"""Tasks: the workers' threads of a simulation, of which exactly one runs at any time, and the loop that runs events.

Called by: tests and benches (``spawn``, ``run``, ``pause`` ...); SimTransport, when a call of the runtime waits.

The thread that called ``run`` is the *scheduler*. A task that waits (``run_until``) hands over to it, and the scheduler
runs events until the task may go on: what it waited for has come, its time is up, or its pause is over. Each is a WAKE
event, so that a seed decides who goes on when.

Guarantees
    * Between two hand-overs nothing else of the simulation runs: a task needs no lock against another.
    * A run ends: past its budget of events or virtual time, or when nothing can happen any more, ``_tell_stopped`` lets
      everything that waits end, and the scheduler raises SimulationError naming the seed.
Assumptions
    * ``run`` and its like are called by one thread, which is no task.
    * Whoever overrides the hooks (``sim``) runs callbacks in ``_happen`` and ``_tell_stopped`` only.
Guard of every field: the turn. It passes by ``_handed_over`` and ``TaskState.go``, whose posts and waits order memory.
"""

from libc.stdint cimport int64_t, uint32_t, uint64_t
from libcpp.string cimport string
from libcpp.vector cimport vector

from intentpm.transports.base cimport condition_fn
from intentpm.transports.sim_time cimport Event, Timeline

cdef extern from "<semaphore.h>" nogil:
    ctypedef struct sem_t:
        pass

cdef enum Waiting:
    NOT_WAITING = 0              # runs, or has a WAKE event that will make it run
    WAITS_FOR_CONDITION = 1
    PARKED = 2                   # until unpark()
    FINISHED = 3

cdef struct TaskState:
    sem_t go                     # posted by the scheduler: run
    uint32_t rank
    Waiting waiting
    condition_fn condition
    void* context
    void* argument
    bint has_wake
    uint32_t wake                # slot of its WAKE event, if it has one


cdef class TaskScheduler(Timeline):
    cdef readonly bint stopped
    cdef bint is_over_budget                     # why it is
    cdef string stopped_why
    cdef TaskState* current              # the task that runs; NULL: the scheduler does
    cdef bint running_event              # inside a callback: progress() is forbidden
    cdef list _tasks
    cdef sem_t _handed_over              # posted by the task that hands over
    cdef vector[vector[TaskState*]] _waiting     # of each rank: tasks whose condition may become true
    cdef uint32_t _active                # tasks neither parked nor finished
    cdef uint32_t _failures              # of tasks
    cdef uint64_t _max_events
    cdef int64_t _max_ns
    cdef double _wake_delay_ns

    # Runs the next event if it is not after ``until_ns``. False: there is none.
    cdef bint run_event(self, int64_t until_ns) noexcept nogil
    # The calling thread waits: a task hands over; the scheduler itself runs events meanwhile.
    cdef void run_until(
        self, condition_fn condition, void* context, void* argument, int64_t until_ns) noexcept nogil
    # Ends the run: once, and for the first reason given.
    cdef void stop(self, const char* why) noexcept nogil
    # Something happened at ``rank``: its tasks may go on.
    cdef void look_at_waiting(self, uint32_t rank) noexcept nogil

    # Hooks: what an event other than WAKE does; and telling every rank that the run has stopped.
    cdef void _happen(self, const Event* event) noexcept nogil
    cdef void _tell_stopped(self, const char* why) noexcept nogil

    cdef TaskState* _own_state(self) except NULL
    cdef bint _over_budget(self) noexcept nogil
    cdef void _schedule_wake(self, TaskState* task, int64_t at_ns) noexcept nogil
    cdef void _stop_waiting(self, TaskState* task) noexcept nogil
    cdef void _hand_over(self, TaskState* task) noexcept nogil
    cdef void _resume(self, TaskState* task) noexcept nogil


cdef class Task:
    """A worker's thread in the simulation. Made by ``SimNetwork.spawn``."""
    cdef readonly str name
    cdef readonly object value           # what its function returned
    cdef readonly object failure         # or raised
    cdef readonly bint failed_after_stop   # because the simulation ended
    cdef readonly bint finished
    cdef readonly object thread_id
    cdef TaskScheduler _scheduler
    cdef object _runner
    cdef object _function
    cdef TaskState state
