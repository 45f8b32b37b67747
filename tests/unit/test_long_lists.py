"""Lists of keys so long that they are mapped (``foundation/mapped_vector.hpp``): they grow into it and go again."""

from typing import Any

import numpy as np
import pytest

from intentpm.testing import run_ranks

NUM_KEYS = 300_000
"""Half of them, 12 bytes each, is a list of 1.8 MB."""
ROUNDS = 3


@pytest.mark.parametrize("management", ["replicate", "adaptive"])
def test_all_keys_at_once_come_are_written_and_go(management: str) -> None:
    def use(pm: Any) -> tuple[int, bool]:
        table, worker = pm.create_table("t", NUM_KEYS, 1), pm.worker()
        keys, ones = np.arange(NUM_KEYS), np.ones((NUM_KEYS, 1), np.float32)
        for _ in range(ROUNDS):
            worker.intent(table, keys, worker.clock)
            worker.wait_sync()
            worker.push(table, keys, ones)
            worker.advance_clock()
            worker.wait_sync()
            pm.barrier()
        return pm.stats()["replicas_held"], bool((worker.pull(table, keys) == 2 * ROUNDS).all())

    assert run_ranks(2, use, management=management) == [(0, True)] * 2
