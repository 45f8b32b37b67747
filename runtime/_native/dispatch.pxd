"""Which part of a rank a message is for.

Guarantee: a message that nobody understands ends its sender for this rank, and changes nothing.
The transport calls it, from inside ``progress`` or, with virtual time, when a step is due. Engine lock held.
"""

cimport cython

from intentpm.runtime._native.control cimport Control
from intentpm.runtime._native.inquiry cimport Inquiry
from intentpm.runtime._native.membership cimport Membership
from intentpm.runtime._native.remote cimport RemoteAccess
from intentpm.runtime._native.rounds cimport Rounds
from intentpm.runtime._native.serving cimport Serving
from intentpm.runtime._native.side_exchange cimport SideExchange
from intentpm.runtime._native.turns cimport Turns
from intentpm.transports.base cimport Transport


@cython.final
cdef class Dispatch:
    # Set once. The transport keeps a pointer to this object, which does not keep it alive.
    cdef Transport transport
    cdef Serving serving
    cdef RemoteAccess remote
    cdef Control control
    cdef Rounds rounds
    cdef Inquiry inquiry
    cdef Turns turns
    cdef SideExchange side
    cdef Membership membership
