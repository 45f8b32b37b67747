"""Where training goes on after a checkpoint, when ranks were not equally far."""

import numpy as np
import pytest

from intentpm.bench.tasks.checkpoints import CheckpointOptions, Progress


def save(folder, trained):
    """A rank that has trained ``trained[rank]`` of 10 batches of epoch 1."""

    def of_rank(pm):
        table = pm.create_table("t", 8, 2)
        written = []
        progress = Progress(
            pm, [table], CheckpointOptions(folder, every_s=1_000.0), before_save=lambda: written.append(progress.share)
        )
        for epoch in progress.epochs(1):
            if epoch:
                progress.rest_of(np.arange(10), 1)
                for _ in progress.follow(range(trained[pm.rank])):
                    pass
                progress.finish()
                return written
            progress.rows.append({"epoch": 0})
        raise AssertionError("there is an epoch 1")

    return of_rank


def rest(folder, in_step):
    def of_rank(pm):
        table = pm.create_table("t", 8, 2)
        progress = Progress(pm, [table], CheckpointOptions(folder, resume=True), in_step=in_step)
        return next(progress.rest_of(np.arange(20), 2).tolist() for _ in progress.epochs(1))

    return of_rank


@pytest.mark.parametrize("in_step", [False, True])
def test_ranks_go_on_where_they_were_or_all_where_rank_0_was(run_ranks, tmp_path, in_step):
    assert run_ranks(2, save(tmp_path, [4, 6])) == [[0.4], [0.6]], "called before the save, once"
    mine, other = run_ranks(2, rest(tmp_path, in_step))
    assert mine == list(range(8, 20))
    assert other == (mine if in_step else list(range(12, 20)))


def test_other_numbers_of_ranks_step_together_too(run_ranks, tmp_path):
    run_ranks(2, save(tmp_path, [4, 6]))
    assert run_ranks(3, rest(tmp_path, True)) == [list(range(8, 20))] * 3
    assert run_ranks(1, rest(tmp_path, False)) == [list(range(10, 20))], "the mean of both"
