"""The emulated device: work happens late, in an order that events allow, and what no event orders is reported."""

import numpy as np
import pytest

from intentpm.gpu.emulated import EmulatedDevice
from intentpm.gpu.handles import Event, Memory, Stream

SIZE = 64


class Pair:
    """A device with two streams, and memory of both kinds."""

    def __init__(self, seed: int = 0) -> None:
        self.device = EmulatedDevice(seed)
        self.one, self.other = Stream(self.device), Stream(self.device)
        self.done = Event(self.device)
        self.here, self.back = (Memory(self.device, SIZE, pinned=True) for _ in range(2))
        self.there = Memory(self.device, SIZE)

    def finish(self, stream: Stream) -> None:
        stream.record(self.done)
        self.done.synchronize()


@pytest.fixture
def pair() -> Pair:
    return Pair()


def test_a_copy_there_and_back(pair: Pair) -> None:
    pair.here.write(bytes(range(SIZE)))
    pair.one.copy(pair.there, pair.here, SIZE)
    pair.one.copy(pair.back, pair.there, SIZE)
    pair.finish(pair.one)
    assert pair.back.read() == bytes(range(SIZE))
    assert pair.device.defects == []


def test_fresh_memory_holds_garbage(pair: Pair) -> None:
    pair.one.copy(pair.back, pair.there, SIZE)
    pair.finish(pair.one)
    assert min(pair.back.read()) >= 0x80


def test_what_is_free_becomes_less() -> None:
    device = EmulatedDevice()
    before = device.free_memory()
    taken = Memory(device, 1000), Memory(device, 5000, pinned=True)
    assert device.free_memory() == before - 1000
    del taken
    assert device.free_memory() == before


def test_work_is_late() -> None:
    early = 0
    for seed in range(100):
        pair = Pair(seed)
        pair.here.write(bytes(SIZE))
        pair.one.fill(pair.there, 7)
        pair.one.record(pair.done)
        early += pair.done.has_happened()
    assert 0 < early < 50


def test_streams_are_interleaved_as_the_seed_says() -> None:
    def order_of(seed: int) -> bytes:
        pair = Pair(seed)
        for stream, value in ((pair.one, 1), (pair.other, 2), (pair.one, 3), (pair.other, 4)):
            stream.fill(pair.there, value)
        pair.one.copy(pair.back, pair.there, SIZE)
        pair.finish(pair.one)
        assert pair.device.defects  # nothing orders them
        return pair.back.read()[:1]

    assert [order_of(seed) for seed in range(20)] == [order_of(seed) for seed in range(20)]
    assert len({order_of(seed) for seed in range(50)}) >= 2


@pytest.mark.parametrize("seed", range(20))
def test_an_event_orders_two_streams(seed: int) -> None:
    pair = Pair(seed)
    pair.here.write(b"\1" * SIZE)
    pair.one.copy(pair.there, pair.here, SIZE)
    pair.one.record(pair.done)
    pair.other.wait(pair.done)
    pair.other.copy(pair.back, pair.there, SIZE)
    pair.finish(pair.other)
    assert pair.back.read() == b"\1" * SIZE
    assert pair.device.defects == []


def test_an_event_recorded_again_stands_for_the_later_moment(pair: Pair) -> None:
    pair.one.record(pair.done)
    pair.one.fill(pair.there, 1)
    pair.other.wait(pair.done)  # of the earlier moment
    pair.one.record(pair.done)
    pair.other.copy(pair.back, pair.there, SIZE)
    assert pair.device.defects == ["a copy reads memory before the event that says it is there"]


class TestDefects:
    """Each breaks one rule of device.pxd, and is reported whatever the seed."""

    @pytest.mark.parametrize("seed", range(10))
    def test_a_read_without_its_event(self, seed: int) -> None:
        pair = Pair(seed)
        pair.one.fill(pair.there, 1)
        pair.other.copy(pair.back, pair.there, SIZE)
        assert pair.device.defects == ["a copy reads memory before the event that says it is there"]

    def test_a_write_while_another_stream_reads(self, pair: Pair) -> None:
        pair.one.copy(pair.back, pair.there, SIZE)
        pair.other.fill(pair.there, 1)
        assert pair.device.defects == ["a fill writes memory before the event that says it is no longer used"]

    def test_pinned_memory_that_is_read_too_early(self, pair: Pair) -> None:
        pair.one.copy(pair.back, pair.there, SIZE)
        pair.back.read()
        assert pair.device.failure == "the host reads memory before the event that says it is there"

    def test_pinned_memory_that_is_written_too_early(self, pair: Pair) -> None:
        pair.one.copy(pair.there, pair.here, SIZE)
        pair.here.write(bytes(SIZE))
        assert pair.device.failure == "the host writes memory before the event that says it is no longer used"

    def test_memory_released_too_early(self, pair: Pair) -> None:
        pair.one.fill(pair.there, 1)
        del pair.there
        assert pair.device.failure == "memory is released before the event that says it is no longer used"

    def test_an_event_that_nobody_recorded(self, pair: Pair) -> None:
        pair.one.wait(pair.done)
        assert pair.device.failure == "a stream waits for an event that nobody recorded"

    def test_memory_that_is_not_the_devices(self, pair: Pair) -> None:
        stranger = Memory(EmulatedDevice(), SIZE)
        pair.one.copy(pair.back, stranger, SIZE)
        assert pair.device.failure == "a copy touches memory that is not allocated"

    def test_a_kernel_whose_slots_are_not_there_yet(self, pair: Pair) -> None:
        slots = Memory(pair.device, SIZE)
        pair.one.fill(slots, 0)
        pair.other.launch(
            "intentpm::gpu::gather_rows<4>",
            slab=pair.there, slots=slots, rows=Memory(pair.device, SIZE), count=1, row_bytes=4, stride_bytes=4,
        )  # fmt: skip
        assert pair.device.failure == "a kernel reads memory before the event that says it is there"


def test_an_unknown_kernel(pair: Pair) -> None:
    with pytest.raises(KeyError):
        pair.one.launch("gather")


def test_the_directory_says_where_keys_are(pair: Pair) -> None:
    kept = []

    def on_device(numbers: np.ndarray) -> Memory:
        pinned = Memory(pair.device, numbers.nbytes, pinned=True)
        pinned.write(numbers.tobytes())
        memory = Memory(pair.device, numbers.nbytes)
        pair.one.copy(memory, pinned, numbers.nbytes)
        pair.finish(pair.one)
        kept.append(memory)  # until the kernels are done
        return memory

    directory = on_device(np.full(50, -1, np.int32))
    keys, slots = np.array([3, 41, 0], np.int64), np.array([7, 8, 9], np.int32)
    pair.one.launch(
        "intentpm::gpu::enter_slots", keys=on_device(keys), slots=on_device(slots), directory=directory, count=3
    )
    found, asked = on_device(np.zeros(5, np.int32)), np.array([0, 1, 41, 41, 3], np.int64)
    pair.one.launch("intentpm::gpu::find_slots", keys=on_device(asked), slots=found, directory=directory, count=5)
    pair.one.copy(pair.back, found, 20)
    pair.finish(pair.one)
    assert np.frombuffer(pair.back.read()[:20], np.int32).tolist() == [9, -1, 8, 8, 7]
    assert pair.device.defects == []
