"""The owner's side of management: what happens to a record that another rank sends for a key.

    ROUND -> serve_round
        owned here         what was written is applied and spread as news; then policy.pxd decides: the answer says
                           RESULT_ROW (you hold a replica), RESULT_MOVED (you own it now, and these hold it) or
                           RESULT_DROPPED (you no longer hold it)
        on its way here    parked until the row is here; whoever takes it out calls ``serve_parked``
        gone               forwarded to where this rank believes it is, with the epoch of that belief

Called by: Rounds (a ROUND has come), Unparking (``serve_parked``). Knows nobody of them; tells News and Hints.

Guarantees
    * I1: ownership leaves with the answer that brings the row, in one step; the forward pointer and the next epoch stay (I3).
    * A record is answered, parked or forwarded, once each, and what it brings is applied where it is answered (I5).
    * A key that others hold leaves with the list of them (hand_over.pxd).
    * A holder is known before the row it is granted is read, so no later write escapes its news.
Assumption: every method is called under the engine's lock.
"""

cimport cython
from libc.stdint cimport int64_t, uint8_t, uint32_t, uint64_t
from libcpp.vector cimport vector

from intentpm.runtime._native.cuts cimport Cuts
from intentpm.runtime._native.draft cimport Draft
from intentpm.runtime._native.hand_over cimport HandOver
from intentpm.runtime._native.hints cimport Hints
from intentpm.runtime._native.journal cimport Journal, Reason
from intentpm.runtime._native.messages cimport RoundBody, RoundHeader
from intentpm.runtime._native.news cimport News
from intentpm.runtime._native.parking cimport ParkedRecord, Parking
from intentpm.runtime._native.policy cimport Way
from intentpm.runtime._native.table_state cimport TableState
from intentpm.transports.base cimport Transport


@cython.final
cdef class Owner:
    cdef Transport transport
    cdef Parking parking
    cdef Journal journal
    cdef Cuts cuts
    cdef News news
    cdef Hints hints
    cdef Draft draft
    cdef readonly HandOver hand_over
    cdef uint32_t rank
    cdef int management
    cdef vector[uint32_t] left_over              # scratch: records of the round being served whose keys are not here, ...
    cdef vector[uint32_t] rows_at                # ... and where their rows are, in bytes
    cdef vector[uint32_t] parked_keys            # scratch: a round of parked records, section by section
    cdef vector[uint32_t] parked_epochs
    cdef vector[uint32_t] parked_versions
    cdef vector[uint8_t] parked_codes
    cdef vector[char] parked_rows
    cdef bint is_new                             # what the round being served has written (cuts.pxd)
    # Measured, smoothed (policy.Situation):
    cdef readonly double astray
    cdef double with_row
    cdef double stall_bytes
    cdef int64_t began_ns                        # when measuring began, ...
    cdef uint64_t began_bytes                    # ... and what this rank had sent by then
    cdef double costs[4]                         # of the decision being made, by Way
    # Counters.
    cdef readonly uint64_t relocations_out
    cdef readonly uint64_t forwarded_records
    cdef readonly uint64_t rows_spared           # answers that needed none

    # Answers the records whose keys are owned here; forwards or parks the rest.
    cdef void serve_round(self, TableState* table, const RoundHeader* asked, const RoundBody* body) noexcept nogil
    # Parked records whose keys have arrived; changes their order.
    cdef void serve_parked(self, TableState* table, vector[ParkedRecord]& records) noexcept nogil
    # Forgets a rank as a holder of keys owned here, but of those where ``holds`` (u8 [num_keys]; NULL: of none).
    cdef void forget_holder(self, TableState* table, uint32_t holder, const uint8_t* holds) noexcept nogil
    # private
    cdef size_t _serve_alike(self, TableState* table, vector[ParkedRecord]& records, size_t first) noexcept nogil
    cdef void _decide(
        self, TableState* table, uint32_t holder, uint32_t key, uint8_t record, uint32_t seen_version, const char* written,
        char* memory, RoundHeader* header) noexcept nogil
    cdef bint _has_row(
        self, TableState* table, uint32_t key, uint32_t holder, uint8_t record, uint32_t seen_version) noexcept nogil
    cdef uint32_t _copy_row(self, TableState* table, uint32_t key, uint32_t holder, uint8_t result, char* row) noexcept nogil
    cdef uint32_t _take_written(
        self, TableState* table, uint32_t key, uint32_t holder, uint8_t record, const char* written) noexcept nogil
    cdef Way _choose(
        self, TableState* table, uint32_t key, uint32_t holder, uint8_t record, uint32_t first_use_us) noexcept nogil
    cdef void _measure(self, const RoundHeader* asked) noexcept nogil
    cdef Reason _reason_to_lend(self, TableState* table, uint32_t key, uint32_t rank, uint8_t record) noexcept nogil
    cdef uint32_t _move_to(
        self, TableState* table, uint32_t key, uint32_t holder, char* row, uint8_t* apart) noexcept nogil
    cdef void _leave_to(self, TableState* table, uint32_t key, uint32_t holder, Reason reason) noexcept nogil
    cdef void _add_holder(
        self, TableState* table, uint32_t key, uint32_t rank, uint8_t record, uint32_t first_use_us) noexcept nogil
    cdef void _keep_holder(self, TableState* table, uint32_t key, uint32_t rank) noexcept nogil
    cdef void _remove_holder(self, TableState* table, uint32_t key, uint32_t rank) noexcept nogil
    cdef void _pass_on(self, TableState* table, const RoundHeader* asked, const RoundBody* body) noexcept nogil
    cdef void _park(
        self, TableState* table, const RoundHeader* asked, const RoundBody* body, uint32_t i, uint32_t at) noexcept nogil
    cdef void _forward(
        self, TableState* table, uint32_t owner, const RoundHeader* asked, const RoundBody* body, const
        vector[uint32_t]& numbers, const vector[uint32_t]& rows) noexcept nogil
