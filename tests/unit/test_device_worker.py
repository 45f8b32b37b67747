"""Workers of a device: keys and rows in its memory, ordered with the caller's streams, and no wait for what lies there.

On emulated devices, whose fresh memory is garbage, whose work is late, and which report a use that no event orders.
"""

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest

import intentpm
import intentpm.optim
from intentpm.gpu import caller_stream
from intentpm.gpu.device_arrays import EmulatedArray
from intentpm.gpu.emulated import EmulatedDevice
from intentpm.gpu.handles import Event, Stream
from intentpm.testing import run_ranks

KEYS, LENGTH = 40, 6
WAIT_S = 60.0


class Caller:
    """A program with arrays on the device of a worker: what it does with them is work of its stream."""

    def __init__(self, worker: intentpm.Worker) -> None:
        self.worker, self.device = worker, worker.device
        assert isinstance(self.device, EmulatedDevice)
        self.stream = Stream(self.device)
        self.kept: list[Any] = []
        """What its stream may still use."""

    def array(self, values: np.ndarray) -> EmulatedArray:
        made = self.device.new_array(values.shape, values.dtype)
        made.set(values, self.stream)
        return made

    def late(self, values: np.ndarray) -> EmulatedArray:
        """Not there yet: its values come from another array, on the stream."""
        source = self.array(values)
        made = self.device.new_array(values.shape, values.dtype)
        self.stream.copy(made.memory, source.memory, values.nbytes)
        self.kept.append(source)
        return made

    def get(self, array: EmulatedArray) -> np.ndarray:
        return array.get(self.stream)


@pytest.fixture(params=[0, 1, 2])
def pm(request: pytest.FixtureRequest) -> Iterator[intentpm.ParameterManager]:
    with intentpm.init(device=f"emulated:{request.param}") as pm:
        yield pm


@pytest.fixture
def caller(pm: intentpm.ParameterManager) -> Iterator[Caller]:
    caller = Caller(pm.worker(device="emulated"))
    with caller.device.using(caller.stream):
        yield caller
    caller.stream.synchronize()
    caller.kept.clear()
    assert caller.device.defects == []


def rows_of(count: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(-4, 5, (count, LENGTH)).astype(np.float32)


@pytest.mark.parametrize("storage", ["gpu", "host"])
def test_every_call_takes_arrays_on_the_device(pm: intentpm.ParameterManager, caller: Caller, storage: str) -> None:
    expected, rng = rows_of(KEYS), np.random.default_rng(1)
    table = pm.create_table("t", KEYS, LENGTH, init=expected, storage=storage, optimizer=intentpm.optim.SGD(lr=0.5))
    worker = caller.worker
    for turn in range(6):
        keys = rng.integers(0, KEYS, 12)
        given = caller.late(keys) if turn % 2 else keys
        deltas = rows_of(12, turn)
        if turn < 3:
            worker.push(table, given, caller.late(deltas))
            np.add.at(expected, keys, deltas)
        else:
            worker.push_grad(table, given, caller.late(deltas), duplicates=("sum", "each")[turn % 2])
            np.add.at(expected, keys, -0.5 * deltas)
        distinct = rng.permutation(KEYS)[:5]
        values = rows_of(5, 100 + turn)
        worker.set(table, caller.late(distinct), caller.late(values))
        expected[distinct] = values
        out = caller.device.new_array((12, LENGTH), np.float32)
        assert worker.pull(table, given, out=out) is out
        np.testing.assert_array_equal(caller.get(out), expected[keys])
    new = worker.pull(table, np.arange(KEYS))
    assert isinstance(new, EmulatedArray)
    np.testing.assert_array_equal(caller.get(new), expected)
    np.testing.assert_array_equal(pm.worker().pull(table, np.arange(KEYS)), expected)


def test_asynchronous_calls(pm: intentpm.ParameterManager, caller: Caller) -> None:
    expected = rows_of(KEYS)
    table = pm.create_table("t", KEYS, LENGTH, init=expected, storage="gpu", optimizer=intentpm.optim.SGD(lr=1.0))
    keys, deltas = np.array([3, 3, 9]), rows_of(3, 1)
    caller.worker.push_async(table, keys, caller.late(deltas)).wait()
    np.add.at(expected, keys, deltas)
    caller.worker.push_grad_async(table, keys, caller.late(deltas)).wait()
    np.add.at(expected, keys, -deltas)
    caller.worker.set_async(table, [4], caller.late(deltas[:1])).wait()
    expected[4] = deltas[0]
    future = caller.worker.pull_async(table, np.arange(KEYS))
    np.testing.assert_array_equal(caller.get(future.result()), expected)
    assert future.done()


def test_arrays_of_the_host_are_taken_too(pm: intentpm.ParameterManager, caller: Caller) -> None:
    table = pm.create_table("t", KEYS, LENGTH, storage="gpu")
    out = np.empty((2, LENGTH), np.float32)
    caller.worker.push(table, [1, 2], np.ones((2, LENGTH), np.float32))
    caller.worker.push(table, caller.late(np.array([1, 2])), np.ones((2, LENGTH), np.float32))
    assert caller.worker.pull(table, [1, 2], out=out) is out
    assert (out == 2).all()


def test_no_host_wait_for_intended_batches(pm: intentpm.ParameterManager, caller: Caller) -> None:
    """Keys that were announced, tensors that count their changes, and rows that lie on the device."""
    expected = rows_of(KEYS)
    table = pm.create_table("t", KEYS, LENGTH, init=expected, storage="gpu", optimizer=intentpm.optim.SGD(lr=1.0))
    worker, device = caller.worker, caller.device
    keys = [np.random.default_rng(turn).integers(0, KEYS, 10) for turn in range(5)]
    there = [caller.array(batch) for batch in keys]
    gradients = [caller.array(rows_of(10, turn)) for turn in range(5)]
    outs = [device.new_array((10, LENGTH), np.float32) for _ in range(5)]
    worker.pull(table, there[0], out=outs[0])
    worker.push_grad(table, there[0], gradients[0])  # kernels' scratch is made
    for clock, batch in enumerate(there):
        worker.intent(table, batch, clock, clock + 1)
    caller.stream.synchronize()
    waits = device.host_waits
    device.stands_still = True  # whoever waits now waits in vain
    device.wait_limit_s = 0.5
    for batch, out, gradient in zip(there, outs, gradients, strict=True):
        worker.pull(table, batch, out=out)
        worker.push_grad(table, batch, gradient)
        worker.advance_clock()
    device.stands_still = False
    assert device.host_waits == waits
    for turn in (0, *range(5)):
        np.add.at(expected, keys[turn], -rows_of(10, turn))
    np.testing.assert_array_equal(caller.get(worker.pull(table, np.arange(KEYS))), expected)


def test_keys_that_were_changed_are_looked_at_again(pm: intentpm.ParameterManager, caller: Caller) -> None:
    expected = rows_of(KEYS)
    table = pm.create_table("t", KEYS, LENGTH, init=expected, storage="gpu")
    keys = caller.array(np.array([1, 2]))
    caller.worker.intent(table, keys, 0, 5)
    keys.set(np.array([7, 8]), caller.stream)
    np.testing.assert_array_equal(caller.get(caller.worker.pull(table, keys)), expected[[7, 8]])


def test_what_keys_are_is_forgotten_with_their_window(pm: intentpm.ParameterManager, caller: Caller) -> None:
    table = pm.create_table("t", KEYS, LENGTH, storage="gpu")
    keys = caller.array(np.array([1, 2]))
    caller.worker.note_keys(keys, [5, 6], 2)  # a lie, so that it shows who is asked
    caller.worker.push(table, keys, np.ones((2, LENGTH), np.float32))
    caller.worker.advance_clock()
    caller.worker.push(table, keys, np.ones((2, LENGTH), np.float32))
    caller.worker.advance_clock()
    caller.worker.push(table, keys, np.ones((2, LENGTH), np.float32))
    assert pm.worker().pull(table, [1, 2, 5, 6])[:, 0].tolist() == [1, 1, 2, 2]


def test_wrong_arrays_are_refused(pm: intentpm.ParameterManager, caller: Caller) -> None:
    table = pm.create_table("t", KEYS, LENGTH, storage="gpu")
    new = caller.device.new_array
    for out, error, said in (
        (new((2, LENGTH), "f8"), intentpm.DtypeError, "dtype float64, the table has float32"),
        (new((3, LENGTH), "f4"), intentpm.ShapeError, r"shape \(3, 6\), expected \(2, 6\)"),
        (EmulatedDevice().new_array((2, LENGTH), "f4"), intentpm.DeviceError, "lies on device"),
    ):
        with pytest.raises(error, match=said):
            caller.worker.pull(table, [1, 2], out=out)
        with pytest.raises(error, match=said):
            caller.worker.push(table, [1, 2], out)
    with pytest.raises(intentpm.DtypeError, match="pass integers"):
        caller.worker.pull(table, caller.late(np.array([1.0])))
    with pytest.raises(intentpm.KeyRangeError):
        caller.worker.pull(table, caller.late(np.array([KEYS])))
    with pytest.raises(intentpm.OptimizerError, match="no optimizer"):
        caller.worker.push_grad(table, [1], caller.late(rows_of(1)))
    assert caller.get(caller.worker.pull(table, np.empty(0, np.int64))).shape == (0, LENGTH)


@pytest.mark.parametrize("device", [None, "emulated:7"])
def test_workers_of_several_devices(device: str | None) -> None:
    """The table's, another one, and the host: all see the same rows."""
    with intentpm.init(device="emulated:5") as pm:
        table = pm.create_table("t", KEYS, LENGTH, storage="gpu" if device else "host")
        callers = [Caller(pm.worker(device=name)) for name in ("emulated", "emulated:6", device or "emulated:7")]
        for caller in callers:
            with caller.device.using(caller.stream):
                caller.worker.push(table, [1, 2], caller.late(np.ones((2, LENGTH), np.float32)))
        for caller in callers:
            with caller.device.using(caller.stream):
                assert (caller.get(caller.worker.pull(table, [2, 1])) == 3).all()
            caller.stream.synchronize()
            assert caller.device.defects == []
        assert len({caller.device.name for caller in callers}) == 3


def run_program(seed: int, storage: str = "gpu", ranks: int = 3) -> list[str]:
    """Ranks, each with a worker of its device, that push and pull at random; sums are exact. Returns defects."""

    def rank(pm: intentpm.ParameterManager) -> list[str]:
        rng = np.random.default_rng((seed, pm.rank))
        at_device = seed % 2 or pm.rank
        table = pm.create_table(
            "t", KEYS, LENGTH, init=0.0, storage=storage if at_device else "host", optimizer=intentpm.optim.SGD(lr=1.0)
        )
        caller, added = Caller(pm.worker(device="emulated")), np.zeros(KEYS, np.float32)
        worker = caller.worker
        with caller.device.using(caller.stream):
            for _ in range(12):
                keys, amounts = rng.integers(0, KEYS, 8), rng.integers(1, 5, 8).astype(np.float32)
                rows = np.repeat(amounts[:, None], LENGTH, axis=1)
                worker.intent(table, rng.integers(0, KEYS, 8), worker.clock + 1, worker.clock + 3)
                given = caller.late(keys) if rng.random() < 0.5 else keys
                if rng.random() < 0.5:
                    worker.push(table, given, caller.late(rows))
                else:
                    worker.push_grad(table, given, caller.late(-rows))
                np.add.at(added, keys, amounts)
                pulled = caller.get(worker.pull(table, given))
                assert (pulled == pulled[:, :1]).all(), "a torn row"
                assert (pulled[:, 0] >= added[keys]).all(), "a worker's own writes are missing"
                worker.advance_clock()
            worker.wait_sync()
        pm.barrier()
        worker.wait_sync()
        pm.barrier()
        total = sum(np.frombuffer(part, np.float32) for part in pm.allgather(added.tobytes()))
        with caller.device.using(caller.stream):
            assert (caller.get(worker.pull(table, np.arange(KEYS)))[:, 0] == total).all(), "a push is lost"
        caller.stream.synchronize()
        caller.kept.clear()
        pm.barrier()
        return list(caller.device.defects)

    management = ("adaptive", "relocate", "replicate", "static")[seed % 4]
    found = run_ranks(
        ranks, rank, management=management, timing="immediate", sync_interval=1e-6, device=f"emulated:{seed}"
    )
    return [defect for part in found for defect in part]


@pytest.mark.parametrize("storage", ["gpu", "tiered"])
@pytest.mark.parametrize("seed", range(8))
def test_random_programs(seed: int, storage: str) -> None:
    assert run_program(seed, storage, ranks=1 + 2 * (seed % 4 != 3)) == []


@pytest.mark.parametrize("ranks", [1, 3])
@pytest.mark.parametrize("name", caller_stream.DEFECTS[:2])
def test_a_missing_wait_between_streams_is_found(name: str, ranks: int) -> None:
    with caller_stream.plant(name):
        for seed in range(4):
            try:
                if run_program(seed, ranks=ranks):
                    return
            except AssertionError:
                return
    pytest.fail(f"programs did not notice the planted defect {name!r}")


# -- a caller's stream that waits for another rank ------------------------------------------------------------------------------


def until(condition: Callable[[], bool], what: str) -> None:
    end = time.monotonic() + WAIT_S
    while not condition():
        assert time.monotonic() < end, f"{what}: not within {WAIT_S:g} s"
        time.sleep(0.001)


@contextmanager
def held(caller: Caller) -> Iterator[None]:
    """The caller's stream stands still, as if it waited for another rank; there is something that it has not done."""
    caller.device.held = caller.stream.address
    caller.kept.append(caller.device.new_array((4,), np.float32))
    caller.stream.fill(caller.kept[-1].memory, 0)
    try:
        yield
    finally:
        caller.device.held = 0


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


# -- keys -----------------------------------------------------------------------------------------------------------------------


def test_two_views_that_begin_alike_are_two(pm: intentpm.ParameterManager, caller: Caller) -> None:
    torch = pytest.importorskip("torch")
    from intentpm.torch.on_device import empty_on

    table = pm.create_table("t", KEYS, LENGTH, init=np.arange(KEYS * LENGTH).reshape(KEYS, LENGTH), storage="gpu")
    keys = empty_on(caller.device, (4, 4), torch.int64)
    keys.copy_(torch.arange(16).view(4, 4))
    for announced, other in ((keys[0], keys[:, 0]), (keys[:, 1], keys[0, 1:])):
        caller.worker.intent(table, announced, 0, 5)
        for asked in (announced, other):
            found = caller.get(caller.worker.pull(table, asked))[:, 0]
            np.testing.assert_array_equal(found, asked.numpy() * LENGTH)


def test_keys_may_have_strides(pm: intentpm.ParameterManager, caller: Caller) -> None:
    torch = pytest.importorskip("torch")
    from intentpm.torch.on_device import empty_on

    table = pm.create_table("t", KEYS, LENGTH, storage="gpu")
    features = empty_on(caller.device, (5, 3), torch.int64)
    features.copy_(torch.arange(15).view(5, 3))
    caller.worker.push(table, features[:, 1], np.ones((5, LENGTH), np.float32))
    assert pm.worker().pull(table, np.arange(15))[:, 0].tolist() == [0, 1, 0] * 5


# -- arrays of other libraries ----------------------------------------------------------------------------------------------------


class ByDLPack:
    """An array of a library that works on a stream of its own, and has no current one: JAX's, say."""

    def __init__(self, array: EmulatedArray, stream: Stream) -> None:
        self.array, self.stream = array, stream
        self.asked: list[int | None] = []

    def __dlpack_device__(self) -> tuple[int, int]:
        return self.array.__dlpack_device__()

    def __dlpack__(self, *, stream: int | None = None) -> Any:
        self.asked.append(stream)
        made = Event(self.array.device)
        self.stream.record(made)
        if stream == 1:  # the legacy one, which is what the consumer names when it has no better
            Stream.at(self.array.device, 1).wait(made)
        return self.array.__dlpack__()


class ByInterface:
    """As Numba's: it names its stream."""

    def __init__(self, array: EmulatedArray, stream: Stream | None) -> None:
        self.array = array
        self.__cuda_array_interface__ = {
            "data": (array.address, False),
            "shape": array.shape,
            "typestr": array.dtype.str,
            "version": 3,
            "stream": None if stream is None else stream.address,
        }


@pytest.mark.parametrize("kind", [ByDLPack, ByInterface])
@pytest.mark.parametrize("alone", [True, False])
def test_arrays_of_other_libraries_are_in_order(pm: intentpm.ParameterManager, kind: Any, alone: bool) -> None:
    table = pm.create_table("t", KEYS, LENGTH, storage="gpu")
    worker = pm.worker(device="emulated")
    ours, their = Caller(worker), Caller(worker)
    device, library = ours.device, their.stream
    if not alone:
        pm.worker(device="emulated:50")
    keys, deltas = np.array([3, 4, 3]), rows_of(3)
    with device.using(ours.stream):
        given = [kind(their.late(values), library) for values in (keys, deltas)]
        worker.push(table, *given)
        expected = np.zeros((KEYS, LENGTH), np.float32)
        np.add.at(expected, keys, deltas)
        out = their.late(rows_of(3))
        worker.pull(table, given[0], out=kind(out, library))
        np.testing.assert_array_equal(out.get(library), expected[keys])  # on their stream, which waits for no event of ours
    library.synchronize()
    ours.stream.synchronize()
    their.kept.clear()
    assert device.defects == []


def test_an_interface_to_memory_of_another_device_is_refused(pm: intentpm.ParameterManager, caller: Caller) -> None:
    table = pm.create_table("t", KEYS, LENGTH, storage="gpu")
    elsewhere = ByInterface(EmulatedDevice().new_array((2, LENGTH), np.dtype("f4")), None)
    with pytest.raises(intentpm.DeviceError, match="does not lie on"):
        caller.worker.push(table, [1, 2], elsewhere)


# -- one thread at a time ---------------------------------------------------------------------------------------------------------


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


# -- steps and counts ---------------------------------------------------------------------------------------------------------------


def test_a_key_that_comes_amid_its_batch_is_stepped_once() -> None:
    """A batch of one key, many times over, while the key moves to and fro: the optimizer counts its steps."""
    calls, copies = 30, 20_000

    def rank(pm: intentpm.ParameterManager) -> int:
        table = pm.create_table("t", 4, 2, init=0.0, storage="gpu", optimizer=intentpm.optim.Adam(lr=0.01))
        caller = Caller(pm.worker(device="emulated"))
        keys = np.zeros(copies, np.int64)
        with caller.device.using(caller.stream):
            gradients = caller.array(np.full((copies, 2), 1e-3, np.float32))
            for turn in range(calls):
                if turn % 2 == pm.rank:
                    caller.worker.intent(table, [0], caller.worker.clock, caller.worker.clock + 2)
                caller.worker.push_grad(table, keys, gradients)
                caller.worker.advance_clock()
            caller.worker.wait_sync()
        pm.barrier()
        steps = int(caller.worker.pull_state(table, [0])["step"].max())
        pm.barrier()
        return steps

    assert run_ranks(2, rank, management="relocate", timing="immediate", device="emulated:3") == [2 * calls] * 2


def test_what_is_served_by_the_host_counts_once() -> None:
    """An intended key is an access in time, wherever it is served."""

    def rank(pm: intentpm.ParameterManager) -> tuple[float, float]:
        table = pm.create_table("t", KEYS, LENGTH, init=1.0, storage="tiered", device_memory="1KiB")
        caller = Caller(pm.worker(device="emulated"))
        owned = np.asarray(table.owned_keys())
        caller.worker.intent(table, owned, 0, 500)
        caller.worker.wait_sync()
        with caller.device.using(caller.stream):
            for _ in range(400):
                caller.worker.pull(table, owned)
        caller.stream.synchronize()
        pm.barrier()
        told = pm.stats()
        counts = caller.worker.access_counts(table.table_id)
        assert sum(counts) == 400 * len(owned)
        return told["coverage"]["announced"], told["coverage"]["in_time"]

    assert run_ranks(2, rank, device="emulated:3") == [(1.0, 1.0)] * 2
