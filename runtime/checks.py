"""The invariants I1 to I5, checked over all ranks of a job that live in one process (the simulation).

    I1  a key has one owner, or exactly one relocation in flight
    I2  at most one round in flight per pair of ranks
    I3  epochs only grow; the home rank ends with the newest
    I4  a replica is its last refresh plus its pending delta
    I5  value conservation: owner's value + pending deltas + deltas in flight = initial value + all pushes

A job is *quiet* when no message is under way and nothing waits to be done. Only then are all five visible from outside:
one owner each, every replica bit-identical to it, and every value accounted for. While things move, what must hold is
checked: no key with two owners, no two ranks that disagree about an owner at the same epoch, and no epoch that fell.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from intentpm.runtime._native.store import Table
from intentpm.runtime.manager import ParameterManager

Keys = npt.NDArray[np.int64]
NO_OWNER = -1


class InvariantError(AssertionError):
    """An invariant does not hold; the message names it, the table, the key and the ranks."""


class Checker:
    """Checks a job again and again: it remembers the epochs it saw, which may only grow.

    ranks: the managers of all ranks that are in the job, in rank order, running in this process; no call of theirs is
    in progress.
    """

    def __init__(self, ranks: Sequence[ParameterManager]) -> None:
        self._ranks = list(ranks)
        self._seen_epochs: dict[str, npt.NDArray[np.uint32]] = {}

    def check(self) -> None:
        """What holds at every moment. Raises InvariantError."""
        for name, tables in self._tables().items():
            self._owners(name, tables)
            self._check_epochs(name, tables)

    def check_quiet(
        self,
        expected: Mapping[str, npt.NDArray[Any]] | None = None,
        intended: Mapping[str, Sequence[Keys]] | None = None,
    ) -> None:
        """What holds in a quiet job. Raises InvariantError.

        expected: per table, the rows [num_keys, *row_shape] that all accesses must have led to.
        intended: per table and rank, the keys with active intent there; no other key may have a replica there.
        """
        for name, tables in self._tables().items():
            owners = self._owners(name, tables)
            if (owners == NO_OWNER).any():
                key = int(np.flatnonzero(owners == NO_OWNER)[0])
                raise InvariantError(f"I1: key {key} of table {name!r} has no owner, though nothing is in flight")
            self._check_homes(name, tables, owners)
            rows = _owned_rows(self._by_rank(tables), owners)
            self._check_replicas(name, tables, rows)
            if expected is not None and name in expected:
                _check_rows(name, rows, expected[name], owners)
            if intended is not None and name in intended:
                _check_intended(name, self._by_rank(tables), intended[name])

    def _tables(self) -> dict[str, list[Table]]:
        """Per table name, the table as each rank sees it."""
        names = set.intersection(*(set(rank._tables) for rank in self._ranks))
        return {name: [rank._tables[name] for rank in self._ranks] for name in sorted(names)}

    def _by_rank(self, tables: Sequence[Table]) -> list[tuple[int, Table]]:
        return [(manager.rank, table) for manager, table in zip(self._ranks, tables, strict=True)]

    def _owners(self, name: str, tables: Sequence[Table]) -> npt.NDArray[np.int32]:
        """Who owns each key, by its row's state: int32 [num_keys], NO_OWNER while it moves. I1: at most one."""
        owners = np.full(tables[0].num_keys, NO_OWNER, np.int32)
        for rank, table in self._by_rank(tables):
            mine = table.owned_keys()
            twice = mine[owners[mine] != NO_OWNER]
            if len(twice):
                raise InvariantError(
                    f"I1: key {twice[0]} of table {name!r} is owned by ranks {owners[twice[0]]} and {rank}"
                )
            owners[mine] = rank
        return owners

    def _check_epochs(self, name: str, tables: Sequence[Table]) -> None:
        epochs = np.stack([table.epochs() for table in tables])
        seen = self._seen_epochs.get(name)
        if seen is not None and (epochs < seen).any():
            at, key = np.argwhere(epochs < seen)[0]
            raise InvariantError(
                f"I3: epoch of key {key} of table {name!r} fell from {seen[at, key]} to {epochs[at, key]} "
                f"on rank {self._ranks[at].rank}"
            )
        self._seen_epochs[name] = epochs
        known = np.stack([table.owners() for table in tables])
        newest = epochs.argmax(axis=0)
        agreed = np.take_along_axis(known, newest[None], axis=0)
        wrong = (epochs == epochs.max(axis=0)) & (known != agreed)
        if wrong.any():
            at, key = np.argwhere(wrong)[0]
            raise InvariantError(
                f"I3: ranks {self._ranks[at].rank} and {self._ranks[newest[key]].rank} know different owners "
                f"({known[at, key]} and {agreed[0, key]}) of key {key} of table {name!r} at the same epoch "
                f"{epochs[at, key]}"
            )

    def _check_homes(self, name: str, tables: Sequence[Table], owners: npt.NDArray[np.int32]) -> None:
        """I3, its end: the home rank and the owner itself know the owner, at the newest epoch."""
        newest = np.stack([table.epochs() for table in tables]).max(axis=0)
        for rank, table in self._by_rank(tables):
            concerned = np.union1d(table.home_keys(), table.owned_keys())
            known, epochs = table.owners(), table.epochs()
            wrong = concerned[(known[concerned] != owners[concerned]) | (epochs[concerned] != newest[concerned])]
            if len(wrong):
                key = wrong[0]
                raise InvariantError(
                    f"I3: rank {rank}, home or owner of key {key} of table {name!r}, knows owner {known[key]} at epoch "
                    f"{epochs[key]}; it is rank {owners[key]} at epoch {newest[key]}"
                )

    def _check_replicas(self, name: str, tables: Sequence[Table], rows: npt.NDArray[Any]) -> None:
        """I4, once nothing is pending: every replica has its owner's bits."""
        for rank, table in self._by_rank(tables):
            keys = table.replica_keys()
            here = table.rows_here(keys)
            if not len(keys):
                continue
            wrong = np.flatnonzero((_bits(here) != _bits(rows[keys])).any(axis=1))
            if len(wrong):
                key = keys[wrong[0]]
                raise InvariantError(
                    f"I4: the replica of key {key} of table {name!r} on rank {rank} is {here[wrong[0]]}, "
                    f"its owner has {rows[key]}"
                )


def _owned_rows(tables: Sequence[tuple[int, Table]], owners: npt.NDArray[np.int32]) -> npt.NDArray[Any]:
    first = tables[0][1]
    rows = np.empty((first.num_keys, *first.row_shape), first.dtype)
    for rank, table in tables:
        keys = np.flatnonzero(owners == rank).astype(np.int64)
        rows[keys] = table.rows_here(keys)
    return rows


def _check_rows(name: str, rows: npt.NDArray[Any], expected: npt.NDArray[Any], owners: npt.NDArray[np.int32]) -> None:
    wrong = np.flatnonzero((rows != expected).reshape(len(rows), -1).any(axis=1))
    if len(wrong):
        key = wrong[0]
        raise InvariantError(
            f"I5: key {key} of table {name!r} is {rows[key]} at its owner, rank {owners[key]}; all accesses together "
            f"make {expected[key]} ({len(wrong)} keys are wrong)"
        )


def _check_intended(name: str, tables: Sequence[tuple[int, Table]], intended: Sequence[Keys]) -> None:
    for rank, table in tables:
        left = np.setdiff1d(table.replica_keys(), intended[rank])
        if len(left):
            raise InvariantError(f"rank {rank} keeps a replica of key {left[0]} of table {name!r} without intent")


def _bits(rows: npt.NDArray[Any]) -> npt.NDArray[np.uint8]:
    return np.ascontiguousarray(rows).reshape(len(rows), -1).view(np.uint8)
