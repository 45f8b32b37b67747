"""Rows of a table on the host, and of those that are needed soon a copy on a device that has room for some of them.

What the device has room for is a *seat*: one row of its slab. A slot (``slots.pxd``) has a seat, or none. Where its row is:

    state        where              seat   in ``rows``     on the device
    HOST         0                  maybe  the row         void
    COMING       COMING             yes    the row         on its way, in an arrival
    CLEAN        ON_DEVICE          yes    the row         the row
    DIRTY        ON_DEVICE | AWAY   yes    out of date     the row
    GOING        AWAY               no     out of date     nothing: the row is in a departure, on its way to ``rows``

    HOST   -> COMING   it is in a window and a seat is free or made free            fetch (engine lock)
    COMING -> CLEAN    it has come, or a batch needs it                             anybody who holds rows.lock
    CLEAN  -> DIRTY    a batch writes it                                            the batch
    DIRTY  -> CLEAN    it is needed in ``rows``: brought, one row                   bring_home
    DIRTY  -> GOING    its seat is needed                                           fetch
    CLEAN  -> HOST     its seat is needed                                           fetch
    GOING  -> HOST     its departure is over, or it is needed in ``rows``           anybody who holds rows.lock
    COMING, CLEAN -> HOST    it is written in ``rows``                              whoever writes (``is_home``)
    COMING, CLEAN, DIRTY, GOING -> HOST    it is overwritten there, or the slot bound to another key

Every transition happens with the word of the slot's key LOCKED, or before the key can be found; all but the last two with
rows.lock held, and seats change hands under both rows.lock and the engine's lock.

Rows that are wanted wait in a queue, in the order in which their windows became due, until they have a seat: when the device is
full, until a window is over. Those that have one, and were written in ``rows`` since, do not wait.

Guarantees
    * A batch is served by the device as far as the device has its rows, or they are coming; the others in ``rows``, one by one,
      afterwards: what is not announced, or does not fit, is slower and right. Within a batch a key is served in one place, but
      that it may go home in between.
    * A row in a window that is due keeps its seat until the window is over. Of the others those go first that are used last
      (``window_uses``), of those that were looked at: a few times as many as are needed.
    * A row that gives up its seat is written back first: in the stream's order what takes the seat comes later.
    * What comes or goes late finds out that the row is another by now: the slot's number of its last move is not the move's.
    * Rows are sent before the window starts, many in one copy, on a stream beside that of the batches (``row_moves``). A batch
      waits for rows that are still coming only if it needs them; that, and a wait for rows that are going, is a stall.
Assumptions
    * ``row_place.pxd``'s and ``device_rows.pxd``'s. Order of locks: engine, rows.lock, a key's word, ``missing_lock``.
"""

from libc.stddef cimport size_t
from libc.stdint cimport int32_t, int64_t, uint8_t, uint32_t, uint64_t
from libcpp.deque cimport deque
from libcpp.pair cimport pair
from libcpp.vector cimport vector

from intentpm.gpu.exchanges cimport Exchange
from intentpm.gpu.row_moves cimport RowMoves
from intentpm.runtime._native.device_tier cimport DeviceTier, Run, TakeUp
from intentpm.runtime._native.table_state cimport TableState, WindowEvent
from intentpm.runtime._native.window_uses cimport WindowUses


# Rows that move together: an arrival or a departure.
cdef struct Move:
    uint32_t number
    Exchange* exchange
    vector[uint32_t] keys
    vector[int32_t] slots


cdef class TieredRows(DeviceTier):
    cdef RowMoves moves
    cdef readonly int64_t seats
    # guarded by: written under rows.lock and the engine's lock, read under either
    cdef int32_t* seat_of        # per slot: its seat + 1; 0: none
    cdef int32_t* slot_of_seat   # per seat: its slot + 1; 0: it is free
    cdef vector[int32_t] free_seats      # that were used once
    cdef int64_t seats_touched   # from here on seats were never used
    # guarded by: rows.lock
    cdef uint32_t* move_of       # per slot: the number of its last move
    cdef deque[Move] arrivals    # in the order of their numbers; departures too
    cdef deque[Move] departures
    cdef uint32_t moves_begun
    cdef uint64_t hits           # keys of batches served by the device
    cdef uint64_t in_place       # and in ``rows``
    cdef uint64_t rows_in        # fetched
    cdef uint64_t copies_in      # that they came in
    cdef uint64_t rows_out       # written back
    cdef uint64_t gone           # rows that gave up their seats
    cdef uint64_t stalls         # waits for rows on their way
    cdef uint64_t broken_windows     # rows that gave up their seats in a window: none
    # guarded by: engine lock
    cdef WindowUses* uses        # per key
    cdef int64_t hand            # where looking for seats to give up goes on
    cdef vector[uint32_t] wanted     # keys, in the order in which windows became due; those before wanted_at are done with
    cdef size_t wanted_at
    cdef vector[uint32_t] void_seats     # keys whose rows have a seat and are not in it
    cdef vector[uint32_t] chosen
    cdef vector[pair[int64_t, int64_t]] candidates   # (-ticks to its use, seat)
    cdef bint is_full            # the first that is wanted has no seat, and there is none until a window is over
    cdef int64_t looked_in_vain  # at seats, none of which could be given up, since a window was over
    # guarded by: missing_lock, which is held for a few instructions
    cdef uint32_t missing_lock
    cdef vector[uint32_t] missing        # keys in windows that were found without a row on the device
    cdef vector[uint32_t] taken          # guarded by: engine lock. Takes the place of ``missing``

    # any thread
    cdef void _note_missing(self, int64_t key) noexcept nogil
    # engine lock held
    cdef void _note_window(self, WindowEvent event, const uint32_t* keys, uint32_t count, uint32_t first_use) noexcept nogil
    cdef void _want(self, uint32_t key) noexcept nogil
    cdef bint _fetch(self, uint32_t now) noexcept nogil
    cdef void _take_missing(self) noexcept nogil
    cdef int64_t _choose(self) noexcept nogil
    cdef bint _is_lacking(self, uint32_t key) noexcept nogil
    cdef void _look_for_seats(self, int64_t count, uint32_t now) noexcept nogil
    cdef int64_t _seats_free(self) noexcept nogil
    cdef int64_t _ticks_to_use(self, int64_t seat, uint32_t now) noexcept nogil
    cdef bint _is_bound(self, int64_t key, int32_t slot) noexcept nogil
    cdef void _leave_line(self, uint32_t key) noexcept nogil
    cdef void _forget_done(self) noexcept nogil
    # private; engine lock and rows.lock held. False: the device fails
    cdef bint _free_seats(self) noexcept nogil
    cdef bint _vacate(self, int64_t seat, uint32_t number) noexcept nogil
    cdef bint _send_chosen(self) noexcept nogil
    cdef bint _is_alive(self) noexcept nogil
    cdef bint _set_out(self, uint32_t key, uint32_t number, char* row) noexcept nogil
    cdef bint _take_seat(self, int32_t slot) noexcept nogil
    # private; rows.lock held
    cdef bint _is_lost(self, int64_t key, int32_t slot) noexcept nogil
    cdef bint _land(self, Move* arrival) noexcept nogil
    cdef bint _land_until(self, uint32_t number) noexcept nogil
    cdef bint _has_arrived(self, uint32_t key, int32_t slot, uint32_t number, bint is_put) noexcept nogil
    cdef bint _settle(self, Move* departure) noexcept nogil
    cdef void _settle_until(self, uint32_t number) noexcept nogil
    cdef void _go_home(self, uint32_t key, int32_t slot, uint32_t number, const char* row) noexcept nogil
    cdef bint _land_arrived(self) noexcept nogil
    cdef void _settle_departed(self) noexcept nogil
