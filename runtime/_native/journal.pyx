"""What management did, for people; ``journal.pxd`` is the contract."""

from libc.stdint cimport uint64_t
from libc.stdlib cimport calloc, free

from intentpm.transports.base cimport Transport

cdef enum:
    FIRST_SAMPLE_INTERVAL_NS = 100_000
    MOST_SAMPLES = 4096


cdef bint _allocate(Ring* ring, uint64_t capacity) noexcept nogil:
    cdef Event* events = <Event*>calloc(capacity, sizeof(Event))
    if events == NULL:
        return False
    free(ring.events)
    ring.events = events
    ring.capacity = capacity
    ring.written = 0
    return True


cdef class Journal:
    def __cinit__(self):
        self.decisions.events = self.trace.events = NULL

    def __init__(self, Transport transport not None):
        self.transport = transport
        self.now_ns = transport.now_ns()
        if not _allocate(&self.decisions, DECISIONS):
            raise MemoryError

    def __dealloc__(self):
        free(self.decisions.events)
        free(self.trace.events)

    cdef bint begin_trace(self, uint64_t capacity) noexcept nogil:
        if not _allocate(&self.trace, capacity):
            return False
        self.samples.clear()
        self.has_passed_over = False
        self.sample_interval_ns = FIRST_SAMPLE_INTERVAL_NS
        self.tracing = True
        return True

    cdef void end_trace(self) noexcept nogil:
        self.tracing = False

    cdef void take_sample(self, const Sample* sample, bint at_once) noexcept nogil:
        if not at_once and not self.samples.empty() and (
                sample.time_ns < self.samples.back().time_ns + self.sample_interval_ns):
            self.passed_over = sample[0]
            self.has_passed_over = True
            return
        if self.has_passed_over:
            self._keep_sample(&self.passed_over)
            self.has_passed_over = False
        self._keep_sample(sample)

    cdef void _keep_sample(self, const Sample* sample) noexcept nogil:
        cdef size_t i
        if self.samples.size() == MOST_SAMPLES:      # keep every other one, and take half as many from now on
            for i in range(MOST_SAMPLES // 2):
                self.samples[i] = self.samples[2 * i]
            self.samples.resize(MOST_SAMPLES // 2)
            self.sample_interval_ns *= 2
        self.samples.push_back(sample[0])
