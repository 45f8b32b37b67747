"""A UCX context and its one worker: started with our settings, stopped in order."""

cimport cython
from intentpm.transports.ucp cimport (
    UcpFunctions, ucp_am_recv_callback_t, ucp_context_h, ucp_ep_h, ucp_worker_h, ucs_status_t)


cdef enum:
    LISTED_PATHS = 16


@cython.final
cdef class UcxWorker:
    cdef const UcpFunctions* ucp
    cdef ucp_context_h context
    cdef ucp_worker_h handle           # NULL: stopped
    cdef int event_fd                  # UCX's, readable when an armed worker has work
    cdef readonly dict settings        # made here, by name without UCX_

    cdef int _start_context(self, size_t size, double peer_timeout_s, dict options) except -1
    cdef int _start_worker(self) except -1
    cdef int _check(self, ucs_status_t status, str what) except -1
    cdef int _check_setting(self, ucs_status_t status, str name, str value) except -1
    cdef int _check_header_room(self) except -1
    # Active messages ``message`` go to ``callback(argument, ...)`` during progress.
    cdef int receive(self, unsigned int message, ucp_am_recv_callback_t callback, void* argument) except -1
    cdef bytes address(self)
    # The "transport/device" pairs towards a peer, as UCX lists them.
    cdef list paths(self, ucp_ep_h endpoint)
    # First the worker, with everything in flight; then, when its memory is unregistered, the context. Idempotent.
    cdef void stop(self) noexcept
    cdef void release_context(self) noexcept
