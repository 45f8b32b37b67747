"""A worker of a program of ``losses``: what it does next, and what it may see of what it wrote."""

import random
from dataclasses import dataclass
from typing import Any

import numpy as np

from intentpm.foundation.errors import RankLost
from intentpm.runtime.optimisers import SGD, Adagrad

TABLES = {"pushed": None, "stepped": SGD(lr=1.0), "set": None, "gathered": Adagrad(lr=1.0)}
"""Of "set" each key is one worker's, which sets it to ever larger numbers. "gathered" takes gradients of -1 alone: its
accumulator, the sum of their squares, counts a worker's steps as the weights of "pushed" and "stepped" do."""
ADDED = ("pushed", "stepped")


@dataclass(frozen=True, slots=True)
class AsyncPush:
    """One that is under way: what was known of its keys when it was made."""

    future: Any
    name: str
    keys: np.ndarray
    resets: np.ndarray
    doubts: np.ndarray


class Member:
    """One worker of a ``losses.LossProgram``."""

    def __init__(self, program: Any, worker: Any, rank: int, number: int, draw: random.Random) -> None:
        self.program, self.worker, self.rank, self.number, self.draw = program, worker, rank, number, draw
        self.last_window_end = 0
        self.ends_windows = number % 2 == 0
        self.last_set = 0
        self.under_way: list[AsyncPush] = []

    def step(self) -> None:
        calls = {
            self._push: 25,
            self._push_async: 10,
            self._set: 10,
            self._pull: 15,
            self._sample: 5,
            self._intend: 20,
            self._advance: 20,
            self._wait_sync: 5,
        }
        self.draw.choices(tuple(calls), tuple(calls.values()))[0]()
        self._look_at_async()

    def _draw_keys(self, name: str) -> np.ndarray:
        count = self.program.plan.keys[name]
        return np.array(self.draw.choices(range(count), k=self.draw.choice((1, 1, 2, 5))), np.int64)

    def _push(self) -> None:
        name = self.draw.choice((*ADDED, "gathered"))
        keys = self._draw_keys(name)
        if name == "gathered":  # the square of a sum is not the sum of squares
            keys = np.unique(keys)
        rows = np.zeros((len(keys), self.program.workers))
        rows[:, self.number] = 1
        table = self.program.tables[name][self.rank]
        if self.rank in self.program.dead:
            return
        least, most = self.program.least[name][:, self.number], self.program.most[name][:, self.number]
        np.add.at(most, keys, 1)
        resets = self.program.resets[name][keys]
        try:
            if name == "gathered" or (TABLES[name] is not None and self.draw.random() < 0.7):
                self.worker.push_grad(table, keys, -rows)
            else:
                self.worker.push(table, keys, rows)
        finally:  # of a key that was rolled back meanwhile nothing may be left; or all, if it was written afterwards
            anew = self.program.resets[name][keys] != resets
            np.add.at(most, keys[anew], 1)
        if self.rank not in self.program.dead:
            np.add.at(least, keys[~anew], 1)
            np.minimum(least, most, out=least)

    def _push_async(self) -> None:
        name = self.draw.choice(ADDED)
        keys = self._draw_keys(name)
        rows = np.zeros((len(keys), self.program.workers))
        rows[:, self.number] = 1
        if self.rank in self.program.dead:
            return
        np.add.at(self.program.most[name][:, self.number], keys, 1)
        resets, doubts = self.program.resets[name][keys], self.program.doubts[name][self.rank, keys]
        future = self.worker.push_async(self.program.tables[name][self.rank], keys, rows)
        self.under_way.append(AsyncPush(future, name, keys, resets, doubts))

    def _look_at_async(self) -> None:
        """Those that have ended are made; one whose wait raises RankLost may be, or not."""
        ended = [push for push in self.under_way if push.future.done()]
        self.under_way = [push for push in self.under_way if not push.future.done()]
        for push in ended:
            try:
                push.future.wait()
            except RankLost:
                continue
            least, most = (bound[push.name][:, self.number] for bound in (self.program.least, self.program.most))
            anew = self.program.resets[push.name][push.keys] != push.resets
            unsure = self.program.doubts[push.name][self.rank, push.keys] != push.doubts
            np.add.at(most, push.keys[anew], 1)  # it may have been made after its row was rolled back
            if self.rank not in self.program.dead:
                np.add.at(least, push.keys[~(anew | unsure)], 1)
                np.minimum(least, most, out=least)

    def _set(self) -> None:
        mine = np.arange(self.number, self.program.plan.keys["set"], self.program.workers)
        if len(mine) == 0 or self.rank in self.program.dead:
            return
        self.last_set += 1
        keys = self.draw.choice(mine)[None]
        rows = np.zeros((1, self.program.workers))
        rows[:, self.number] = self.last_set
        least, most = (bound["set"][:, self.number] for bound in (self.program.least, self.program.most))
        most[keys] = self.last_set
        resets = self.program.resets["set"][keys]
        try:
            self.worker.set(self.program.tables["set"][self.rank], keys, rows)
        finally:
            as_before = self.program.resets["set"][keys] == resets
            most[keys] = self.last_set
        if self.rank not in self.program.dead:
            least[keys[as_before]] = self.last_set

    def _sample(self) -> None:
        """Ahead of its use, as a batch would."""
        table = self.program.tables[self.draw.choice(tuple(TABLES))][self.rank]
        sample = self.worker.prepare_sample(table, 3, self.worker.clock + 1)
        self.last_window_end = max(self.last_window_end, self.worker.clock + 2)
        self.worker.advance_clock()
        keys, rows = self.worker.pull_sample(sample)
        assert rows.shape == (3, self.program.workers), keys

    def _pull(self) -> None:
        name = self.draw.choice(tuple(TABLES))
        keys = self._draw_keys(name)
        resets = self.program.resets[name][keys]
        read = self.worker.pull(self.program.tables[name][self.rank], keys)[:, self.number]
        as_before = self.program.resets[name][keys] == resets  # else it may have been read before
        keys, read = keys[as_before], read[as_before]
        if self.rank in self.program.dead or name == "gathered":  # how long its steps look at a replica is not said
            return
        least, most = (bound[name][keys, self.number] for bound in (self.program.least, self.program.most))
        assert ((least <= read) & (read <= most)).all(), (
            f"worker {self.number} read {read} of its own writes to {keys} of {name}: must be from {least} to {most}"
        )

    def _intend(self) -> None:
        name = self.draw.choice(tuple(TABLES))
        start = self.worker.clock + self.draw.randint(-1, 5)
        end = start + self.draw.randint(1, 6)
        self.worker.intent(self.program.tables[name][self.rank], self._draw_keys(name), start, end)
        self.last_window_end = max(self.last_window_end, end)

    def _advance(self) -> None:
        self.worker.advance_clock()

    def _wait_sync(self) -> None:
        self._look_at_async()
        before = {name: self.program.least[name][:, self.number].copy() for name in TABLES}
        checked = len(self.program.checked)
        self.worker.wait_sync()
        if checked == len(self.program.checked) and self.rank not in self.program.dead:
            for name in TABLES:
                self.program.synchronised[name][:, self.number] = before[name]

    def finish(self) -> None:
        """Of some the windows do not end: what replicas have then must be what owners have, too (I4)."""
        while self.ends_windows and self.worker.clock < self.last_window_end:
            self.worker.advance_clock()
        self.worker.wait_sync()
        self._look_at_async()
        assert not self.under_way, "wait_sync waits for asynchronous writes"
