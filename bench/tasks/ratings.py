"""Ratings: read from npz or MatrixMarket files, or generated; and their partition over ranks."""

import heapq
import zipfile
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Self

import click
import numpy as np
from numpy.typing import NDArray

Int32 = NDArray[np.int32]
Int64 = NDArray[np.int64]
Float32 = NDArray[np.float32]
Float64 = NDArray[np.float64]

TRAIN, VALID, TEST = 0, 1, 2
SPLIT_SHARES = (0.8, 0.1, 0.1)
MAX_KEYS = 2**31
ZIPF_EXPONENT = 1.1
"""Skew of the generated rows and columns: the k-th most popular has a share proportional to k^-1.1."""
HEAVY_USERS = 4096
"""Users dealt out one by one, largest first; the others are so light that any even cut will do."""
DRAWS_PER_PAIR = 4
"""Most draws of a skewed distribution hit a popular pair that is taken already."""
DRAW_ROUNDS = 100


class RatingsError(click.ClickException):
    """Ratings that cannot be used; the message names the file or option and what is wrong with it."""

    def __init__(self, source: object, problem: str) -> None:
        super().__init__(f"{source}: {problem}")


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
    users: int
    items: int
    source: str

    def __len__(self) -> int:
        return len(self.rating)

    def take(self, positions: NDArray[Any]) -> Self:
        """The ratings at ``positions`` (indices or a mask), with the same users and items."""
        return type(self)(
            self.user[positions], self.item[positions], self.rating[positions], self.split[positions],
            self.users, self.items, self.source,
        )  # fmt: skip


def load_ratings(path: Path, seed: int = 0) -> Ratings:
    """Reads ``path``: npz with user, item, rating and optionally split, or MatrixMarket (.mtx, .mmc, also .gz or .bz2).

    Without a split, one is drawn at random (80 / 10 / 10) from ``seed``. Raises RatingsError.
    """
    if not path.is_file():
        raise RatingsError(path, "there is no such file")
    columns = _read_npz(path) if path.suffix == ".npz" else _read_matrix_market(path)
    return _checked(path, columns, seed)


def _read_npz(path: Path) -> dict[str, NDArray[Any]]:
    if not zipfile.is_zipfile(path):
        raise RatingsError(path, "is not a readable npz file (not an archive, or cut short)")
    try:
        with np.load(path, allow_pickle=False) as archive:
            missing = sorted({"user", "item", "rating"} - set(archive.files))
            if missing:
                raise RatingsError(path, f"has no array {missing[0]!r}; found {', '.join(sorted(archive.files))}")
            return {name: archive[name] for name in ("user", "item", "rating", "split") if name in archive.files}
    except (OSError, ValueError, AttributeError, zipfile.BadZipFile) as error:
        raise RatingsError(path, f"is not a readable npz file ({error})") from error


def _read_matrix_market(path: Path) -> dict[str, NDArray[Any]]:
    import scipy.io

    try:
        matrix = scipy.io.mmread(path, spmatrix=False)
    except (OSError, ValueError, TypeError, OverflowError, EOFError) as error:
        raise RatingsError(path, f"is neither npz (by its name) nor a readable MatrixMarket file ({error})") from error
    if not hasattr(matrix, "row"):
        raise RatingsError(path, "is a dense MatrixMarket array; ratings need the coordinate format")
    columns = {"user": matrix.row, "item": matrix.col, "rating": matrix.data}
    columns["shape"] = np.asarray(matrix.shape)
    return columns


def _checked(path: Path, columns: dict[str, NDArray[Any]], seed: int) -> Ratings:
    _check_columns(path, columns)
    user, item = _keys(path, "user", columns["user"]), _keys(path, "item", columns["item"])
    rating = columns["rating"].astype(np.float32)
    if not np.isfinite(rating).all():
        raise RatingsError(path, f"rating {int(np.flatnonzero(~np.isfinite(rating))[0])} is not a finite number")
    split = _split(path, columns.get("split"), len(rating), seed)
    users, items = columns.get("shape", (int(user.max()) + 1, int(item.max()) + 1))
    return Ratings(user, item, rating, split, int(users), int(items), f"{path.absolute().parent.name}/{path.name}")


def _check_columns(path: Path, columns: dict[str, NDArray[Any]]) -> None:
    length = columns["rating"].shape
    for name in ("user", "item", "rating", "split"):
        column = columns.get(name)
        if column is None:
            continue
        if column.ndim != 1 or column.shape != length:
            raise RatingsError(path, f"{name!r} has the shape {column.shape}; need one dimension, as long as 'rating'")
        if not np.issubdtype(column.dtype, np.floating if name == "rating" else np.integer):
            integers_rated = name == "rating" and np.issubdtype(column.dtype, np.integer)
            if not integers_rated:
                raise RatingsError(path, f"{name!r} has the dtype {column.dtype}; need numbers, whole ones for keys")
    if length[0] == 0:
        raise RatingsError(path, "has no ratings")


def _keys(path: Path, name: str, column: NDArray[Any]) -> Int32:
    low, high = int(column.min()), int(column.max())
    if low < 0 or high >= MAX_KEYS:
        raise RatingsError(path, f"{name!r} has the id {low if low < 0 else high}; need 0 to 2^31 - 1")
    return column.astype(np.int32)


def _split(path: Path, split: NDArray[Any] | None, count: int, seed: int) -> NDArray[np.uint8]:
    if split is None:
        split = _random_split(count, np.random.default_rng([seed, 1]))
    elif not np.isin(split, (TRAIN, VALID, TEST)).all():
        raise RatingsError(path, "'split' has values other than 0 (train), 1 (valid), 2 (test)")
    for part, name in ((TRAIN, "train"), (TEST, "test")):
        if not (split == part).any():
            raise RatingsError(path, f"has no {name} ratings")
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
        types = {field.name: field.type for field in fields(cls)}
        values: dict[str, Any] = {}
        for part in filter(None, (part.strip() for part in text.split(","))):
            name, _, value = part.partition("=")
            if name not in types:
                raise RatingsError("--generate", f"unknown part {part!r}; there are {', '.join(types)}")
            values[name] = cls._number(name, value)
        return cls(**values)

    @staticmethod
    def _number(name: str, value: str) -> float:
        try:
            number = float(value.replace("_", ""))
        except ValueError:
            raise RatingsError("--generate", f"{name}={value!r} is not a number") from None
        if name in ("noise", "zipf"):
            return number
        if not number.is_integer():
            raise RatingsError("--generate", f"{name}={value} is not a whole number")
        return int(number)

    def __post_init__(self) -> None:
        for name in ("users", "items", "ratings", "rank"):
            if not 1 <= getattr(self, name) < MAX_KEYS:
                raise RatingsError("--generate", f"{name}={getattr(self, name)}: need 1 to 2^31 - 1")
        if not (0 <= self.noise < np.inf and 0 <= self.zipf < np.inf):
            raise RatingsError("--generate", f"noise={self.noise} and zipf={self.zipf} must be finite and >= 0")
        if self.ratings < 10:
            raise RatingsError("--generate", f"ratings={self.ratings}: need at least 10 for a train and a test split")
        if self.ratings > 0.25 * self.users * self.items:
            most = int(0.25 * self.users * self.items)
            raise RatingsError("--generate", f"ratings={self.ratings}: at most a quarter of the matrix, {most}")


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
    return Ratings(user, item, rating, split, spec.users, spec.items, name)


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
        raise RatingsError(
            "--generate", f"found only {len(codes)} of {spec.ratings} pairs; ask for fewer ratings or more keys"
        )
    random.shuffle(codes)
    return codes // spec.items, codes % spec.items


def _zipf_cumulative(count: int, exponent: float) -> Float64:
    cumulative = np.cumsum(np.arange(1, count + 1, dtype=np.float64) ** -exponent)
    return cumulative / cumulative[-1]


def _zipf_draw(cumulative: Float64, count: int, random: np.random.Generator) -> Int64:
    return np.searchsorted(cumulative, random.random(count), side="right").astype(np.int64)


def rank_of_users(ratings: Ratings, size: int) -> Int32:
    """The rank that trains each user's ratings: int32 (users,), the same on every rank.

    A user's ratings stay together, so a user's row is used by one rank only and needs to be nowhere else. Training
    ratings are balanced over the ranks: the heaviest users are dealt to the least loaded rank, then the rest,
    in the order of a hash of nothing but their number, fills the ranks up evenly.
    """
    counts = np.bincount(ratings.user[ratings.split == TRAIN], minlength=ratings.users)
    order = np.argsort(-counts, kind="stable")
    ranks = np.zeros(ratings.users, np.int32)
    loads = [(0, rank) for rank in range(size)]
    for user in order[:HEAVY_USERS]:
        load, rank = loads[0]
        ranks[user] = rank
        heapq.heapreplace(loads, (load + int(counts[user]), rank))
    light = order[HEAVY_USERS:]
    if len(light):
        light = np.random.default_rng(0).permutation(light)
        ranks[light] = _fill_up(counts[light], np.array([load for load, _ in sorted(loads, key=lambda pair: pair[1])]))
    return ranks


def _fill_up(counts: Int64, loads: Int64) -> Int32:
    """Cuts a list of users into one stretch per rank so that loads + counts come out even: the rank of each."""
    target = max(int(loads.max()), -(-int(loads.sum() + counts.sum()) // len(loads)))
    bounds = np.cumsum(target - loads)
    return np.minimum(np.searchsorted(bounds, np.cumsum(counts), side="left"), len(loads) - 1).astype(np.int32)
