"""A forked child of a rank shares its parent's connections: whatever the child does, it must leave them alone."""

import atexit
import gc
import os

import numpy as np
import pytest

import intentpm
from intentpm.foundation.errors import ForkError

pytestmark = [pytest.mark.multiprocess, pytest.mark.timeout(90)]


def use_what_the_parent_made(pm, future) -> None:
    with pytest.raises(ForkError):
        pm.close()
    with pytest.raises(ForkError):
        pm.stats()
    pm.abort("a child must not end its parent's job")
    del future
    atexit._run_exitfuncs()


def fork_and_go_on() -> float:
    with intentpm.init(transport="tcp") as pm:
        table, worker = pm.create_table("t", 100, 4), pm.worker()
        keys = np.arange(100)
        future = worker.push_async(table, keys, np.ones((100, 4), np.float32))
        child = os.fork()
        if child == 0:
            try:
                use_what_the_parent_made(pm, future)
                os._exit(0)
            finally:
                os._exit(1)
        _, status = os.waitpid(child, 0)
        assert os.waitstatus_to_exitcode(status) == 0, "the child failed: its output says why"
        worker.push(table, keys, np.ones((100, 4), np.float32))
        pm.barrier()
        return float(worker.pull(table, keys).sum())


def run() -> float:
    value = fork_and_go_on()
    gc.collect()  # the manager, its workers and its descriptors are a cycle
    return value


def test_a_child_that_ends_in_order_does_not_end_the_job(spawn_world) -> None:
    assert spawn_world(2, run) == [2 * 2 * 400.0] * 2
