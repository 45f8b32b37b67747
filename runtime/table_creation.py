"""One rank's part in ``create_table``: the table is made and filled before the ranks agree, and taken back if they do
not."""

from collections.abc import Callable, Sequence
from typing import Any, Self

from intentpm.foundation.errors import DeviceError, DtypeError, Error, MemoryBudgetError, ShapeError
from intentpm.runtime._native.device_tier import DeviceTier
from intentpm.runtime._native.engine import Engine
from intentpm.runtime._native.rank_memory import RankMemory
from intentpm.runtime._native.store import Table
from intentpm.runtime._native.tiered_rows import SEAT_BYTES_BESIDE, TieredRows
from intentpm.runtime.arguments import UnfitError
from intentpm.runtime.collectives import Answers
from intentpm.runtime.devices import Devices
from intentpm.runtime.table_arguments import TableArguments

OF_THE_ARGUMENTS = {"ShapeError": ShapeError, "DtypeError": DtypeError}
"""Errors that are the same for every rank, whichever found the fault."""
FREE_SHARE = 2
"""A tiered table has one part in so many of what is free on a device; the next table, of the rest."""


class TableCreation:
    """Of a table called ``name`` (as people read it)."""

    def __init__(self, engine: Engine, name: str) -> None:
        self.table: Table | None = None
        self.problem: dict[str, Any] | None = None
        """Why there is no table, as the other ranks are told."""
        self._error: Exception | None = None
        self._engine = engine
        self._name = name

    def make(
        self,
        arguments: TableArguments | None,
        error: Exception | None,
        check: Callable[[TableArguments], int],
        rank: int,
        size: int,
        devices: Devices,
        memory: RankMemory,
    ) -> Self:
        """The table, filled and known to the engine, or a problem: the other ranks hear of it before this one raises.

        arguments: None where they are wrong: ``error`` says why. check: raises or returns the table's id. devices: of
        this rank; its own is opened for ``storage="gpu"`` or "tiered". memory: where it has to fit in.
        """
        shared = True
        if arguments is not None:
            try:
                table_id = check(arguments)
                table = Table(
                    arguments.name,
                    table_id,
                    arguments.num_keys,
                    arguments.row_shape,
                    arguments.dtype,
                    rank,
                    size,
                    arguments.optimizer,
                )
                stand_ins = self._engine.stand_ins()
                if stand_ins is not None:
                    table.begin_without(stand_ins)
                memory.claim(table)
                shared = arguments.init.is_shared
                arguments.init.fill(table)
                if arguments.storage == "gpu":
                    DeviceTier(table, devices.open())
                elif arguments.storage == "tiered":
                    TieredRows(table, devices.open(), seats_for(arguments, devices))
                self._engine.add_table(table)
                self.table = table
            except Exception as problem:  # an init callable may raise anything
                error = problem
            finally:
                memory.unclaim()  # the engine counts it, or it is gone
        if error is not None:
            self._error = error
            self.problem = _told(error, shared)
        return self

    def given_up(self, why: BaseException) -> dict[str, Any]:
        """What the other ranks are told when this one was interrupted."""
        return {"error": "", "text": f"gave up, because of {why!r}"}

    def undo(self) -> None:
        """The engine forgets the table."""
        if self.table is not None:
            self._engine.remove_table(self.table)
            self.table = None

    def result(self, answers: Answers, ranks: Sequence[int]) -> Table:
        """The table. Raises what kept it from being made: the same on every rank where it lies in the arguments.

        ranks: who gave the answers.
        """
        problems = [(answer["problem"], rank) for rank, answer in zip(ranks, answers, strict=True) if answer["problem"]]
        of_all = [problem for problem, _ in problems if problem["error"] in OF_THE_ARGUMENTS]
        if of_all:
            first = min(of_all, key=lambda problem: problem["key"])
            raise OF_THE_ARGUMENTS[first["error"]](first["text"])
        if self._error is not None:
            raise self._error
        for problem, rank in problems:
            if problem["error"] == MemoryBudgetError.__name__:
                raise MemoryBudgetError(f"table {self._name} was not made, because of rank {rank}: {problem['text']}")
            raise Error(f"table {self._name} was not made: rank {rank} {problem['text']}")
        assert self.table is not None
        return self.table


def _told(error: Exception, shared: bool) -> dict[str, Any]:
    """shared: the fault is in what every rank passed."""
    key = error.position if isinstance(error, UnfitError) else -1
    kind = "DtypeError" if isinstance(error, UnfitError) else type(error).__name__
    if kind == MemoryBudgetError.__name__ or (shared and kind in OF_THE_ARGUMENTS):
        return {"error": kind, "text": str(error), "key": key}
    return {"error": "", "text": f"failed with {error!r}"}


def seats_for(arguments: TableArguments, devices: Devices) -> int:
    """How many rows of a table with storage="tiered" the rank's device has room for. Raises DeviceError."""
    device = devices.open()
    seat_bytes = arguments.stride_bytes + SEAT_BYTES_BESIDE
    free_bytes = device.free_memory()
    memory = arguments.device_memory
    if memory is None:
        memory = free_bytes // (FREE_SHARE * devices.sharers())
    if memory < seat_bytes:
        raise DeviceError(
            f"table {arguments.name!r}: {device.name} has {free_bytes} bytes free, and a row takes {seat_bytes}: free "
            "some, or use storage='host'"
        )
    return min(arguments.num_keys, memory // seat_bytes)
