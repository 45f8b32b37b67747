"""What ranks that form anew tell each other and their workers: packed arrays, and reports of what was rolled back."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from intentpm.checkpoint.storage import Location, located
from intentpm.foundation.errors import RankLost

Keys = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class RolledBack:
    """Keys of a table whose owner was lost, and where their rows, as they are now, came from.

    Attributes: ``table``, its name; ``keys``, int64 [K], ascending; ``source``: "replica", as ``rank`` saw them, with
    all that it had written; "checkpoint", of ``path``; or "init", the table's first rows; ``clocks`` of a checkpoint:
    per rank that saved it, number of the worker -> its clock.
    """

    table: str
    keys: Keys
    source: str
    rank: int | None = None
    path: Location | None = None
    clocks: list[dict[int, int]] = field(default_factory=list)


Told = tuple[int, int, RolledBack]
"""By which of a rank's losses tells of it, and the view in which it was rolled back, if that is not over."""


@dataclass(frozen=True, slots=True)
class Loss:
    """What workers are told of ranks that were lost at one time."""

    ranks: list[int]
    whys: list[str]
    living: list[int]
    rolled_back: list[RolledBack]
    unsure: dict[str, Keys]


def latest(entries: Sequence[RolledBack]) -> list[RolledBack]:
    """Oldest first: what was rolled back again, since it had moved to a rank that was lost next, is told of once."""
    told: dict[str, Keys] = {}
    left = []
    for entry in reversed(entries):
        known = told.get(entry.table, entry.keys[:0])
        keys = np.setdiff1d(entry.keys, known)
        told[entry.table] = np.union1d(known, keys)
        if len(keys):
            left.append(replace(entry, keys=keys))
    return left[::-1]


def as_error(losses: Sequence[Loss], here: int) -> RankLost:
    """What a worker raises that has not been told of these yet, oldest first."""
    ranks = [rank for loss in losses for rank in loss.ranks]
    whys = "; ".join(f"rank {loss.ranks[i]} {loss.whys[i]}" for loss in losses for i in range(len(loss.ranks)))
    rolled_back = latest([entry for loss in losses for entry in loss.rolled_back])
    unsure: dict[str, Keys] = {}
    for loss in losses:
        for name, keys in loss.unsure.items():
            unsure[name] = np.union1d(unsure.get(name, keys), keys)
    rows = sum(len(entry.keys) for entry in rolled_back)
    living = losses[-1].living if losses else []
    return RankLost(
        f"{whys}; ranks {living} go on without it: {rows} rows that it owned are rolled back (rolled_back says which, "
        f"and to what), {sum(map(len, unsure.values()))} may lack writes of rank {here} (unsure)",
        ranks,
        living,
        rolled_back,
        unsure,
    )


def _facts_of(entry: RolledBack) -> dict[str, Any]:
    return {
        "table": entry.table,
        "source": entry.source,
        "rank": entry.rank,
        "path": None if entry.path is None else str(entry.path),
        "clocks": [{str(worker): clock for worker, clock in rank.items()} for rank in entry.clocks],
    }


def _entry_of(facts: Mapping[str, Any], keys: Keys) -> RolledBack:
    clocks = [{int(worker): clock for worker, clock in rank.items()} for rank in facts["clocks"]]
    path = None if facts["path"] is None else located(facts["path"])
    return RolledBack(facts["table"], keys, facts["source"], facts["rank"], path, clocks)


def pack(facts: Any, arrays: Sequence[npt.NDArray[Any]] = ()) -> bytes:
    """Facts that JSON can hold, and arrays."""
    head = json.dumps([facts, [[array.dtype.str, len(array)] for array in arrays]]).encode()
    return len(head).to_bytes(4, "little") + head + b"".join(np.ascontiguousarray(array).tobytes() for array in arrays)


def unpack(data: bytes) -> tuple[Any, list[npt.NDArray[Any]]]:
    at = 4 + int.from_bytes(data[:4], "little")
    facts, kinds = json.loads(data[4:at])
    arrays = []
    for dtype, length in kinds:
        arrays.append(np.frombuffer(data, dtype, length, at).copy())
        at += arrays[-1].nbytes
    return facts, arrays


def pack_entries(entries: Sequence[Told]) -> bytes:
    return pack([[*when, _facts_of(entry)] for *when, entry in entries], [entry.keys for *_, entry in entries])


def unpack_entries(data: bytes) -> list[Told]:
    facts, keys = unpack(data)
    return [(at, view, _entry_of(of, these)) for (at, view, of), these in zip(facts, keys, strict=True)]
