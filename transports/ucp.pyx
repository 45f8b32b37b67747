"""Finds UCP's functions at run time, so that intentpm builds and imports where UCX is not installed."""

from posix.dlfcn cimport dlsym

from intentpm.foundation.errors import TransportUnavailableError
from intentpm.transports import ucx_library

cdef UcpFunctions _functions
cdef object _library = None    # keeps the library loaded; set once _functions is complete


cdef const UcpFunctions* load_functions() except NULL:
    global _library
    if _library is None:
        library = ucx_library.load_library()
        _resolve(library, &_functions)
        _check_version(library)
        _library = library
    return &_functions


cdef str text_of(const UcpFunctions* ucp, ucs_status_t status):
    return ucp.status_string(status).decode()


def version() -> tuple[int, int, int]:
    """(major, minor, release) of the UCX library in use, loading it if needed.

    Raises TransportUnavailableError if there is none.
    """
    cdef unsigned int major, minor, release
    load_functions().get_version(&major, &minor, &release)
    return (major, minor, release)


def _check_version(library) -> None:
    cdef unsigned int major, minor, release
    _functions.get_version(&major, &minor, &release)
    if (major, minor) < ucx_library.OLDEST_VERSION or major != 1:
        oldest = ".".join(map(str, ucx_library.OLDEST_VERSION))
        raise TransportUnavailableError(
            f"{library._name} is UCX {major}.{minor}.{release}; intentpm needs UCX {oldest} or a later 1.x. Choose "
            f"another with {ucx_library.SWITCH}=wheel, system or a path")


cdef void* _symbol(object library, bytes name) except NULL:
    cdef size_t handle = library._handle
    cdef void* address = dlsym(<void*>handle, name)
    if address == NULL:
        raise TransportUnavailableError(
            f"{library._name} has no function {name.decode()}: it is too old or not UCX. Choose another with "
            f"{ucx_library.SWITCH}=wheel, system or a path")
    return address


cdef int _resolve(object library, UcpFunctions* f) except -1:
    (<void**>&f.get_version)[0] = _symbol(library, b"ucp_get_version")
    (<void**>&f.config_read)[0] = _symbol(library, b"ucp_config_read")
    (<void**>&f.config_modify)[0] = _symbol(library, b"ucp_config_modify")
    (<void**>&f.config_release)[0] = _symbol(library, b"ucp_config_release")
    (<void**>&f.init_version)[0] = _symbol(library, b"ucp_init_version")
    (<void**>&f.cleanup)[0] = _symbol(library, b"ucp_cleanup")
    (<void**>&f.worker_create)[0] = _symbol(library, b"ucp_worker_create")
    (<void**>&f.worker_destroy)[0] = _symbol(library, b"ucp_worker_destroy")
    (<void**>&f.worker_query)[0] = _symbol(library, b"ucp_worker_query")
    (<void**>&f.worker_get_address)[0] = _symbol(library, b"ucp_worker_get_address")
    (<void**>&f.worker_release_address)[0] = _symbol(library, b"ucp_worker_release_address")
    (<void**>&f.worker_progress)[0] = _symbol(library, b"ucp_worker_progress")
    (<void**>&f.worker_get_efd)[0] = _symbol(library, b"ucp_worker_get_efd")
    (<void**>&f.worker_arm)[0] = _symbol(library, b"ucp_worker_arm")
    (<void**>&f.worker_signal)[0] = _symbol(library, b"ucp_worker_signal")
    (<void**>&f.worker_flush_nbx)[0] = _symbol(library, b"ucp_worker_flush_nbx")
    (<void**>&f.worker_set_am_recv_handler)[0] = _symbol(library, b"ucp_worker_set_am_recv_handler")
    (<void**>&f.ep_create)[0] = _symbol(library, b"ucp_ep_create")
    (<void**>&f.ep_close_nbx)[0] = _symbol(library, b"ucp_ep_close_nbx")
    (<void**>&f.ep_query)[0] = _symbol(library, b"ucp_ep_query")
    (<void**>&f.am_send_nbx)[0] = _symbol(library, b"ucp_am_send_nbx")
    (<void**>&f.am_recv_data_nbx)[0] = _symbol(library, b"ucp_am_recv_data_nbx")
    (<void**>&f.am_data_release)[0] = _symbol(library, b"ucp_am_data_release")
    (<void**>&f.request_free)[0] = _symbol(library, b"ucp_request_free")
    (<void**>&f.mem_map)[0] = _symbol(library, b"ucp_mem_map")
    (<void**>&f.mem_unmap)[0] = _symbol(library, b"ucp_mem_unmap")
    # dlsym searches a library's dependencies too, and libucs is one of libucp's.
    (<void**>&f.status_string)[0] = _symbol(library, b"ucs_status_string")
    return 0
