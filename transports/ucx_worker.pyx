"""Starts UCX: reads its settings, opens its transports, and explains why where it cannot."""

import os

from libc.string cimport memset

from intentpm.foundation.deadlines import call_s
from intentpm.foundation.errors import ConfigError, TransportUnavailableError
from intentpm.transports import ucp as ucp_module
from intentpm.transports import ucx_library, ucx_limits

from intentpm.transports.base cimport BODY_ALIGNMENT
from intentpm.transports.ucp cimport *
from intentpm.transports.ucx_wire cimport WireHeader

cdef enum:
    OLDEST_MINOR = 13                  # the UCX interface we ask for: 1.13


cdef class UcxWorker:
    """Raises TransportUnavailableError (no UCX, or it cannot start here, and why) and ConfigError (unknown option)."""

    def __init__(self, size_t size, double peer_timeout_s, dict options):
        self.settings = {}
        self.event_fd = -1
        self.ucp = load_functions()
        try:
            self._start_context(size, peer_timeout_s, options)
            self._start_worker()
        except BaseException:
            self.stop()
            self.release_context()
            raise

    cdef int _start_context(self, size_t size, double peer_timeout_s, dict options) except -1:
        cdef ucp_config_t* config = NULL
        cdef ucp_params_t params
        self._check(self.ucp.config_read(NULL, NULL, &config), "UCX cannot read its configuration (UCX_* variables)")
        try:
            # An older UCX may not know one of our defaults: it keeps its own. What the caller asks for must work.
            for name, value in _defaults(peer_timeout_s).items():
                if self.ucp.config_modify(config, name.encode(), value.encode()) == UCS_OK:
                    self.settings[name] = value
            for name, value in options.items():
                self._check_setting(self.ucp.config_modify(config, name.encode(), value.encode()), name, value)
                self.settings[name] = value
            memset(&params, 0, sizeof(params))
            params.field_mask = UCP_PARAM_FIELD_FEATURES | UCP_PARAM_FIELD_ESTIMATED_NUM_EPS
            params.features = UCP_FEATURE_AM | UCP_FEATURE_WAKEUP
            params.estimated_num_eps = size
            self._check(self.ucp.init_version(1, OLDEST_MINOR, &params, config, &self.context), "UCX cannot start")
        finally:
            self.ucp.config_release(config)
        return 0

    cdef int _start_worker(self) except -1:
        cdef ucp_worker_params_t params
        memset(&params, 0, sizeof(params))
        params.field_mask = (
            UCP_WORKER_PARAM_FIELD_THREAD_MODE | UCP_WORKER_PARAM_FIELD_FLAGS | UCP_WORKER_PARAM_FIELD_AM_ALIGNMENT)
        params.thread_mode = UCS_THREAD_MODE_SERIALIZED
        # Sends to a lost peer may stay with UCX for good; whoever sent them has been told.
        params.flags = UCP_WORKER_FLAG_IGNORE_REQUEST_LEAK
        params.am_alignment = BODY_ALIGNMENT
        self._check(self.ucp.worker_create(self.context, &params, &self.handle), "UCX cannot open its transports")
        self._check(self.ucp.worker_get_efd(self.handle, &self.event_fd), "UCX has no event descriptor here")
        return self._check_header_room()

    cdef int _check_header_room(self) except -1:
        cdef ucp_worker_attr_t attributes
        attributes.field_mask = UCP_WORKER_ATTR_FIELD_MAX_AM_HEADER
        self._check(self.ucp.worker_query(self.handle, &attributes), "UCX cannot describe its worker")
        if attributes.max_am_header < sizeof(WireHeader):
            raise TransportUnavailableError(
                f"the transports UCX chose carry headers of {attributes.max_am_header} bytes; {sizeof(WireHeader)} are "
                "needed: change UCX_TLS")
        return 0

    cdef int _check(self, ucs_status_t status, str what) except -1:
        if status == UCS_OK:
            return 0
        version = ".".join(map(str, ucp_module.version()))
        causes = "".join([f"; {line}" for line in ucx_limits.explain_limits()])
        raise TransportUnavailableError(
            f"{what}: {text_of(self.ucp, status)} (UCX {version}; {ucx_library.describe_settings()}; {self.settings})"
            f"{causes}")

    cdef int _check_setting(self, ucs_status_t status, str name, str value) except -1:
        if status != UCS_OK:
            raise ConfigError(f"UCX has no setting {name}={value}: {text_of(self.ucp, status)}")
        return 0

    cdef int receive(self, unsigned int message, ucp_am_recv_callback_t callback, void* argument) except -1:
        cdef ucp_am_handler_param_t params
        params.field_mask = (
            UCP_AM_HANDLER_PARAM_FIELD_ID | UCP_AM_HANDLER_PARAM_FIELD_FLAGS | UCP_AM_HANDLER_PARAM_FIELD_CB |
            UCP_AM_HANDLER_PARAM_FIELD_ARG)
        params.id = message
        params.flags = UCP_AM_FLAG_WHOLE_MSG
        params.cb = callback
        params.arg = argument
        return self._check(self.ucp.worker_set_am_recv_handler(self.handle, &params), "UCX refuses a message handler")

    cdef bytes address(self):
        cdef ucp_address_t* data = NULL
        cdef size_t size_bytes = 0
        self._check(self.ucp.worker_get_address(self.handle, &data, &size_bytes), "UCX has no address")
        address = (<char*>data)[:size_bytes]
        self.ucp.worker_release_address(self.handle, data)
        return address

    cdef list paths(self, ucp_ep_h endpoint):
        cdef ucp_ep_attr_t attributes
        cdef ucp_transport_entry_t entries[LISTED_PATHS]
        # Zeroed: UCX 1.13 does not know this question and leaves the list as it is.
        memset(entries, 0, sizeof(entries))
        attributes.field_mask = UCP_EP_ATTR_FIELD_TRANSPORTS
        attributes.transports.entries = entries
        attributes.transports.num_entries = LISTED_PATHS
        attributes.transports.entry_size = sizeof(ucp_transport_entry_t)
        if endpoint == NULL or self.ucp.ep_query(endpoint, &attributes) != UCS_OK:
            return []
        return [
            f"{entries[i].transport_name.decode()}/{entries[i].device_name.decode()}"
            for i in range(attributes.transports.num_entries) if entries[i].transport_name != NULL]

    cdef void stop(self) noexcept:
        if self.handle != NULL:
            self.ucp.worker_destroy(self.handle)
            self.handle = NULL

    cdef void release_context(self) noexcept:
        if self.context != NULL:
            self.ucp.cleanup(self.context)
            self.context = NULL


def _defaults(double peer_timeout_s):
    """UCX settings for which we have a better default than UCX, unless the environment sets them."""
    ours = {
        # Lets UCX use shared memory together with reports of lost peers.
        "MM_ERROR_HANDLING": "y",
        "KEEPALIVE_INTERVAL": f"{max(call_s(peer_timeout_s / 4), 0.05):.3f}s",
    }
    if ucp_module.version() >= (1, 17, 0):
        # Through shared memory UCX's rendezvous copies as often as its eager protocol: slower around 1 MiB.
        ours["RNDV_THRESH"] = "intra:2m,inter:auto"
    return {name: value for name, value in ours.items() if f"UCX_{name}" not in os.environ}
