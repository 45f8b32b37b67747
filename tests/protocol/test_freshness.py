"""A copy that is held comes to show what others wrote, without any wait_sync, whether or not its rank writes itself."""

import numpy as np
import pytest
from support.simulation import simulate

from intentpm.runtime._native import mutations
from intentpm.runtime.config import Config
from intentpm.transports.sim_model import NetworkModel

READ, WRITTEN, LIMIT_US, STEP_US = 0, 1, 200_000.0, 500.0


def read_until_seen(seed: int, reader_writes: bool, limit_us: float = LIMIT_US) -> float:
    """Two ranks hold copies of a third one's row; one writes. Virtual us until the other sees it; inf: not in time.

    reader_writes: to another shared key, all the time: the answers to its rounds do not concern the row it reads.
    """
    with simulate(3, seed, Config(management="replicate"), NetworkModel.disorderly(seed)) as job:
        tables = job.create_table("t", 64, dtype="int64")
        workers = job.on_every_rank(lambda pm: pm.worker())
        owned = tables[0].owned_keys()[[READ, WRITTEN]]

        def hold(pm: object) -> None:
            workers[pm.rank].intent(tables[pm.rank], owned, 0, 10**9)
            workers[pm.rank].wait_sync()
            pm.barrier()

        job.on_every_rank(hold)
        started_ns, seen_ns = job.network.now, [0]

        def write() -> None:
            workers[1].push(tables[1], owned[:1], [1])

        def read() -> None:
            while job.network.now - started_ns < limit_us * 1000:
                if reader_writes:
                    workers[2].push(tables[2], owned[1:], [1])
                if workers[2].pull(tables[2], owned[:1])[0] == 1:
                    seen_ns[0] = job.network.now
                    return
                job.network.pause(STEP_US)

        job.spawn(1, write)
        job.spawn(2, read)
        job.run()
        return (seen_ns[0] - started_ns) / 1000 if seen_ns[0] else float(np.inf)


@pytest.mark.parametrize("reader_writes", [False, True], ids=["reads", "reads and writes"])
def test_a_copy_comes_to_show_what_others_wrote(reader_writes: bool) -> None:
    late = {seed: waited for seed in range(40) if (waited := read_until_seen(seed, reader_writes)) > 50_000}
    assert not late, f"seen after more than 50 ms of virtual time (or never) with seeds {late}"


@pytest.mark.parametrize("defect", ["news never ripe", "rests for good"])
def test_refreshes_that_are_not_sent_are_found(defect: str) -> None:
    with mutations.plant(defect):
        assert all(read_until_seen(seed, False) == np.inf for seed in range(3))


@pytest.mark.parametrize("threshold", [0.0, 100.0])
@pytest.mark.parametrize("syncs", [False, True], ids=["waits", "syncs"])
def test_a_copy_written_to_while_it_is_given_back_is_kept_fresh(threshold: float, syncs: bool) -> None:
    """A new intent and a write come before the owner's answer: the copy stays, of which its owner knew no more."""
    model = NetworkModel(latency_us=100.0)
    with simulate(2, 1, Config(management="replicate", sync_threshold=threshold), model) as job:
        tables = job.create_table("t", 64, dtype="int64")
        workers = job.on_every_rank(lambda pm: pm.worker())
        owned = tables[0].owned_keys()[:1]
        counts, seen = [], []

        def hold_on() -> None:
            workers[1].intent(tables[1], owned, 0, 1)
            workers[1].wait_sync()
            counts.append(job.ranks[1].stats()["replicas_set_up"])
            workers[1].advance_clock()
            job.network.pause(50.0)
            workers[1].intent(tables[1], owned, 1, 10**9)
            workers[1].push(tables[1], owned, [1])
            job.network.pause(10_000.0)
            job.spawn(0, lambda: workers[0].push(tables[0], owned, [10]))
            job.network.pause(50_000.0)
            if syncs:
                workers[1].wait_sync()
            seen.append(workers[1].pull(tables[1], owned)[0])
            counts.append(job.ranks[1].stats()["replicas_set_up"])

        job.spawn(1, hold_on)
        job.run()
        assert counts == [1, 1]
        assert job.ranks[0].explain(tables[0], int(owned[0])).holders == (1,)
        assert seen == [11]


def seen_after_us(tables_written: int) -> float:
    """A reader that writes to other keys, of so many tables, every 2 ms: virtual us until it sees another's write."""
    with simulate(3, 1, Config(management="replicate"), NetworkModel()) as job:
        tables = [job.create_table(name, 64, dtype="int64") for name in ("t", "u", "v")]
        workers = job.on_every_rank(lambda pm: pm.worker())
        owned = tables[0][0].owned_keys()[[READ, WRITTEN]]
        written_ns, seen_ns = [0], [0]

        def read() -> None:
            for table in tables:
                workers[2].intent(table[2], owned, 0, 10**9)
            workers[2].wait_sync()
            for number in range(200):
                for table in tables[:tables_written]:
                    workers[2].push(table[2], owned[1:], [1])
                if number == 100:
                    job.spawn(1, write)
                for _ in range(20):
                    job.network.pause(100.0)
                    if not seen_ns[0] and workers[2].pull(tables[0][2], owned[:1])[0] == 1:
                        seen_ns[0] = job.network.now

        def write() -> None:
            written_ns[0] = job.network.now
            workers[1].push(tables[0][1], owned[:1], [1])

        job.spawn(2, read)
        job.run()
        assert seen_ns[0] > written_ns[0], "it was never seen"
        return (seen_ns[0] - written_ns[0]) / 1000


def test_news_wait_for_rounds_however_many_tables_they_are_of() -> None:
    assert seen_after_us(1) == pytest.approx(seen_after_us(3), rel=0.1)


CLOCK_US, CLOCKS_AHEAD = 5000.0, 16


@pytest.mark.parametrize("seed", range(4))
def test_a_copy_that_is_not_used_yet_rests(seed: int) -> None:
    """Written when its first use is 80 ms away: it is sent no refresh for half of that, and shows the write then."""
    config = Config(management="replicate", timing="immediate")
    with simulate(2, seed, config, NetworkModel()) as job:
        tables = job.create_table("t", 64, dtype="int64")
        workers = job.on_every_rank(lambda pm: pm.worker())
        owned = tables[0].owned_keys()
        refreshed = {}

        def read() -> None:
            for clock in range(1, 41):  # so that the length of its clocks, and of its rounds, is known
                workers[1].intent(tables[1], owned[2 + clock % 16 :][:1], clock)
                job.network.pause(CLOCK_US)
                workers[1].advance_clock()
            workers[1].intent(tables[1], owned[:1], workers[1].clock + CLOCKS_AHEAD, 10**9)
            workers[1].wait_sync()
            job.spawn(0, write)
            for _ in range(CLOCKS_AHEAD // 2):
                job.network.pause(CLOCK_US)
                workers[1].advance_clock()
            refreshed["half"] = job.ranks[0].stats()["refreshed_rows"]
            for _ in range(CLOCKS_AHEAD // 2):
                job.network.pause(CLOCK_US)
                workers[1].advance_clock()
            assert workers[1].pull(tables[1], owned[:1])[0] == 1
            refreshed["used"] = job.ranks[0].stats()["refreshed_rows"]

        def write() -> None:
            workers[0].push(tables[0], owned[:1], [1])

        job.spawn(1, read)
        job.run()
        assert refreshed == {"half": 0, "used": 1}


CLOCKS = 40


@pytest.mark.parametrize("clock_us", [3_000.0, 20_000.0])
def test_news_wait_for_a_clock_of_a_holder_that_writes(clock_us: float) -> None:
    """What its owner writes all the time is sent once in a clock or two, not once a round; and comes within three."""
    with simulate(2, 1, Config(management="replicate"), NetworkModel()) as job:
        tables = job.create_table("t", 64, dtype="int64")
        workers = job.on_every_rank(lambda pm: pm.worker())
        owned = tables[0].owned_keys()[[READ, WRITTEN]]
        written, behind = [0], []

        def read() -> None:
            workers[1].intent(tables[1], owned, 0, 10**9)
            workers[1].wait_sync()
            job.spawn(0, write)
            before = [0] * 3
            for _ in range(CLOCKS):
                behind.append(before[-3] - workers[1].pull(tables[1], owned[:1])[0])
                before.append(written[0])
                for _ in range(3):
                    job.network.pause(clock_us / 3)
                    workers[1].push(tables[1], owned[1:], [1])
                workers[1].advance_clock()

        def write() -> None:
            for _ in range(int(CLOCKS * clock_us / STEP_US)):
                workers[0].push(tables[0], owned[:1], [1])
                written[0] += 1
                job.network.pause(STEP_US)

        job.spawn(1, read)
        job.run()
        assert max(behind) <= 0
        assert CLOCKS / 3 <= job.ranks[0].stats()["refreshed_rows"] <= CLOCKS + 6
