"""``intentpm.testing.run_ranks``, as function and as fixture."""

import threading
import time

import numpy as np
import pytest

import intentpm
from intentpm.testing import run_ranks as run

TRANSPORTS = ("loopback", "sim", "tcp", "ucx")


def train(pm):
    table = pm.create_table("t", num_keys=10, row_shape=2)
    worker = pm.worker()
    worker.intent(table, range(10), 0, 5)
    worker.push(table, np.arange(10), np.ones((10, 2), np.float32))
    worker.wait_sync()
    pm.barrier()
    return float(worker.pull(table, np.arange(10)).sum())


@pytest.mark.parametrize("transport", TRANSPORTS)
@pytest.mark.parametrize("n", [1, 3])
def test_returns_what_each_rank_returned(run_ranks, n: int, transport: str) -> None:
    try:
        results = run_ranks(n, train, transport)
    except intentpm.TransportUnavailableError as error:
        pytest.skip(str(error))
    assert results == [20.0 * n] * n


def test_results_are_in_rank_order_and_options_reach_init() -> None:
    assert run(4, lambda pm: (pm.rank, pm.size, pm.config.management), management="static") == [
        (rank, 4, "static") for rank in range(4)
    ]


@pytest.mark.parametrize("transport", ["loopback", "sim"])
def test_the_first_failure_is_raised_with_its_rank(transport: str) -> None:
    def fail(pm):
        pm.barrier()
        if pm.rank == 1:
            raise KeyError("the cause")
        pm.barrier()

    with pytest.raises(KeyError, match="the cause") as failure:
        run(3, fail, transport)
    notes = "\n".join(failure.value.__notes__)
    assert f"raised on rank 1 of 3 (transport {transport}" in notes
    assert ("seed 0" in notes) == (transport == "sim")
    assert "raised too" not in notes, "the PeerLostErrors of the others are consequences"


@pytest.mark.parametrize("transport", ["loopback", "sim"])
def test_ranks_that_do_not_come_back_are_named_with_their_place(transport: str) -> None:
    release = threading.Event()

    def wait_for_nobody(pm):
        if pm.rank == 1:
            release.wait(30)

    started = time.monotonic()
    with pytest.raises(intentpm.WaitTimeoutError, match=r"ranks \[.*1.*\] did not return within 0.5 s") as failure:
        run(2, wait_for_nobody, transport, timeout=0.5)
    release.set()
    assert "wait_for_nobody" in str(failure.value)
    assert time.monotonic() - started < 20, "it did not wait for the stuck rank"


def test_one_seed_gives_one_simulated_run_and_another_seed_another() -> None:
    def order(pm):
        table = pm.create_table("t", num_keys=1, dtype="int64")
        worker = pm.worker()
        seen = []
        for _ in range(20):
            worker.push(table, [0], [1])
            seen.append(int(worker.pull(table, [0])[0]))
        return seen

    runs = [run(3, order, "sim", seed=seed) for seed in (1, 1, 2)]
    assert runs[0] == runs[1] != runs[2]


@pytest.mark.parametrize("n", [0, -1])
def test_no_ranks_are_refused(n: int) -> None:
    with pytest.raises(ValueError, match="at least 1 rank"):
        run(n, train)


def test_an_unknown_transport_or_option_is_refused_before_anything_starts() -> None:
    with pytest.raises(intentpm.ConfigError, match="choose auto"):
        run(2, train, "carrier pigeon")
    with pytest.raises(TypeError, match="pigeons"):
        run(2, train, pigeons=3)


def test_no_thread_is_left_over() -> None:
    before = set(threading.enumerate())
    run(3, train, "loopback")
    run(3, train, "sim")
    assert set(threading.enumerate()) - before == set()
