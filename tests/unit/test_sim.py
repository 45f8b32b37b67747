"""The simulated network itself: time, order, budgets, trouble. Driven by real ranks, whose calls make its traffic."""

import numpy as np
import pytest
from support.simulation import MESSAGE_IDS, MESSAGE_NAMES, Simulation, simulate

from intentpm.foundation.errors import PeerLostError, WaitTimeoutError
from intentpm.runtime.config import Config
from intentpm.transports.sim import SimNetwork, SimulationError
from intentpm.transports.sim_model import NetworkModel

PLAIN = NetworkModel(latency_us=10.0, bandwidth_gbytes_per_s=1.0, message_us=1.0)


def remote_key(job: Simulation, table: object, rank: int = 0) -> np.ndarray:
    """One key that ``rank`` does not own."""
    owned = table.owned_keys()  # type: ignore[attr-defined]
    return np.setdiff1d(np.arange(table.num_keys), owned)[:1]  # type: ignore[attr-defined]


def test_a_pull_costs_what_the_model_says() -> None:
    with simulate(2, 1, model=PLAIN) as job:
        table = job.create_table("t", 100, 1000, dtype="float64")[0]
        worker = job.ranks[0].worker()
        before = job.network.now
        job.spawn(0, lambda: worker.pull(table, remote_key(job, table)))
        job.run()
        # Both ways: 1 us on each link, 10 us between; on both 1 ns per byte (headers of 24 B, bodies of 8 and 8,000).
        expected = 2 * (1000 + 10_000 + 1000) + 2 * 24 + 2 * 24 + 2 * 8 + 2 * 8000
        assert job.network.now - before == pytest.approx(expected, abs=50)


def test_a_blocking_call_outside_any_task_runs_the_network() -> None:
    job = Simulation(2, 1, Config(), PLAIN)
    tables = job.create_table("t", 10, 2, init=3.0)
    worker = job.ranks[0].worker()
    assert (worker.pull(tables[0], np.arange(10)) == 3.0).all()
    assert job.network.now > 0
    job.close()


def arrivals(model: NetworkModel) -> list[int]:
    """Bodies' sizes in the order rank 1 got them; rank 0 sent them in growing order."""
    with simulate(2, 3, model=model) as job:
        table = job.create_table("t", 1000, 1)[0]
        keys = np.setdiff1d(np.arange(1000), table.owned_keys())
        worker = job.ranks[0].worker()
        for count in range(1, 21):
            worker.push_async(table, keys[-count:], np.ones((count, 1), np.float32))
            keys = keys[:-count]
        job.settle()
        worker.wait_sync()
        lines = job.network.history(MESSAGE_NAMES)
    return [int(line.rsplit(",", 1)[1].split()[0]) for line in lines if "ACCESS 0 -> 1" in line]


def test_messages_between_two_ranks_are_reordered() -> None:
    sizes = arrivals(NetworkModel(jitter_us=100.0))
    assert len(sizes) == 20
    assert sizes != sorted(sizes)


def test_fifo_keeps_the_order_between_two_ranks() -> None:
    sizes = arrivals(NetworkModel(jitter_us=100.0, slow_share=0.3, slow_us=500.0, fifo=True))
    assert len(sizes) == 20
    assert sizes == sorted(sizes)


def test_traffic_is_counted_by_kind_and_rank() -> None:
    with simulate(3, 1, model=PLAIN) as job:
        tables = job.create_table("t", 30, 4, dtype="float64")
        worker = job.ranks[2].worker()
        job.spawn(2, lambda: worker.pull(tables[2], np.arange(30)))
        job.run()
        messages, sent_bytes = job.network.traffic()[MESSAGE_IDS["ACCESS"]]
        assert messages == [0, 0, 2]
        assert sent_bytes[2] > 0
        assert job.network.traffic()[MESSAGE_IDS["REPLY"]][0] == [1, 1, 0]


def test_a_collective_that_one_rank_never_enters_ends_with_the_seed_and_who_waits() -> None:
    with pytest.raises(SimulationError, match=r"seed 77: .*budget of virtual time(.|\n)*rank 0(.|\n)*barrier"):  # noqa: PT012, SIM117
        with simulate(3, 77, model=PLAIN, max_virtual_s=30.0) as job:
            for rank in (0, 1):
                job.spawn(rank, job.ranks[rank].barrier)
            job.run()


def test_a_run_over_its_budget_of_events_ends() -> None:
    with pytest.raises(SimulationError, match=r"seed 5: .*budget of events"):  # noqa: PT012, SIM117
        with simulate(2, 5, model=PLAIN, max_events=300) as job:
            table = job.create_table("t", 10)[0]
            worker = job.ranks[0].worker()

            def pull_for_ever() -> None:
                while True:
                    worker.pull(table, np.arange(10))

            job.spawn(0, pull_for_ever)
            job.run()


def test_what_a_task_raises_comes_out_of_run_and_names_the_seed() -> None:
    with pytest.raises(ZeroDivisionError) as caught:  # noqa: PT012, SIM117
        with simulate(2, 9) as job:
            job.spawn(0, lambda: 1 / 0)  # type: ignore[arg-type,return-value]
            job.spawn(1, job.ranks[1].barrier)
            job.run()
    assert any("seed 9" in note for note in caught.value.__notes__)


def test_a_wait_with_a_deadline_ends_at_it_in_virtual_time() -> None:
    job = Simulation(2, 1, Config(), PLAIN)
    job.spawn(0, lambda: job.ranks[0].barrier(timeout=3.0))
    with pytest.raises(WaitTimeoutError, match="ranks \\[1\\] have not come"):
        job.run()
    assert job.network.now == pytest.approx(3e9, rel=0.02)
    job.abort()


@pytest.mark.parametrize("call", ["barrier", "close"])
@pytest.mark.parametrize("how", ["kill", "silence"])
def test_a_dead_or_silent_rank_is_lost_on_all_others_within_peer_timeout(how: str, call: str) -> None:
    job = Simulation(4, 2, Config(peer_timeout=2.0), PLAIN)
    job.create_table("t", 10)
    errors: list[PeerLostError] = []

    def wait(rank: int) -> None:
        try:
            getattr(job.ranks[rank], call)()
        except PeerLostError as error:
            errors.append(error)

    getattr(job.network, how)(3)
    started = job.network.now
    for rank in range(3):
        job.spawn(rank, lambda rank=rank: wait(rank))
    job.run()
    assert [error.rank for error in errors] == [3, 3, 3]
    assert (job.network.now - started) / 1e9 < (2.0 if how == "silence" else 0.01)
    job.abort()


def test_pause_lets_virtual_time_pass() -> None:
    network = SimNetwork(1, 1)
    seen = []

    def work() -> None:
        network.pause(2500.0)
        seen.append(network.now)

    network.spawn(work, 0)
    network.run()
    assert seen == [2_500_000]
    with pytest.raises(RuntimeError, match="only a task"):
        network.pause(1.0)
    network.close()


def test_message_memory_comes_back_whether_copied_or_used_in_place() -> None:
    for late_done_share in (0.0, 1.0):
        model = NetworkModel(late_done_share=late_done_share, jitter_us=5.0)
        with simulate(3, 4, model=model) as job:
            tables = job.create_table("t", 50, 8)
            worker = job.ranks[0].worker()
            for _ in range(5):
                worker.push_async(tables[0], np.arange(50), np.ones((50, 8), np.float32))
            assert (job.network.allocated_bytes > 0) == (late_done_share > 0)
            job.spawn(0, worker.wait_sync)
            job.run()
        # simulate() itself checks that none is left
