"""Rows on the host and, of those that are needed soon, on a device; ``tiered_rows.pxd`` is the contract."""

from libc.stddef cimport size_t
from libc.stdint cimport int32_t, int64_t, uint8_t, uint32_t, uint64_t
from libc.stdlib cimport calloc, free
from libc.string cimport memcpy
from libcpp.algorithm cimport nth_element
from libcpp.pair cimport pair
from libcpp.vector cimport vector

import numpy as np

from intentpm.foundation.errors import MemoryBudgetError

from intentpm.foundation.primitives cimport load_relaxed_i32, store_relaxed
from intentpm.gpu.device cimport Device
from intentpm.gpu.exchanges cimport Exchange, rows_in, slots_in
from intentpm.gpu.row_moves cimport RowMoves
from intentpm.runtime._native.device_tier cimport (
    TAKE_AGAIN, TAKE_FAILED, TAKE_HOME, TAKE_LATER, TAKEN, DeviceTier, Run, TakeUp, is_for_home,
)
from intentpm.runtime._native.mutations cimport (
    MUTATION_ARRIVAL_NOT_AWAITED, MUTATION_DIRTY_ROW_DROPPED, MUTATION_INTENDED_EVICTED, MUTATION_MOVING_ROW_WRITTEN,
    is_planted,
)
from intentpm.runtime._native.rows cimport enter_if_here
from intentpm.runtime._native.state cimport KeyPlace, lock_word, unlock_unchanged
from intentpm.runtime._native.store cimport Table
from intentpm.runtime._native.table_state cimport (
    ACCESS_ROW_STEP, ROW_AWAY, ROW_COMING, ROW_ON_DEVICE, WINDOW_DUE, WINDOW_OVER, WINDOW_SIGNALLED, TableState, WindowEvent,
    is_here, row_of, slot_of,
)
from intentpm.runtime._native.window_uses cimport (
    NO_USE, WindowUses, is_in_window, is_queued, set_queued, ticks_to_use, window_due, window_over,
    window_signalled, window_withdrawn,
)

cdef enum:
    MOVE_BYTES = 1 << 20         # of rows in one copy: 0.1 ms of the host's time with rows.lock held, less on the bus
    MOST_ARRIVALS = 8            # under way; of departures the same
    MOST_DEPARTURES = 4
    LOOKED_AT = 8                # seats that may be given up for each that is ...
    LEAST_LOOKED_AT = 1024       # ... and at least
    MOST_LOOKED_AT = 1 << 14     # keys that are wanted, or seats, at a time: a millisecond or two with the engine's lock
    MOST_MISSING = 1 << 16       # that are noted, more than a step's messages bring; others are when they are met again
    IN_WINDOW = -1

SEAT_BYTES_BESIDE = sizeof(int)
"""What a seat takes on the device beside the row: its claim (``gpu/kernels.cu``)."""


cdef class TieredRows(DeviceTier):
    """Keeps a table's rows on the host, and on ``device`` those that windows need soon. Before the table is known to anybody
    else.

    seats: rows that the device has room for. Attributes: ``rows``, of the device; ``seats``.
    Raises MemoryBudgetError, DeviceError.
    """

    def __init__(self, Table table not None, Device device not None, seats: int):
        self._attach(table, device)
        self.seats = min(seats, table.num_keys)
        self.seat_of = <int32_t*>calloc(table.num_keys, sizeof(int32_t))
        self.move_of = <uint32_t*>calloc(table.num_keys, sizeof(uint32_t))
        self.uses = <WindowUses*>calloc(table.num_keys, sizeof(WindowUses))
        self.slot_of_seat = <int32_t*>calloc(self.seats, sizeof(int32_t))
        if self.seat_of == NULL or self.move_of == NULL or self.uses == NULL or self.slot_of_seat == NULL:
            raise MemoryBudgetError("out of memory")
        self.missing.reserve(MOST_MISSING)
        self.taken.reserve(MOST_MISSING)
        self.moves = RowMoves(self.rows)
        if not self.rows.reserve_exactly(self.seats):
            raise MemoryBudgetError(
                f"{device.name}: {device.failure or 'no memory is left'}, for {self.seats} rows of "
                f"{self.table.stride_bytes} bytes: give a smaller device_memory")
        self.tier.lacks = _lacks
        self.tier.note_window = _note_window
        self.tier.fetch = _fetch

    def __dealloc__(self):
        free(self.seat_of)
        free(self.move_of)
        free(self.uses)
        free(self.slot_of_seat)

    def counts(self) -> dict:
        """Since the table was made. Any thread.

        ``hits``: keys of batches whose rows the device had; ``in_place``: those served on the host; ``hit_share`` of both, None
        before any. ``bytes_to_device``, in ``copies_to_device``; ``bytes_to_host``. ``gave_way``: rows that made room.
        ``stalls``: waits for rows on their way. ``seats``: rows that the device has room for.
        """
        cdef uint64_t served = self.hits + self.in_place
        return {
            "seats": self.seats,
            "hits": self.hits,
            "in_place": self.in_place,
            "hit_share": <double>self.hits / <double>served if served else None,
            "bytes_to_device": self.rows_in * self.table.stored_bytes,
            "copies_to_device": self.copies_in,
            "bytes_to_host": (self.rows_out + self.brought_rows) * self.table.stored_bytes,
            "gave_way": self.gone,
            "stalls": self.stalls,
        }

    def keys_on_device(self) -> np.ndarray:
        """Those whose rows the device has, or will have, ascending. int64 [K]; a snapshot. Any thread."""
        cdef int64_t slot
        with nogil:
            self.rows.lock.lock()
        try:
            keys = [
                self.table.key_of[slot] for slot in range(self.table.slots_touched)
                if self.table.key_of[slot] >= 0 and self.tier.where[slot] & (ROW_ON_DEVICE | ROW_COMING)]
        finally:
            self.rows.lock.unlock()
        return np.array(sorted(keys), dtype=np.int64)

    def audit(self) -> list:
        """What is not as ``tiered_rows.pxd`` says, a line each. For tests: no call of the rank is in progress."""
        cdef int64_t slot, seat
        cdef int64_t taken = 0
        wrong = []
        if self.broken_windows:
            wrong.append(f"{self.broken_windows} rows gave up their seats in a window")
        for slot in range(self.table.slots_touched):
            seat = self.seat_of[slot] - 1
            if seat >= 0 and self.slot_of_seat[seat] != slot + 1:
                wrong.append(f"slot {slot} has seat {seat}, which is slot {self.slot_of_seat[seat] - 1}'s")
            if self.table.key_of[slot] >= 0 and seat < 0 and self.tier.where[slot] & (ROW_ON_DEVICE | ROW_COMING):
                wrong.append(f"slot {slot} is in state {self.tier.where[slot]} without a seat")
        for seat in range(self.seats):
            slot = self.slot_of_seat[seat] - 1
            taken += slot >= 0
            if slot >= 0 and self.seat_of[slot] != seat + 1:
                wrong.append(f"seat {seat} is slot {slot}'s, which has seat {self.seat_of[slot] - 1}")
        if taken + self._seats_free() != self.seats:
            wrong.append(f"{taken} seats are taken and {self._seats_free()} free, of {self.seats}")
        in_line = {*self.wanted[self.wanted_at:], *self.void_seats}
        for key in range(self.table.num_keys):
            if bool(self.uses[<int64_t>key].queued) != (key in in_line):
                wrong.append(f"key {key} is {'not ' * (not self.uses[<int64_t>key].queued)}said to be in a queue")
        return wrong

    # -- a batch ---------------------------------------------------------------------------------------------------------------

    cdef bint _make_room(self) noexcept nogil:
        return True

    cdef int32_t _seat(self, int32_t slot) noexcept nogil:
        return self.seat_of[slot] - 1

    cdef void _begin_run(self) noexcept nogil:
        self._land_arrived()

    cdef TakeUp _take_up(self, Run* run, int64_t i, uint32_t seen) noexcept nogil:
        cdef int64_t key = run.keys[run.first + i]
        cdef KeyPlace* place = &self.table.places[key]
        cdef uint8_t where = self.tier.where[place.slot]
        cdef uint32_t move = self.move_of[place.slot]
        if where & ROW_COMING:
            unlock_unchanged(&place.word, seen)
            return TAKE_AGAIN if self._land_until(move) else TAKE_FAILED
        if not where & ROW_ON_DEVICE or is_for_home(self.table, run, seen):
            unlock_unchanged(&place.word, seen)
            self.in_place += 1
            if not where & ROW_ON_DEVICE:
                self._note_missing(key)
            return TAKE_HOME
        if run.kind == ACCESS_ROW_STEP and not run.sums and self.batch_of[place.slot] == self.batches:
            unlock_unchanged(&place.word, seen)
            return TAKE_LATER
        self.hits += 1
        self._leave_taken(run, i, seen)
        return TAKEN

    cdef void _bring(self, int64_t key, int32_t slot) noexcept nogil:
        if self.tier.where[slot] & ROW_ON_DEVICE:
            DeviceTier._bring(self, key, slot)
            return
        self._settle_until(self.move_of[slot])
        if self._is_lost(key, slot):     # a defect: nobody is to wait for it for ever
            self._fail()
            self._go_home(<uint32_t>key, slot, self.move_of[slot], NULL)

    cdef bint _is_lost(self, int64_t key, int32_t slot) noexcept nogil:
        """The row is away and on no way home. One whose key has left meanwhile is nobody's."""
        cdef KeyPlace* place = &self.table.places[key]
        cdef uint32_t seen
        cdef bint lost
        if not enter_if_here(place, &seen):
            return False
        lost = place.slot == slot and self.tier.where[slot] == ROW_AWAY
        unlock_unchanged(&place.word, seen)
        return lost

    # -- windows ---------------------------------------------------------------------------------------------------------------

    cdef void _note_window(self, WindowEvent event, const uint32_t* keys, uint32_t count, uint32_t first_use) noexcept nogil:
        cdef uint32_t i
        for i in range(count):
            if event == WINDOW_SIGNALLED:
                window_signalled(&self.uses[keys[i]], first_use)
            elif event == WINDOW_DUE:
                window_due(&self.uses[keys[i]])
                self._want(keys[i])
            elif event == WINDOW_OVER:
                window_over(&self.uses[keys[i]])
            else:
                window_withdrawn(&self.uses[keys[i]])
        if event == WINDOW_OVER:
            self.looked_in_vain = 0
            self.is_full = False

    cdef void _want(self, uint32_t key) noexcept nogil:
        """Has it looked at by ``_fetch``, once."""
        if is_queued(&self.uses[key]):
            return
        set_queued(&self.uses[key], True)
        if is_here(self.table, key) and self.seat_of[slot_of(self.table, key)]:
            self.void_seats.push_back(key)
        else:
            self.wanted.push_back(key)

    cdef void _note_missing(self, int64_t key) noexcept nogil:
        cdef uint32_t seen
        if not is_in_window(&self.uses[key]) or is_queued(&self.uses[key]):
            return
        seen = lock_word(&self.missing_lock)
        if self.missing.empty():
            store_relaxed(&self.tier.lacking, 1)
        if self.missing.size() < MOST_MISSING:
            self.missing.push_back(<uint32_t>key)
        unlock_unchanged(&self.missing_lock, seen)

    cdef void _take_missing(self) noexcept nogil:
        cdef uint32_t key, seen = lock_word(&self.missing_lock)
        self.taken.swap(self.missing)
        unlock_unchanged(&self.missing_lock, seen)
        for key in self.taken:
            self._want(key)
        self.taken.clear()

    # -- fetching --------------------------------------------------------------------------------------------------------------

    cdef bint _fetch(self, uint32_t now) noexcept nogil:
        cdef int64_t seats
        cdef bint done
        self._take_missing()
        if self.tier.failed or (self.void_seats.empty() and (self.is_full or self.wanted_at == self.wanted.size())):
            return False
        seats = self._choose() - self._seats_free()
        self.candidates.clear()
        if seats > 0:
            self._look_for_seats(seats, now)
        self.rows.lock.lock()
        self._settle_departed()
        done = self._land_arrived() and self._free_seats() and (self.chosen.empty() or self._send_chosen())
        if not done:
            self._fail()
        self.rows.lock.unlock()
        self._forget_done()
        return done and (not self.void_seats.empty() or (not self.is_full and self.wanted_at < self.wanted.size()))

    cdef int64_t _choose(self) noexcept nogil:
        """The keys whose rows are to be sent now. Returns how many have no seat."""
        cdef size_t most = max(<size_t>1, MOVE_BYTES // max(self.table.stored_bytes, <size_t>1))
        cdef size_t at = self.wanted_at
        cdef int64_t without_seat = 0
        cdef int looked = 0
        cdef uint32_t key
        self.chosen.clear()
        while not self.void_seats.empty() and self.chosen.size() < most and looked < MOST_LOOKED_AT:
            looked += 1
            key = self.void_seats.back()
            self.void_seats.pop_back()
            set_queued(&self.uses[key], False)
            if self._is_lacking(key):
                self.chosen.push_back(key)
        while at < min(self.wanted.size(), self.wanted_at + MOST_LOOKED_AT) and self.chosen.size() < most and not self.is_full:
            key = self.wanted[at]
            if self._is_lacking(key):
                self.chosen.push_back(key)
                without_seat += self.seat_of[slot_of(self.table, key)] == 0
            elif self.wanted_at == at:
                self._leave_line(key)
            at += 1
        return without_seat

    cdef bint _is_lacking(self, uint32_t key) noexcept nogil:
        """It is in a window and here, and the device lacks its row."""
        cdef int32_t slot
        cdef uint32_t seen
        cdef uint8_t where
        if not is_in_window(&self.uses[key]) or not is_here(self.table, key):
            return False
        slot = slot_of(self.table, key)
        seen = lock_word(&self.table.places[key].word)
        where = self.tier.where[slot]
        unlock_unchanged(&self.table.places[key].word, seen)
        return where == 0 or where == ROW_AWAY

    cdef void _leave_line(self, uint32_t key) noexcept nogil:
        """The first that is wanted is not any more; unless it was written on the host meanwhile."""
        set_queued(&self.uses[key], False)
        self.wanted_at += 1
        if self._is_lacking(key):
            self._want(key)

    cdef void _forget_done(self) noexcept nogil:
        """Of those that were wanted: up to the first that still waits for a seat."""
        cdef int _looked
        cdef uint32_t key
        for _looked in range(MOST_LOOKED_AT):
            if self.wanted_at == self.wanted.size():
                break
            key = self.wanted[self.wanted_at]
            if self._is_lacking(key):
                if self.seat_of[slot_of(self.table, key)] == 0:
                    break
                self.void_seats.push_back(key)
                self.wanted_at += 1
            else:
                self._leave_line(key)
        if self.wanted_at == self.wanted.size():
            self.wanted.clear()
            self.wanted_at = 0
        elif self.wanted_at > max(<size_t>MOST_LOOKED_AT, self.wanted.size() // 2):
            self.wanted.erase(self.wanted.begin(), self.wanted.begin() + self.wanted_at)
            self.wanted_at = 0

    cdef bint _send_chosen(self) noexcept nogil:
        """Where there is no memory to stage them, they wait."""
        cdef size_t row_bytes = self.table.stored_bytes
        cdef Move move
        cdef uint32_t key
        cdef int32_t slot
        move.exchange = self.rows.open(self.chosen.size(), row_bytes)
        if move.exchange == NULL:
            self.is_full = True
            for key in self.chosen:
                self._note_missing(key)  # of those that are in no line any more; looked at again when somebody asks
            return self._is_alive()
        self.moves_begun += 1
        move.number = self.moves_begun
        for key in self.chosen:
            slot = slot_of(self.table, key)
            if not self._take_seat(slot):
                self.is_full = self.is_full or self.looked_in_vain >= self.seats_touched
                self._want(key)          # it waits in line, if it does not already
                continue
            if self.tier.where[slot] == ROW_AWAY:
                self._settle_until(self.move_of[slot])
            if self._set_out(key, move.number, rows_in(move.exchange) + move.keys.size() * row_bytes):
                move.keys.push_back(key)
                move.slots.push_back(slot)
        if move.keys.empty():
            self.rows.close(move.exchange)
            return True
        move.exchange.count = move.keys.size()
        self.rows_in += move.keys.size()
        self.copies_in += 1
        self.arrivals.push_back(move)
        if not self.moves.send(move.exchange):
            return False
        return self.arrivals.size() <= MOST_ARRIVALS or self._land_until(self.arrivals.front().number)

    cdef bint _set_out(self, uint32_t key, uint32_t number, char* row) noexcept nogil:
        """HOST -> COMING. False: it is not on the host alone."""
        cdef KeyPlace* place = &self.table.places[key]
        cdef uint32_t seen = lock_word(&place.word)
        cdef bint at_home = self.tier.where[place.slot] == 0
        if at_home:
            memcpy(row, row_of(self.table, place.slot), self.table.stored_bytes)
            self.tier.where[place.slot] = ROW_COMING
            self.move_of[place.slot] = number
        unlock_unchanged(&place.word, seen)
        return at_home

    cdef bint _is_alive(self) noexcept nogil:
        return not self.tier.failed and self.rows.device.not_done.load() == NULL

    # -- seats -----------------------------------------------------------------------------------------------------------------

    cdef int64_t _seats_free(self) noexcept nogil:
        return <int64_t>self.free_seats.size() + self.seats - self.seats_touched

    cdef bint _take_seat(self, int32_t slot) noexcept nogil:
        """False: there is none, nor has the slot one."""
        cdef int32_t seat
        if self.seat_of[slot]:
            return True
        if not self.free_seats.empty():
            seat = self.free_seats.back()
            self.free_seats.pop_back()
        elif self.seats_touched < self.seats:
            seat = <int32_t>self.seats_touched
            self.seats_touched += 1
        else:
            return False
        self.seat_of[slot] = seat + 1
        self.slot_of_seat[seat] = slot + 1
        return True

    cdef bint _free_seats(self) noexcept nogil:
        """Those of the candidates. Without memory to stage the rows none of them changes its state: what wants a seat waits."""
        cdef Move departure
        cdef vector[int32_t] seats
        cdef pair[int64_t, int64_t] candidate
        cdef int32_t slot
        if self.candidates.empty():
            return True
        if self.departures.size() >= MOST_DEPARTURES:
            self._settle_until(self.departures.front().number)
        departure.exchange = self.rows.open(self.candidates.size(), self.table.stored_bytes)
        if departure.exchange == NULL:
            self.is_full = True
            return self._is_alive()
        self.moves_begun += 1
        departure.number = self.moves_begun
        for candidate in self.candidates:
            slot = self.slot_of_seat[candidate.second] - 1
            if self._vacate(candidate.second, departure.number):
                departure.keys.push_back(<uint32_t>self.table.key_of[slot])
                departure.slots.push_back(slot)
                seats.push_back(<int32_t>candidate.second)
        if seats.empty():
            self.rows.close(departure.exchange)
            return True
        # In the stream's order this comes before whatever takes the seats.
        departure.exchange.count = seats.size()
        memcpy(slots_in(departure.exchange), seats.data(), seats.size() * sizeof(int32_t))
        self.rows_out += seats.size()
        self.departures.push_back(departure)
        return self.moves.take_out(departure.exchange)

    cdef void _look_for_seats(self, int64_t count, uint32_t now) noexcept nogil:
        """For candidates: ``count`` if so many rows are in no window, those that are used last of those that are looked at."""
        cdef int64_t enough = max(LOOKED_AT * count, <int64_t>LEAST_LOOKED_AT)
        cdef int64_t most = min(self.seats_touched, <int64_t>MOST_LOOKED_AT)
        cdef int64_t looked = 0, ticks
        while looked < most and <int64_t>self.candidates.size() < enough:
            ticks = self._ticks_to_use(self.hand, now)
            if ticks != IN_WINDOW:
                self.candidates.push_back(pair[int64_t, int64_t](-ticks, self.hand))
            self.hand = (self.hand + 1) % self.seats
            looked += 1
        self.looked_in_vain = self.looked_in_vain + looked if self.candidates.empty() else 0
        if <int64_t>self.candidates.size() > count:
            nth_element(self.candidates.begin(), self.candidates.begin() + count, self.candidates.end())
            self.candidates.resize(count)

    cdef int64_t _ticks_to_use(self, int64_t seat, uint32_t now) noexcept nogil:
        """Of a row that may give way; else IN_WINDOW."""
        cdef int32_t slot = self.slot_of_seat[seat] - 1
        cdef int32_t key
        cdef uint32_t seen
        cdef bint is_bound, is_coming
        if slot < 0:
            return IN_WINDOW             # it is free: none to be given up
        key = load_relaxed_i32(&self.table.key_of[slot])
        if key < 0 or not enter_if_here(&self.table.places[key], &seen):
            return NO_USE
        is_bound = self.table.places[key].slot == slot
        is_coming = (self.tier.where[slot] & ROW_COMING) != 0
        unlock_unchanged(&self.table.places[key].word, seen)
        if not is_bound:
            return NO_USE
        if is_coming:
            return IN_WINDOW
        if is_in_window(&self.uses[key]) and not is_planted(MUTATION_INTENDED_EVICTED):
            return IN_WINDOW
        return ticks_to_use(&self.uses[key], now)

    cdef bint _is_bound(self, int64_t key, int32_t slot) noexcept nogil:
        return key >= 0 and is_here(self.table, key) and slot_of(self.table, key) == slot

    cdef bint _vacate(self, int64_t seat, uint32_t number) noexcept nogil:
        """CLEAN -> HOST, DIRTY -> GOING. True: the row is to be written back, by the move of that number."""
        cdef int32_t slot = self.slot_of_seat[seat] - 1
        cdef int32_t key = load_relaxed_i32(&self.table.key_of[slot])
        cdef uint32_t seen
        cdef uint8_t left
        self.slot_of_seat[seat] = 0
        self.seat_of[slot] = 0
        self.free_seats.push_back(<int32_t>seat)
        self.gone += 1
        if not self._is_bound(key, slot):
            return False
        self.broken_windows += is_in_window(&self.uses[key])
        seen = lock_word(&self.table.places[key].word)
        left = self.tier.where[slot] & ROW_AWAY
        if is_planted(MUTATION_DIRTY_ROW_DROPPED):
            left = 0
        if left and is_planted(MUTATION_MOVING_ROW_WRITTEN):
            self.seat_of[slot] = <int32_t>seat + 1
        else:
            self.tier.where[slot] = left
        self.move_of[slot] = number
        unlock_unchanged(&self.table.places[key].word, seen)
        return left != 0

    # -- moves that end --------------------------------------------------------------------------------------------------------

    cdef bint _land_arrived(self) noexcept nogil:
        cdef bint done = True
        while done and not self.arrivals.empty() and self.rows.device.has_happened(self.arrivals.front().exchange.done):
            done = self._land_until(self.arrivals.front().number)
        return done

    cdef void _settle_departed(self) noexcept nogil:
        while not self.departures.empty() and self.rows.device.has_happened(self.departures.front().exchange.done):
            self._settle_until(self.departures.front().number)

    cdef bint _land_until(self, uint32_t number) noexcept nogil:
        cdef bint landed = True
        while not self.arrivals.empty() and <int32_t>(self.arrivals.front().number - number) <= 0:
            self.stalls += not self.rows.device.has_happened(self.arrivals.front().exchange.done)
            landed = self._land(&self.arrivals.front()) and landed
            self.arrivals.pop_front()
        if not landed:
            self._fail()
        return landed

    cdef bint _land(self, Move* arrival) noexcept nogil:
        """COMING -> CLEAN; without memory for their seats' numbers -> HOST."""
        cdef Exchange* seats = self.rows.open(arrival.keys.size(), 0)
        cdef bint arrives
        cdef bint done = is_planted(MUTATION_ARRIVAL_NOT_AWAITED) or self.moves.await_arrival(arrival.exchange)
        cdef size_t i
        for i in range(arrival.keys.size()):
            arrives = self._has_arrived(arrival.keys[i], arrival.slots[i], arrival.number, seats != NULL)
            if seats != NULL:
                slots_in(seats)[i] = self._seat(arrival.slots[i]) if arrives else -1
        if seats != NULL:
            done = done and self.moves.put_in_place(arrival.exchange, seats)
            self.rows.close(seats)
        self.moves.close(arrival.exchange)
        return done

    cdef bint _has_arrived(self, uint32_t key, int32_t slot, uint32_t number, bint is_put) noexcept nogil:
        """COMING -> CLEAN, or HOST. False: the row is another by now."""
        cdef KeyPlace* place = &self.table.places[key]
        cdef uint32_t seen
        cdef bint comes
        if not enter_if_here(place, &seen):
            return False
        comes = place.slot == slot and self.tier.where[slot] == ROW_COMING and self.move_of[slot] == number
        if comes:
            self.tier.where[slot] = ROW_ON_DEVICE if is_put else 0
        unlock_unchanged(&place.word, seen)
        return comes

    cdef void _settle_until(self, uint32_t number) noexcept nogil:
        while not self.departures.empty() and <int32_t>(self.departures.front().number - number) <= 0:
            self.stalls += not self.rows.device.has_happened(self.departures.front().exchange.done)
            if not self._settle(&self.departures.front()):
                self._fail()
            self.departures.pop_front()

    cdef bint _settle(self, Move* departure) noexcept nogil:
        """Where the device fails, whoever waits for a row goes on, with any: the job ends."""
        cdef bint done = self.rows.finish(departure.exchange)
        cdef size_t i
        for i in range(departure.keys.size()):
            self._go_home(
                departure.keys[i], departure.slots[i], departure.number,
                rows_in(departure.exchange) + i * self.table.stored_bytes)
        self.moves.close(departure.exchange)
        return done

    cdef void _go_home(self, uint32_t key, int32_t slot, uint32_t number, const char* row) noexcept nogil:
        """GOING -> HOST, unless the row is another by now."""
        cdef KeyPlace* place = &self.table.places[key]
        cdef uint32_t seen
        if not enter_if_here(place, &seen):
            return
        if place.slot == slot and self.tier.where[slot] == ROW_AWAY and self.move_of[slot] == number:
            if row != NULL:
                memcpy(row_of(self.table, slot), row, self.table.stored_bytes)
            self.tier.where[slot] = 0
        unlock_unchanged(&place.word, seen)


cdef void _lacks(TableState* table, int64_t key) noexcept nogil:
    (<TieredRows>table.tier.context)._note_missing(key)


cdef void _note_window(
        TableState* table, WindowEvent event, const uint32_t* keys, uint32_t count, uint32_t first_use) noexcept nogil:
    (<TieredRows>table.tier.context)._note_window(event, keys, count, first_use)


cdef bint _fetch(TableState* table, uint32_t now) noexcept nogil:
    return (<TieredRows>table.tier.context)._fetch(now)
