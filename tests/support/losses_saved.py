"""Saves and collective calls of programs in which ranks die.

The first of the members calls for a save now and then, as ``PeriodicSaves`` does, and every member makes it at its next
step. One that is made has, of each worker's writes, what had returned at its rank's cut. One that is under way when a
rank dies fails; the next is made by those that are left.

Now and then all ranks make a collective call: it ends on all that are left, or on none.
"""

import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

import intentpm.checkpoint
from intentpm.foundation.errors import CheckpointError, RankLost

Bounds = dict[str, tuple[np.ndarray, np.ndarray]]
Cut = tuple[tuple[int, ...], int]
"""The members, and the number of the cut."""


class LossSaves:
    """Of one program: what its checkpoints must have. ``program``: a ``losses.LossProgram``."""

    def __init__(self, program: Any, folder: Path) -> None:
        self.program, self.folder = program, folder
        self.bounds: dict[Cut, dict[int, Bounds]] = {}
        """By rank: least and most of each table, at its cut."""
        self.begun: list[tuple[Cut, Any]] = []
        self.made = 0
        self._stored: dict[Path, dict[str, np.ndarray]] = {}

    def step(self, rank: int, draw: random.Random) -> None:
        """Of a rank's first worker, often."""
        saves = self.program.job.ranks[rank]._saves
        formed = saves.formed()
        if saves._last is not None and not saves._last.done():
            return
        if saves.is_first() and draw.random() < 0.1:
            saves.snapshot.call(saves.snapshot.made() + 1)
        if saves.snapshot.called() > saves.snapshot.made():
            self._save(rank, formed)

    def finish(self, rank: int) -> None:
        """As ``PeriodicSaves.finish``: makes the saves that were called for."""
        manager = self.program.job.ranks[rank]
        called = self._called(manager)
        while manager._saves.snapshot.made() < called:
            self._pause_until_done(rank)
            self._save(rank, manager._saves.formed())
        self._pause_until_done(rank)

    def _called(self, manager: Any) -> int:
        """How many saves there are, as the first of the members knows."""
        while True:
            try:
                return int(manager.allgather(str(manager._saves.snapshot.called()).encode())[0])
            except RankLost:
                self.program.told += 1

    def _pause_until_done(self, rank: int) -> None:
        saves = self.program.job.ranks[rank]._saves
        while saves._last is not None and not saves._last.done() and not self.program.is_out(rank):
            self.program.job.network.pause(50.0)

    def _save(self, rank: int, formed: int) -> None:
        manager = self.program.job.ranks[rank]
        order = manager._save_order(
            self.folder, list(self.program.least), self.program.job.seed % 2 == 1, None, None, None
        )
        cut: Cut | None = None

        def start(run: Callable[[], None]) -> None:
            nonlocal cut
            cut = (tuple(manager.living), manager._saves.snapshot.made())
            self.bounds.setdefault(cut, {})[rank] = self._bounds_at_cut()
            self.program.job.spawn(rank, run, f"save of rank {rank}")

        try:
            saving = manager._saves.begin(order, start, formed)
        except CheckpointError:
            if not self.program.dead:
                raise
            return
        assert cut is not None
        self.begun.append((cut, saving))

    def _bounds_at_cut(self) -> Bounds:
        program = self.program
        return {name: (program.least[name].copy(), program.most[name].copy()) for name in program.least}

    def rows_of(self, path: Path) -> dict[str, np.ndarray]:
        """What a checkpoint has that counts writes, by table."""
        return {name: stored[1].astype(np.int64) for name, stored in self.stored_in(path).items()}

    def stored_in(self, path: Path) -> dict[str, np.ndarray]:
        """What a checkpoint has, by table: weights and what counts writes, stacked."""
        if path not in self._stored:
            with intentpm.checkpoint.open(path) as opened:
                weights = {name: opened[name].rows() for name in self.program.least}
                counts = {**weights, "gathered": opened["gathered"].state("sum")}
            self._stored[path] = {name: np.stack([weights[name], counts[name]]) for name in weights}
        return self._stored[path]

    def check(self) -> None:
        """Every save has ended; what it holds is right, or it was void."""
        for cut, saving in self.begun:
            if saving._error is not None:
                saving.looked_at = True
                assert self.program.dead, saving._error
            elif saving.done():
                self._check_made(cut, saving.result())

    def _check_made(self, cut: Cut, path: Path) -> None:
        self.made += 1
        members, number = cut
        assert set(self.bounds[cut]) == set(members), f"{path}: cut {number} of {members}, made by {self.bounds[cut]}"
        rows, rank_of = self.rows_of(path), self.program.rank_of
        for rank in range(self.program.plan.size):
            at_cut = self.bounds[cut][rank if rank in members else members[0]]  # of who was lost before: as it was left
            for name, (least, most) in at_cut.items():
                columns = np.flatnonzero(rank_of == rank)
                found = rows[name][:, columns]
                wrong = (found < least[:, columns]) | (found > most[:, columns])
                assert not wrong.any(), f"{path}: keys {np.flatnonzero(wrong.any(axis=1))} of {name}, rank {rank}"


class TogetherSteps:
    """Collective calls of a rank's first worker: ``numbers`` of them, at steps that all ranks draw alike."""

    def __init__(self, program: Any) -> None:
        self.program = program
        draw = random.Random(f"together {program.job.seed}")
        self.steps = sorted(draw.choices(range(program.plan.steps), k=draw.choice((0, 0, 1, 3, 6))))

    def make(self, rank: int, number: int) -> None:
        """Until it has ended; a loss begins it anew, on every rank."""
        manager = self.program.job.ranks[rank]
        while True:
            try:
                self._call(manager, number)
                return
            except RankLost as loss:
                self.program.note_told(loss)

    def _call(self, manager: Any, number: int) -> None:
        if number % 3 == 0:
            manager.barrier()
        elif number % 3 == 1:
            answers = manager.allgather(str(number).encode())
            assert set(answers) == {str(number).encode()}, f"rank {manager.rank}, call {number}: {answers}"
        else:
            manager.create_table(f"made in call {number}", 10, 2, init=float(number))
