"""Modules, gradients and loader with a worker of a device: an emulated one, in whose memory PyTorch on the CPU works
too, and CUDA's where it is. There PyTorch itself says when the host would wait for the device.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from support.cuda import on_cuda

import intentpm
import intentpm.optim
import intentpm.torch
from intentpm.gpu.emulated import EmulatedDevice
from intentpm.gpu.handles import Memory, Stream
from intentpm.testing import run_ranks
from intentpm.torch.on_device import empty_on, on_device, tensor_in
from intentpm.torch.table_module import TableModule

KEYS, LENGTH, STEPS = 50, 8, 6


@pytest.fixture(params=["emulated:4", on_cuda("cuda")])
def pm(request: pytest.FixtureRequest) -> Iterator[intentpm.ParameterManager]:
    if request.param == "cuda" and not torch.cuda.is_available():
        pytest.skip("this PyTorch has no CUDA")
    with intentpm.init(device=request.param) as pm:
        yield pm
        device = pm.worker(device=request.param.partition(":")[0]).device
        assert device.failure == ""


def worker_of(pm: intentpm.ParameterManager) -> Any:
    return pm.worker(device=pm.config.device.partition(":")[0])


@contextmanager
def no_wait(device: Any, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Whatever waits for the device is an error: PyTorch, where it has CUDA, or we.

    PyTorch on the CPU uses an emulated device's memory at once, whatever its stream has not done yet: so in here
    nothing may depend on what tensors hold. It also gives memory back at once: so it is kept.
    """
    waits = device.host_waits
    if not isinstance(device, EmulatedDevice):
        torch.cuda.set_sync_debug_mode("error")
        try:
            yield
        finally:
            torch.cuda.set_sync_debug_mode("default")
        assert device.host_waits == waits, "intentpm waited for the device"
        return
    stream, kept = Stream(device), list[torch.Tensor]()

    def keep(*arguments: Any) -> torch.Tensor:
        kept.append(empty_on(*arguments))
        return kept[-1]

    with monkeypatch.context() as patched, device.using(stream):
        patched.setattr("intentpm.torch.pull.empty_on", keep)
        patched.setattr("intentpm.torch.on_device.empty_on", keep)
        device.stands_still = True
        try:
            yield
        finally:
            device.stands_still = False
    assert device.host_waits == waits, "intentpm waited for the device"
    stream.synchronize()


def rows_of(seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(KEYS, LENGTH)).astype(np.float32)


MODULES = {
    "embedding": (torch.nn.Embedding, intentpm.torch.Embedding, {}),
    "padding": (torch.nn.Embedding, intentpm.torch.Embedding, {"padding_idx": 3}),
    "by frequency": (torch.nn.Embedding, intentpm.torch.Embedding, {"scale_grad_by_freq": True}),
    "bag of sums": (torch.nn.EmbeddingBag, intentpm.torch.EmbeddingBag, {"mode": "sum"}),
    "bag of means": (torch.nn.EmbeddingBag, intentpm.torch.EmbeddingBag, {"mode": "mean", "padding_idx": 3}),
}


@pytest.mark.parametrize("keys_there", [False, True], ids=["keys of the host", "keys on the device"])
@pytest.mark.parametrize("storage", ["gpu", "host"])
@pytest.mark.parametrize("name", MODULES)
def test_modules_train_as_torchs_do(pm: intentpm.ParameterManager, name: str, storage: str, keys_there: bool) -> None:
    theirs, ours, options = MODULES[name]
    table = pm.create_table("t", KEYS, LENGTH, init=rows_of(), storage=storage, optimizer=intentpm.optim.SGD(lr=0.5))
    worker = worker_of(pm)
    module: TableModule = ours(table, worker, **options)
    plain = theirs(KEYS, LENGTH, _weight=torch.from_numpy(rows_of()), **options)
    stepper = torch.optim.SGD(plain.parameters(), lr=0.5)
    rng = np.random.default_rng(1)
    for _ in range(STEPS):
        keys, target = torch.from_numpy(rng.integers(0, 9, (4, 5))), torch.from_numpy(rng.normal(size=LENGTH)).float()
        there, aim = (on_device(worker.device, keys) if keys_there else keys), on_device(worker.device, target)
        out, expected = module(there), plain(keys)
        np.testing.assert_allclose(out.detach().cpu(), expected.detach(), rtol=1e-5, atol=1e-5)
        ((out - aim) ** 2).sum().backward()
        stepper.zero_grad()
        ((expected - target) ** 2).sum().backward()
        stepper.step()
    np.testing.assert_allclose(module.all_rows(), plain.weight.detach(), rtol=1e-4, atol=1e-4)


def test_two_forwards_are_one_step(pm: intentpm.ParameterManager) -> None:
    table = pm.create_table("t", KEYS, LENGTH, init=0.0, storage="gpu", optimizer=intentpm.optim.Adagrad(lr=1.0))
    module = intentpm.torch.Embedding(table, worker_of(pm))
    (module(torch.tensor([1, 2])).sum() + module(torch.tensor([2, 2])).sum()).backward()
    assert module.worker.pull_state(table, [1, 2])["sum"][:, 0].tolist() == [1, 9]


@pytest.mark.filterwarnings("ignore:Synchronization debug mode")  # is a prototype, PyTorch says
@pytest.mark.parametrize("name", ["embedding", "padding", "bag of sums"])
def test_a_batch_that_was_moved_ahead_is_not_waited_for(
    pm: intentpm.ParameterManager, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """Keys on the device, that the loader has seen on the host."""
    theirs, ours, options = MODULES[name]
    table = pm.create_table("t", KEYS, LENGTH, init=rows_of(), storage="gpu", optimizer=intentpm.optim.SGD(lr=1.0))
    worker = worker_of(pm)
    module: TableModule = ours(table, worker, **options)
    plain = theirs(KEYS, LENGTH, _weight=torch.from_numpy(rows_of()), **options)
    batches = [{"key": torch.from_numpy(np.random.default_rng(turn).integers(0, KEYS, (6, 2)))} for turn in range(8)]
    for turn in range(2):  # scratch of the kernels, cuBLAS and the like
        module(on_device(worker.device, batches[turn]["key"])).sum().backward()
        plain(batches[turn]["key"]).sum().backward()
    loader = intentpm.torch.IntentLoader(worker, batches, {table: lambda batch: batch["key"]}, ahead=3, move=True)
    for number, batch in enumerate(loader):
        with no_wait(worker.device, monkeypatch):
            module(batch["key"]).sum().backward()
        plain(batches[number]["key"]).sum().backward()
        assert worker.keys_on_host(batch["key"].reshape(-1)) is worker.keys_on_host(batch["key"].reshape(-1)), "fetched"
    expected = rows_of() - plain.weight.grad.numpy()
    np.testing.assert_allclose(module.all_rows(), expected, rtol=1e-5, atol=1e-5)


class _LateGradient(torch.autograd.Function):
    """Passes rows on; their gradient is what ``enqueue`` has the stream write to ``gradient``, some time."""

    @staticmethod
    def forward(ctx: Any, rows: torch.Tensor, enqueue: Callable[[], None], gradient: torch.Tensor) -> torch.Tensor:
        ctx.enqueue, ctx.gradient = enqueue, gradient
        return rows.view_as(rows)

    @staticmethod
    def backward(ctx: Any, _: torch.Tensor) -> Any:
        ctx.enqueue()
        return ctx.gradient, None, None


def test_backward_on_another_stream_than_the_step(pm: intentpm.ParameterManager) -> None:
    """Gradients that one stream makes, and another one pushes."""
    worker = worker_of(pm)
    table = pm.create_table("t", KEYS, LENGTH, init=0.0, storage="gpu", optimizer=intentpm.optim.SGD(lr=1.0))
    module = intentpm.torch.Embedding(table, worker)
    keys = on_device(worker.device, torch.arange(KEYS))
    shape = (KEYS, LENGTH)
    using: Any = torch.cuda.stream
    if isinstance(worker.device, EmulatedDevice):
        device = worker.device
        using = device.using
        first, second = Stream(device), Stream(device)
        memories = [Memory(device, KEYS * LENGTH * 4) for _ in range(2)]
        _, late = (tensor_in(memory, shape, torch.float32).fill_(2 - 2 * n) for n, memory in enumerate(memories))

        def enqueue() -> None:
            first.copy(memories[1], memories[0], late.nbytes)

    else:
        first, second = torch.cuda.Stream(), torch.cuda.Stream()
        values, late = torch.full(shape, 2.0, device="cuda"), torch.zeros(shape, device="cuda")
        torch.cuda.synchronize()

        def enqueue() -> None:
            torch.cuda._sleep(100_000_000)
            late.copy_(values)

    module.accumulate()
    with using(first):
        rows = module(keys)  # kept: torch gives memory back at once where the host is the device
        _LateGradient.apply(rows, enqueue, late).sum().backward()
    with using(second):
        module.apply()
        module.settle()
    for stream in (first, second):
        stream.synchronize()
    assert (module.all_rows() == -2).all()


class Listed(torch.Tensor):
    """Remembers how it was copied."""

    copies: ClassVar[list[bool]] = []

    def to(self, *arguments: Any, **options: Any) -> torch.Tensor:
        self.copies.append(options.get("non_blocking", False))
        return self.as_subclass(torch.Tensor).to(*arguments, **options)


def test_what_goes_to_the_host_is_waited_for() -> None:
    """Offsets and weights of bags whose rows are on the host: torch itself would not wait for a copy from a GPU."""
    with intentpm.init() as pm:
        table = pm.create_table("t", KEYS, LENGTH, init=1.0)
        module = intentpm.torch.EmbeddingBag(table, pm.worker(), mode="sum")
        Listed.copies.clear()
        offsets, weights = torch.tensor([0, 2]).as_subclass(Listed), torch.full((3,), 2.0).as_subclass(Listed)
        assert module(torch.tensor([1, 2, 3]), offsets, weights)[:, 0].tolist() == [4, 2]
    assert Listed.copies == [False, False]


def test_functions_of_keys_are_called_once_a_batch(pm: intentpm.ParameterManager) -> None:
    """Whatever they return, and though they may draw: views of the batch are known on the device."""
    table, worker = pm.create_table("t", KEYS, LENGTH, storage="gpu"), worker_of(pm)
    batches = [{"x": torch.from_numpy(np.random.default_rng(turn).integers(0, KEYS, (5, 3)))} for turn in range(4)]
    calls: list[Any] = []

    def column(batch: Any) -> Any:
        calls.append(batch)
        return batch["x"].numpy()[:, 1]

    def drawn(batch: Any) -> Any:
        calls.append(batch)
        return np.random.default_rng(len(calls)).integers(0, KEYS, 5)

    other = pm.create_table("u", KEYS, LENGTH, storage="gpu")
    loader = intentpm.torch.IntentLoader(worker, batches, {table: column, other: drawn}, ahead=2, move=True)
    for batch, host in zip(loader, batches, strict=True):
        keys = worker.keys_on_host(batch["x"][:, 1])
        assert keys.tolist() == host["x"][:, 1].tolist()
        assert worker.keys_on_host(batch["x"][:, 1]) is keys, "fetched"
        assert worker.keys_on_host(batch["x"][:, 2]).tolist() == host["x"][:, 2].tolist()
    assert len(calls) == 2 * len(batches)
    assert all(any(batch is given for given in batches) for batch in calls), "a function saw a batch that was moved"


def test_a_loader_may_fill_one_tensor_again_and_again(pm: intentpm.ParameterManager) -> None:
    table, worker = pm.create_table("t", KEYS, LENGTH, storage="gpu"), worker_of(pm)
    expected = [np.random.default_rng(turn).integers(0, KEYS, 6).tolist() for turn in range(8)]

    class OneTensor:
        def __iter__(self) -> Iterator[torch.Tensor]:
            keys = torch.empty(6, dtype=torch.int64)
            for batch in expected:
                keys.copy_(torch.tensor(batch))
                yield keys

    loader = intentpm.torch.IntentLoader(worker, OneTensor(), {table: lambda keys: keys}, ahead=3, move=True)
    assert [worker.keys_on_host(batch).tolist() for batch in loader] == expected


def test_a_column_of_features_is_looked_up(pm: intentpm.ParameterManager) -> None:
    """Keys with strides, on the device, that nobody announced."""
    table, worker = pm.create_table("t", KEYS, LENGTH, init=rows_of(), storage="gpu"), worker_of(pm)
    module = intentpm.torch.Embedding(table, worker, freeze=True)
    features = on_device(worker.device, torch.arange(15).view(5, 3))
    np.testing.assert_array_equal(module(features[:, 1]).cpu(), rows_of()[1:15:3])
    np.testing.assert_array_equal(module(features[:, 1:]).cpu(), rows_of()[np.arange(15).reshape(5, 3)[:, 1:]])


def test_batches_are_moved_whole(pm: intentpm.ParameterManager) -> None:
    table, worker = pm.create_table("t", KEYS, LENGTH, storage="gpu"), worker_of(pm)
    batch = ([torch.tensor([1, 2])], {"a": torch.tensor([0.5])}, "name", 3)
    loader = intentpm.torch.IntentLoader(worker, [batch], {table: lambda batch: batch[0][0]}, move=True)
    (moved,) = list(loader)
    assert (moved[0][0].tolist(), moved[1]["a"].tolist(), moved[2:]) == ([1, 2], [0.5], ("name", 3))
    for tensor in (moved[0][0], moved[1]["a"]):
        assert on_device(worker.device, tensor) is tensor or tensor.is_cuda
    with pytest.raises(intentpm.ConfigError, match="worker of a device"):
        intentpm.torch.IntentLoader(pm.worker(), [batch], {}, move=True)


def test_rows_of_any_alignment(pm: intentpm.ParameterManager) -> None:
    """A view in the middle of a tensor: kernels move rows by 16 bytes where they are aligned so."""
    worker = worker_of(pm)
    table = pm.create_table("t", KEYS, LENGTH, init=np.arange(400).reshape(KEYS, LENGTH), storage="gpu")
    out = empty_on(worker.device, (33,), torch.float32)[1:].view(4, 8).detach()
    assert worker.pull(table, [4, 5, 6, 7], out=out) is out
    assert out.flatten().tolist() == list(range(32, 64))
    with pytest.raises(intentpm.DtypeError, match="requires grad"):
        worker.pull(table, [4, 5, 6, 7], out=out.requires_grad_())
    worker.push(table, [4, 5, 6, 7], out.detach())
    assert pm.worker().pull(table, [5])[0].tolist() == list(range(80, 96, 2))


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float64"])
def test_rows_of_every_type(pm: intentpm.ParameterManager, dtype: str) -> None:
    pytest.importorskip("ml_dtypes")
    table = pm.create_table(
        "t", KEYS, LENGTH, dtype=dtype, init=2.0, storage="gpu", optimizer=intentpm.optim.SGD(lr=0.5)
    )
    module = intentpm.torch.Embedding(table, worker_of(pm))
    out = module(torch.tensor([[1, 1], [2, 3]]))
    assert (out.dtype, out.shape) == (getattr(torch, dtype), (2, 2, LENGTH))
    out.sum().backward()
    assert module.all_rows()[:5, 0].tolist() == [2, 1, 1.5, 1.5, 2]


def test_a_tensor_of_the_host_stays_there(pm: intentpm.ParameterManager) -> None:
    table, worker = pm.create_table("t", KEYS, LENGTH, init=1.0, storage="gpu"), worker_of(pm)
    out = torch.empty(2, LENGTH)
    assert worker.pull(table, torch.tensor([1, 2]), out=out) is out
    assert (out == 1).all()
    worker.push(table, torch.tensor([1, 2]), out)
    assert (worker.pull(table, [1], out=out[:1]) == 2).all()


@pytest.mark.parametrize("management", ["adaptive", "relocate", "replicate", "static"])
@pytest.mark.parametrize("storage", ["gpu", "tiered", "host"])
def test_two_ranks_train_the_same_rows(storage: str, management: str) -> None:
    """Whole numbers, so that sums are exact in whatever order steps are taken."""

    def rank(pm: intentpm.ParameterManager) -> tuple[np.ndarray, np.ndarray, list[str]]:
        table = pm.create_table("t", KEYS, LENGTH, init=0.0, storage=storage, optimizer=intentpm.optim.SGD(lr=1.0))
        worker, rng, stepped = pm.worker(device="emulated"), np.random.default_rng(pm.rank), np.zeros((KEYS, LENGTH))
        batches = []
        for _ in range(15):
            keys, weights = rng.integers(0, KEYS, 8), rng.integers(-3, 4, (8, LENGTH)).astype(np.float32)
            batches.append({"key": torch.from_numpy(keys), "weight": torch.from_numpy(weights)})
            np.add.at(stepped, keys, -weights)
        module = intentpm.torch.Embedding(table, worker)
        for batch in intentpm.torch.IntentLoader(
            worker, batches, {table: lambda batch: batch["key"]}, ahead=3, move=True
        ):
            (module(batch["key"]) * batch["weight"]).sum().backward()
        for _ in range(2):
            module.settle()
            pm.barrier()
        rows = module.all_rows().numpy()
        pm.barrier()
        return stepped, rows, worker.device.defects

    results = run_ranks(
        2, rank, management=management, timing="immediate", sync_interval=1e-6, device="emulated:6", device_memory=1500
    )
    expected = sum(stepped for stepped, _, _ in results)
    for _, rows, defects in results:
        assert defects == []
        np.testing.assert_array_equal(rows, expected)
