"""Local pull, push and set of K random rows, next to NumPy and PyTorch doing the same on a plain array."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import cycle
from typing import Any

import numpy as np
from numpy.typing import NDArray

from intentpm.bench.kernels.keys import draw_keys
from intentpm.bench.results import Row
from intentpm.bench.timing import interleaved

SUBJECT = "intentpm"
SAME, FRESH = "same keys", "fresh keys"
FRESH_BYTES = 256 << 20
"""The fresh batches together touch this many bytes of rows, so that a batch has left the caches when its turn comes."""
MIN_BATCHES, MAX_BATCHES = 8, 8192
MAX_BATCH_KEYS = 1 << 23
"""Fewer where that takes more batches than these, or more than 64 MiB of keys."""

Calls = dict[str, Callable[[], object]]
"""The same access by several means: name -> call."""


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
    distributions: tuple[str, ...] = ("uniform",)
    """How keys are drawn: "uniform", "zipf"."""
    fresh: tuple[int, ...] = ()
    """Of these K, measure also with other uniform keys in every call."""


@dataclass(frozen=True, slots=True)
class Case:
    """One access of ``batch_size`` keys by several means."""

    operation: str
    batch_size: int
    calls: Calls
    distribution: str = "uniform"
    situation: str = SAME
    """The same keys in every call, as a cache likes them; or fresh ones, as training has them."""


class LocalAccess:
    """The table and the plain array of the same shape. One rank; one thread (PyTorch is held to one as well)."""

    def __init__(self, pm: Any, options: LocalAccessOptions) -> None:
        self.options = options
        self.worker = pm.worker()
        self.random = np.random.default_rng(options.seed)
        self.table = pm.create_table(
            "rows", num_keys=options.num_keys, row_shape=(options.dim,), dtype="float32", init=1.0
        )
        self.array = np.ones((options.num_keys, options.dim), np.float32)
        self.tensor = _tensor(self.array)

    def cases(self, batch_size: int, distribution: str = "uniform") -> list[Case]:
        """Pull, push and set of ``batch_size`` random keys (some may be equal), the same in every call."""
        batch = draw_keys(self.random, distribution, self.options.num_keys, batch_size)
        return self._cases([batch], distribution, SAME)

    def fresh_cases(self, batch_size: int) -> list[Case]:
        """The same with another batch in every call; choosing it costs some 0.05 us, which all means pay alike."""
        row_bytes = 4 * self.options.dim
        batches = min(MAX_BATCHES, MAX_BATCH_KEYS // batch_size, FRESH_BYTES // (row_bytes * batch_size))
        keys = self.random.integers(0, self.options.num_keys, (max(MIN_BATCHES, batches), batch_size))
        return self._cases(list(keys), "uniform", FRESH)

    def _cases(self, batches: list[NDArray[np.int64]], distribution: str, situation: str) -> list[Case]:
        size = len(batches[0])
        values = self.random.random((size, self.options.dim), dtype=np.float32)
        out = np.empty_like(values)
        made = {
            "pull": self._pulls(batches, values, out),
            "push": self._pushes(batches, values, out),
            "set": self._sets(batches, values, out),
        }
        return [Case(operation, size, calls, distribution, situation) for operation, calls in made.items()]

    def _pulls(self, batches: list[NDArray[np.int64]], values: Any, out: Any) -> Calls:
        worker, table, array, tensor = self.worker, self.table, self.array, self.tensor
        calls: Calls = {
            SUBJECT: _over(batches, lambda keys: worker.pull(table, keys, out)),
            "np.take": _over(batches, lambda keys: np.take(array, keys, axis=0, out=out, mode="clip")),
        }
        if tensor is not None:
            import torch

            target = torch.from_numpy(out)
            indices = [torch.from_numpy(keys) for keys in batches]
            calls["torch index_select"] = _over(
                indices, lambda index: torch.index_select(tensor, 0, index, out=target), start=len(indices) // 2
            )
        return calls | {"memcpy": lambda: np.copyto(out, values)}

    def _pushes(self, batches: list[NDArray[np.int64]], values: Any, out: Any) -> Calls:
        worker, table, array, tensor = self.worker, self.table, self.array, self.tensor
        calls: Calls = {SUBJECT: _over(batches, lambda keys: worker.push(table, keys, values))}
        if tensor is None:
            calls["np.add.at"] = _over(batches, lambda keys: np.add.at(array, keys, values))
        else:
            import torch

            source = torch.from_numpy(values)
            indices = [torch.from_numpy(keys) for keys in batches]
            calls["torch index_add_"] = _over(indices, lambda index: tensor.index_add_(0, index, source))
        return calls | {"np.add in place": lambda: np.add(out, values, out=out)}

    def _sets(self, batches: list[NDArray[np.int64]], values: Any, out: Any) -> Calls:
        worker, table, array = self.worker, self.table, self.array
        return {
            SUBJECT: _over(batches, lambda keys: worker.set(table, keys, values)),
            "np indexed store": _over(batches, lambda keys: array.__setitem__(keys, values)),
            "memcpy": lambda: np.copyto(out, values),
        }


def measure(pm: Any, options: LocalAccessOptions) -> list[Row]:
    """Measures every operation, size and means: one row each, ``samples`` in seconds per call."""
    return [row for case, rows in measure_cases(pm, options) for row in rows]


def measure_cases(pm: Any, options: LocalAccessOptions) -> Iterator[tuple[Case, list[Row]]]:
    """The same, case by case."""
    access = LocalAccess(pm, options)
    for batch_size in options.batch_sizes:
        cases = [case for name in options.distributions for case in access.cases(batch_size, name)]
        if batch_size in options.fresh:
            cases += access.fresh_cases(batch_size)
        sizes = {"keys": batch_size, "dim": options.dim, "num_keys": options.num_keys}
        for case in cases:
            facts = {"distribution": case.distribution, "situation": case.situation}
            timed = interleaved(case.calls, options.repeats)
            yield (
                case,
                [
                    Row(case.operation, samples, sizes=sizes, facts={"by": name, **facts})
                    for name, samples in timed.items()
                ],
            )


def _over(batches: list[Any], access: Callable[[Any], object], start: int = 0) -> Callable[[], object]:
    """A call of ``access`` with the batches in turn; with a single one, without the cost of choosing.

    start: the first batch. Where two means share an array, one must not find what the other has just read.
    """
    if len(batches) == 1:
        only = batches[0]
        return lambda: access(only)
    following = cycle(batches[start:] + batches[:start]).__next__
    return lambda: access(following())


def _tensor(array: Any) -> Any:
    """``array`` as a PyTorch tensor on the same memory, with PyTorch held to one thread; None if not installed."""
    try:
        import torch
    except ModuleNotFoundError:
        return None
    torch.set_num_threads(1)
    return torch.from_numpy(array)
