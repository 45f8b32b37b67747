"""Keys move between real ranks as their intents say, over every transport between processes that is usable here."""

import os
import time
from typing import Any

import numpy as np
import pytest

import intentpm
from intentpm.foundation.errors import CollectiveMismatchError, PeerLostError
from intentpm.transports.registry import available

pytestmark = [pytest.mark.multiprocess, pytest.mark.timeout(120)]

KEYS = 400
TRANSPORTS = [
    pytest.param(name, marks=[] if available()[name].usable else pytest.mark.skip(reason=available()[name].reason))
    for name in ("tcp", "ucx")
]


def move_to_the_only_rank_that_intends(transport: str) -> tuple[int, int, dict[str, Any]]:
    with intentpm.init(transport=transport) as pm:
        table = pm.create_table("rows", KEYS, (3,), "float64", init=lambda keys: np.repeat(keys[:, None], 3, axis=1))
        worker = pm.worker()
        mine = np.arange(pm.rank, KEYS, pm.size)
        worker.intent(table, mine, 0, 10)
        worker.wait_sync()
        pm.barrier()
        assert np.array_equal(worker.pull(table, mine), np.repeat(mine[:, None], 3, axis=1))
        return len(np.setdiff1d(table.owned_keys(), mine)), len(table.replica_keys()), pm.stats()["tables"]["rows"]


@pytest.mark.parametrize("transport", TRANSPORTS)
def test_a_key_moves_to_the_only_rank_that_intends_it(spawn_world, transport: str) -> None:
    for foreign, replicas, counts in spawn_world(3, move_to_the_only_rank_that_intends, transport):
        assert (foreign, replicas, counts["remote"]) == (0, 0, 0)
        assert counts["local"] > 0


def share_one_key(transport: str) -> tuple[list[float], list[float], int]:
    """All ranks intend all keys: replicas, kept fresh while others write. Then the intents end."""
    with intentpm.init(transport=transport) as pm:
        table = pm.create_table("rows", KEYS, (), "float64")
        worker = pm.worker()
        keys = np.arange(KEYS)
        worker.intent(table, keys, 0, 1)
        worker.wait_sync()
        pm.barrier()
        for _ in range(50):
            worker.push(table, keys, np.ones(KEYS))
        worker.wait_sync()
        pm.barrier()
        shared = worker.pull(table, keys)
        local = (
            pm.stats()["tables"]["rows"]["remote"] == 0 and len(table.owned_keys()) + len(table.replica_keys()) == KEYS
        )
        pm.barrier()
        worker.advance_clock()
        worker.wait_sync()
        pm.barrier()
        assert local
        return shared.tolist(), worker.pull(table, keys).tolist(), len(table.replica_keys())


@pytest.mark.parametrize("transport", TRANSPORTS)
def test_replicas_add_up_and_go_with_the_intents(spawn_world, transport: str) -> None:
    for shared, afterwards, replicas in spawn_world(3, share_one_key, transport):
        assert shared == afterwards == [150.0] * KEYS
        assert replicas == 0


def read_a_replica_that_others_write() -> float:
    """Rank 1 only reads; what rank 0 writes must reach its replica although it never asks."""
    with intentpm.init(transport="tcp") as pm:
        table = pm.create_table("rows", 10, (), "float64")
        worker = pm.worker()
        worker.intent(table, np.arange(10), 0, 100)
        worker.wait_sync()
        pm.barrier()
        seen = 0.0
        if pm.rank == 0:
            worker.push(table, [3], np.array([7.0]))
        deadline = time.monotonic() + 20
        while pm.rank == 1 and seen != 7.0 and time.monotonic() < deadline:
            seen = float(worker.pull(table, [3])[0])
        pm.barrier()
        return seen


def test_a_reading_replica_stays_fresh(spawn_world) -> None:
    assert spawn_world(2, read_a_replica_that_others_write)[1] == 7.0


def call_different_collectives() -> str:
    with intentpm.init(transport="tcp") as pm:
        try:
            if pm.rank == 1:
                pm.create_table("only here", 10)
            else:
                pm.barrier()
        except CollectiveMismatchError as error:
            pm.abort("told")
            return str(error)
        return "nothing was raised"


def test_different_collectives_are_an_error_on_every_rank(spawn_world) -> None:
    said = [outcome.value or str(outcome.error) for outcome in spawn_world.outcomes(3, call_different_collectives)]
    assert "create_table" in said[0]
    assert all("create_table" in text or "told" in text for text in said), said


def create_with_another_shape() -> str:
    with intentpm.init(transport="tcp") as pm:
        with pytest.raises(CollectiveMismatchError, match="row_shape") as caught:
            pm.create_table("rows", 10, (4 + pm.rank,))
        table = pm.create_table("rows", 10, (4,))  # the failed call left nothing behind
        pm.worker().push(table, [1], np.ones((1, 4), np.float32))
        return str(caught.value)


def test_other_arguments_are_an_error_on_every_rank(spawn_world) -> None:
    assert all("row_shape" in text for text in spawn_world(2, create_with_another_shape))


def die_while_others_wait(call: str) -> str:
    with intentpm.init(transport="tcp", peer_timeout=3.0) as pm:
        table = pm.create_table("rows", 30, (2,))
        worker = pm.worker()
        pm.barrier()
        if pm.rank == 2:
            os._exit(9)
        try:
            while True:
                if call == "barrier":
                    pm.barrier()
                elif call == "pull":
                    worker.pull(table, np.arange(30))
                else:
                    worker.intent(table, np.arange(30), worker.clock)
                    worker.advance_clock()
                    worker.wait_sync()
        except PeerLostError as error:
            pm.abort("a peer is lost")  # close() would raise the same again
            return f"{error.rank}"


@pytest.mark.parametrize("call", ["barrier", "pull", "wait_sync"])
def test_a_rank_that_dies_is_named_by_all_others(spawn_world, call: str) -> None:
    outcomes = spawn_world.outcomes(3, die_while_others_wait, call)
    assert [outcome.value for outcome in outcomes[:2]] == ["2", "2"], outcomes
