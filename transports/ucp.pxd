"""The part of UCP's C interface that intentpm calls, declared here because UCX need not be installed to build intentpm.

UCX keeps this interface stable: structures grow at their end and a field counts only when its bit is in ``field_mask``.
Layouts and constants are those of UCX 1.21 (also valid for 1.13 to 1.20); ``tests/unit/test_ucp_layout.py`` compares
each with UCX's own headers where those are installed.
"""

from libc.stddef cimport size_t
from libc.stdint cimport int8_t, uint8_t, uint32_t, uint64_t


# An enum packed into one byte, negative for errors: a wider type here would read garbage from the rest of the register.
ctypedef int8_t ucs_status_t
# NULL: done; a small negative number as a pointer: a status; else: a request still in progress.
ctypedef void* ucs_status_ptr_t

cdef struct ucp_context
cdef struct ucp_worker
cdef struct ucp_ep
cdef struct ucp_mem
cdef struct ucp_config
cdef struct ucp_address

ctypedef ucp_context* ucp_context_h
ctypedef ucp_worker* ucp_worker_h
ctypedef ucp_ep* ucp_ep_h
ctypedef ucp_mem* ucp_mem_h
ctypedef ucp_config ucp_config_t
ctypedef ucp_address ucp_address_t


cdef enum:
    UCS_OK = 0
    UCS_INPROGRESS = 1
    UCS_ERR_NO_MEMORY = -4
    UCS_ERR_BUSY = -15
    UCS_ERR_CANCELED = -16
    UCS_ERR_REJECTED = -23
    UCS_ERR_CONNECTION_RESET = -25
    UCS_ERR_ENDPOINT_TIMEOUT = -80
    UCS_ERR_LAST = -100

    UCS_THREAD_MODE_SERIALIZED = 1
    UCS_MEMORY_TYPE_HOST = 0
    UCS_MEMORY_TYPE_CUDA = 1

    UCP_PARAM_FIELD_FEATURES = 1 << 0
    UCP_PARAM_FIELD_MT_WORKERS_SHARED = 1 << 5
    UCP_PARAM_FIELD_ESTIMATED_NUM_EPS = 1 << 6
    UCP_FEATURE_WAKEUP = 1 << 4
    UCP_FEATURE_AM = 1 << 6

    UCP_WORKER_PARAM_FIELD_THREAD_MODE = 1 << 0
    UCP_WORKER_PARAM_FIELD_FLAGS = 1 << 5
    UCP_WORKER_PARAM_FIELD_AM_ALIGNMENT = 1 << 7
    UCP_WORKER_FLAG_IGNORE_REQUEST_LEAK = 1 << 0
    UCP_WORKER_ATTR_FIELD_MAX_AM_HEADER = 1 << 3

    UCP_EP_PARAM_FIELD_REMOTE_ADDRESS = 1 << 0
    UCP_EP_PARAM_FIELD_ERR_HANDLING_MODE = 1 << 1
    UCP_EP_PARAM_FIELD_ERR_HANDLER = 1 << 2
    UCP_ERR_HANDLING_MODE_PEER = 1
    UCP_EP_CLOSE_FLAG_FORCE = 1 << 0
    UCP_EP_ATTR_FIELD_TRANSPORTS = 1 << 3

    UCP_MEM_MAP_PARAM_FIELD_ADDRESS = 1 << 0
    UCP_MEM_MAP_PARAM_FIELD_LENGTH = 1 << 1

    UCP_AM_HANDLER_PARAM_FIELD_ID = 1 << 0
    UCP_AM_HANDLER_PARAM_FIELD_FLAGS = 1 << 1
    UCP_AM_HANDLER_PARAM_FIELD_CB = 1 << 2
    UCP_AM_HANDLER_PARAM_FIELD_ARG = 1 << 3
    UCP_AM_FLAG_WHOLE_MSG = 1 << 0
    UCP_AM_RECV_ATTR_FLAG_RNDV = 1 << 17

    UCP_OP_ATTR_FIELD_CALLBACK = 1 << 1
    UCP_OP_ATTR_FIELD_USER_DATA = 1 << 2
    UCP_OP_ATTR_FIELD_DATATYPE = 1 << 3
    UCP_OP_ATTR_FIELD_FLAGS = 1 << 4
    UCP_OP_ATTR_FIELD_MEMORY_TYPE = 1 << 6

    UCP_DATATYPE_CONTIG = 0
    UCP_DATATYPE_IOV = 2
    UCP_DATATYPE_SHIFT = 3


ctypedef void (*ucp_send_nbx_callback_t)(void* request, ucs_status_t status, void* user_data) noexcept nogil
ctypedef void (*ucp_am_recv_data_nbx_callback_t)(
    void* request, ucs_status_t status, size_t length, void* user_data) noexcept nogil
ctypedef void (*ucp_err_handler_cb_t)(void* arg, ucp_ep_h ep, ucs_status_t status) noexcept nogil


cdef struct ucp_am_recv_param_t:
    uint64_t recv_attr
    ucp_ep_h reply_ep

ctypedef ucs_status_t (*ucp_am_recv_callback_t)(
    void* arg, const void* header, size_t header_length, void* data, size_t length,
    const ucp_am_recv_param_t* param) noexcept nogil

cdef struct ucp_params_t:
    uint64_t field_mask
    uint64_t features
    size_t request_size
    void* request_init
    void* request_cleanup
    uint64_t tag_sender_mask
    int mt_workers_shared
    size_t estimated_num_eps
    size_t estimated_num_ppn
    const char* name
    size_t node_local_id

cdef struct ucp_worker_params_t:
    uint64_t field_mask
    int thread_mode
    unsigned long cpu_mask[16]
    unsigned int events
    void* user_data
    int event_fd
    uint64_t flags
    const char* name
    size_t am_alignment
    uint64_t client_id

cdef struct ucp_worker_attr_t:
    uint64_t field_mask
    int thread_mode
    uint32_t address_flags
    ucp_address_t* address
    size_t address_length
    size_t max_am_header
    char name[32]
    size_t max_debug_string

cdef struct ucs_sock_addr_t:
    const void* addr
    uint32_t addrlen

cdef struct ucp_err_handler_t:
    ucp_err_handler_cb_t cb
    void* arg

cdef struct ucp_ep_params_t:
    uint64_t field_mask
    const ucp_address_t* address
    int err_mode
    ucp_err_handler_t err_handler
    void* user_data
    unsigned int flags
    ucs_sock_addr_t sockaddr
    void* conn_request
    const char* name
    ucs_sock_addr_t local_sockaddr

cdef struct ucp_transport_entry_t:
    const char* transport_name
    const char* device_name

cdef struct ucp_transports_t:
    ucp_transport_entry_t* entries
    unsigned int num_entries
    size_t entry_size

cdef struct ucp_ep_attr_t:
    uint64_t field_mask
    char name[32]
    uint64_t local_sockaddr[16]
    uint64_t remote_sockaddr[16]
    ucp_transports_t transports
    void* user_data

cdef struct ucp_mem_map_params_t:
    uint64_t field_mask
    void* address
    size_t length
    unsigned int flags
    unsigned int prot
    int memory_type
    const void* exported_memh_buffer

cdef struct ucp_dt_iov_t:
    void* buffer
    size_t length

cdef union ucp_request_callback_t:
    ucp_send_nbx_callback_t send
    ucp_am_recv_data_nbx_callback_t recv_am

cdef struct ucp_request_param_t:
    uint32_t op_attr_mask
    uint32_t flags
    void* request
    ucp_request_callback_t cb
    uint64_t datatype
    void* user_data
    void* reply_buffer
    int memory_type
    void* recv_info
    ucp_mem_h memh

cdef struct ucp_am_handler_param_t:
    uint64_t field_mask
    unsigned int id
    uint32_t flags
    ucp_am_recv_callback_t cb
    void* arg


# The functions, resolved by name from the libucp in use (the names of the fields, without their prefix "ucp_").
cdef struct UcpFunctions:
    void (*get_version)(unsigned int*, unsigned int*, unsigned int*) noexcept nogil
    ucs_status_t (*config_read)(const char*, const char*, ucp_config_t**) noexcept nogil
    ucs_status_t (*config_modify)(ucp_config_t*, const char*, const char*) noexcept nogil
    void (*config_release)(ucp_config_t*) noexcept nogil
    ucs_status_t (*init_version)(
        unsigned int, unsigned int, const ucp_params_t*, const ucp_config_t*, ucp_context_h*) noexcept nogil
    void (*cleanup)(ucp_context_h) noexcept nogil
    ucs_status_t (*worker_create)(ucp_context_h, const ucp_worker_params_t*, ucp_worker_h*) noexcept nogil
    void (*worker_destroy)(ucp_worker_h) noexcept nogil
    ucs_status_t (*worker_query)(ucp_worker_h, ucp_worker_attr_t*) noexcept nogil
    ucs_status_t (*worker_get_address)(ucp_worker_h, ucp_address_t**, size_t*) noexcept nogil
    void (*worker_release_address)(ucp_worker_h, ucp_address_t*) noexcept nogil
    unsigned int (*worker_progress)(ucp_worker_h) noexcept nogil
    ucs_status_t (*worker_get_efd)(ucp_worker_h, int*) noexcept nogil
    ucs_status_t (*worker_arm)(ucp_worker_h) noexcept nogil
    ucs_status_t (*worker_signal)(ucp_worker_h) noexcept nogil
    ucs_status_ptr_t (*worker_flush_nbx)(ucp_worker_h, const ucp_request_param_t*) noexcept nogil
    ucs_status_t (*worker_set_am_recv_handler)(ucp_worker_h, const ucp_am_handler_param_t*) noexcept nogil
    ucs_status_t (*ep_create)(ucp_worker_h, const ucp_ep_params_t*, ucp_ep_h*) noexcept nogil
    ucs_status_ptr_t (*ep_close_nbx)(ucp_ep_h, const ucp_request_param_t*) noexcept nogil
    ucs_status_t (*ep_query)(ucp_ep_h, ucp_ep_attr_t*) noexcept nogil
    ucs_status_ptr_t (*am_send_nbx)(
        ucp_ep_h, unsigned int, const void*, size_t, const void*, size_t, const ucp_request_param_t*) noexcept nogil
    ucs_status_ptr_t (*am_recv_data_nbx)(
        ucp_worker_h, void*, void*, size_t, const ucp_request_param_t*) noexcept nogil
    void (*am_data_release)(ucp_worker_h, void*) noexcept nogil
    void (*request_free)(void*) noexcept nogil
    ucs_status_t (*mem_map)(ucp_context_h, const ucp_mem_map_params_t*, ucp_mem_h*) noexcept nogil
    ucs_status_t (*mem_unmap)(ucp_context_h, ucp_mem_h) noexcept nogil
    const char* (*status_string)(ucs_status_t) noexcept nogil      # ucs_status_string, from libucs


# The functions of the process's one UCX library, loading it at the first call.
# Raises TransportUnavailableError saying what was looked for.
cdef const UcpFunctions* load_functions() except NULL

cdef str text_of(const UcpFunctions* ucp, ucs_status_t status)


# -- ucs_status_ptr_t, as UCX's header defines it --------------------------------------------------------------------
cdef inline bint is_request(ucs_status_ptr_t pointer) noexcept nogil:
    return <size_t>pointer - 1 < <size_t>(<long>UCS_ERR_LAST) - 1

cdef inline ucs_status_t status_of(ucs_status_ptr_t pointer) noexcept nogil:
    return UCS_INPROGRESS if is_request(pointer) else <ucs_status_t><long>pointer

cdef inline uint64_t contiguous_bytes() noexcept nogil:
    return (1 << UCP_DATATYPE_SHIFT) | UCP_DATATYPE_CONTIG
