"""intentpm.adapm in several processes that meet through a scheduler, as programs for AdaPM's bindings do."""

import importlib.util
import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support.dmlc import job_of, run_process
from support.world import WorldSpawner

from intentpm import adapm
from intentpm.foundation.errors import Error, PeerLostError, TransportError, WaitTimeoutError

pytestmark = [pytest.mark.multiprocess, pytest.mark.timeout(240)]

PROGRAM = Path(__file__).parents[1] / "support" / "adapm_program.py"
WIDE_DEEP = Path(__file__).parents[2] / "bench" / "adapm_wide_deep.py"


def process(*job: Any) -> list[Any] | None:
    return run_process(globals(), *job)


def push_asynchronously(server: adapm.Server, number: int) -> Any:
    """Pushes whole numbers to all keys, with intents for some; returns what it sees when all are through."""
    kv = adapm.Worker(number, server)
    random = np.random.default_rng([server.my_rank(), number])
    kv.begin_setup()
    if server.my_rank() == 0 and number == 0:
        kv.set(np.arange(40), np.full(80, 1000, np.float32))
    kv.end_setup()
    pushed = np.zeros((40, 2), np.float32)
    for _ in range(200):
        keys = random.integers(0, 40, 8)
        kv.intent(keys[:4], kv.current_clock() + 2, kv.current_clock() + 6)
        updates = random.integers(-3, 4, (8, 2)).astype(np.float32)
        timestamp = kv.push(keys, updates, True)
        assert timestamp >= -1
        np.add.at(pushed, keys, updates)
        seen = np.empty((8, 2), np.float32)
        kv.pull(keys, seen, True)
        kv.advance_clock()
    kv.waitall()
    kv.wait_sync()
    kv.barrier()
    values = np.empty((40, 2), np.float32)
    kv.pull(np.arange(40), values)
    kv.finalize()
    return pushed, values


@pytest.mark.parametrize(("size", "num_threads"), [(1, 1), (2, 2), (3, 1)])
def test_asynchronous_pushes_add_up(spawn_world: WorldSpawner, size: int, num_threads: int) -> None:
    *ranks, scheduler = spawn_world(size + 1, process, *job_of(size, push_asynchronously, num_threads=num_threads))
    assert scheduler is None
    everything = [seen for rank in ranks for seen in rank]
    assert len(everything) == size * num_threads
    expected = 1000 + sum(pushed for pushed, _ in everything)
    for _, values in everything:
        assert (values == expected).all()


def use_long_values(server: adapm.Server, number: int) -> Any:
    """Every process pushes to the same two values of 10^6 floats, replicated in one, and to short ones, in one call."""
    kv = adapm.Worker(number, server)
    keys = np.array([3, 50, 4, 51])
    if server.my_rank() == 1:
        kv.intent(keys, 0, sys.maxsize)
    kv.wait_sync()
    kv.barrier()
    updates = np.empty(2 * (3 + 10**6), np.float32)
    updates[:3], updates[3 : 3 + 10**6], updates[3 + 10**6 : 6 + 10**6], updates[6 + 10**6 :] = 1, 2, 3, 4
    for _ in range(5):
        kv.push(keys, updates, True)
        kv.advance_clock()
    kv.waitall()
    kv.wait_sync()
    kv.barrier()
    vals = np.empty_like(updates)
    timestamp = kv.pull(keys, vals, True)
    kv.wait(timestamp)
    times = 5 * 2
    is_right = (vals == times * updates).all()
    kv.finalize()
    return bool(is_right), kv.get_key_size(50)


def test_a_few_values_of_a_million_floats(spawn_world: WorldSpawner) -> None:
    lengths = np.full(52, 3)
    lengths[50:] = 10**6
    *ranks, _ = spawn_world(3, process, *job_of(2, use_long_values, num_keys=52, lengths=lengths))
    assert ranks == [[(True, 10**6)]] * 2


def set_what_others_replicate(server: adapm.Server, number: int) -> list[list[float]]:
    """Each round another process sets a key that all have replicas of, and all then push to it."""
    kv = adapm.Worker(number, server)
    key, seen = np.array([5]), []
    kv.intent(key, 0, sys.maxsize)
    kv.wait_sync()
    kv.barrier()
    for step in range(6):
        if server.my_rank() == step % 3:
            kv.set(key, np.array([100 * step, -1], np.float32), step % 2 == 0)
        kv.wait_sync()
        kv.barrier()
        kv.push(key, np.array([1, 2], np.float32), True)
        kv.wait_sync()
        kv.barrier()
        vals = np.empty(2, np.float32)
        assert kv.pull(key, vals) == -1, "it is here, as intended"
        seen.append(vals.tolist())
        kv.barrier()
    kv.finalize()
    return seen


def test_set_replaces_at_the_main_copy_whatever_is_replicated(spawn_world: WorldSpawner) -> None:
    *ranks, _ = spawn_world(4, process, *job_of(3, set_what_others_replicate))
    assert ranks == [[[[100.0 * step + 3, 5.0] for step in range(6)]]] * 3


def use_for_ever(server: adapm.Server, number: int) -> list[float]:
    """Steps together with the other process; returns by how much too little it sees of both processes' pushes."""
    kv = adapm.Worker(number, server)
    key, vals, missing = np.array([7]), np.empty(2, np.float32), []
    kv.intent(key, 0, sys.maxsize)
    kv.wait_sync()
    kv.barrier()
    for step in range(15):
        kv.push(key, np.ones(2, np.float32), True)
        kv.advance_clock()
        time.sleep(0.12)
        server.barrier()  # which synchronises nothing
        kv.pull(key, vals)
        missing.append(2 * (step + 1) - float(vals[0]))
    kv.finalize()
    return missing


def test_copies_that_are_used_for_ever_stay_fresh(spawn_world: WorldSpawner) -> None:
    """Whatever the network lets through by itself: here nothing, for a minute."""
    slow = {"INTENTPM_SYNC_INTERVAL": "60"}
    *ranks, _ = spawn_world(3, process, *job_of(2, use_for_ever), env=slow)
    assert max(max(missing) for [missing] in ranks) <= 4, ranks


def look_at_timestamps(server: adapm.Server, number: int) -> Any:
    """Which calls had to ask another process, before and after the keys were brought here."""
    kv = adapm.Worker(number, server)
    keys, vals = np.arange(40), np.empty((40, 2), np.float32)
    before = [kv.pull(keys, vals), kv.push(keys, vals, True), kv.pull(keys, vals), kv.set(keys[:0], vals[:0])]
    kv.waitall()
    kv.barrier()
    if server.my_rank() == 0:
        kv.intent(keys, 0, sys.maxsize)
        kv.wait_sync()
    kv.barrier()
    after = kv.pull(keys, vals)
    with pytest.raises(Error, match="timestamp 99"):
        kv.wait(99)
    kv.finalize()
    return server.my_rank(), before, after


def test_minus_one_is_what_no_other_process_was_asked_for(spawn_world: WorldSpawner) -> None:
    *said, _ = spawn_world(3, process, *job_of(2, look_at_timestamps))
    (_, _, after_intent), (_, _, without_intent) = sorted(each for [each] in said)
    for [(_, before, _)] in said:
        numbers = [number for number in before if number != -1]
        assert numbers == list(range(len(numbers)))
        assert before[0] == 0, "half of the keys are elsewhere"
        assert before[3] == -1, "no keys"
    assert after_intent == -1
    assert without_intent >= 0


def draw_samples(server: adapm.Server, number: int) -> Any:
    scheme = ("local", "preloc")[number]
    server.enable_sampling_support(scheme, True, "log-uniform", 10, 30)
    kv = adapm.Worker(number, server)
    mine = np.arange(20 * server.my_rank(), 20 * server.my_rank() + 20)
    kv.begin_setup()
    kv.set(mine, np.repeat(mine, 2).astype(np.float32))
    kv.end_setup()
    seen, is_right = [], True
    for _ in range(50):
        sample = kv.prepare_sample(8, kv.current_clock() + 2, kv.current_clock() + 4)
        kv.advance_clock()
        keys, vals = np.zeros(8, np.int64), np.zeros((8, 2), np.float32)
        kv.wait(kv.pull_sample(sample, keys, vals, True))
        is_right = is_right and bool((vals == keys[:, np.newaxis]).all())
        seen += keys.tolist()
    kv.finalize()
    return is_right, min(seen), max(seen)


def test_samples_of_a_range(spawn_world: WorldSpawner) -> None:
    *ranks, _ = spawn_world(3, process, *job_of(2, draw_samples, num_threads=2))
    for is_right, first, last in [each for rank in ranks for each in rank]:
        assert is_right
        assert 10 <= first < last < 30


def draw_after_another_range_is_chosen(server: adapm.Server, number: int) -> Any:
    """A sample is of the range that was chosen when it was prepared. Keys from 20 on have a number more each."""
    kv = adapm.Worker(number, server)
    ranges, drawn = ((0, 20, 2), (20, 40, 3)), []
    for first, end, length in ranges:
        if server.my_rank() == 0:
            keys = np.arange(first, end)
            kv.set(keys, np.repeat(keys, length).astype(np.float32))
    kv.wait_sync()
    kv.barrier()
    samples = []
    for first, end, _ in ranges:
        server.enable_sampling_support("naive", True, "uniform", first, end)
        samples.append(kv.prepare_sample(8, kv.current_clock()))
    for sample, (first, end, length) in zip(samples, ranges, strict=True):
        keys, vals = np.full(8, -1), np.zeros((8, length), np.float32)
        kv.wait(kv.pull_sample(sample, keys, vals, True))
        drawn.append(bool((keys >= first).all() and (keys < end).all() and (vals == keys[:, np.newaxis]).all()))
    kv.finalize()
    return drawn


def test_a_sample_keeps_its_range(spawn_world: WorldSpawner) -> None:
    lengths = np.repeat([2, 3], 20)
    *ranks, _ = spawn_world(3, process, *job_of(2, draw_after_another_range_is_chosen, lengths=lengths))
    assert ranks == [[[True, True]]] * 2


def count_at_barriers(server: adapm.Server, number: int) -> list[int]:
    """Adds to one value before each barrier; returns what it is after each."""
    kv = adapm.Worker(number, server)
    seen = []
    for _ in range(20):
        kv.push(np.array([0]), np.ones(2, np.float32))
        # The barrier of processes, before that of workers in one process, after it in the other.
        meeting = threading.Thread(target=server.barrier)
        if number == 0 and server.my_rank() == 0:
            meeting.start()
        kv.wait_sync()
        kv.barrier()
        if number == 0:
            if server.my_rank() == 1:
                meeting.start()
            meeting.join()
        vals = np.empty(2, np.float32)
        kv.pull(np.array([0]), vals)
        seen.append(int(vals[0]))
        kv.barrier()
    kv.finalize()
    return seen


def test_barriers_of_workers_and_of_processes(spawn_world: WorldSpawner) -> None:
    *ranks, _ = spawn_world(3, process, *job_of(2, count_at_barriers, num_threads=2))
    assert ranks == [[[4 * step for step in range(1, 21)]] * 2] * 2


def lose_a_process(server: adapm.Server, number: int) -> None:
    kv = adapm.Worker(number, server)
    kv.barrier()
    if server.my_rank() == 1:
        os.kill(os.getpid(), signal.SIGKILL)
    kv.barrier()


def test_a_lost_process_ends_the_job_and_the_scheduler(spawn_world: WorldSpawner) -> None:
    outcomes = spawn_world.outcomes(4, process, *job_of(3, lose_a_process), grace_s=30)
    killed = [outcome for outcome in outcomes if outcome.exit_code == -signal.SIGKILL]
    assert len(killed) == 1
    for outcome in outcomes:
        if outcome is not killed[0]:
            assert isinstance(outcome.error, PeerLostError), outcome
            assert outcome.error.rank == 1


def end_a_thread_early(server: adapm.Server, number: int) -> None:
    kv = adapm.Worker(number, server)
    kv.barrier()
    if server.my_rank() == 1 and number == 1:
        raise RuntimeError("a defect of the program")
    kv.barrier()


def test_nobody_waits_for_a_thread_that_failed(spawn_world: WorldSpawner) -> None:
    outcomes = spawn_world.outcomes(3, process, *job_of(2, end_a_thread_early, num_threads=2), grace_s=30)
    texts = [str(outcome.error) for outcome in outcomes[:2]]
    assert all(isinstance(outcome.error, Exception) for outcome in outcomes[:2]), outcomes
    assert sum("a defect of the program" in text for text in texts) >= 1, texts


def never_runs(server: adapm.Server, number: int) -> None:
    raise AssertionError("not all processes were there")


def test_a_process_that_never_comes(spawn_world: WorldSpawner) -> None:
    job = job_of(3, never_runs)
    outcomes = spawn_world.outcomes(3, process, *job, env={"INTENTPM_START_TIMEOUT": "3"}, grace_s=30)
    assert all(isinstance(outcome.error, WaitTimeoutError) for outcome in outcomes), outcomes


def wait_for_the_refusal(server: adapm.Server, number: int) -> None:
    adapm.Worker(number, server).barrier()
    Path(os.environ["FOLDER"], "ready").touch()
    wait_for(Path(os.environ["FOLDER"], "refused"))


def process_or_one_too_many(size: int, *job: Any) -> str:
    """The last is a server that nobody counts on."""
    if int(os.environ["INTENTPM_RANK"]) <= size:
        run_process(globals(), size, *job)
        return ""
    wait_for(Path(os.environ["FOLDER"], "ready"))
    mine, os.environ["INTENTPM_RANK"] = os.environ["INTENTPM_RANK"], "0"
    try:
        run_process(globals(), size, *job)
    except TransportError as error:
        return str(error)
    finally:
        os.environ["INTENTPM_RANK"] = mine
        Path(os.environ["FOLDER"], "refused").touch()
    return "it was not refused"


def wait_for(path: Path) -> None:
    deadline = time.monotonic() + 30
    while not path.exists():
        assert time.monotonic() < deadline, f"{path} never came"
        time.sleep(0.02)


def test_one_process_too_many_is_refused(spawn_world: WorldSpawner, tmp_path: Path) -> None:
    job = job_of(2, wait_for_the_refusal)
    said = spawn_world(4, process_or_one_too_many, *job, env={"FOLDER": str(tmp_path)})
    assert said == ["", "", "", "rank 2 of 2 came to the rendezvous of a job of 2 ranks"]


@pytest.mark.parametrize("method", ["spawn", "fork"])
def test_a_program_that_starts_its_processes_itself(tmp_path: Path, method: str) -> None:
    if importlib.util.find_spec("torch") is None:
        pytest.skip("torch is not installed")
    done = subprocess.run(
        [sys.executable, str(PROGRAM), method, str(tmp_path)], capture_output=True, text=True, timeout=100, check=False
    )
    assert done.returncode == 0, done.stderr
    said = [json.loads(path.read_text()) for path in sorted(tmp_path.glob("*.json"))]
    assert [worker["rank"] for worker in said] == [0, 0, 1, 1]
    total = sum(worker["pushed"] for worker in said)
    assert all(worker["pulled"] == total for worker in said)
    assert all(worker["long"] == [8.0] * 10 for worker in said)


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("torch") is None, reason="torch is not installed")
def test_wide_and_deep_trains_as_well_on_two_processes() -> None:
    losses = {}
    for nodes in 1, 2:
        options = ["--nodes", str(nodes), "--samples", "1024", "--ids", "50", "--dim", "4", "--epochs", "2"]
        done = subprocess.run(
            [sys.executable, str(WIDE_DEEP), *options], capture_output=True, text=True, timeout=100, check=False
        )
        assert done.returncode == 0, done.stderr
        losses[nodes] = json.loads(done.stdout)["log_loss"]
    assert losses[1][0] > losses[1][1]
    assert losses[2] == pytest.approx(losses[1], abs=0.03)


def test_under_another_launcher_no_scheduler_is_needed(spawn_world: WorldSpawner) -> None:
    assert spawn_world(2, under_intentpm_run) == [3.0, 3.0]


def under_intentpm_run() -> float:
    adapm.setup(10, 1)
    server = adapm.Server(1)
    kv = adapm.Worker(0, server)
    kv.push(np.array([4]), np.array([1 + server.my_rank()], np.float32))
    kv.wait_sync()
    kv.barrier()
    vals = np.empty(1, np.float32)
    kv.pull(np.array([4]), vals)
    kv.finalize()
    server.shutdown()
    return float(vals[0])
