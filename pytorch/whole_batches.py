"""``read_whole``: a DataLoader over tensors gathers each batch at once, not sample by sample.

Torch's own takes a TensorDataset apart into samples and stacks them, 6 us each: half a step of a small model. It
holds the interpreter, which a thread that reads ahead shares with the loop.

Guarantee: the same batches, by the same samplers, with the same draws from random generators.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch.utils.data import DataLoader, Dataset, Subset, TensorDataset, default_collate


def read_whole(loader: Any) -> Any:
    """A loader like ``loader`` that gathers whole batches, where that is the same; else ``loader`` itself."""
    # Of these very types: what inherits from them may give other samples.
    if type(loader) is not DataLoader or loader.collate_fn is not default_collate or loader.batch_sampler is None:
        return loader
    if loader.num_workers or getattr(loader, "pin_memory_device", None):
        return loader
    dataset, subsets = _unwrapped(loader.dataset)
    if type(dataset) is not TensorDataset or not all(_can_be_gathered(tensor) for tensor in dataset.tensors):
        return loader
    return DataLoader(
        _Gathered(dataset, subsets), batch_sampler=loader.batch_sampler, collate_fn=_as_it_is,
        generator=loader.generator, pin_memory=loader.pin_memory,
    )  # fmt: skip


def _unwrapped(dataset: Any) -> tuple[Any, list[Sequence[int]]]:
    """The dataset that Subsets are of, and which samples each of them has, the outermost first."""
    subsets = []
    while type(dataset) is Subset:
        subsets.append(dataset.indices)
        dataset = dataset.dataset
    return dataset, subsets


def _can_be_gathered(tensor: torch.Tensor) -> bool:
    return type(tensor) is torch.Tensor and tensor.layout == torch.strided and not tensor.requires_grad


class _Gathered(Dataset[Any]):
    """Of a TensorDataset, or of Subsets of one."""

    def __init__(self, dataset: Any, subsets: list[Sequence[int]]) -> None:
        self._dataset, self._subsets = dataset, subsets

    def __getitems__(self, samples: list[Any]) -> Any:
        """What DataLoader asks for in place of one item after the other."""
        for indices in self._subsets:
            samples = [indices[sample] for sample in samples]
        at = torch.as_tensor(samples)
        if at.dtype != torch.int64:  # of no sampler of torch's
            return default_collate([self._dataset[sample] for sample in samples])
        return [tensor[at.to(tensor.device)] for tensor in self._dataset.tensors]


def _as_it_is(batch: Any) -> Any:
    return batch
