"""Batches that are gathered at once are those that torch stacks of samples."""

from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from torch.utils.data import (  # noqa: E402
    BatchSampler,
    DataLoader,
    Dataset,
    Subset,
    SubsetRandomSampler,
    TensorDataset,
    WeightedRandomSampler,
    default_collate,
)

import intentpm  # noqa: E402
from intentpm.torch import IntentLoader  # noqa: E402
from intentpm.torch.whole_batches import read_whole  # noqa: E402

SAMPLES = 103
DATA = TensorDataset(
    torch.arange(SAMPLES),
    torch.randn(SAMPLES, 3, 2),
    torch.randn(3, SAMPLES).bfloat16().T,
    torch.arange(SAMPLES) % 3 == 0,
    torch.empty(SAMPLES, 0),
)
PART = Subset(DATA, range(5, 90, 3))


def seeded(seed: int) -> Any:
    return torch.Generator().manual_seed(seed)


LOADERS: dict[str, Callable[[], Any]] = {
    "in order": lambda: DataLoader(DATA, batch_size=10),
    "shuffled": lambda: DataLoader(DATA, batch_size=10, shuffle=True),
    "without the rest": lambda: DataLoader(DATA, batch_size=10, shuffle=True, drop_last=True),
    "a generator": lambda: DataLoader(DATA, batch_size=7, shuffle=True, generator=seeded(3)),
    "a sampler's generator": lambda: DataLoader(DATA, 7, sampler=SubsetRandomSampler(range(50), generator=seeded(3))),
    "of weights": lambda: DataLoader(DATA, 16, sampler=WeightedRandomSampler([1.0, 2.0] * 50, 64)),
    "batches given": lambda: DataLoader(DATA, batch_sampler=BatchSampler([3, 3, 1, -1, -SAMPLES], 2, False)),
    "indices of tensors": lambda: DataLoader(DATA, 4, sampler=list(torch.arange(20))),
    "indices of arrays": lambda: DataLoader(DATA, 4, sampler=list(np.arange(20, dtype=np.int32))),
    "a part": lambda: DataLoader(PART, batch_size=4, shuffle=True),
    "a part of a part": lambda: DataLoader(Subset(PART, [7, 1, 1, 5, -1]), batch_size=2),
    "one tensor": lambda: DataLoader(TensorDataset(torch.arange(9)), batch_size=2),
    "no sample": lambda: DataLoader(TensorDataset(torch.empty(0, 4)), batch_size=2),
}


def batches(loader: Iterable[Any], make: Callable[[Any], Iterable[Any]]) -> tuple[list[Any], Any]:
    """Of two epochs, and the state of torch's generator after them."""
    torch.manual_seed(11)
    return [batch for _ in range(2) for batch in make(loader)], torch.get_rng_state()


@pytest.mark.parametrize("name", LOADERS)
def test_the_same_batches_of_the_same_draws(name: str) -> None:
    expected, state = batches(LOADERS[name](), lambda loader: loader)
    given, state_then = batches(LOADERS[name](), read_whole)
    assert read_whole(loader := LOADERS[name]()) is not loader
    assert torch.equal(state, state_then)
    assert [type(batch) for batch in given] == [type(batch) for batch in expected]
    for batch, other in zip(given, expected, strict=True):
        for tensor, stacked in zip(batch, other, strict=True):
            assert (tensor.dtype, tensor.shape) == (stacked.dtype, stacked.shape)
            assert torch.equal(tensor, stacked)
            assert tensor.is_contiguous()
            assert not tensor.requires_grad


def test_a_batch_is_a_copy() -> None:
    data = TensorDataset(torch.zeros(6, 2))
    for (batch,) in read_whole(DataLoader(data, batch_size=3)):
        batch += 1
    assert not data.tensors[0].any()


class DerivedDataset(TensorDataset):
    def __getitem__(self, index: int) -> Any:
        return index


class DerivedPart(Subset):
    def __getitem__(self, index: int) -> Any:
        return index

    def __getitems__(self, indices: list[int]) -> Any:
        return indices


class DerivedLoader(DataLoader):
    pass


class Squares(Dataset):
    def __len__(self) -> int:
        return 5

    def __getitem__(self, index: int) -> int:
        return index**2


@pytest.mark.parametrize(
    "loader",
    [
        DataLoader(DerivedDataset(*DATA.tensors)),
        DataLoader(DerivedPart(DATA, range(3))),
        DataLoader(Subset(Squares(), range(3))),
        DerivedLoader(DATA),
        DataLoader(Squares()),
        DataLoader(DATA, collate_fn=lambda samples: default_collate(samples)),
        DataLoader(DATA, num_workers=1, multiprocessing_context="forkserver"),
        DataLoader(DATA, batch_size=None),
        DataLoader(TensorDataset(torch.ones(3, requires_grad=True))),
        DataLoader(TensorDataset(torch.eye(3).to_sparse())),
        DataLoader(TensorDataset(torch.nn.Parameter(torch.ones(3), requires_grad=False))),
        [1, 2, 3],
    ],
)
def test_what_may_differ_is_left_to_torch(loader: Any) -> None:
    assert read_whole(loader) is loader


@pytest.mark.parametrize("index", [SAMPLES, -SAMPLES - 1, 0.5])
def test_indices_that_are_none_raise_as_ever(index: Any) -> None:
    loader = DataLoader(DATA, batch_size=2, sampler=[0, 1, index])
    with pytest.raises(Exception) as expected:  # noqa: PT011
        list(loader)
    with pytest.raises(type(expected.value)):
        list(read_whole(loader))


def test_an_intent_loader_reads_whole_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    def by_sample(self: Any, index: int) -> None:
        raise AssertionError("a sample was asked for")

    with intentpm.init() as pm:
        table = pm.create_table("t", SAMPLES, 2)
        plain = DataLoader(TensorDataset(*DATA.tensors), batch_size=10)
        loader = IntentLoader(pm.worker(), plain, {table: lambda batch: batch[0]})
        monkeypatch.setattr(TensorDataset, "__getitem__", by_sample)
        assert torch.cat([keys for keys, *_ in loader]).tolist() == list(range(SAMPLES))
        assert loader.dataset is plain.dataset
