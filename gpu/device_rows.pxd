"""Rows in the memory of a device: slabs that grow, and what is done to many rows at once.

Guarantees
    * What is done to rows happens in the order of the calls: one stream has all of it, and it is the only lock that rows need.
    * A write returns when its rows were copied from memory of the caller, before it is done. Rows that are read come by an
      ``Exchange``: ``finish`` waits for it, without the lock.
    * Where a slot comes more than once in a call: all its deltas are added, one step is taken with the sum of its gradients,
      and the last value set stays. A slot below 0 is skipped.
Assumptions
    * The caller holds ``lock`` for every call but ``finish``, and over what else has to be in the same order: which slot is
      whose.
    * A call that returns False found no memory, or the device failed: ``Device.failure``.
"""

from libc.stddef cimport size_t
from libc.stdint cimport int32_t, int64_t
from libcpp.mutex cimport mutex

from intentpm.gpu.device cimport Device, EventHandle, KernelHandle, RowBatch, StepNumbers, StreamHandle
from intentpm.gpu.exchanges cimport Exchange, ExchangePool

# Room for rows. Fields are guarded by: lock.
cdef struct Slab:
    char* memory
    int* claims
    int64_t rows                 # there is room for

cdef struct RowKernels:
    KernelHandle gather
    KernelHandle gather_stored
    KernelHandle put             # set
    KernelHandle put_stored
    KernelHandle claim
    KernelHandle release
    KernelHandle open_sums       # NULL: integers
    KernelHandle add_to_sums
    KernelHandle add
    KernelHandle step            # NULL: no optimiser


cdef class DeviceRows:
    cdef readonly Device device
    cdef readonly object layout  # RowLayout
    cdef mutex lock
    cdef StreamHandle stream
    cdef Slab rows
    cdef size_t row_bytes
    cdef size_t stored_bytes
    cdef size_t stride_bytes
    cdef bint added_by_memory    # ``add`` needs no sums
    # private; guarded by: lock
    cdef RowKernels kernels
    cdef StepNumbers step_numbers
    cdef ExchangePool exchanges
    cdef int* marks
    cdef char* sums
    cdef int64_t scratch_rows
    cdef EventHandle moved
    cdef unsigned items
    cdef size_t sum_bytes        # of one sum

    # Makes room for slots [0, end).
    cdef bint reserve(self, int64_t end) noexcept nogil
    # The same, and for none beyond, where there is no room yet.
    cdef bint reserve_exactly(self, int64_t end) noexcept nogil
    # NULL: no memory. The caller fills the slots, and rows where the call is a write.
    cdef Exchange* open(self, int64_t count, size_t row_bytes) noexcept nogil
    # Brings the slots to the device, and the rows with them.
    cdef bint bring(self, Exchange* exchange, bint with_rows) noexcept nogil
    # Rows of the slab, whose slots are in the exchange, into the rows of the exchange; and to the host.
    cdef bint gather(self, Exchange* exchange, bint stored) noexcept nogil
    cdef bint fetch(self, Exchange* exchange) noexcept nogil
    # The rows of the exchange into those of the slab.
    cdef bint put(self, Exchange* exchange, bint stored) noexcept nogil
    cdef bint add(self, Exchange* exchange) noexcept nogil
    cdef bint step(self, Exchange* exchange, double lr) noexcept nogil
    # The last call for this exchange: its memory is used again when it is done.
    cdef void close(self, Exchange* exchange) noexcept nogil
    # Without the lock: waits until the rows have come; then the exchange is to be closed, with the lock.
    cdef bint finish(self, Exchange* exchange) noexcept nogil
    # private
    cdef void _retire(self, Slab* slab) noexcept nogil
    cdef bint _make_slab(self, Slab* slab, int64_t rows) noexcept nogil
    cdef bint _launch(self, KernelHandle kernel, const RowBatch* batch, unsigned lanes) noexcept nogil
    cdef RowBatch _batch(self, const int* slots, int64_t count, char* rows, size_t row_bytes) noexcept nogil
    cdef RowBatch _batch_of(self, Exchange* exchange) noexcept nogil
    cdef bint _sum_duplicates(self, RowBatch* batch) noexcept nogil
    cdef bint _reserve_scratch(self, int64_t count) noexcept nogil
    cdef bint _settle_moves(self) noexcept nogil
    cdef bint _gather(self, RowBatch* batch, bint stored) noexcept nogil
    cdef bint _put(self, RowBatch* batch, bint stored) noexcept nogil
    cdef bint _add(self, RowBatch* batch) noexcept nogil
    cdef bint _step(self, RowBatch* batch, double lr) noexcept nogil
    cdef Exchange* _fill(self, const int32_t[::1] slots, const unsigned char* rows, size_t row_bytes) noexcept nogil
