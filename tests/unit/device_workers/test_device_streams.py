"""Workers of a device whose caller's stream waits for another rank or thread: nobody waits in a circle.

On emulated devices, where a stream can be held; ``docs/gpu.md`` has the table of who may wait for whom.
"""

import gc
import threading
import time
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support.device_caller import KEYS, LENGTH, WAIT_S, Caller, held, rows_of, until

import intentpm
import intentpm.checkpoint
import intentpm.optim
from intentpm.gpu import caller_stream
from intentpm.gpu.handles import Stream
from intentpm.testing import run_ranks


def rows_on_the_device(caller: Caller, table: intentpm.Table) -> np.ndarray:
    """Makes rows of 1 that this rank owns be on the device alone. Returns their keys."""
    owned = np.asarray(table.owned_keys())
    caller.worker.push(table, owned, caller.array(np.ones((len(owned), LENGTH), np.float32)))
    caller.stream.synchronize()
    return owned


def read_while_another_rank_needs_a_row(wait_limit_s: float) -> list[bool]:
    """Rank 0 has enqueued reads behind what waits for rank 1, which needs rows of rank 0 before."""

    def rank(pm: intentpm.ParameterManager) -> bool:
        table = pm.create_table("t", KEYS, LENGTH, init=0.0, storage="gpu")
        caller = Caller(pm.worker(device="emulated"))
        caller.device.wait_limit_s = wait_limit_s
        with caller.device.using(caller.stream):
            owned = rows_on_the_device(caller, table)
            out = caller.device.new_array((len(owned), LENGTH), np.float32)
        pm.barrier()
        if pm.rank == 1:
            others = np.setdiff1d(np.arange(KEYS), owned)
            pm.allgather(b"rank 0 has enqueued its reads")
            seen = bool((pm.worker().pull(table, others[:3]) == 1).all())
            pm.allgather(b"rank 1 has its rows")
            return seen
        waits = caller.device.host_waits
        with caller.device.using(caller.stream), held(caller):
            for _ in range(3):
                caller.worker.pull(table, owned, out=out)
                caller.kept.append(caller.worker.pull_async(table, owned[:5]))
            waited = caller.device.host_waits - waits
            pm.allgather(b"rank 0 has enqueued its reads")
            pm.allgather(b"rank 1 has its rows")
        rows = caller.get(out)
        caller.kept.clear()
        assert caller.device.defects == []
        return bool((rows == 1).all()) and waited == 0

    return run_ranks(2, rank, management="static", device="emulated:3")


def test_other_ranks_are_served_while_a_readers_stream_waits_for_them() -> None:
    assert read_while_another_rank_needs_a_row(WAIT_S) == [True, True]


def test_rows_that_wait_for_a_caller_are_found() -> None:
    with caller_stream.plant("rows wait for the caller"), pytest.raises(intentpm.Error):
        read_while_another_rank_needs_a_row(0.3)


@pytest.mark.parametrize("call", ["push", "push_grad_async", "set"])
def test_other_ranks_are_served_while_a_write_waits_for_its_caller(call: str) -> None:
    """They see what was before; the call goes on when the stream does."""

    def rank(pm: intentpm.ParameterManager) -> float:
        table = pm.create_table("t", KEYS, LENGTH, init=0.0, storage="gpu", optimizer=intentpm.optim.SGD(lr=1.0))
        caller = Caller(pm.worker(device="emulated"))
        owned = np.asarray(table.owned_keys())
        with caller.device.using(caller.stream):
            rows_on_the_device(caller, table)
        pm.barrier()
        if pm.rank == 1:
            others = np.setdiff1d(np.arange(KEYS), owned)[:3]
            pm.allgather(b"rank 0 waits")
            before = pm.worker().pull(table, others)
            pm.allgather(b"has read")
            pm.barrier()
            return float(before.sum() + (pm.worker().pull(table, others) != 1).all())

        def write() -> None:
            with caller.device.using(caller.stream):
                late = caller.late(np.full((len(owned), LENGTH), 2, np.float32))
                caller.device.held = caller.stream.address
                caller.stream.fill(caller.kept[-1].memory, 0)
                getattr(caller.worker, call)(table, owned, late)

        waits = caller.device.host_waits
        thread = threading.Thread(target=write)
        thread.start()
        until(lambda: caller.device.held != 0 and caller.device.host_waits > waits, "the call waits")
        pm.allgather(b"rank 0 waits")
        pm.allgather(b"has read")
        caller.device.held = 0
        thread.join(WAIT_S)
        assert not thread.is_alive()
        pm.barrier()
        caller.stream.synchronize()
        caller.kept.clear()
        assert caller.device.defects == []
        return 0.0

    assert run_ranks(2, rank, management="static", device="emulated:3") == [0.0, 3.0 * LENGTH + 1]


def test_a_checkpoint_is_made_while_a_write_waits_for_its_caller(tmp_path: Path) -> None:
    """It has what was before: the write has not passed the gate."""

    def rank(pm: intentpm.ParameterManager) -> float:
        table = pm.create_table("t", KEYS, LENGTH, init=0.0, storage="gpu")
        caller, owned = Caller(pm.worker(device="emulated")), np.asarray(table.owned_keys())
        with caller.at_work():
            rows_on_the_device(caller, table)
            deltas = caller.array(np.ones((len(owned), LENGTH), np.float32))
            waits = caller.device.host_waits
            with held(caller):
                thread = threading.Thread(
                    target=lambda: in_stream(caller, lambda: caller.worker.push(table, owned, deltas))
                )
                thread.start()
                until(lambda: caller.device.host_waits > waits, "the call waits")
                pm.save(tmp_path / "saved", timeout=WAIT_S)
            thread.join(WAIT_S)
        assert not thread.is_alive()
        pm.barrier()
        return float(pm.worker().pull(table, owned).mean())

    assert run_ranks(2, rank, management="static", device="emulated:3") == [2.0, 2.0]
    assert (intentpm.checkpoint.open(tmp_path / "saved")["t"].rows(range(KEYS)) == 1).all()


def test_other_ranks_are_served_while_memory_is_given_back() -> None:
    """The driver waits for all that the device has to do then: whoever gives memory back holds nothing."""
    grown = 400  # rows of a batch: blocks, scratch and slab of before are too small

    def rank(pm: intentpm.ParameterManager) -> float:
        table = pm.create_table("t", 4 * grown, LENGTH, init=0.0, storage="gpu", optimizer=intentpm.optim.SGD(lr=1.0))
        small = pm.create_table("u", KEYS, LENGTH, storage="gpu", optimizer=intentpm.optim.SGD(lr=1.0))
        caller, owned = Caller(pm.worker(device="emulated")), np.asarray(table.owned_keys())
        pm.barrier()
        if pm.rank == 1:
            others = np.setdiff1d(np.arange(4 * grown), owned)[:3]
            pm.allgather(b"rank 0 waits")
            before = pm.worker().pull(table, others)
            pm.allgather(b"has read")
            return float(before.sum())
        with caller.device.using(caller.stream):
            gradients = [caller.array(np.ones((count, LENGTH), np.float32)) for count in (10, grown)]
            kept = caller.device.new_array((grown, LENGTH), np.float32)
            for count, gradient in zip((10, grown), gradients, strict=True):
                caller.worker.push_grad(table, owned[:count], gradient)
                caller.worker.push_grad(small, np.arange(count) % KEYS, gradient)

        def go_on() -> None:
            with caller.device.using(caller.stream):
                caller.worker.pull(table, owned[:grown], out=kept)

        caller.stream.synchronize()
        waits = caller.device.host_waits
        caller.device.held = caller.stream.address
        caller.stream.fill(kept.memory, 0)
        thread = threading.Thread(target=go_on)
        thread.start()
        until(lambda: caller.device.host_waits > waits, "memory is given back")
        pm.allgather(b"rank 0 waits")
        pm.allgather(b"has read")
        caller.device.held = 0
        thread.join(WAIT_S)
        assert not thread.is_alive()
        caller.stream.synchronize()
        assert caller.device.failure == ""
        return 0.0

    assert run_ranks(2, rank, management="static", device="emulated:3") == [0.0, -6.0 * LENGTH]


def test_a_second_worker_of_a_device_ends_what_a_rank_that_is_alone_may_do(pm: intentpm.ParameterManager) -> None:
    """Two GPUs of one rank sum over both: rows that the one needs do not wait for the other's stream."""
    table = pm.create_table("t", KEYS, LENGTH, storage="gpu")
    first, second = Caller(pm.worker(device="emulated")), Caller(pm.worker(device="emulated:77"))
    with first.device.using(first.stream):
        rows_on_the_device(first, table)
        out = first.device.new_array((KEYS, LENGTH), np.float32)
        with held(first):
            first.worker.pull(table, np.arange(KEYS), out=out)
            with second.device.using(second.stream):
                rows = second.get(second.worker.pull(table, np.arange(KEYS)))
        assert (rows == 1).all()
        assert (first.get(out) == 1).all()
    for caller in (first, second):
        caller.stream.synchronize()
        caller.kept.clear()
        assert caller.device.defects == []


def test_a_read_that_is_far_ahead_waits_for_its_caller(pm: intentpm.ParameterManager, caller: Caller) -> None:
    """Memory for copies is bounded: 64 batches ahead the host waits, for as long as it takes."""
    table = pm.create_table("t", KEYS, LENGTH, init=1.0, storage="gpu")
    pm.worker(device="emulated:9")  # so that rows come by copies
    out = caller.device.new_array((KEYS, LENGTH), np.float32)
    waits, pulled = caller.device.host_waits, 0

    def pull() -> None:
        nonlocal pulled
        with caller.device.using(caller.stream):
            for _ in range(80):
                caller.worker.pull(table, np.arange(KEYS), out=out)
                pulled += 1

    caller.device.wait_limit_s = 0.01  # for what is the device's own
    with held(caller):
        thread = threading.Thread(target=pull)
        thread.start()
        until(lambda: caller.device.host_waits > waits, "the host waits")
        assert pulled == 64
        time.sleep(0.05)
    thread.join(WAIT_S)
    assert pulled == 80
    caller.device.wait_limit_s = WAIT_S
    assert (caller.get(out) == 1).all()


def test_a_worker_may_be_dropped_while_its_stream_waits(pm: intentpm.ParameterManager, caller: Caller) -> None:
    """Its blocks are given back when they are done with; nobody waits for that."""
    table = pm.create_table("t", KEYS, LENGTH, init=1.0, storage="gpu")
    dropped = pm.worker(device="emulated")  # the second: rows come by copies
    out = caller.device.new_array((KEYS, LENGTH), np.float32)
    caller.device.wait_limit_s = 0.05
    with held(caller):
        dropped.pull(table, np.arange(KEYS), out=out)
        gone = weakref.ref(dropped)
        del dropped
        gc.collect()
        assert gone() is None
        allocated = caller.device.allocated_bytes
    caller.stream.synchronize()
    assert (caller.get(out) == 1).all()
    caller.device.free_memory()
    assert caller.device.allocated_bytes < allocated
    assert caller.device.failure == ""


def grow(pm: intentpm.ParameterManager, worker: intentpm.Worker) -> intentpm.Table:
    """Batches that grow, so that memory of before is no longer needed. Its rows are 22 then."""
    table = pm.create_table("g", 2000, LENGTH, dtype=np.float16, init=0.0, storage="gpu")
    for count in (4000, 40_000):
        worker.push(table, np.arange(count) % 2000, np.ones((count, LENGTH), np.float16))
    return table


def test_memory_is_given_back_once_the_callers_stream_is_done(pm: intentpm.ParameterManager, caller: Caller) -> None:
    """For which a call waits as long as the job lives, whatever the limit of the device's own work."""
    table = grow(pm, pm.worker())
    out = caller.device.new_array((10, LENGTH), np.float16)
    caller.stream.synchronize()
    waits = caller.device.host_waits
    caller.device.wait_limit_s = 0.05
    with held(caller):
        thread = threading.Thread(
            target=lambda: in_stream(caller, lambda: caller.worker.pull(table, np.arange(10), out=out))
        )
        thread.start()
        until(lambda: caller.device.host_waits > waits, "the call waits")
        time.sleep(0.1)
    thread.join(WAIT_S)
    assert caller.device.failure == ""
    assert (caller.get(out) == 22).all()


def test_rows_are_served_while_a_call_waits_for_memory(pm: intentpm.ParameterManager, caller: Caller) -> None:
    """What is no longer needed is given back with the lock of the rows let go of."""
    table, device, many = grow(pm, pm.worker()), caller.device, 200_000
    assert (pm.worker().pull(table, np.arange(10)) == 22).all()
    caller.stream.synchronize()
    waits = device.host_waits

    def push() -> None:
        pm.worker().push(table, np.arange(many) % 2000, np.ones((many, LENGTH), np.float16))

    with held(caller):
        device.most_bytes = 1
        thread = threading.Thread(target=push)
        thread.start()
        until(lambda: device.host_waits > waits, "the call waits")
        assert (pm.worker().pull(table, np.arange(10)) == 22).all()
        device.most_bytes = 1 << 40
    thread.join(WAIT_S)
    assert not thread.is_alive()
    assert (pm.worker().pull(table, np.arange(10)) == 122).all()


def test_calls_of_the_host_give_back_once_no_worker_of_the_device_is_left(pm: intentpm.ParameterManager) -> None:
    pm.worker(device="emulated").close()
    table = grow(pm, pm.worker())
    device = table.tier.rows.device
    allocated = device.allocated_bytes
    device.free_memory()
    assert device.allocated_bytes == allocated


def test_a_job_leaves_no_memory_on_its_device() -> None:
    for turn in range(3):
        with intentpm.init(device=f"emulated:{turn}") as pm:
            caller = Caller(pm.worker(device="emulated"))
            with caller.device.using(caller.stream):
                table = grow(pm, pm.worker())
                caller.get(caller.worker.pull(table, np.arange(KEYS)))
            device = caller.device
        del pm, caller, table
        gc.collect()
        device.free_memory()
        assert device.allocated_bytes == 0
        assert device.defects == []


def test_a_stream_that_is_gone_is_its_callers_failure(pm: intentpm.ParameterManager, caller: Caller) -> None:
    table = pm.create_table("t", KEYS, LENGTH, init=1.0, storage="gpu")
    out = caller.device.new_array((KEYS, LENGTH), np.float32)
    with caller.device.using(Stream.at(caller.device, 999)):
        for call in (caller.worker.pull, caller.worker.push):
            with pytest.raises(intentpm.DeviceError, match=r"stream .* was refused"):
                call(table, np.arange(KEYS), out)
    assert (caller.get(caller.worker.pull(table, np.arange(KEYS))) == 1).all()
    pm.barrier()


def test_two_threads_are_told_apart(pm: intentpm.ParameterManager, caller: Caller) -> None:
    """While one thread's call waits for its keys, another's is refused before it touches anything of the worker's."""
    table = pm.create_table("t", KEYS, LENGTH, storage="gpu", optimizer=intentpm.optim.SGD(lr=1.0))
    keys, deltas = caller.array(np.array([1, 2])), caller.array(rows_of(2))
    problems: list[BaseException] = []
    waits = caller.device.host_waits

    def push() -> None:
        try:
            with caller.device.using(caller.stream):
                caller.worker.push(table, keys, deltas)
        except BaseException as problem:
            problems.append(problem)

    with held(caller):
        thread = threading.Thread(target=push)
        thread.start()
        until(lambda: caller.device.host_waits > waits, "the other thread's call waits")
        for refused in (
            lambda: caller.worker.keys_on_host(keys),
            lambda: caller.worker.pull(table, keys),
            lambda: caller.worker.push_grad(table, keys, deltas),
            lambda: caller.worker.note_keys(keys, [1, 2], 9),
            lambda: caller.worker.intent(table, keys, 1),
        ):
            with pytest.raises(intentpm.Error, match="two threads"):
                refused()
    thread.join(WAIT_S)
    assert not thread.is_alive()
    assert problems == []


def test_rows_that_come_late_are_not_delivered_into_another_threads_call() -> None:
    def rank(pm: intentpm.ParameterManager) -> bool:
        table = pm.create_table("t", KEYS, LENGTH, init=1.0, storage="host")
        caller = Caller(pm.worker(device="emulated"))
        with caller.device.using(caller.stream):
            future = caller.worker.pull_async(table, np.arange(KEYS))
            keys = caller.array(np.array([1]))
        waits = caller.device.host_waits
        with held(caller):
            thread = threading.Thread(target=lambda: in_stream(caller, lambda: caller.worker.pull(table, keys)))
            thread.start()
            until(lambda: caller.device.host_waits > waits, "the other thread's call waits")
            with pytest.raises(intentpm.Error, match="two threads"):
                future.wait()
        thread.join(WAIT_S)
        caller.worker.close()
        with caller.device.using(caller.stream):
            delivered = (caller.get(future.result()) == 1).all()
        caller.kept.clear()
        return bool(delivered and caller.device.defects == [])

    assert run_ranks(2, rank, device="emulated:3") == [True, True]


def in_stream(caller: Caller, call: Callable[[], Any]) -> None:
    with caller.device.using(caller.stream):
        call()
