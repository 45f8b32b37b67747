"""Rows that move between the host and their slab beside what is done to other rows, on a stream of their own.

    in     host -own stream-> the exchange's block on the device -rows' stream, later-> slab
    out    slab -rows' stream-> the exchange's block on the device -own stream-> host

So the bus is busy while kernels run, and what a batch waits for is the rows that it needs.

Guarantees
    * The slab is touched by the stream of the rows alone, in the order of the calls.
    * Rows that go out are as they were when ``take_out`` was called, whatever is put in their slots afterwards.
Assumptions
    * As ``device_rows.pxd``: the caller holds ``rows.lock``; False: no memory, or the device failed.
    * Rows that were sent are put in place after ``await_arrival``.
"""

from libcpp.vector cimport vector

from intentpm.gpu.device cimport Device, EventHandle, StreamHandle
from intentpm.gpu.device_rows cimport DeviceRows
from intentpm.gpu.exchanges cimport Exchange


cdef class RowMoves:
    cdef DeviceRows rows
    cdef Device device
    cdef StreamHandle stream
    cdef EventHandle ended
    cdef vector[Exchange*] under_way     # guarded by: rows.lock

    # The rows of an exchange set out for the device; ``done`` says that they have come.
    cdef bint send(self, Exchange* exchange) noexcept nogil
    # The rows' stream waits for them.
    cdef bint await_arrival(self, Exchange* exchange) noexcept nogil
    # Then into the slots of ``slots``, another exchange of as many; those below 0 are skipped.
    cdef bint put_in_place(self, Exchange* exchange, Exchange* slots) noexcept nogil
    # Whole rows of its slots; ``done`` says that the host has them.
    cdef bint take_out(self, Exchange* exchange) noexcept nogil
    # The last call for an exchange that was sent or taken out, after ``put_in_place``, or ``done``.
    cdef void close(self, Exchange* exchange) noexcept nogil
