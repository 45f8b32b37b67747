"""Many rows in one call; ``batches.pxd`` is the contract."""

from libc.stdint cimport int32_t, int64_t, uint64_t
from libcpp.vector cimport vector

from intentpm.foundation.primitives cimport (
    let_pass, prefetch_read, prefetch_write, store_relaxed_u64, void_apart, void_per_cpu,
)
from intentpm.runtime._native.rows cimport (
    pull_row_atomic, push_row_atomic, set_row_atomic, try_pull, try_push, try_set,
)
from intentpm.runtime._native.state cimport STATE_ABSENT, STATE_OWNED, STATE_REPLICA, KeyState
from intentpm.runtime._native.steps cimport (
    pull_stored_atomic, set_stored_atomic, step_row_atomic, try_set_stored, try_step,
)
from intentpm.runtime._native.table_state cimport (
    ACCESS_ROW_PULL, ACCESS_ROW_PULL_STORED, ACCESS_ROW_PUSH, ACCESS_ROW_SET, ACCESS_ROW_SET_STORED, ACCESS_ROW_STEP, RowAccess,
    TableState, is_here, prefetch_row, row_of, slot_of,
)

cdef enum:
    # Keys ahead in a batch; measured: docs/performance-kernels.md. A row is prefetched when its key's place is known; the
    # places are prefetched earlier still.
    ROWS_AHEAD = 32
    WRITTEN_ROWS_AHEAD = 16      # what is fetched but not yet written is taken away from another thread that writes it
    PLACES_AHEAD = 64
    LONG_ROW_BYTES = 512         # as far as prefetch_row goes
    GIVEN_BYTES_AHEAD = 2048     # of the rows given to a step: the processor's own prefetch stops at each page of 4 KiB
    GIVEN_BYTES_AT_ONCE = 256    # of a row as long as that, or longer


cdef int64_t check_keys(const TableState* table, const int64_t* keys, int64_t count) noexcept nogil:
    # One pass without branches over all keys; the search for the culprit runs only when there is one.
    cdef int64_t i
    cdef uint64_t largest = 0
    for i in range(count):
        largest = max(largest, <uint64_t>keys[i])
    if largest < <uint64_t>table.num_keys or count == 0:
        return -1
    for i in range(count):
        if <uint64_t>keys[i] >= <uint64_t>table.num_keys:
            return i
    return -1


cdef inline void _count(AccessCounts* counts, uint64_t owned, uint64_t replica, uint64_t missed) noexcept nogil:
    store_relaxed_u64(&counts.local, counts.local + owned)
    store_relaxed_u64(&counts.replica, counts.replica + replica)
    store_relaxed_u64(&counts.remote, counts.remote + missed)


cdef inline int64_t _rows_ahead(bint for_writing) noexcept nogil:
    return WRITTEN_ROWS_AHEAD if for_writing else ROWS_AHEAD


cdef inline void _prefetch_place(const TableState* table, int64_t key, bint for_writing) noexcept nogil:
    if for_writing:
        prefetch_write(&table.places[key])
    else:
        prefetch_read(&table.places[key])


cdef inline void _approach(TableState* table, int64_t key, size_t row_bytes, bint for_writing) noexcept nogil:
    """As ``prefetch_key``. ``row_bytes`` is compiled in, where it is known, and so is what is brought of long rows."""
    if not is_here(table, key):
        return
    if row_bytes >= LONG_ROW_BYTES:
        prefetch_row(row_of(table, slot_of(table, key)), LONG_ROW_BYTES, for_writing)
    else:
        prefetch_row(row_of(table, slot_of(table, key)), row_bytes, for_writing)


cdef inline void _look_first(
        TableState* table, const int64_t* keys, int64_t count, size_t row_bytes, bint for_writing) noexcept nogil:
    """``_look_ahead`` for the keys before any."""
    cdef int64_t i
    if count == 1:
        return
    for i in range(min(count, <int64_t>PLACES_AHEAD)):
        _prefetch_place(table, keys[i], for_writing)
    for i in range(min(count, _rows_ahead(for_writing))):
        _approach(table, keys[i], row_bytes, for_writing)


cdef inline void _look_ahead(
        TableState* table, const int64_t* keys, int64_t i, int64_t count, size_t row_bytes, bint for_writing) noexcept nogil:
    cdef int64_t ahead = _rows_ahead(for_writing)
    if i + PLACES_AHEAD < count:
        _prefetch_place(table, keys[i + PLACES_AHEAD], for_writing)
    if i + ahead < count:
        _approach(table, keys[i + ahead], row_bytes, for_writing)


cdef inline void _look_ahead_in_given(const char* row, size_t row_bytes) noexcept nogil:
    if row_bytes >= GIVEN_BYTES_AT_ONCE:
        prefetch_row(row + GIVEN_BYTES_AHEAD, GIVEN_BYTES_AT_ONCE, False)


cdef void_apart _settle(
        RowAccess kind, TableState* table, int64_t key, int64_t position, char* row, double lr,
        vector[int32_t]& misses, AccessCounts* counts) noexcept nogil:
    """Further attempts of the loop below, and what comes of a key that is not here; apart, so that it keeps its registers."""
    cdef KeyState state
    if kind == ACCESS_ROW_PULL:
        state = pull_row_atomic(table, key, row)
    elif kind == ACCESS_ROW_PUSH:
        state = push_row_atomic(table, key, row)
    elif kind == ACCESS_ROW_STEP:
        state = step_row_atomic(table, key, row, lr)
    elif kind == ACCESS_ROW_PULL_STORED:
        state = pull_stored_atomic(table, key, row)
    elif kind == ACCESS_ROW_SET_STORED:
        state = set_stored_atomic(table, key, row)
    else:
        state = set_row_atomic(table, key, row)
    if state == STATE_ABSENT:
        misses.push_back(<int32_t>position)
    _count(counts, state == STATE_OWNED, state == STATE_REPLICA, state == STATE_ABSENT)


cdef inline void _access_rows(
        RowAccess kind, TableState* table, const int64_t* keys, int64_t count, char* rows, size_t row_bytes, double lr,
        vector[int32_t]& misses, AccessCounts* counts) noexcept nogil:
    """The one loop of all batches; ``kind`` and a constant ``row_bytes`` are compiled in."""
    cdef uint64_t owned = 0, replica = 0
    cdef KeyState state
    cdef char* row = rows
    cdef int64_t i
    cdef bint for_writing = kind != ACCESS_ROW_PULL and kind != ACCESS_ROW_PULL_STORED
    cdef size_t near_bytes = table.stored_bytes if kind == ACCESS_ROW_STEP else row_bytes
    cdef bint met_a_writer = False
    _look_first(table, keys, count, near_bytes, for_writing)
    for i in range(count):
        _look_ahead(table, keys, i, count, near_bytes, for_writing)
        if kind == ACCESS_ROW_STEP:
            _look_ahead_in_given(row, row_bytes)
        if not for_writing:
            state = try_pull(table, keys[i], row, row_bytes)
        elif kind == ACCESS_ROW_PUSH:
            state = try_push(table, keys[i], row)
        elif kind == ACCESS_ROW_STEP:
            state = try_step(table, keys[i], row, lr)
        elif kind == ACCESS_ROW_SET_STORED:
            state = try_set_stored(table, keys[i], row)
        else:
            state = try_set(table, keys[i], row)
        owned += state == STATE_OWNED
        replica += state == STATE_REPLICA
        if state == STATE_ABSENT:
            if for_writing and not met_a_writer and is_here(table, keys[i]):
                met_a_writer = True
                let_pass()
            _settle(kind, table, keys[i], i, row, lr, misses, counts)
        row += row_bytes
    _count(counts, owned, replica, 0)


cdef void_apart _access_tier(
        RowAccess kind, TableState* table, const int64_t* keys, int64_t count, char* rows, double lr, vector[int32_t]& misses,
        AccessCounts* counts) noexcept nogil:
    cdef uint64_t served[2]
    cdef size_t missed = misses.size()
    served[0] = served[1] = 0
    table.tier.access(table, kind, keys, count, rows, lr, misses, served)
    _count(counts, served[0], served[1], misses.size() - missed)


cdef inline void _access(
        RowAccess kind, TableState* table, const int64_t* keys, int64_t count, char* rows, size_t row_bytes, double lr,
        vector[int32_t]& misses, AccessCounts* counts) noexcept nogil:
    if table.tier != NULL:
        _access_tier(kind, table, keys, count, rows, lr, misses, counts)
    else:
        _access_rows(kind, table, keys, count, rows, row_bytes, lr, misses, counts)


cdef void_per_cpu _pull_rows(
        TableState* table, const int64_t* keys, int64_t count, char* out,
        vector[int32_t]& misses, AccessCounts* counts) noexcept nogil:
    """Compiled for common lengths: a row is then copied by a few moves, not by a call."""
    if table.row_bytes == 4:
        _access_rows(ACCESS_ROW_PULL, table, keys, count, out, 4, 0.0, misses, counts)
    elif table.row_bytes == 64:
        _access_rows(ACCESS_ROW_PULL, table, keys, count, out, 64, 0.0, misses, counts)
    elif table.row_bytes == 128:
        _access_rows(ACCESS_ROW_PULL, table, keys, count, out, 128, 0.0, misses, counts)
    elif table.row_bytes == 256:
        _access_rows(ACCESS_ROW_PULL, table, keys, count, out, 256, 0.0, misses, counts)
    else:
        _access_rows(ACCESS_ROW_PULL, table, keys, count, out, table.row_bytes, 0.0, misses, counts)


cdef void pull_rows(
        TableState* table, const int64_t* keys, int64_t count, char* out,
        vector[int32_t]& misses, AccessCounts* counts) noexcept nogil:
    if table.tier != NULL:
        _access_tier(ACCESS_ROW_PULL, table, keys, count, out, 0.0, misses, counts)
        return
    _pull_rows(table, keys, count, out, misses, counts)


cdef void_per_cpu _push_rows(
        TableState* table, const int64_t* keys, int64_t count, const char* deltas,
        vector[int32_t]& misses, AccessCounts* counts) noexcept nogil:
    _access_rows(ACCESS_ROW_PUSH, table, keys, count, <char*>deltas, table.row_bytes, 0.0, misses, counts)


cdef void push_rows(
        TableState* table, const int64_t* keys, int64_t count, const char* deltas,
        vector[int32_t]& misses, AccessCounts* counts) noexcept nogil:
    if table.tier != NULL:
        _access_tier(ACCESS_ROW_PUSH, table, keys, count, <char*>deltas, 0.0, misses, counts)
    else:
        _push_rows(table, keys, count, deltas, misses, counts)


cdef void set_rows(
        TableState* table, const int64_t* keys, int64_t count, const char* values,
        vector[int32_t]& misses, AccessCounts* counts) noexcept nogil:
    _access(ACCESS_ROW_SET, table, keys, count, <char*>values, table.row_bytes, 0.0, misses, counts)


cdef void_per_cpu _step_rows(
        TableState* table, const int64_t* keys, int64_t count, const char* gradients, double lr,
        vector[int32_t]& misses, AccessCounts* counts) noexcept nogil:
    _access_rows(ACCESS_ROW_STEP, table, keys, count, <char*>gradients, table.row_bytes, lr, misses, counts)


cdef void step_rows(
        TableState* table, const int64_t* keys, int64_t count, const char* gradients, double lr,
        vector[int32_t]& misses, AccessCounts* counts) noexcept nogil:
    if table.tier != NULL:
        _access_tier(ACCESS_ROW_STEP, table, keys, count, <char*>gradients, lr, misses, counts)
    else:
        _step_rows(table, keys, count, gradients, lr, misses, counts)


cdef void pull_stored_rows(
        TableState* table, const int64_t* keys, int64_t count, char* out,
        vector[int32_t]& misses, AccessCounts* counts) noexcept nogil:
    _access(ACCESS_ROW_PULL_STORED, table, keys, count, out, table.stored_bytes, 0.0, misses, counts)


cdef void set_stored_rows(
        TableState* table, const int64_t* keys, int64_t count, const char* rows,
        vector[int32_t]& misses, AccessCounts* counts) noexcept nogil:
    _access(ACCESS_ROW_SET_STORED, table, keys, count, <char*>rows, table.stored_bytes, 0.0, misses, counts)
