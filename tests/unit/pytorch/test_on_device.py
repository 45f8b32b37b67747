"""Modules, gradients and loader with a worker of a device: an emulated one, in whose memory PyTorch on the CPU works
too, and CUDA's where it is. There PyTorch itself says when the host would wait for the device.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest
import torch
from support.cuda import on_cuda

import intentpm
import intentpm.optim
import intentpm.torch
from intentpm.torch.on_device import empty_on, on_device
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
def no_wait(device: Any) -> Iterator[None]:
    """Whatever waits for the device is an error. Where the host is the device, the host itself is the caller."""
    if hasattr(device, "host_waits"):
        yield
        return
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")


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


def test_a_batch_that_was_moved_ahead_is_not_waited_for(pm: intentpm.ParameterManager) -> None:
    """Keys on the device, that the loader has seen on the host."""
    rows = rows_of()
    table = pm.create_table("t", KEYS, LENGTH, init=rows, storage="gpu", optimizer=intentpm.optim.SGD(lr=1.0))
    worker = worker_of(pm)
    module = intentpm.torch.Embedding(table, worker)
    batches = [{"key": torch.from_numpy(np.random.default_rng(turn).integers(0, KEYS, 12))} for turn in range(8)]
    module(on_device(worker.device, batches[0]["key"])).sum().backward()  # scratch of the kernels, cuBLAS and the like
    np.add.at(rows, batches[0]["key"].numpy(), -1)
    loader = intentpm.torch.IntentLoader(worker, batches, {table: lambda batch: batch["key"]}, ahead=3, move=True)
    for number, batch in enumerate(loader):
        with no_wait(worker.device):
            module(batch["key"]).sum().backward()
        np.add.at(rows, batches[number]["key"].numpy(), -1)
        assert worker.keys_on_host(batch["key"]) is worker.keys_on_host(batch["key"]), "fetched anew"
    np.testing.assert_allclose(module.all_rows(), rows, rtol=1e-5)


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
