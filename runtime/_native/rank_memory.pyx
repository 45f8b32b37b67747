"""A rank's memory budget, as Python asks it (``budget.pxd``): room for a table, what is kept for others, windows for messages.

Any thread, holding the GIL and not the engine's lock.
"""

from libc.stdint cimport int64_t

from intentpm.foundation.errors import MemoryBudgetError, WaitTimeoutError

from intentpm.runtime._native.budget cimport Budget, slot_bytes
from intentpm.runtime._native.calls cimport Calls
from intentpm.runtime._native.engine cimport Engine
from intentpm.runtime._native.monitor cimport Monitor
from intentpm.runtime._native.store cimport Table
from intentpm.runtime._native.turns cimport Turns, is_over

cdef enum:
    ROOM_NS = 5_000_000_000      # copies are given up in a few round trips, if it helps at all

HOW_TO_RAISE = "raise it (init(memory_budget=...), INTENTPM_MEMORY_BUDGET)"


cdef bint _is_settled(void* turns, void* budget) noexcept nogil:
    return is_over(<Turns>turns) or (<Budget>budget).excess() == 0 or not (<Budget>budget).can_shrink()


cdef class RankMemory:
    cdef Budget budget
    cdef Calls calls
    cdef Monitor monitor
    cdef Turns turns
    cdef dict kept               # guarded by: GIL. What it is kept for -> bytes

    def __init__(self, Engine engine not None):
        self.budget = engine.budget
        self.calls = engine.calls
        self.monitor = engine.monitor
        self.turns = engine.turns
        self.kept = {}

    def claim(self, Table table not None) -> None:
        """Before a table is filled: copies are given up for it. The claim ends when the engine knows it, or with ``unclaim``.

        Raises MemoryBudgetError with the arithmetic: nothing is claimed then.
        """
        if self.budget.limit_bytes == 0:
            return
        need = table.need()
        if not self._make_room(need["all"], 0):
            raise MemoryBudgetError(
                f"table {table.name!r} needs {need['all']} bytes on this rank: {need['fixed']} to know where its "
                f"{need['keys']} keys are, and {need['row']} for each of its {need['rows']} rows ({need['stored']} of data); "
                f"{self._explain()}, or use more ranks")

    def check_rows(self, Table table not None, int64_t rows) -> None:
        """Before rows of ranks that were lost come to belong to this one: they fit, if all copies go, when service goes on.

        Raises MemoryBudgetError with the arithmetic.
        """
        cdef int64_t need = rows * <int64_t>slot_bytes(table.state)
        cdef bint fits
        with nogil:
            self.monitor.acquire()
            fits = self.budget.limit_bytes == 0 or self.budget.least() + need <= self.budget.table_bytes
            self.monitor.release()
        if not fits:
            raise MemoryBudgetError(
                f"table {table.name!r} needs {need} bytes more on this rank, for {rows} rows of ranks that were lost; "
                f"{self._explain()}")

    def unclaim(self) -> None:
        with nogil:
            self.monitor.acquire()
            self.budget.claimed_bytes = 0
            self.monitor.release()

    def keep(self, what: str, size_bytes: int) -> None:
        """Python is about to keep so many bytes for ``what``, in place of those before; 0: none. Raises MemoryBudgetError."""
        cdef int64_t more = size_bytes - self.kept.get(what, 0)
        if self.budget.limit_bytes > 0 and more > 0 and not self._make_room(0, more):
            raise MemoryBudgetError(f"{what} needs {size_bytes} bytes on this rank; {self._explain()}")
        if self.budget.limit_bytes == 0 or more <= 0:
            with nogil:
                self.monitor.acquire()
                self.budget.kept_bytes += more
                self.monitor.release()
        if size_bytes > 0:
            self.kept[what] = size_bytes
        else:
            self.kept.pop(what, None)

    cdef bint _make_room(self, int64_t claimed, int64_t kept) except? -1:
        """Counts them, if they fit, whatever has to go for it; nothing goes for what cannot fit."""
        cdef bint fits
        with nogil:
            self.monitor.acquire()
            fits = self.budget.least() + claimed + kept <= self.budget.table_bytes
            if fits:
                self.budget.claimed_bytes += claimed
                self.budget.kept_bytes += kept
                self.turns.step()
                self.monitor.arm_sleeper()
            self.monitor.release()
        if not fits:
            return False
        try:
            self.calls.wait(_is_settled, <void*>self.budget, ROOM_NS, "copies of rows to be given up")
        except WaitTimeoutError:
            pass
        except BaseException:
            self._take_back(claimed, kept)
            raise
        with nogil:
            self.monitor.acquire()
            fits = self.budget.excess() == 0
            self.monitor.release()
        if not fits:
            self._take_back(claimed, kept)
        return fits

    cdef void _take_back(self, int64_t claimed, int64_t kept) noexcept:
        with nogil:
            self.monitor.acquire()
            self.budget.claimed_bytes -= claimed
            self.budget.kept_bytes -= kept
            self.monitor.release()

    def _explain(self):
        taken = self.taken()
        return (
            f"{taken} are in use, of the {self.budget.table_bytes} that tables may have of a memory_budget of "
            f"{self.budget.limit_bytes} (the rest is for messages, intents and saves): {HOW_TO_RAISE}")

    def taken(self) -> int:
        """Bytes of tables, and of what is kept for others, as the budget counts them."""
        cdef int64_t taken
        with nogil:
            self.monitor.acquire()
            taken = self.budget.taken()
            self.monitor.release()
        return taken

    def peer_bytes(self) -> int:
        """Of messages, per peer, at most. 0: no limit."""
        return self.budget.peer_bytes if self.budget.limit_bytes else 0

    def narrow(self, peer_bytes: int) -> None:
        """Messages have to fit into so many bytes per peer, on another rank."""
        cdef size_t most = peer_bytes
        with nogil:
            self.monitor.acquire()
            self.budget.narrow(most)
            self.monitor.release()

    def report(self) -> dict:
        """Bytes: ``limit``, of which tables may have ``tables``; ``taken`` of those; ``intents`` and rows set ``apart``."""
        return {
            "limit": self.budget.limit_bytes, "tables": self.budget.table_bytes, "taken": self.taken(),
            "intents": self.budget.intents.held_bytes, "apart": self.budget.copies.held_bytes,
        }
