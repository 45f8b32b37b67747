"""Who is in the job: ranks that were lost, and how those that are left come to the same view of it (docs/membership.md).

With ``init(on_loss="stop")`` everybody is, until the job ends, and nothing here is looked at but who all are. With
``on_loss="continue"`` a rank that is lost is left out, and the others form anew:

    WHOLE    -a rank is lost, or another rank says so-> FORMING
    FORMING  -another rank is lost-> FORMING             a later view: what was said in the one before is void
    FORMING  -every step of the view was taken by all that are left-> WHOLE
    FORMING  -those that are left are too few (runtime/reforming.py)-> the job has failed for this rank, for good

A *view* is the set of ranks that are lost; it only grows. What ranks tell each other while they form (REFORM) carries their
view: who hears of a larger one takes it over, what comes with a smaller one is void. So all that take the last step in a view
have heard the same, from the same ranks. The steps are reforming.pyx's and runtime/reforming.py's.

Every other message carries, in the high bits of its id, how many ranks were lost when its sender last formed (the *epoch* of
membership). Those of another epoch, and all from a rank that is lost, are refused.

Messages are counted by the rank they go to and come from, but for signs of life and REFORM: when no rank sends any of its own
accord, and each has got as many as were sent to it, none is under way.

Called by: Dispatch (a message), Control (a loss), staging (counts), Reforming (the rest).
Assumption: every method is called under the engine's lock.
"""

cimport cython
from libc.stdint cimport int64_t, uint8_t, uint16_t, uint32_t, uint64_t
from libcpp.string cimport string
from libcpp.unordered_map cimport unordered_map
from libcpp.vector cimport vector

from intentpm.runtime._native.messages cimport ControlHeader
from intentpm.transports.base cimport Transport


# Workers look at it before every call: RUNNING must be 0.
cdef enum EngineState:
    ENGINE_RUNNING = 0
    ENGINE_TELLS = 1             # ranks were lost, the others have formed anew; not every worker has been told
    ENGINE_FAILED = 2            # a rank is lost, and the job with it
    ENGINE_FORMING = 3
    ENGINE_CLOSED = 4
    ENGINE_FORKED = 5            # this process is a forked child


@cython.final
cdef class Membership:
    cdef Transport transport
    cdef uint32_t rank
    cdef uint32_t size
    cdef readonly bint continues             # init(on_loss="continue"). Set once
    cdef uint32_t state                      # atomic: EngineState
    cdef int wake_fd                         # an eventfd that who forms anew sleeps on; -1: none
    # The view, newest; and of ranks that are lost why.
    cdef vector[uint8_t] lost
    cdef vector[string] why
    cdef readonly uint32_t lost_count
    cdef vector[uint8_t] left                # per rank: it has said goodbye, so it may close. Set by Control
    # In force: as of when this rank last formed.
    cdef vector[uint32_t] members            # ascending
    cdef vector[uint16_t] stand_ins          # per rank: who has its duties as a home. Itself, or the next that is left
    cdef uint32_t root                       # who gathers what all say: the first of the members
    cdef uint32_t place                      # of this rank among the members
    cdef readonly uint32_t formed            # how often the ranks have formed anew
    # Messages.
    cdef uint32_t epoch
    cdef vector[uint64_t] sent_to            # per rank
    cdef vector[uint64_t] received_from
    cdef readonly uint64_t refused
    # What ranks have said in this view: step << 32 | rank -> payload.
    cdef unordered_map[uint64_t, string] said

    cdef inline bint is_member(self, uint32_t rank) noexcept nogil:
        return not self.lost[rank]

    # False: a message of that id is not for who is a member now. The id is what it is without the epoch then.
    cdef bint admits(self, uint32_t source, uint8_t* message_id) noexcept nogil
    # A rank is lost, or another says so.
    cdef void lose(self, uint32_t rank, const char* why, size_t why_bytes) noexcept nogil
    # A REFORM has come. False: it makes no sense.
    cdef bint on_message(
        self, uint32_t source, const ControlHeader* header, const char* body, size_t body_bytes) noexcept nogil
    # Tells all that are left, this rank too.
    cdef void tell(self, uint32_t step, const char* payload, size_t payload_bytes) noexcept nogil
    # All that are left have told that step. Those that have closed since are lost, too.
    cdef bint have_told(self, uint32_t step) noexcept nogil
    # Has ``wake_fd`` wake who is to form anew, if that is to be done.
    cdef void wake_former(self) noexcept nogil
    # The view is in force from now on: messages are of its epoch.
    cdef void admit(self) noexcept nogil
    # private
    cdef bint _hear_of(self, uint32_t source, const char* view) noexcept nogil
    cdef void _send(self, uint32_t to, uint32_t step, const char* payload, size_t payload_bytes) noexcept nogil
