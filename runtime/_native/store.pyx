"""One table as Python sees it.

Guarantees: an argument is checked before anything is changed, and an error says what to do.
Made by the manager, passed to workers, which look into its ``state``. Any thread; who may call ``adopt`` and ``disown`` is said
there.
"""

from libc.stdint cimport int32_t, int64_t, uint16_t, uint32_t, uint64_t
from libc.stdlib cimport calloc, free, malloc
from libc.string cimport memcpy, memset

from math import prod

import numpy as np

from intentpm.foundation.errors import DtypeError, KeyRangeError, MemoryBudgetError, ShapeError
from intentpm.foundation.handles import refuse_to_cross
from intentpm.runtime._native.row_layout import initial_state, stored_dtype
from intentpm.runtime.optimisers import ROUNDING

from intentpm.foundation.primitives cimport load_relaxed_i64, row_add_for, row_square_for
from intentpm.runtime._native.apart cimport free_snapshots, retire_snapshot
from intentpm.runtime._native.budget cimport LIST_BYTES, slot_bytes
from intentpm.runtime._native.directory cimport home_of, home_rank, known_owner
from intentpm.runtime._native.dirty_stack cimport init_dirty
from intentpm.runtime._native.row_layout cimport describe_optimiser
from intentpm.runtime._native.rows cimport pull_row_atomic
from intentpm.runtime._native.slabs cimport map_arrays, unmap_arrays
from intentpm.runtime._native.slots cimport bind_slot, drop_replica, publish
from intentpm.runtime._native.state cimport STATE_ABSENT, STATE_OWNED, STATE_REPLICA, KeyPlace, KeyState
from intentpm.runtime._native.steps cimport pull_stored_atomic
from intentpm.runtime._native.table_state cimport TableState, key_state, row_of

cdef extern from "runtime/_native/stochastic_rounding.hpp" namespace "intentpm" nogil:
    uint32_t first_rounding(uint64_t seed, int64_t key) noexcept


def _dtype_code(dtype):
    names = ("float32", "float64", "float16", "bfloat16", "int32", "int64")
    if dtype.name not in names or not dtype.isnative:
        raise DtypeError(f"a table cannot hold dtype {dtype}: use one of {', '.join(names)} in native byte order")
    return names.index(dtype.name)


def resolve_dtype(dtype) -> np.dtype:
    """numpy.dtype of a name or dtype; "bfloat16" needs the ml_dtypes package. Raises DtypeError."""
    if isinstance(dtype, str) and dtype == "bfloat16":
        try:
            import ml_dtypes
        except ImportError:
            raise DtypeError('dtype "bfloat16" needs the package ml_dtypes: pip install ml_dtypes') from None
        dtype = ml_dtypes.bfloat16
    try:
        resolved = np.dtype(dtype)
    except TypeError as error:
        raise DtypeError(f"dtype {dtype!r} is not understood: {error}") from None
    _dtype_code(resolved)
    return resolved


def stored_bytes(dtype, row_shape, optimizer) -> int:
    """Of a whole row of a numpy.dtype: its weights, and the optimizer's state if there is one. Raises ShapeError."""
    if optimizer is not None:
        try:
            return stored_dtype(dtype, row_shape, optimizer).itemsize
        except ValueError as error:      # beyond what NumPy can describe
            raise ShapeError(f"row_shape={row_shape} with the state of {optimizer!r}: {error}") from None
    return prod(row_shape) * dtype.itemsize


cdef class Table:
    """One table as this rank sees it: the rows that live here and where every other key is.

    Made by ``ParameterManager.create_table``; pass it to a worker's calls. Any thread may read its attributes.

    Attributes: ``name``; ``num_keys``; ``row_shape``, a tuple; ``dtype``, a numpy.dtype; ``table_id``, from 0 on in the order
    of ``create_table``; ``DTYPES``, the names of those that a table can have; ``optimizer``, of ``intentpm.optim``, or None;
    ``stored_dtype``: with an optimizer, the numpy.dtype of a row with its state, a structure; ``tier``, of
    ``storage="gpu"``, or None.
    """

    DTYPES = ("float32", "float64", "float16", "bfloat16", "int32", "int64")

    def __cinit__(self):
        self.state = NULL

    def __init__(self, name: str, table_id: int, num_keys: int, row_shape, dtype, rank: int, size: int, optimizer=None):
        """Reserves address space for all rows and commits what is touched; every key is absent."""
        self.name = name
        self.table_id = table_id
        self.num_keys = num_keys
        self.row_shape = tuple(row_shape)
        self.dtype = resolve_dtype(dtype)
        if len(self.row_shape) > MAX_ROW_NDIM:
            raise ShapeError(f"table {name!r}: row_shape has {len(self.row_shape)} dimensions, at most {MAX_ROW_NDIM} work")
        self.row_ndim = len(self.row_shape)
        for axis in range(self.row_ndim):
            self.row_dims[axis] = self.row_shape[axis]
        cdef size_t items = int(np.prod(self.row_shape, dtype=np.int64))
        cdef TableState* state = <TableState*>calloc(1, sizeof(TableState))
        if state == NULL:
            raise MemoryBudgetError("out of memory")
        self.state = state
        state.table_id = table_id
        state.rank = rank
        state.size = size
        state.num_keys = num_keys
        state.row_items = items
        state.row_bytes = state.stored_bytes = state.weights_bytes = state.record_bytes = items * self.dtype.itemsize
        state.add = row_add_for(_dtype_code(self.dtype))
        state.adds_exactly = self.dtype.kind in "iu"
        state.square = row_square_for(_dtype_code(self.dtype))
        init_dirty(state)
        self.optimizer = optimizer
        if optimizer is not None:
            self._set_optimiser(optimizer)
        map_arrays(state)

    cdef _set_optimiser(self, optimiser):
        cdef size_t real_bytes
        self.stored_dtype = stored_dtype(self.dtype, self.row_shape, optimiser)
        self.state.stored_bytes = self.stored_dtype.itemsize
        describe_optimiser(
            &self.optimiser, optimiser, _dtype_code(self.dtype), self.stored_dtype, self.state.row_items)
        real_bytes = self.optimiser.real_bytes
        self.state.weights_bytes = (self.state.row_bytes + real_bytes - 1) // real_bytes * real_bytes
        self.state.record_bytes = max(self.state.weights_bytes, self.optimiser.kept_bytes)
        self.state.optimiser = &self.optimiser

    def __dealloc__(self):
        if self.state != NULL:
            if self.state.snapshot != NULL:
                retire_snapshot(self.state)
            free_snapshots(self.state)
            unmap_arrays(self.state)
            free(self.state.stand_ins)
            free(self.state)

    def set_stand_ins(self, const uint16_t[::1] ranks) -> None:
        """Per rank [size], who has its duties as a home from now on. Called before the table is known to the engine, or under
        its lock.
        """
        if self.state.stand_ins == NULL:
            self.state.stand_ins = <uint16_t*>malloc(self.state.size * sizeof(uint16_t))
        if self.state.stand_ins == NULL:
            raise MemoryBudgetError("out of memory")
        memcpy(self.state.stand_ins, &ranks[0], self.state.size * sizeof(uint16_t))

    def begin_without(self, const uint16_t[::1] ranks) -> None:
        """Of a new table, in a job that has lost ranks: ``set_stand_ins``, and who owns what at first."""
        cdef TableState* state = self.state
        cdef int64_t key
        self.set_stand_ins(ranks)
        with nogil:
            for key in range(state.num_keys):
                if home_of(state, key) != home_rank(key, state.size):
                    state.records[key].owner = <uint16_t>home_of(state, key)
                    state.records[key].epoch = 1

    def home_keys(self, first: int = 0, end: int | None = None) -> np.ndarray:
        """The keys in [first, end) whose home is this rank, ascending; by default all of them. int64 [K]."""
        cdef TableState* state = self.state
        cdef int64_t begin = first
        cdef int64_t last = state.num_keys if end is None else min(end, state.num_keys)
        owners = np.empty(max(0, last - begin), dtype=np.bool_)
        cdef unsigned char[::1] here = owners.view(np.uint8)
        cdef int64_t key
        with nogil:
            for key in range(begin, last):
                here[key - begin] = home_of(state, key) == state.rank
        return np.flatnonzero(owners).astype(np.int64, copy=False) + begin

    def need(self) -> dict:
        """Bytes that this rank's share needs in memory, and of what: ``fixed``, for ``keys`` of the whole table; ``row`` for
        each of its ``rows``, of which ``stored`` are the row itself. ``all`` together.
        """
        cdef TableState* state = self.state
        cdef int64_t rows = 0, key
        with nogil:
            for key in range(state.num_keys):
                rows += home_of(state, key) == state.rank
        return {
            "keys": state.num_keys, "fixed": state.fixed_bytes, "rows": rows, "row": slot_bytes(state),
            "stored": state.stored_bytes, "all": state.fixed_bytes + rows * slot_bytes(state),
        }

    def copy_bytes(self) -> int:
        """What a copy needs besides its row, to keep what is written to it for the row's owner."""
        return self.state.pending.stride + self.state.kept.stride + LIST_BYTES

    def adopt(self, const int64_t[::1] keys, rows) -> None:
        """Makes this rank the owner of ``keys``, which are absent here.

        keys: int64 [K]. rows: [K, *row_shape] of the table's dtype, C-contiguous, or None for zeros, in slots that are fresh.
        Called before the table is known to the engine, or under its lock.
        """
        cdef const unsigned char[::1] source = None
        cdef const unsigned char[::1] begun = initial_state(self.stored_dtype, self.optimizer)
        cdef bint at_random = self.optimizer is not None and self.optimizer.rounds_at_random
        cdef uint64_t seed = self.optimizer.rounding_seed if at_random else 0
        cdef size_t rounding = self.stored_dtype.fields[ROUNDING][1] if at_random else 0     # where that state is
        cdef bint has_state = self.optimizer is not None and self.stored_dtype is not None
        cdef TableState* state = self.state
        cdef int64_t i
        cdef int32_t slot
        if rows is not None:
            if rows.shape != (keys.shape[0], *self.row_shape) or rows.dtype != self.dtype:
                raise ShapeError(
                    f"table {self.name!r}: initial rows have shape {rows.shape} and dtype {rows.dtype}, "
                    f"expected {(keys.shape[0], *self.row_shape)} and {self.dtype}")
            source = np.ascontiguousarray(rows).reshape(-1).view(np.uint8)
        with nogil:
            for i in range(keys.shape[0]):
                slot = bind_slot(state, keys[i])
                if source is not None and state.row_bytes > 0:
                    memcpy(row_of(state, slot), &source[<size_t>i * state.row_bytes], state.row_bytes)
                if source is not None and has_state and begun is None:       # another row may have lain there before
                    memset(
                        row_of(state, slot) + self.optimiser.state_offset, 0,
                        state.stored_bytes - self.optimiser.state_offset)
                if begun is not None:
                    memcpy(
                        row_of(state, slot) + self.optimiser.state_offset, &begun[self.optimiser.state_offset],
                        state.stored_bytes - self.optimiser.state_offset)
                if rounding > 0:
                    (<uint32_t*>(row_of(state, slot) + rounding))[0] = first_rounding(seed, keys[i])
                publish(state, keys[i], STATE_OWNED)
            state.rows_owned += keys.shape[0]

    def disown(self, const int64_t[::1] keys) -> None:
        """The reverse of ``adopt``: makes ``keys``, which are here, absent; their rows are lost. int64 [K]."""
        cdef int64_t i
        for i in range(keys.shape[0]):
            self.state.rows_owned -= key_state(self.state, keys[i]) == STATE_OWNED
            drop_replica(self.state, keys[i])

    def owned_keys(self) -> np.ndarray:
        """The keys this rank owns now, ascending. int64 [K]. A snapshot; any thread."""
        return self._keys_in(STATE_OWNED)

    def replica_keys(self) -> np.ndarray:
        """The keys this rank holds replicas of now, ascending. int64 [K]. A snapshot; any thread."""
        return self._keys_in(STATE_REPLICA)

    def owners(self) -> np.ndarray:
        """This rank's last known owner of each key. uint16 [num_keys]; a snapshot."""
        owners = np.empty(self.num_keys, dtype=np.uint16)
        cdef uint16_t[::1] out = owners
        cdef int64_t key
        with nogil:
            for key in range(out.shape[0]):
                out[key] = <uint16_t>known_owner(self.state, key)
        return owners

    def epochs(self) -> np.ndarray:
        """The epoch at which this rank learned each key's owner. uint32 [num_keys]; a snapshot."""
        epochs = np.empty(self.num_keys, dtype=np.uint32)
        cdef uint32_t[::1] out = epochs
        cdef int64_t key
        with nogil:
            for key in range(out.shape[0]):
                out[key] = self.state.records[key].epoch
        return epochs

    def rows_here(self, const int64_t[::1] keys, bint stored=False) -> np.ndarray:
        """The rows of ``keys``, which are owned or replicated here: [K, *row_shape], each as some write left it. Any thread.

        stored: with what the optimizer keeps, of ``stored_dtype`` [K].
        Raises KeyRangeError naming the first key that is not here.
        """
        cdef bint whole = stored and self.stored_dtype is not None
        rows = np.empty(keys.shape[0], self.stored_dtype) if whole else np.empty(
            (keys.shape[0], *self.row_shape), dtype=self.dtype)
        cdef unsigned char[::1] out = rows.reshape(-1).view(np.uint8)
        cdef size_t row_bytes = self.state.stored_bytes if whole else self.state.row_bytes
        cdef KeyState state = STATE_ABSENT
        cdef int64_t i
        for i in range(keys.shape[0]):
            if 0 <= keys[i] < self.num_keys and whole:
                state = pull_stored_atomic(self.state, keys[i], <char*>&out[0] + i * row_bytes)
            elif 0 <= keys[i] < self.num_keys:
                state = pull_row_atomic(self.state, keys[i], <char*>&out[0] + i * row_bytes)
            else:
                state = STATE_ABSENT
            if state == STATE_ABSENT:
                raise KeyRangeError(f"key {keys[i]} of table {self.name!r} has no row on rank {self.state.rank}")
        return rows

    cdef _keys_in(self, KeyState wanted):
        marks = np.empty(self.num_keys, dtype=np.bool_)
        cdef unsigned char[::1] mark = marks.view(np.uint8)
        cdef int64_t key
        with nogil:
            for key in range(mark.shape[0]):
                mark[key] = key_state(self.state, key) == wanted
        return np.flatnonzero(marks).astype(np.int64, copy=False)

    def memory(self) -> dict:
        """Bytes: ``rows`` (slots in use), ``index`` (per-key and per-slot arrays)."""
        cdef TableState* state = self.state
        return {
            "rows": load_relaxed_i64(&state.slots_used) * state.stride_bytes,
            "index": state.num_keys * sizeof(KeyPlace) + load_relaxed_i64(&state.slots_touched) * sizeof(int32_t),
        }

    def __reduce_ex__(self, protocol):
        refuse_to_cross(self, "pass its name, num_keys and row_shape, which are all that computing keys needs")

    def __repr__(self):
        return f"<intentpm.Table {self.name!r}: {self.num_keys} keys x {self.row_shape} {self.dtype}>"
