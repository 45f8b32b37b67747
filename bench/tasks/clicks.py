"""Rows of numbers and categories with a label of 0 or 1: read from npz files, or generated."""

from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any, Protocol, Self

import numpy as np
from numpy.typing import NDArray

from intentpm.bench.tasks.data_error import DataError
from intentpm.bench.tasks.initial_rows import NormalRows
from intentpm.bench.tasks.npz import read_npz
from intentpm.bench.tasks.numbering import MAX_KEYS
from intentpm.bench.tasks.spec import parse_spec

Float32 = NDArray[np.float32]
Int64 = NDArray[np.int64]

SPLITS = ("train", "valid", "test")
FILE = "data.npz"
CHUNK_ROWS = 65_536
"""Rows generated at once: what a chunk holds does not depend on the rank that generates it."""


@dataclass(frozen=True, slots=True)
class Clicks:
    """Examples, one per row of the arrays."""

    label: Float32
    """float32 (n,): 0 or 1."""
    numbers: Float32
    """float32 (n, numbers)."""
    categories: Int64
    """int64 (n, fields): keys; those of different fields differ."""
    logit: Float32 | None = None
    """float32 (n,): of the hidden model that drew the labels, if they were generated."""

    def __len__(self) -> int:
        return len(self.label)

    def take(self, places: Any) -> Self:
        """The examples at ``places``: indices, a slice or a mask."""
        logit = None if self.logit is None else self.logit[places]
        return replace(
            self,
            label=self.label[places],
            numbers=self.numbers[places],
            categories=self.categories[places],
            logit=logit,
        )


class ClickData(Protocol):
    """Where a rank gets its share of the examples from."""

    source: str
    keys: int
    """Of all categories."""
    numbers: int
    """Columns of numbers."""
    fields: int
    """Columns of categories."""
    rows: dict[str, int]
    """By split: how many examples there are."""

    def of_rank(self, rank: int, ranks: int) -> dict[str, Clicks]:
        """By split: the examples of a rank, as many as the others have, or one less."""
        ...


class LoadedClicks:
    """``data.npz``: for each split S ``S_label`` (n,), ``S_num`` (n, numbers) and ``S_cat`` (n, fields): whole numbers
    that are unique over all fields.

    Numbers x become sign(x) log(1 + |x|), with mean 0 and deviation 1 in the training split.
    """

    def __init__(self, path: Path) -> None:
        """Reads the file, or ``data.npz`` in the folder. Raises DataError."""
        file = path / FILE if path.is_dir() else path
        names = [f"{split}_{part}" for split in SPLITS for part in ("label", "num", "cat")]
        if not file.is_file():
            raise DataError(file, "there is no such file")
        arrays = read_npz(file, names)
        self.splits = {split: _checked(file, split, arrays) for split in SPLITS}
        shapes = {(part.numbers.shape[1], part.categories.shape[1]) for part in self.splits.values()}
        if len(shapes) > 1:
            raise DataError(file, "the splits have different numbers of columns")
        (self.numbers, self.fields) = shapes.pop()
        self.source = file.absolute().parent.name
        self.keys = 1 + max(int(part.categories.max(initial=0)) for part in self.splits.values())
        self.rows = {split: len(part) for split, part in self.splits.items()}
        self._standardise()

    def _standardise(self) -> None:
        train = self.splits["train"].numbers
        middle, deviation = train.mean(axis=0, dtype=np.float64), train.std(axis=0, dtype=np.float64)
        for part in self.splits.values():
            part.numbers[:] = (part.numbers - middle) / np.where(deviation > 0, deviation, 1)

    def of_rank(self, rank: int, ranks: int) -> dict[str, Clicks]:
        """See ClickData."""
        return {split: part.take(slice(rank, None, ranks)) for split, part in self.splits.items()}


def _checked(file: Path, split: str, arrays: dict[str, NDArray[Any]]) -> Clicks:
    label, numbers, categories = (arrays[f"{split}_{part}"] for part in ("label", "num", "cat"))
    if (
        label.ndim != 1
        or numbers.ndim != 2
        or categories.ndim != 2
        or len({*map(len, (label, numbers, categories))}) > 1
    ):
        raise DataError(file, f"{split}: need labels (n,), numbers (n, ..) and categories (n, ..)")
    if not len(label):
        raise DataError(file, f"{split} has no examples")
    if not np.isin(label, (0, 1)).all():
        raise DataError(file, f"{split} has a label that is neither 0 nor 1")
    if not np.issubdtype(categories.dtype, np.integer) or categories.min(initial=0) < 0:
        raise DataError(file, f"{split} has a category that is no whole number from 0")
    if categories.max(initial=0) >= MAX_KEYS:
        raise DataError(file, f"{split} has the category {categories.max()}; need less than 2^31")
    if not np.isfinite(numbers).all():
        raise DataError(file, f"{split} has a number that is not finite")
    scaled = np.sign(numbers) * np.log1p(np.abs(numbers.astype(np.float64)))
    return Clicks(label.astype(np.float32), scaled.astype(np.float32), categories.astype(np.int64))


@dataclass(frozen=True, slots=True)
class ClickSpec:
    """What ``--generate`` makes: Criteo-like rows, labels drawn from a hidden logistic model.

    The model adds, per field, a weight for each of its ``informative`` most frequent keys (others have none), and
    weighs the numbers and the product of the first two. Nobody can do better than the model itself: its AUC is the
    best that can be reached.
    """

    rows: int = 200_000
    """Of the training split."""
    held_out: int = 50_000
    """Of the validation split and of the test split."""
    numbers: int = 13
    fields: int = 26
    keys: int = 1_000_000
    """Of all fields together."""
    zipf: float = 1.1
    """The k-th most frequent key of a field has a share proportional to k^-zipf."""
    informative: int = 50
    strength: float = 0.5
    """Deviation of a key's weight."""

    @classmethod
    def parse(cls, text: str) -> Self:
        """Reads ``rows=..,keys=..,fields=..`` and so on; parts left out keep their defaults."""
        return parse_spec(cls, text)

    def __post_init__(self) -> None:
        for name in ("rows", "held_out", "fields", "keys"):
            if not 1 <= getattr(self, name) < MAX_KEYS:
                raise DataError("--generate", f"{name}={getattr(self, name)}: need 1 to 2^31 - 1")
        if not 2 <= self.numbers < 1_000:
            raise DataError("--generate", f"numbers={self.numbers}: need 2 to 999")
        if self.keys < self.fields or self.informative < 0:
            raise DataError("--generate", f"keys={self.keys}: need one for each of the {self.fields} fields, at least")
        if not (np.isfinite(self.zipf) and np.isfinite(self.strength) and self.zipf >= 0):
            raise DataError("--generate", "need a finite zipf >= 0 and a finite strength")


class GeneratedClicks:
    """Examples drawn when they are asked for: a rank never holds those of others."""

    def __init__(self, spec: ClickSpec, seed: int = 0) -> None:
        self.spec, self.seed = spec, seed
        self.source = f"generated (zipf {spec.zipf})"
        self.keys_per_field = spec.keys // spec.fields
        self.keys = self.keys_per_field * spec.fields
        self.numbers, self.fields = spec.numbers, spec.fields
        self.rows = {"train": spec.rows, "valid": spec.held_out, "test": spec.held_out}
        self._shares = np.cumsum((np.arange(self.keys_per_field) + 1.0) ** -spec.zipf)
        self._weight_of_number = np.random.default_rng([seed, 5]).normal(0, 0.3, spec.numbers)
        self._weight_of_key = NormalRows(1, 1, spec.strength, seed)

    def of_rank(self, rank: int, ranks: int) -> dict[str, Clicks]:
        """See ClickData."""
        return {split: self._rows(number, rank, ranks) for number, split in enumerate(SPLITS)}

    def _rows(self, split: int, rank: int, ranks: int) -> Clicks:
        count = self.rows[SPLITS[split]]
        first, last = (count * r // ranks for r in (rank, rank + 1))
        parts = []
        for chunk in range(first // CHUNK_ROWS, -(-last // CHUNK_ROWS)):
            start = chunk * CHUNK_ROWS
            drawn = self._draw(split, chunk, min(CHUNK_ROWS, count - start))
            parts.append(drawn.take(slice(max(first - start, 0), last - start)))
        return _joined(parts) if parts else self._draw(split, 0, 0)

    def _draw(self, split: int, chunk: int, count: int) -> Clicks:
        spec = self.spec
        random = np.random.default_rng([self.seed, 5, split, chunk])
        numbers = random.standard_normal((count, spec.numbers), np.float32)
        drawn = np.searchsorted(self._shares, random.random((count, spec.fields)) * self._shares[-1])
        place = np.minimum(drawn, self.keys_per_field - 1)
        keys = place + self.keys_per_field * np.arange(spec.fields)
        weights = self._weight_of_key(keys).reshape(keys.shape) * (place < spec.informative)
        logit = numbers @ self._weight_of_number + 0.5 * numbers[:, 0] * numbers[:, 1] + weights.sum(axis=1) - 1
        label = random.random(count) < 1 / (1 + np.exp(-logit))
        return Clicks(label.astype(np.float32), numbers, keys, logit.astype(np.float32))


def _joined(parts: list[Clicks]) -> Clicks:
    columns = ([getattr(part, field.name) for part in parts] for field in fields(Clicks))
    return Clicks(*(np.concatenate(column) for column in columns))
