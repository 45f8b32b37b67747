"""Random programs that are saved while they run: a checkpoint has what was written before each rank's cut.

Of every rank the first worker saves at steps that the seed draws, and goes on at once; the rest of the save is a task
of its own. What the rank's workers have written in calls that have returned at the cut, of all ranks together, is
what the checkpoint must hold, exactly. Now and then a rank is late, so that others run far ahead of its cut.
"""

import random
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from support.programs import ROW_ITEMS, STATE_READ, Plan, Program, WorkerProgram, draw_step
from support.simulation import simulate

import intentpm.checkpoint
from intentpm.runtime.saving import Saving

LATEST_US = 3000.0
SAVE_DEFECTS = ("late write lost", "copy left out", "saved twice", "cut unsettled", "cut untold")
"""Names of planted defects that programs without saves cannot find."""


class SavingProgram:
    """A program and the saves of its ranks."""

    def __init__(self, program: Program, folder: Path, saves: int) -> None:
        self.program, self.folder = program, folder
        self.incremental = program.job.seed % 2 == 1
        draw = random.Random(f"saves {program.job.seed}")
        self.steps = sorted(draw.choices(range(program.plan.steps), k=saves))
        self.late = [draw.choice((0.0, 0.0, 50.0, LATEST_US)) for _ in program.job.ranks]
        ranks, keys = range(program.plan.size), program.plan.keys
        self.expected = [{name: np.zeros(keys[name], np.int64) for name in ROW_ITEMS} for _ in range(saves)]
        self.savings: list[list[Saving]] = [[] for _ in ranks]

    def run_worker(self, worker: WorkerProgram) -> None:
        draw = random.Random(f"steps {self.program.job.seed} {worker.number}")
        saves = worker.number % self.program.plan.workers_per_rank == 0
        for step in range(self.program.plan.steps):
            for _ in range(self.steps.count(step) if saves else 0):
                self._pause(self.late[worker.rank])
                self._save(worker)
            worker.do(draw_step(draw, worker))
            if draw.random() < 0.7:
                self._pause(draw.choice((0.0, 1.0, 20.0, 500.0)))

    def _save(self, worker: WorkerProgram) -> None:
        manager, done = self.program.job.ranks[worker.rank], self.savings[worker.rank]
        while done and not done[-1].done():
            self._pause(20.0)
        order = manager._save_order(self.folder, None, self.incremental, None, None, None)

        def start(run: Any) -> None:
            self._note_cut(len(done), worker.rank)
            self.program.job.spawn(worker.rank, run, f"save of rank {worker.rank}")

        done.append(manager._saves.begin(order, start))

    def _note_cut(self, number: int, rank: int) -> None:
        """What the rank has written so far is in the checkpoint."""
        for name, added in self.program.written[rank].items():
            self.expected[number][name] += added
        mine = [worker for worker in self.program.workers if worker.rank == rank]
        keys = [key for worker in mine for key in worker.my_private_keys()]
        self.expected[number]["private"][keys] = self.program.private_written[keys]

    def check(self) -> None:
        for number, expected in enumerate(self.expected):
            paths = {saves[number].result() for saves in self.savings}
            assert len(paths) == 1
            with intentpm.checkpoint.open(paths.pop()) as opened:
                for name, values in expected.items():
                    self._check_table(number, opened, name, values)

    def _check_table(self, number: int, opened: Any, name: str, values: np.ndarray) -> None:
        if name != "private":
            values = values + self.program.shared[name].initial
        rows = opened[name].state(STATE_READ[name]) if name in STATE_READ else opened[name].rows()
        rows = rows.reshape(len(values), -1)
        wrong = np.flatnonzero((rows != values[:, None]).any(axis=1))
        assert not len(wrong), (
            f"save {number}: key {wrong[0]} of {name!r} is {rows[wrong[0]].tolist()[:3]} in the checkpoint; what was "
            f"written before the cuts makes {values[wrong[0]]} ({len(wrong)} keys are wrong)"
        )
        assert name == "counted" or rows.shape[1:] == (ROW_ITEMS[name],)

    def _pause(self, pause_us: float) -> None:
        self.program.job.network.pause(pause_us)


def run_saving_seed(
    seed: int, folder: Path, management: str | None = None, saves: int = 2, devices: Sequence[str] = ()
) -> str:
    """Runs the program of a seed with its saves; returns its trace hash. devices: as ``run_seed``."""
    plan = Plan.draw(seed, management)
    plan = plan.with_devices(seed, devices) if devices else plan
    plan = replace(plan, steps=max(plan.steps, 15))
    with simulate(plan.size, seed, plan.config, plan.model, max_virtual_s=60.0) as job:
        job.ask_early(plan.early_records)
        job.gather(plan.gathering_us)
        program = Program(job, plan, check_every=8)
        saving = SavingProgram(program, folder / str(seed), saves)
        for worker in program.workers:
            job.spawn(worker.rank, lambda worker=worker: saving.run_worker(worker), str(worker))
        job.run()
        saving.check()
        program.end()
        trace: str = job.network.trace_hash
    return trace
