"""Workers of a device: keys and rows in its memory, ordered with the caller's streams, and no wait for what lies there.

On emulated devices, whose fresh memory is garbage, whose work is late, and which report a use that no event orders.
"""

import weakref
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from support.device_caller import KEYS, LENGTH, Caller, rows_of

import intentpm
import intentpm.optim
from intentpm.gpu import caller_stream
from intentpm.gpu.device_arrays import EmulatedArray
from intentpm.gpu.emulated import EmulatedDevice
from intentpm.gpu.handles import Event, Stream
from intentpm.testing import run_ranks


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


# -- keys ------------------------------------------------------------------------------------------------------------


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


@pytest.mark.parametrize("storage", ["gpu", "host"])
@pytest.mark.parametrize("call", ["pull", "pull_async"])
def test_keys_that_a_pull_has_read_are_looked_at_again(
    pm: intentpm.ParameterManager, caller: Caller, storage: str, call: str
) -> None:
    """Neighbours, read into one buffer again and again, are the keys of the next look-up."""
    neighbours = pm.create_table("n", KEYS, dtype=np.int64, init=np.arange(KEYS)[::-1].copy(), storage=storage)
    table = pm.create_table("t", KEYS, LENGTH, init=np.arange(KEYS * LENGTH).reshape(KEYS, LENGTH), storage="gpu")
    worker = caller.worker

    def read(keys: list[int]) -> None:
        if call == "pull":
            worker.pull(neighbours, keys, out=buffer)
        else:
            worker.pull_async(neighbours, keys, out=buffer).wait()
        caller.stream.synchronize()

    for buffer in buffers(caller):
        read([1, 2])
        worker.intent(table, buffer, worker.clock, worker.clock + 4)
        assert worker.keys_on_host(buffer).tolist() == [KEYS - 2, KEYS - 3]
        read([5, 6])
        found = caller.get(worker.pull(table, buffer))[:, 0] // LENGTH
        assert found.tolist() == [KEYS - 6, KEYS - 7]


def buffers(caller: Caller) -> Iterator[Any]:
    """For two keys: the device's own array, and a tensor of PyTorch."""
    yield caller.device.new_array((2,), np.int64)
    torch = pytest.importorskip("torch")
    from intentpm.torch.on_device import empty_on

    yield empty_on(caller.device, (2,), torch.int64)


def test_rows_that_come_late_change_the_keys_there(pm: intentpm.ParameterManager, caller: Caller) -> None:
    neighbours = pm.create_table("n", KEYS, dtype=np.int64, init=np.arange(KEYS), storage="host")
    buffer = caller.device.new_array((2,), np.int64)
    future = caller.worker.pull_async(neighbours, [5, 6], out=buffer)
    caller.worker.note_keys(buffer, [1, 2], 4)
    future.wait()
    assert caller.worker.keys_on_host(buffer).tolist() == [5, 6]


def test_keys_that_are_told_are_as_many(pm: intentpm.ParameterManager, caller: Caller) -> None:
    keys = caller.array(np.array([1, 2]))
    with pytest.raises(intentpm.ShapeError, match="on_host has 3"):
        caller.worker.note_keys(keys, [1, 2, 3], 4)


def test_a_worker_that_is_closed_keeps_no_memory(pm: intentpm.ParameterManager, caller: Caller) -> None:
    table = pm.create_table("t", KEYS, LENGTH, init=0.0, storage="host")
    before = caller.device.allocated_bytes
    with pm.worker(device="emulated") as worker:
        keys, deltas = caller.array(np.arange(KEYS)), caller.array(rows_of(KEYS))
        worker.intent(table, keys, 0, 5)
        worker.push(table, keys, deltas)
        del deltas
        gone = weakref.ref(keys)
        del keys
        assert gone() is not None
        caller.stream.synchronize()
    assert gone() is None
    assert caller.device.allocated_bytes == before
    assert worker.clock == 0


# -- arrays of other libraries ---------------------------------------------------------------------------------------


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
        # On their stream, which waits for no event of ours.
        np.testing.assert_array_equal(out.get(library), expected[keys])
    library.synchronize()
    ours.stream.synchronize()
    their.kept.clear()
    assert device.defects == []


def test_an_interface_to_memory_of_another_device_is_refused(pm: intentpm.ParameterManager, caller: Caller) -> None:
    table = pm.create_table("t", KEYS, LENGTH, storage="gpu")
    elsewhere = ByInterface(EmulatedDevice().new_array((2, LENGTH), np.dtype("f4")), None)
    with pytest.raises(intentpm.DeviceError, match="does not lie on"):
        caller.worker.push(table, [1, 2], elsewhere)


# -- steps and counts ------------------------------------------------------------------------------------------------


def test_a_key_that_comes_amid_its_batch_is_stepped_once() -> None:
    """A batch of one key, many times over, while the key moves between ranks: the optimizer counts its steps."""
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
        table = pm.create_table("t", KEYS, LENGTH, init=1.0, storage="tiered", device_memory=512)
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
        assert told["tables"]["t"]["in_place"] > 0
        assert told["tables"]["t"]["hits"] > 0
        counts = caller.worker.access_counts(table.table_id)
        assert sum(counts) == 400 * len(owned)
        return told["coverage"]["announced"], told["coverage"]["in_time"]

    assert run_ranks(2, rank, device="emulated:3") == [(1.0, 1.0)] * 2


def test_steps_of_one_key_are_served_in_proportion(pm: intentpm.ParameterManager, caller: Caller) -> None:
    """``duplicates="each"``: every step is a run of its own, which sends its own slots alone."""
    count = 1000
    table = pm.create_table("t", KEYS, LENGTH, init=0.0, storage="gpu", optimizer=intentpm.optim.SGD(lr=1.0))
    keys, gradients = np.zeros(count, np.int64), caller.array(np.ones((count, LENGTH), np.float32))
    before = caller.device.copied_bytes
    caller.worker.push_grad(table, keys, gradients, duplicates="each")
    assert caller.device.copied_bytes - before < 1000 * count
    assert (caller.get(caller.worker.pull(table, [0])) == -count).all()


@pytest.mark.parametrize("call", ["push", "set", "pull"])
def test_a_batch_of_many_runs(pm: intentpm.ParameterManager, caller: Caller, call: str) -> None:
    """Of 65536 keys each; the last of duplicates is in another than the first."""
    count = 150_000
    table = pm.create_table("t", KEYS, 1, init=np.arange(KEYS)[:, None], storage="gpu")
    keys = np.arange(count) % KEYS
    if call == "pull":
        assert (caller.get(caller.worker.pull(table, keys))[:, 0] == keys).all()
        return
    rows = caller.array(
        np.arange(count, dtype=np.float32)[:, None] if call == "set" else np.ones((count, 1), np.float32)
    )
    getattr(caller.worker, call)(table, keys, rows)
    found = caller.get(caller.worker.pull(table, np.arange(KEYS)))[:, 0]
    last = count - 1 - (count - 1 - np.arange(KEYS)) % KEYS
    expected = last if call == "set" else np.arange(KEYS) + np.bincount(keys)
    assert found.tolist() == expected.tolist()
