"""A signal that comes while a save calls into the engine: it is raised when that returns. The next save works."""

from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from support.checkpointed import create

import intentpm
from intentpm.foundation.errors import CheckpointError
from intentpm.testing import run_ranks


class InterruptedSnapshot:
    """Stands before a rank's snapshot: after its ``time``-th call of ``method`` a signal is raised."""

    def __init__(self, snapshot: Any, method: str, time: int) -> None:
        self.snapshot, self.method, self.left = snapshot, method, time

    def __getattr__(self, name: str) -> Any:
        found = getattr(self.snapshot, name)
        return self._interrupted(found) if name == self.method else found

    def _interrupted(self, method: Any) -> Any:
        def call(*arguments: Any, **options: Any) -> Any:
            result = method(*arguments, **options)
            self.left -= 1
            if self.left == 0:
                raise KeyboardInterrupt
            return result

        return call


@pytest.mark.parametrize("victim", [0, 1])
@pytest.mark.parametrize(
    ("method", "time"), [("cut", 1), ("settle_replicas", 1), *[("contribute", step) for step in (1, 2, 3, 4)]]
)
def test_the_next_save_works(tmp_path: Path, victim: int, method: str, time: int) -> None:
    def rank(pm: Any) -> int:
        create(pm, ["plain"])
        pm.barrier()
        if pm.rank == victim:
            pm._saves.snapshot = InterruptedSnapshot(pm._saves.snapshot, method, time)
            with pytest.raises(KeyboardInterrupt):
                pm.save(tmp_path)
        elif method != "settle_replicas":  # there was no cut then
            with suppress(CheckpointError):  # it may be over for this one
                pm.save(tmp_path)
        number: int = intentpm.checkpoint.verify(pm.save(tmp_path, keep=1)).number
        pm.barrier()
        return number

    first, second = run_ranks(2, rank)
    assert first == second
