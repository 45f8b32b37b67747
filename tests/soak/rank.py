"""A rank of the soak (``soak.py``): pushes at random, knows what each row must be, saves, goes on from what it saved.

A row is one whole number times 1, 2, 3 ...: a torn row shows. What this rank has added to each key is in its *journal*,
an array that it keeps by itself and writes beside each checkpoint at its cut. So what a checkpoint must hold is the sum
of the journals of its cuts, and what the table must hold that of all ranks' journals now. JSON lines tell the parent.

Exit codes: 0 ended, 3 a value is wrong, 75 the job has failed (a rank is lost).
"""

import faulthandler
import json
import signal
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

import intentpm

KEYS, ITEMS, BATCH, CHUNK = 100_000, 8, 400, 5_000
BUDGET_BYTES = 20 << 20
WORKING_BYTES = 8 << 20
"""Of arrays of this program, beside those made before the first table."""
SAVE_EVERY_S, STEPS_PER_CHECK = 10.0, 150
WRONG, LOST = 3, 75
PATTERN = np.arange(1, ITEMS + 1, dtype=np.int64)


class WrongError(Exception):
    """A value is not what the journals say."""


def tell(what: str, **more: Any) -> None:
    print(json.dumps({"what": what, **more}), flush=True)


def resident_bytes() -> int:
    status = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) << 10 for line in status if line.startswith("VmRSS"))


class SoakRank:
    """Its journal, and how far it is: ``step``, over all lives of the job."""

    def __init__(self, pm: Any, folder: Path) -> None:
        self.pm, self.folder = pm, folder
        self.step, self.life_steps = 0, 0
        self.mine = np.zeros(KEYS, np.int64)
        self.expected = np.zeros(KEYS, np.int64)
        self.rows = np.ones((CHUNK, ITEMS), np.int64)
        self.before_bytes = resident_bytes()
        self.most_bytes = 0
        self.table = pm.create_table("soak", KEYS, ITEMS, dtype="int64")
        self.worker = pm.worker()
        self.draw = np.random.default_rng((time.time_ns(), pm.rank))

    # -- what there was ------------------------------------------------------------------------------------------------

    def restore(self) -> None:
        newest = intentpm.latest(self.folder)
        if newest is None:
            return
        restored = self.pm.load(newest)
        cuts = [self._journal(rank, said["cut"]) for rank, said in enumerate(restored.extra)]
        self.mine, self.step = np.load(cuts[self.pm.rank]), restored.extra[self.pm.rank]["step"]
        self.expected[:] = 0
        for file in cuts:
            self.expected += np.load(file)
        self._compare(f"checkpoint {restored.number}")
        self.pm.barrier()  # nobody trains on while another compares
        tell("restored", checkpoint=restored.number, step=self.step)

    def _journal(self, rank: int, cut: str) -> Path:
        return self.folder.parent / "journals" / f"{rank}-{cut}.npy"

    def note_cut(self) -> dict[str, Any]:
        """Called when this rank is about to make its cut: no write of its own is under way."""
        cut = f"{time.time_ns()}"
        np.save(self._journal(self.pm.rank, cut), self.mine)
        for old in sorted(self._journal(self.pm.rank, "x").parent.glob(f"{self.pm.rank}-[0-9]*.npy"))[:-8]:
            old.unlink()
        tell("cut", step=self.step)
        return {"cut": cut, "step": self.step}

    # -- what there is -------------------------------------------------------------------------------------------------

    def train(self) -> None:
        """One step: some keys that all want, some that this rank alone does."""
        hot = self.draw.zipf(1.3, BATCH // 2) % KEYS
        keys = np.concatenate((hot, self.draw.integers(0, KEYS, BATCH - len(hot))))
        amounts = self.draw.integers(1, 100, BATCH)
        if self.draw.random() < 0.9:
            self.worker.intent(self.table, keys, self.worker.clock + 1, self.worker.clock + self.draw.integers(2, 9))
            self.worker.advance_clock()
        rows = self.worker.pull(self.table, keys)
        if (rows != rows[:, :1] * PATTERN).any():
            raise WrongError(f"torn rows of {keys[(rows != rows[:, :1] * PATTERN).any(axis=1)][:5]}")
        if (rows[:, 0] < self.mine[keys]).any():
            raise WrongError(f"this rank does not see its own writes to {keys[rows[:, 0] < self.mine[keys]][:5]}")
        self.worker.push(self.table, keys, amounts[:, None] * PATTERN)
        np.add.at(self.mine, keys, amounts)
        self.step, self.life_steps = self.step + 1, self.life_steps + 1
        if self.life_steps % 10 == 0:
            self.most_bytes = max(self.most_bytes, resident_bytes() - self.before_bytes)

    def check(self, stop: bool) -> bool:
        """With all ranks: the table has what all have added. Returns whether to stop."""
        self.worker.wait_sync()
        np.save(self._journal(self.pm.rank, "now"), self.mine)
        said = self.pm.allgather(bytes([stop]))
        self.expected[:] = 0
        for rank in range(self.pm.size):
            self.expected += np.load(self._journal(rank, "now"))
        self.pm.barrier()
        self._compare(f"step {self.step}")
        self.pm.barrier()
        if self.most_bytes > BUDGET_BYTES + WORKING_BYTES:
            raise WrongError(f"{self.most_bytes} bytes are resident, of a budget of {BUDGET_BYTES}")
        intents = self.pm.stats()["intents"]
        share = {name: intents[name] for name in ("acted", "in_time", "refused")}
        tell("checked", step=self.step, mib=round(self.most_bytes / 2**20, 1), **share)
        return said[0][0] != 0

    def _compare(self, what: str) -> None:
        for first in range(0, KEYS, CHUNK):
            keys = np.arange(first, min(first + CHUNK, KEYS))
            rows = self.worker.pull(self.table, keys, out=self.rows[: len(keys)])
            wrong = np.flatnonzero((rows != self.expected[keys, None] * PATTERN).any(axis=1))
            if len(wrong):
                key = keys[wrong[0]]
                raise WrongError(
                    f"{what}: key {key} is {rows[wrong[0]].tolist()}, must be {self.expected[key]} times the pattern "
                    f"({len(wrong)} of {len(keys)} keys are wrong)"
                )


def run(folder: Path, stop_file: Path) -> None:
    with intentpm.init(transport="tcp", memory_budget=BUDGET_BYTES, peer_timeout=8.0, start_timeout=240.0) as pm:
        soak = SoakRank(pm, folder)
        soak.restore()
        saves = pm.periodic_saves(folder, SAVE_EVERY_S, keep=2, incremental=True, timeout=60.0)
        stop = False
        while not stop:
            for _ in range(STEPS_PER_CHECK):
                soak.train()
                saves.step(soak.note_cut)
            stop = soak.check(stop_file.exists())
        saves.finish(soak.note_cut)
        tell("ended", step=soak.step)


def main() -> int:
    faulthandler.register(signal.SIGUSR2)  # the parent asks where a rank stands
    try:
        run(Path(sys.argv[1]), Path(sys.argv[2]))
    except WrongError as error:
        tell("wrong", why=str(error))
        return WRONG
    except (intentpm.PeerLostError, intentpm.CheckpointError, intentpm.WaitTimeoutError) as error:
        tell("lost", why=str(error))
        return LOST
    return 0


if __name__ == "__main__":
    sys.exit(main())
