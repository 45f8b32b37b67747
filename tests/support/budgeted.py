"""Random programs whose ranks have a memory budget: room for few copies, and now and then for fewer than there are.

What every read may return is as without one (``support.programs``). Besides, counted by what lies in the tables: no
rank has ever more rows and copies than the widest budget it has had allows, and when a budget has become narrower,
copies are given up until it fits, as far as there are any.
"""

import random
from typing import Any

from support.programs import Plan, Program, run_worker
from support.simulation import simulate

MOST_COPIES = 12
WITHOUT_LIMIT = 1 << 40
NARROWEST_PEER_BYTES = 1


class Budgets:
    """Those of all ranks of a program; they change while it runs."""

    def __init__(self, program: Program, seed: int) -> None:
        self.program = program
        self.draw = random.Random(f"budgets {seed}")
        self.widest = [0] * program.plan.size
        self.narrows = self.draw.random() < 0.7
        for rank in range(program.plan.size):
            self._give(rank, MOST_COPIES)
        if self.draw.random() < 0.5:
            for manager in program.job.ranks:
                manager._memory.narrow(NARROWEST_PEER_BYTES)

    def _give(self, rank: int, most_copies: int) -> None:
        """From now on the rank may have so many more copies of each table's rows, at most."""
        memory, budget = self.program.job.ranks[rank]._memory, self.program.job.ranks[rank]._engine.budget
        tables = self._tables(rank)
        held = sum(table.need()["fixed"] + len(table.owned_keys()) * table.need()["row"] for table in tables)
        copies = sum(self.draw.randint(0, most_copies) * _copy_bytes(table) for table in tables)
        budget.limit_bytes, budget.table_bytes = WITHOUT_LIMIT, held + copies
        # What is promised, or partly given back, counts still.
        self.widest[rank] = max(self.widest[rank], budget.table_bytes, memory.taken() if self.widest[rank] == 0 else 0)

    def _tables(self, rank: int) -> list[Any]:
        return [tables[rank] for tables in self.program.tables.values()]

    def after_step(self) -> None:
        for rank in range(self.program.plan.size):
            self._check(rank)
        if self.narrows and self.draw.random() < 0.05:
            self._give(self.draw.randrange(self.program.plan.size), self.draw.choice((0, 2, MOST_COPIES)))

    def _check(self, rank: int) -> None:
        held = 0
        for table in self._tables(rank):
            owned, copies = len(table.owned_keys()), len(table.replica_keys())
            held += table.need()["fixed"] + owned * table.need()["row"] + copies * _copy_bytes(table)
        assert held <= self.widest[rank], (
            f"rank {rank} holds {held} bytes; the widest budget it has had allows {self.widest[rank]}"
        )

    def check_shed(self) -> None:
        """Nothing is under way: what is too much is there because it cannot go."""
        for rank in range(self.program.plan.size):
            budget = self.program.job.ranks[rank]._engine.budget
            budget.table_bytes = 0
        self.program.job.on_every_rank(lambda manager: manager._engine.trim())  # a step looks
        for worker in self.program.workers:
            self.program.job.spawn(worker.rank, worker.worker.wait_sync, f"shedding of {worker}")
        self.program.job.run()
        self.program.job.settle()
        for rank in range(self.program.plan.size):
            left = {table.name: table.replica_keys().tolist() for table in self._tables(rank)}
            assert not any(left.values()), f"rank {rank} has no room for a copy, and keeps those of {left}"


def _copy_bytes(table: Any) -> int:
    """A copy's row, and what it needs to keep what is written to it."""
    return int(table.need()["row"] + table.copy_bytes())


def run_budget_seed(seed: int, management: str | None = None, ranks: int | None = None) -> str:
    """Runs the program of a seed under budgets; returns its trace hash."""
    plan = Plan.draw(seed, management, ranks)
    with simulate(plan.size, seed, plan.config, plan.model, max_virtual_s=60.0) as job:
        job.ask_early(plan.early_records)
        job.hand_over(plan.hands_over)
        job.gather(plan.gathering_us)
        program = Program(job, plan, check_every=8)
        budgets = Budgets(program, seed)
        for worker in program.workers:
            job.spawn(worker.rank, lambda worker=worker: run_worker(program, worker, budgets.after_step), str(worker))
        job.run()
        if seed % 2 == 0:
            budgets.check_shed()
        program.end()
        trace: str = job.network.trace_hash
    return trace
