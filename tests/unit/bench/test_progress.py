"""Where training goes on: what a checkpoint says of ranks that made their cut near an epoch's end."""

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from intentpm.bench.tasks.checkpoints import Progress
from intentpm.bench.tasks.diverged import DivergedError
from intentpm.bench.tasks.epochs import EpochRow, check_finite

BATCH = 10


def gone_on(rank: int, size: int, at: list[tuple[int, float]], rows: int) -> Progress:
    """at: epoch and share of it, of each rank that saved; rows: of how many epochs rank 0 had them."""
    progress = Progress(SimpleNamespace(rank=rank, size=size), (), None)
    extra = [{"epoch": epoch, "share": share, "rows": [{"epoch": n} for n in range(rows)]} for epoch, share in at]
    progress._go_on(SimpleNamespace(rank=rank, size=size), SimpleNamespace(extra=extra, number=7))
    return progress


def left_of(progress: Progress, examples: int = 100) -> int:
    return len(progress.rest_of(np.arange(examples), BATCH))


@pytest.mark.parametrize("at", [[(3, 1.0), (3, 1.0)], [(3, 1.0), (4, 0.2)]])
def test_an_epoch_without_its_row_is_not_over(at: list[tuple[int, float]]) -> None:
    progress = gone_on(0, 2, at, rows=3)
    assert [row["epoch"] for row in progress.rows] == [0, 1, 2]
    epochs = progress.epochs(5)
    assert next(epochs) == 3
    assert left_of(progress) == 0, "all of its batches were trained"
    assert next(epochs) == 4
    assert left_of(progress) == 100


def test_other_ranks_leave_out_as_much_as_all_had_trained() -> None:
    progress = gone_on(2, 4, [(1, 0.5), (1, 0.3)], rows=1)
    assert next(progress.epochs(3)) == 1
    assert left_of(progress) == 60


def test_an_epoch_in_which_nothing_was_left_has_not_diverged() -> None:
    def row(loss: float) -> Any:
        return EpochRow(epoch=3, loss=loss, seconds=1.0, bytes_sent=0, local_share=1.0)

    check_finite(row(float("nan")), 0, "Lower --lr.")
    with pytest.raises(DivergedError, match=r"epoch 3.*Lower --lr"):
        check_finite(row(float("nan")), 100, "Lower --lr.")
