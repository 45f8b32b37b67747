"""Ratings: read from npz or MatrixMarket files, or generated."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from intentpm.bench.tasks.data_error import DataError
from intentpm.bench.tasks.matrix_market import read_matrix_market
from intentpm.bench.tasks.npz import read_npz
from intentpm.bench.tasks.numbering import MAX_KEYS, Names, gaps, number_densely
from intentpm.bench.tasks.spec import parse_spec

Int32 = NDArray[np.int32]
Int64 = NDArray[np.int64]
Float32 = NDArray[np.float32]
Float64 = NDArray[np.float64]

TRAIN, VALID, TEST = 0, 1, 2
SPLIT_SHARES = (0.8, 0.1, 0.1)
ZIPF_EXPONENT = 1.1
"""Skew of the generated rows and columns: the k-th most popular has a share proportional to k^-1.1."""
DRAWS_PER_PAIR = 4
"""Most draws of a skewed distribution hit a popular pair that is taken already."""
DRAW_ROUNDS = 100


@dataclass(frozen=True, slots=True)
class Ratings:
    """Observed entries of a users x items matrix, one per position of the arrays."""

    user: Int32
    """int32 (R,), 0 to users - 1."""
    item: Int32
    """int32 (R,), 0 to items - 1."""
    rating: Float32
    """float32 (R,), finite."""
    split: NDArray[np.uint8]
    """uint8 (R,): TRAIN, VALID or TEST."""
    user_names: Names
    """By key of a user: its id in the source. Likewise of items."""
    item_names: Names
    source: str
    notes: Sequence[str] = ()
    """What was repaired or looks wrong: a line each."""

    @property
    def users(self) -> int:
        """How many there are."""
        return len(self.user_names)

    @property
    def items(self) -> int:
        """How many there are."""
        return len(self.item_names)

    def __len__(self) -> int:
        return len(self.rating)

    def take(self, positions: NDArray[Any]) -> Self:
        """The ratings at ``positions`` (indices or a mask), with the same users and items."""
        return replace(
            self, user=self.user[positions], item=self.item[positions],
            rating=self.rating[positions], split=self.split[positions],
        )  # fmt: skip


def load_ratings(path: Path, seed: int = 0, keep_ids: bool = False) -> Ratings:
    """Reads ``path``: npz with user, item, rating and optionally split, or MatrixMarket (.mtx, also compressed).

    Without a split, one is drawn at random (80 / 10 / 10) from ``seed``. Users and items are numbered without gaps in
    the order of their ids (those of MatrixMarket count from 1); with ``keep_ids``, keys are ids (those of MatrixMarket
    less 1), and those in between have rows too. Raises DataError.
    """
    if not path.is_file():
        raise DataError(path, "is no file that can be read" if path.exists() else "there is no such file")
    if path.suffix == ".npz":
        return _checked(path, read_npz(path, ("user", "item", "rating"), ("split",)), seed, keep_ids)
    matrix, notes = read_matrix_market(path)
    columns = {"user": matrix.row + 1, "item": matrix.col + 1, "rating": matrix.data}
    if keep_ids:
        columns |= {"user": matrix.row, "item": matrix.col}
    ratings = _checked(path, columns, seed, keep_ids)
    if keep_ids:
        users, items = matrix.shape
        ratings = replace(ratings, user_names=range(users), item_names=range(items))
    return replace(ratings, notes=(*notes, *ratings.notes))


def _checked(path: Path, columns: dict[str, NDArray[Any]], seed: int, keep_ids: bool) -> Ratings:
    _check_columns(path, columns)
    user, user_names = _keys(path, "user", columns["user"], keep_ids)
    item, item_names = _keys(path, "item", columns["item"], keep_ids)
    with np.errstate(over="ignore"):  # what becomes infinite is found below
        rating = columns["rating"].astype(np.float32)
    if not np.isfinite(rating).all():
        bad = int(np.flatnonzero(~np.isfinite(rating))[0])
        raise DataError(path, f"rating {bad} is not a finite number of 32 bits: {columns['rating'][bad]}")
    split = _split(path, columns.get("split"), len(rating), seed)
    notes = (*gaps("users", user_names), *gaps("items", item_names), *_constant(rating[split == TRAIN]))
    name = f"{path.absolute().parent.name}/{path.name}"
    return Ratings(user, item, rating, split, user_names, item_names, name, notes)


def _constant(rating: Float32) -> list[str]:
    if rating.min() < rating.max():
        return []
    return [
        f"all {len(rating):,} training ratings are {rating[0]:g}: there is nothing to learn from them; "
        "a model that predicts this number everywhere makes no error"
    ]


def _check_columns(path: Path, columns: dict[str, NDArray[Any]]) -> None:
    length = columns["rating"].shape
    for name in ("user", "item", "rating", "split"):
        column = columns.get(name)
        if column is None:
            continue
        if column.ndim != 1 or column.shape != length:
            raise DataError(path, f"{name!r} has the shape {column.shape}; need one dimension, as long as 'rating'")
        if not np.issubdtype(column.dtype, np.floating if name == "rating" else np.integer):
            integers_rated = name == "rating" and np.issubdtype(column.dtype, np.integer)
            if not integers_rated:
                raise DataError(path, f"{name!r} has the dtype {column.dtype}; need numbers, whole ones for keys")
    if length[0] == 0:
        raise DataError(path, "has no ratings")


def _keys(path: Path, name: str, column: NDArray[Any], keep_ids: bool) -> tuple[Int32, Names]:
    if int(column.min()) < 0:
        raise DataError(path, f"{name!r} has the id {int(column.min())}; need ids from 0")
    if not keep_ids:
        return number_densely(column)
    if int(column.max()) >= MAX_KEYS:
        raise DataError(path, f"{name!r} has the id {int(column.max())}; need 0 to 2^31 - 1 where ids are kept")
    return column.astype(np.int32), range(int(column.max()) + 1)


def _split(path: Path, split: NDArray[Any] | None, count: int, seed: int) -> NDArray[np.uint8]:
    if split is None:
        split = _random_split(count, np.random.default_rng([seed, 1]))
    elif not np.isin(split, (TRAIN, VALID, TEST)).all():
        raise DataError(path, "'split' has values other than 0 (train), 1 (valid), 2 (test)")
    for part, name in ((TRAIN, "train"), (TEST, "test")):
        if not (split == part).any():
            raise DataError(path, f"has no {name} ratings")
    return split.astype(np.uint8)


def _random_split(count: int, random: np.random.Generator) -> NDArray[np.uint8]:
    """0, 1, 2 in the shares of SPLIT_SHARES, exact up to rounding, in random order."""
    bounds = np.round(np.cumsum(SPLIT_SHARES) * count).astype(np.int64)
    split = np.searchsorted(bounds, np.arange(count), side="right").astype(np.uint8)
    random.shuffle(split)
    return split


@dataclass(frozen=True, slots=True)
class GeneratorSpec:
    """What ``--generate`` makes: a matrix of low rank plus noise, seen at Zipf-distributed users and items."""

    users: int = 20_000
    items: int = 5_000
    ratings: int = 1_000_000
    rank: int = 10
    noise: float = 0.1
    """Standard deviation of the noise; that of the noiseless entries is 1. No model can reach a lower RMSE."""
    zipf: float = ZIPF_EXPONENT

    @classmethod
    def parse(cls, text: str) -> Self:
        """Reads ``users=..,items=..,ratings=..,rank=..,noise=..,zipf=..``; parts left out keep their defaults."""
        return parse_spec(cls, text)

    def __post_init__(self) -> None:
        for name in ("users", "items", "ratings", "rank"):
            if not 1 <= getattr(self, name) < MAX_KEYS:
                raise DataError("--generate", f"{name}={getattr(self, name)}: need 1 to 2^31 - 1")
        if not (0 <= self.noise < np.inf and 0 <= self.zipf < np.inf):
            raise DataError("--generate", f"noise={self.noise} and zipf={self.zipf} must be finite and >= 0")
        if self.ratings < 10:
            raise DataError("--generate", f"ratings={self.ratings}: need at least 10 for a train and a test split")
        if self.ratings > 0.25 * self.users * self.items:
            most = int(0.25 * self.users * self.items)
            raise DataError("--generate", f"ratings={self.ratings}: at most a quarter of the matrix, {most}")


def generate_ratings(spec: GeneratorSpec, seed: int = 0) -> Ratings:
    """Draws distinct (user, item) pairs and their ratings; the same for the same ``spec`` and ``seed``.

    Every rank generates all of it: cheaper than sending it, and the ranks agree without talking.
    """
    random = np.random.default_rng([seed, 0])
    user_ids, item_ids = random.permutation(spec.users), random.permutation(spec.items)
    user_rank, item_rank = _distinct_pairs(spec, random)
    user, item = user_ids[user_rank].astype(np.int32), item_ids[item_rank].astype(np.int32)
    # Entries of standard deviation rank^-1/4 give products whose sum over the rank has a variance of 1.
    scale = spec.rank**-0.25
    user_factors = (scale * random.standard_normal((spec.users, spec.rank))).astype(np.float32)
    item_factors = (scale * random.standard_normal((spec.items, spec.rank))).astype(np.float32)
    rating = np.zeros(len(user), np.float32)
    for column in range(spec.rank):
        rating += user_factors[user, column] * item_factors[item, column]
    rating += (spec.noise * random.standard_normal(len(user))).astype(np.float32)
    split = _random_split(len(user), random)
    name = f"generated (rank {spec.rank}, noise {spec.noise:g})"
    return Ratings(user, item, rating, split, range(spec.users), range(spec.items), name)


def _distinct_pairs(spec: GeneratorSpec, random: np.random.Generator) -> tuple[Int64, Int64]:
    """``spec.ratings`` different (user, item) pairs by popularity rank, in random order.

    Pairs are drawn one after the other from the product of two Zipf distributions; one drawn before does not count.
    The popular users of a small matrix have therefore rated nearly everything, and no more.
    """
    users, items = _zipf_cumulative(spec.users, spec.zipf), _zipf_cumulative(spec.items, spec.zipf)
    codes = np.empty(0, np.int64)
    for _ in range(DRAW_ROUNDS):
        draws = DRAWS_PER_PAIR * (spec.ratings - len(codes))
        drawn = _zipf_draw(users, draws, random) * spec.items + _zipf_draw(items, draws, random)
        codes = np.concatenate([codes, drawn])
        first_seen = np.unique(codes, return_index=True)[1]
        codes = codes[np.sort(first_seen)[: spec.ratings]]
        if len(codes) == spec.ratings:
            break
    else:
        raise DataError(
            "--generate", f"found only {len(codes)} of {spec.ratings} pairs; ask for fewer ratings or more keys"
        )
    random.shuffle(codes)
    return codes // spec.items, codes % spec.items


def _zipf_cumulative(count: int, exponent: float) -> Float64:
    cumulative = np.cumsum(np.arange(1, count + 1, dtype=np.float64) ** -exponent)
    return cumulative / cumulative[-1]


def _zipf_draw(cumulative: Float64, count: int, random: np.random.Generator) -> Int64:
    return np.searchsorted(cumulative, random.random(count), side="right").astype(np.int64)
