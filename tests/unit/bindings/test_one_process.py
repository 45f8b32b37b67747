"""intentpm.adapm in one process, which no scheduler is needed for."""

import sys
import threading
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from intentpm import adapm
from intentpm.adapm import job
from intentpm.foundation.errors import (
    ClosedError,
    ConfigError,
    DtypeError,
    Error,
    KeyRangeError,
    SampleError,
    ShapeError,
)

pytestmark = pytest.mark.timeout(60)

NUM_KEYS = 20
LENGTHS = np.where(np.arange(NUM_KEYS) == 7, 1000, 3)


def arrays(backend: str) -> Any:
    """(keys of a list, zeros of a shape, contents) of numpy or torch."""
    if backend == "numpy":
        return (
            lambda keys: np.array(keys, np.int64),
            lambda *shape: np.zeros(shape, np.float32),
            lambda values: values.reshape(-1).tolist(),
        )
    torch = pytest.importorskip("torch")
    return (
        lambda keys: torch.tensor(keys, dtype=torch.int64),
        lambda *shape: torch.zeros(shape, dtype=torch.float32),
        lambda values: values.reshape(-1).tolist(),
    )


@pytest.fixture(params=["numpy", "torch"])
def backend(request: pytest.FixtureRequest) -> Any:
    return arrays(request.param)


@pytest.fixture
def server() -> Iterator[adapm.Server]:
    adapm.setup(NUM_KEYS, 2)
    server = adapm.Server(LENGTHS)
    yield server
    server.shutdown()


@pytest.fixture
def kv(server: adapm.Server) -> adapm.Worker:
    return adapm.Worker(0, server)


def test_push_adds_set_replaces_pull_reads(kv: adapm.Worker, backend: Any) -> None:
    keys_of, zeros, listed = backend
    keys = keys_of([5, 2, 5])
    assert kv.push(keys, zeros(3, 3) + 1) == -1
    assert kv.push(keys, zeros(9) + 2, True) == -1
    vals = zeros(3, 1, 3)
    assert kv.pull(keys, vals) == -1
    assert listed(vals) == [6] * 3 + [3] * 3 + [6] * 3
    assert kv.set(keys_of([2]), zeros(3) + 9) == -1
    assert kv.pull(keys, vals, True) == -1
    assert listed(vals) == [6] * 3 + [9] * 3 + [6] * 3


def test_values_of_several_lengths_are_one_after_the_other(kv: adapm.Worker, backend: Any) -> None:
    keys_of, zeros, listed = backend
    keys = keys_of([0, 7, 1])
    pushed = zeros(1006)
    pushed[:3], pushed[3:1003], pushed[1003:] = 1, 2, 3
    kv.push(keys, pushed)
    vals = zeros(1006)
    kv.pull(keys, vals)
    assert listed(vals) == [1] * 3 + [2] * 1000 + [3] * 3
    kv.set(keys, pushed + 1)
    kv.pull(keys_of([7, 0]), vals[:1003])
    assert listed(vals[:1003]) == [3] * 1000 + [2] * 3


def test_memory_that_is_not_contiguous(kv: adapm.Worker, backend: Any) -> None:
    keys_of, zeros, listed = backend
    wide = zeros(2, 6)
    wide[:, ::2] = 5
    kv.push(keys_of([1, 0, 2, 0])[::2], wide[:, ::2])
    target = zeros(2, 6)
    kv.pull(keys_of([1, 2]), target[:, ::2])
    assert listed(target) == [5, 0, 5, 0, 5, 0] * 2
    kv.pull(keys_of([1, 7]), zeros(2, 1003)[::2], True)


def test_keys_of_any_shape_and_none(kv: adapm.Worker, backend: Any) -> None:
    keys_of, zeros, listed = backend
    kv.push(keys_of([[0, 1], [2, 3]]), zeros(4, 3) + 1)
    vals = zeros(4, 3)
    kv.pull(keys_of([[0], [1], [2], [3]]), vals)
    assert listed(vals) == [1] * 12
    assert kv.pull(keys_of([]), zeros(0)) == -1


def test_clock_and_intent(kv: adapm.Worker) -> None:
    assert kv.current_clock() == 0
    assert kv.intent(np.arange(8), 1) == -1
    assert kv.intent(np.array([1, 1, 7]), 0, sys.maxsize) == -1
    assert kv.intent(np.array([1]), 5, 3) == -1
    assert kv.advance_clock() is None
    assert kv.current_clock() == 1


def test_sizes(kv: adapm.Worker) -> None:
    assert (kv.num_keys, kv.get_key_size(), kv.get_key_size(7)) == (NUM_KEYS, 3, 1000)


def test_a_parameter_can_be_pulled_into(kv: adapm.Worker) -> None:
    torch = pytest.importorskip("torch")
    parameter = torch.nn.Parameter(torch.zeros(3))
    kv.push(np.array([3]), np.ones(3, np.float32))
    kv.pull(torch.tensor([3]), parameter)
    assert parameter.tolist() == [1, 1, 1]


def test_two_workers_meet_at_barriers_and_end(server: adapm.Server) -> None:
    workers = [adapm.Worker(number, server) for number in range(2)]
    sums = np.zeros((2, 3), np.float32)
    failures: list[BaseException] = []

    def work(number: int) -> None:
        try:
            kv = workers[number]
            kv.begin_setup()
            if number == 0:
                kv.set(np.array([4]), np.full(3, 10, np.float32))
            kv.end_setup()
            kv.push(np.array([4]), np.full(3, 1 + number, np.float32), True)
            kv.waitall()
            kv.barrier()
            kv.pull(np.array([4]), sums[number])
            kv.finalize()
            kv.finalize()
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert failures == []
    assert (sums == 13).all()
    with pytest.raises(ClosedError, match="worker 1 was finalized"):
        workers[1].pull(np.array([0]), np.zeros(3, np.float32))


def test_a_worker_whose_thread_has_ended_is_not_waited_for(server: adapm.Server) -> None:
    workers = [adapm.Worker(number, server) for number in range(2)]
    thread = threading.Thread(target=workers[1].push, args=(np.array([1]), np.ones(3, np.float32)))
    thread.start()
    thread.join()
    with pytest.raises(Error, match="worker 1 of this process ended before it came to this barrier"):
        workers[0].barrier()


def test_a_worker_that_is_never_made_is_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("INTENTPM_START_TIMEOUT", "0.5")
    adapm.setup(NUM_KEYS, 2)
    server = adapm.Server(3)
    with pytest.raises(Error, match=r"worker 1, of 2 by setup\(\), was not made within 1 s"):
        adapm.Worker(0, server).barrier()
    server.shutdown()


@pytest.mark.parametrize("scheme", ["naive", "preloc", "pool", "local"])
@pytest.mark.parametrize("distribution", ["uniform", "log-uniform"])
def test_samples(server: adapm.Server, scheme: str, distribution: str, backend: Any) -> None:
    keys_of, zeros, listed = backend
    kv = adapm.Worker(0, server)
    kv.set(np.arange(7), np.repeat(np.arange(7), 3).astype(np.float32))
    kv.set(np.arange(8, NUM_KEYS), np.repeat(np.arange(8, NUM_KEYS), 3).astype(np.float32))
    server.enable_sampling_support(scheme, True, distribution, 4, 12)
    seen: list[int] = []
    for _ in range(40):
        sample = kv.prepare_sample(16, kv.current_clock() + 1)
        kv.advance_clock()
        for count in 6, 10:
            keys, vals = keys_of([0] * count), zeros(count, 3)
            assert kv.pull_sample(sample, keys, vals) == -1
            assert listed(vals) == [key for key in listed(keys) for _ in range(3)]
            seen += listed(keys)
    assert set(seen) == {4, 5, 6, 8, 9, 10, 11}, "all keys of the range but 7, whose value is longer"
    counts = np.bincount(seen)[4:]
    offsets = np.arange(8)
    odds = np.where(offsets == 3, 0, 1.0 if distribution == "uniform" else np.log1p(1 / (offsets + 1.0)))
    assert np.abs(counts / counts.sum() - odds / odds.sum()).max() < 0.07


def test_samples_without_replacement_are_distinct(server: adapm.Server) -> None:
    server.enable_sampling_support(scheme="naive", with_replacement=False, distribution="uniform", min=0, max=NUM_KEYS)
    kv = adapm.Worker(0, server)
    keys = np.zeros(NUM_KEYS - 1, np.int64)
    kv.pull_sample(kv.prepare_sample(NUM_KEYS - 1, 0), keys, np.zeros((NUM_KEYS - 1, 3), np.float32))
    assert sorted(keys) == [key for key in range(NUM_KEYS) if key != 7]


def test_samples_that_are_none(server: adapm.Server) -> None:
    kv = adapm.Worker(0, server)
    with pytest.raises(SampleError, match="enable_sampling_support"):
        kv.prepare_sample(1, 0)
    with pytest.raises(SampleError, match="scheme='best'"):
        server.enable_sampling_support("best", True, "uniform", 0, 5)
    with pytest.raises(SampleError, match="distribution='zipf'"):
        server.enable_sampling_support("local", True, "zipf", 0, 5)
    for first, end in (0, NUM_KEYS + 1), (5, 5), (-1, 3):
        with pytest.raises(KeyRangeError, match="0 <= min < max <= 20"):
            server.enable_sampling_support("local", True, "uniform", first, end)
    server.enable_sampling_support("naive", True, "uniform", 0, 5)
    sample = kv.prepare_sample(4, 0)
    with pytest.raises(SampleError, match="sample 9: this worker prepared none"):
        kv.pull_sample(9, np.zeros(1, np.int64), np.zeros(3, np.float32))
    with pytest.raises(ShapeError, match="vals has 4 values: 1 keys of the sample have 3"):
        kv.pull_sample(sample, np.zeros(1, np.int64), np.zeros(4, np.float32))
    with pytest.raises(DtypeError, match="keys has dtype int32"):
        kv.pull_sample(sample, np.zeros(1, np.int32), np.zeros(3, np.float32))
    with pytest.raises(SampleError, match="cannot pull 5 keys"):
        kv.pull_sample(sample, np.zeros(5, np.int64), np.zeros(15, np.float32))
    kv.pull_sample(sample, np.zeros(4, np.int64), np.zeros(12, np.float32))
    with pytest.raises(SampleError, match=f"sample {sample}: "):
        kv.pull_sample(sample, np.zeros(1, np.int64), np.zeros(3, np.float32))


@pytest.mark.parametrize(
    ("keys", "vals", "error", "message"),
    [
        ([20], np.zeros(3, np.float32), KeyRangeError, r"key 20 is outside the key range \[0, 20\)"),
        ([-1], np.zeros(3, np.float32), KeyRangeError, "key -1"),
        (np.array([20]), np.zeros(3, np.float32), KeyRangeError, "key 20 is outside"),
        (np.array([-1]), np.zeros(3, np.float32), KeyRangeError, "key -1 is outside"),
        (np.array([9, 30]), np.zeros(6, np.float32), KeyRangeError, "key 30 is outside"),
        (np.array([[7]]), np.zeros(3, np.float32), ShapeError, "the 1 keys have 1000"),
        ([1.5], np.zeros(3, np.float32), DtypeError, "dtype float64"),
        ([1, 2], np.zeros(5, np.float32), ShapeError, "vals has 5 values: the 2 keys have 6"),
        ([1], np.zeros(3, np.float64), DtypeError, "vals has dtype float64: needs float32"),
        ("ab", np.zeros(3, np.float32), DtypeError, "keys"),
    ],
)
def test_bad_arguments_change_nothing(
    kv: adapm.Worker, keys: Any, vals: Any, error: type[Exception], message: str
) -> None:
    for call in kv.pull, kv.push, kv.set:
        for asynchronous in False, True:
            with pytest.raises(error, match=message):
                call(keys, vals, asynchronous)
    after = np.ones((NUM_KEYS - 1, 3), np.float32)
    kv.pull(np.delete(np.arange(NUM_KEYS), 7), after)
    assert not after.any()


@pytest.mark.parametrize("bad", [-1, NUM_KEYS])
def test_a_key_out_of_range_where_all_values_are_of_one_length(bad: int) -> None:
    adapm.setup(NUM_KEYS, 1)
    server = adapm.Server(3)
    kv = adapm.Worker(0, server)
    for keys in np.array([bad]), np.array([1, bad, 2]):
        with pytest.raises(KeyRangeError, match=rf"key {bad} is outside the key range \[0, 20\)"):
            kv.push(keys, np.ones((len(keys), 3), np.float32))
    vals = np.ones((NUM_KEYS, 3), np.float32)
    kv.pull(np.arange(NUM_KEYS), vals)
    assert not vals.any()
    server.shutdown()


def test_what_cannot_be_pulled_into(kv: adapm.Worker) -> None:
    frozen = np.zeros(3, np.float32)
    frozen.flags.writeable = False
    with pytest.raises(DtypeError, match="vals is read-only"):
        kv.pull(np.array([1]), frozen)
    with pytest.raises(DtypeError, match="not list"):
        kv.pull(np.array([1]), [0.0, 0.0, 0.0])


def test_workers_that_are_none(server: adapm.Server) -> None:
    kv = adapm.Worker(0, server)
    with pytest.raises(Error, match="worker_id=0: this process has that worker already"):
        adapm.Worker(0, server)
    with pytest.raises(ShapeError, match=r"worker_id=2: setup\(\) said num_threads=2"):
        adapm.Worker(2, server)
    assert kv.current_clock() == 0


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ((0, 1), ShapeError, "num_keys=0"),
        ((5, 0), ShapeError, "num_threads=0"),
        ((5.5, 1), DtypeError, "num_keys=5.5"),
        ((5, 1, "some"), ConfigError, "use_techniques='some': choose one of all, replication_only, relocation_only"),
        ((5, 1, "", 3), ConfigError, "num_channels=3"),
    ],
)
def test_setups_that_are_none(arguments: tuple[Any, ...], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        adapm.setup(*arguments)


@pytest.mark.parametrize(
    ("techniques", "management"),
    [("", "adaptive"), ("all", "adaptive"), ("replication_only", "replicate"), ("relocation_only", "relocate")],
)
def test_techniques_are_modes_of_management(techniques: str, management: str) -> None:
    adapm.setup(5, 1, use_techniques=techniques, num_channels=4)
    assert job.current_setup().config.management == management


def test_a_server_needs_setup(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(job, "_current", None)
    with pytest.raises(ConfigError, match="call setup"):
        adapm.Server(3)


def test_more_lengths_than_there_can_be_tables() -> None:
    adapm.setup(5000, 1)
    with pytest.raises(ShapeError, match="5000 different lengths"):
        adapm.Server(np.arange(1, 5001))


def test_torch_is_not_loaded() -> None:
    import subprocess

    program = """
import sys
import numpy as np
import intentpm.adapm as adapm
adapm.setup(10, 1)
server = adapm.Server(2)
kv = adapm.Worker(0, server)
kv.push(np.array([1]), np.ones(2, np.float32))
kv.finalize()
server.shutdown()
print("torch" in sys.modules)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=50, check=True)
    assert done.stdout.strip() == "False"
