"""Local pull, push and set of K random rows, next to NumPy and PyTorch doing the same on a plain array."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from intentpm.bench.results import Row
from intentpm.bench.timing import interleaved

SUBJECT = "intentpm"


@dataclass(frozen=True, slots=True)
class LocalAccessOptions:
    """What to measure."""

    batch_sizes: tuple[int, ...] = (1, 10, 100, 1_000, 10_000, 100_000)
    """K: keys per call."""
    num_keys: int = 1_000_000
    dim: int = 64
    """D: float32 values per row."""
    repeats: int = 15
    seed: int = 0


@dataclass(frozen=True, slots=True)
class Case:
    """The same access by several means: name -> call."""

    operation: str
    batch_size: int
    calls: dict[str, Callable[[], object]]


class LocalAccess:
    """The table and the plain arrays of the same shape. One rank; one thread (PyTorch is held to one as well)."""

    def __init__(self, pm: Any, options: LocalAccessOptions) -> None:
        self.options = options
        self.worker = pm.worker()
        self.random = np.random.default_rng(options.seed)
        shape = (options.num_keys, options.dim)
        self.table = pm.create_table(
            "rows", num_keys=options.num_keys, row_shape=(options.dim,), dtype="float32", init=1.0
        )
        self.array = np.ones(shape, np.float32)
        self.tensor = _tensor(np.ones(shape, np.float32))

    def cases(self, batch_size: int) -> list[Case]:
        """Pull, push and set of ``batch_size`` random keys (some may be equal)."""
        keys = self.random.integers(0, self.options.num_keys, batch_size)
        values = self.random.random((batch_size, self.options.dim), dtype=np.float32)
        out = np.empty_like(values)
        return [
            Case("pull", batch_size, self._pulls(keys, out)),
            Case("push", batch_size, self._pushes(keys, values)),
            Case("set", batch_size, self._sets(keys, values)),
        ]

    def _pulls(self, keys: Any, out: Any) -> dict[str, Callable[[], object]]:
        calls: dict[str, Callable[[], object]] = {
            SUBJECT: lambda: self.worker.pull(self.table, keys, out),
            "np.take": lambda: np.take(self.array, keys, axis=0, out=out, mode="clip"),
        }
        if self.tensor is not None:
            import torch

            tensor, index, target = self.tensor, torch.from_numpy(keys), torch.from_numpy(out)
            calls["torch index_select"] = lambda: torch.index_select(tensor, 0, index, out=target)
        return calls

    def _pushes(self, keys: Any, values: Any) -> dict[str, Callable[[], object]]:
        calls: dict[str, Callable[[], object]] = {SUBJECT: lambda: self.worker.push(self.table, keys, values)}
        if self.tensor is None:
            calls["np.add.at"] = lambda: np.add.at(self.array, keys, values)
        else:
            import torch

            tensor, index, source = self.tensor, torch.from_numpy(keys), torch.from_numpy(values)
            calls["torch index_add_"] = lambda: tensor.index_add_(0, index, source)
        return calls

    def _sets(self, keys: Any, values: Any) -> dict[str, Callable[[], object]]:
        return {
            SUBJECT: lambda: self.worker.set(self.table, keys, values),
            "np indexed store": lambda: self.array.__setitem__(keys, values),
        }


def measure(pm: Any, options: LocalAccessOptions) -> list[Row]:
    """Measures every operation, size and means: one row each, ``samples`` in seconds per call."""
    access = LocalAccess(pm, options)
    rows = []
    for batch_size in options.batch_sizes:
        sizes = {"keys": batch_size, "dim": options.dim, "num_keys": options.num_keys}
        for case in access.cases(batch_size):
            for name, samples in interleaved(case.calls, options.repeats).items():
                rows.append(Row(case.operation, samples, sizes=sizes, facts={"by": name}))
    return rows


def _tensor(array: Any) -> Any:
    """``array`` as a PyTorch tensor, with PyTorch held to one thread; None if it is not installed."""
    try:
        import torch
    except ModuleNotFoundError:
        return None
    torch.set_num_threads(1)
    return torch.from_numpy(array)
