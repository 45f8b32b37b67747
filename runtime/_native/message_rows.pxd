"""How long the rows of one record or result are, in a ROUND, ANSWER or REFRESH (messages.pxd).

A length is a multiple of the size of a number of the state, so each row is aligned, whatever precedes it.
"""

from libc.stdint cimport uint8_t

from intentpm.runtime._native.messages cimport (
    RECORD_ADD, RECORD_GRADIENT, RECORD_SET, RECORD_STEP, RESULT_KEPT, has_row, is_fetched, is_weights,
)
from intentpm.runtime._native.row_optimiser cimport short_bytes
from intentpm.runtime._native.table_state cimport TableState


cdef inline size_t pushed_bytes(const TableState* table, uint8_t record) noexcept nogil:
    """Of a record's delta or value, which precedes its steps."""
    return table.weights_bytes if record & (RECORD_ADD | RECORD_SET) else 0


cdef inline size_t kept_bytes(const TableState* table, uint8_t record) noexcept nogil:
    """Of a record's steps."""
    if not record & RECORD_STEP:
        return 0
    return table.optimiser.gradient_bytes if record & RECORD_GRADIENT else table.optimiser.kept_bytes


cdef inline size_t written_bytes(const TableState* table, uint8_t record) noexcept nogil:
    return pushed_bytes(table, record) + kept_bytes(table, record)


cdef inline size_t once_written_bytes(const TableState* table) noexcept nogil:
    """Of what one write leaves for the owner: a step, where there is an optimiser."""
    if table.optimiser == NULL:
        return table.weights_bytes
    return table.optimiser.gradient_bytes if table.optimiser.gradient_bytes else table.optimiser.kept_bytes


cdef inline size_t fetched_bytes(const TableState* table) noexcept nogil:
    """Of a row that is copied for one use."""
    return short_bytes(table.optimiser) if takes_weights(table) else table.stored_bytes


cdef inline size_t result_bytes(const TableState* table, uint8_t result) noexcept nogil:
    if is_weights(result):
        return table.weights_bytes
    if is_fetched(result):
        return fetched_bytes(table)
    return (has_row(result) + ((result & RESULT_KEPT) != 0)) * table.stored_bytes


cdef inline bint takes_weights(const TableState* table) noexcept nogil:
    """Whether a replica's weights may be newer than its state."""
    return table.optimiser != NULL and table.optimiser.show != NULL


cdef inline bint takes_record(const TableState* table, uint8_t record) noexcept nogil:
    """Else its length is not to be asked for."""
    if table.optimiser == NULL:
        return not record & (RECORD_STEP | RECORD_GRADIENT)
    return not record & RECORD_GRADIENT or (record & RECORD_STEP) != 0 and table.optimiser.gradient_bytes > 0


cdef inline bint takes_result(const TableState* table, uint8_t result) noexcept nogil:
    return takes_weights(table) or not (is_weights(result) or is_fetched(result))
