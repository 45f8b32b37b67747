"""Worker, for the workers of devices, which do the same with arrays that lie there (``device_worker``)."""

from libc.stdint cimport int32_t, int64_t, uint32_t
from libcpp.vector cimport vector

cimport numpy as cnp

from intentpm.runtime._native.duplicates cimport Duplicates
from intentpm.runtime._native.engine cimport Engine
from intentpm.runtime._native.intents cimport IntentQueue
from intentpm.runtime._native.key_filter cimport KeyFilter
from intentpm.runtime._native.requests cimport Operation
from intentpm.runtime._native.store cimport Table
from intentpm.runtime.futures cimport Future, OpenWrites
from intentpm.runtime.workers_of_rank cimport CountedWorker, WorkersOfRank


cdef enum WorkerUse:
    WORKER_IDLE = 0
    WORKER_BUSY = 1
    WORKER_CLOSED = 2


cdef class Worker(CountedWorker):
    cdef Engine engine
    cdef readonly object manager
    cdef IntentQueue intents             # holds the clock
    cdef readonly uint32_t worker_id
    cdef vector[int32_t] misses          # scratch of the call in progress
    cdef double lr                       # of the push_grad in progress
    cdef Duplicates duplicates           # scratch of push_grad
    cdef dict steps                      # calls of push_grad per table, of those corrected by them; exact: clocks
    cdef WorkerUse use                   # guarded by: GIL
    cdef bint writes_now                 # it is past the gate
    cdef WorkersOfRank workers
    cdef bint managed                    # intents are acted on
    cdef OpenWrites open_writes
    cdef KeyFilter open_keys             # with unacknowledged writes
    cdef object exact                    # with init(sync="exact"): exact_clocks.ExactClocks; else None

    cdef _end(self)
    cdef _refuse(self)
    # Checks the call, settles what must be settled first, and takes the worker. Returns the keys.
    cdef cnp.ndarray _begin(self, Table table, object keys)
    # Of a call that writes, before it does: from here on to ``_end_write`` a cut waits for it.
    cdef int _pass_gate(self) except -1
    cdef int _end_write(self) except -1
    cdef cnp.ndarray _check_call(self, Table table, object keys)
    cdef _signal(self, Table table, cnp.ndarray keys, int64_t start, int64_t end)
    cdef void _kick(self, bint urgent) noexcept
    # Serves what is here; the positions of the other keys are then in ``misses``.
    cdef _access_local(self, Table table, int kind, cnp.ndarray keys, char* rows)
    cdef void _note_dirt(self) noexcept
    cdef void _access_rows(self, Table table, int kind, const int64_t* keys, int64_t count, char* rows) noexcept nogil
    # The missed keys of a blocking call.
    cdef _access_remote(self, Operation* operation, Table table, int kind, cnp.ndarray keys, cnp.ndarray rows)
    cdef _submit(self, Operation* operation, cnp.ndarray keys, char* rows, bint will_wait)
    cdef _write(self, Table table, int kind, object keys, object values)
    cdef Future _write_async(self, Table table, int kind, object keys, object values)
    cdef Future _begin_write(self, Table table, int kind, cnp.ndarray keys, cnp.ndarray rows)
    cdef Future _new_future(self, Table table, int kind, object rows)
    cdef _settle_own_writes(self, cnp.ndarray keys)
    cdef _settle_writes(self, object timeout)
    cdef _wait_synced(self, bint settles, object timeout)
    cdef Future _sync(self, bint settles)
