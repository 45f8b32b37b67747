"""Remote access: pulls, pushes and sets of keys that are not here, and serving those of other ranks.

    origin   submit: one ACCESS per owner and chunk -> owner   serve: REPLY -> origin   finish: rows to their places

A key that has left the owner is split off and forwarded along its location cache with the origin's rank; replies go
straight to the origin, which counts answered keys and learns from forwarded ones where they are now.

Guarantees
    * Each key of an operation is applied once, at the rank that owns it then (transport: a message is delivered once).
    * Serving never waits. At most ``WINDOW_REQUESTS`` requests of this rank are open at any other rank, which bounds the
      memory both ends spend on them.
Assumptions
    * Every method is called under the engine's lock.
"""

cimport cython
from libc.stdint cimport int64_t, uint8_t, uint32_t, uint64_t
from libcpp.vector cimport vector

from intentpm.runtime._native.journal cimport Journal
from intentpm.runtime._native.messages cimport AccessBody, AccessHeader
from intentpm.runtime._native.parking cimport ParkedMessage, Parking
from intentpm.runtime._native.requests cimport Operation, Request, RequestPool
from intentpm.runtime._native.table_state cimport TableState
from intentpm.transports.base cimport Transport

cdef enum:
    CHUNK_BYTES = 256 << 10      # of rows per message: small enough that copying and sending overlap
    WINDOW_REQUESTS = 32         # open per destination
    MAX_TABLES = 4096

cdef enum SubmitResult:
    SUBMITTED = 0
    WINDOW_FULL = 1              # call submit again when RequestPool.in_flight_to[blocked_on] has fallen
    SUBMIT_FAILED = 2            # operation.status says why; requests already open go on


# How far submit has come with an operation.
cdef struct Submission:
    const int64_t* keys          # the caller's batch
    char* rows                   # the caller's rows: read by push and set, written by pull
    uint32_t at                  # into operation.positions
    uint32_t count
    uint32_t blocked_on          # rank


# Keys of a pull of this rank's own that are on their way here, in the order of the caller's batch. It looks at the next one
# whenever management has done something: nothing is kept, looked up or freed per key.
cdef struct WaitingPull:
    TableState* table
    uint32_t request
    uint32_t generation
    uint32_t at                  # into ``keys``: those before are pulled, or asked for elsewhere
    uint32_t count
    uint32_t* keys               # owned


@cython.final
cdef class RemoteAccess:
    cdef Transport transport
    cdef RequestPool requests
    cdef TableState* tables[MAX_TABLES]
    cdef uint32_t table_count
    cdef vector[uint32_t] counted        # scratch: positions per owner
    cdef vector[uint32_t] servers        # scratch: who serves each position
    cdef readonly Parking parking
    cdef vector[WaitingPull] waiting
    cdef readonly Journal journal
    cdef vector[uint32_t] grouped        # scratch: keys of a request to be forwarded
    cdef vector[uint32_t] parked         # scratch: keys of a request that wait here for their row
    cdef readonly uint64_t served_keys
    cdef readonly uint64_t forwarded_keys
    cdef readonly uint64_t hops          # of answered forwarded keys, summed

    # Sorts ``positions`` (of keys not here) by owner into the operation.
    cdef bint group_by_owner(
        self, Operation* operation, const int64_t* keys, const uint32_t* positions, size_t count) noexcept nogil
    cdef SubmitResult submit(self, Operation* operation, Submission* submission) noexcept nogil
    # Message handlers. False: the message is malformed.
    cdef bint serve(
        self, uint32_t source, const AccessHeader* header, const char* body, size_t body_bytes) noexcept nogil
    cdef bint finish(
        self, uint32_t source, const AccessHeader* header, const char* body, size_t body_bytes) noexcept nogil
    # private
    cdef uint32_t _owner_at(self, const Operation* operation, const Submission* submission, uint32_t at) noexcept nogil
    cdef bint _request(
        self, Operation* operation, const Submission* submission, uint32_t owner, uint32_t count) noexcept nogil
    cdef bint _scatter(
        self, const Request* request, const AccessHeader* header, const AccessBody* sections) noexcept nogil
    cdef void _learn(self, TableState* table, uint32_t owner, uint32_t count, const AccessBody* sections) noexcept nogil
    cdef bint _answer(self, TableState* table, const AccessHeader* asked, const AccessBody* sections) noexcept nogil
    cdef bint _access_owned(self, TableState* table, int kind, int64_t key, char* row) noexcept nogil
    cdef void _fill_index(
        self, TableState* table, const AccessHeader* asked, const AccessBody* sections, AccessBody* reply) noexcept nogil
    cdef bint _forward(self, TableState* table, const AccessHeader* asked, const AccessBody* sections) noexcept nogil
    cdef void _forward_to(
        self, TableState* table, uint32_t owner, const AccessHeader* asked, const AccessBody* sections) noexcept nogil

    # A parked access whose key has arrived.
    cdef void serve_parked(self, TableState* table, uint32_t key, ParkedMessage* message) noexcept nogil
    # Keys have arrived, or will not: lets waiting pulls go on.
    cdef void step_waiting(self) noexcept nogil
    # How many accesses wait for the key.
    cdef uint32_t count_waiting(self, const TableState* table, uint32_t key) noexcept nogil
    cdef bint _pull_here(self, Operation* operation, Submission* submission) noexcept nogil
    cdef bint _wait_for_keys(
        self, Operation* operation, const Submission* submission, uint32_t first, uint32_t count) noexcept nogil
    cdef bint _go_on(self, WaitingPull* pull) noexcept nogil
    cdef int _ask_elsewhere(self, WaitingPull* pull) noexcept nogil
    cdef bint _access_here(self, Operation* operation, const Submission* submission) noexcept nogil
    cdef bint _park_own(self, Operation* operation, uint32_t at, int64_t key, const char* row) noexcept nogil
    cdef bint _park_if_coming(
        self, TableState* table, const AccessHeader* asked, const AccessBody* sections, uint32_t i) noexcept nogil
    cdef void _resume_own(self, TableState* table, uint32_t key, ParkedMessage* message) noexcept nogil


# A staged message body: allocated from the transport, released by it when sent.
#
# When memory runs out, a worker's call that was about to send fails alone. Any other message is one that another rank waits
# for, or relies on: without it the job cannot go on. ``Transport.out_of_memory`` tells the engine, which ends it.
cdef void unstage(void* body, int status) noexcept nogil
# NULL: out of memory. try_stage: the caller has a worker to tell. stage: it has none, and need not do more than stop here.
cdef char* try_stage(Transport transport, size_t size_bytes) noexcept nogil
cdef char* stage(Transport transport, size_t size_bytes) noexcept nogil
cdef bint send_staged(
    Transport transport, uint32_t destination, uint8_t message_id, const void* header, size_t header_bytes,
    char* body, size_t body_bytes) noexcept nogil
