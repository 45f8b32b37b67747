"""Sampling access: keys drawn by the parameter manager, so that it may choose when to draw them and from where (NuPS,
arXiv 2104.00501).

How a sample's keys are drawn is declared once per use of a table (``pm.create_sampling``):

    scheme     drawn         intent        distribution
    naive      when pulled   none          the target; nearly every key of another rank is a remote access
    preloc     at prepare    its keys      the target; local when pulled, if prepared early enough
    pool       at prepare    its keys      each key follows the target, but keys come back: fewer keys to move
    local      when pulled   none          the target conditional on the keys that this rank owns: never remote, but it
                                           departs from the target; ``Sampling.stats`` says how far
"""

import threading
import weakref
from dataclasses import dataclass, field
from typing import Any, Literal, NoReturn, get_args

import numpy as np
import numpy.typing as npt

from intentpm.foundation.errors import DtypeError, SampleError, ShapeError, WindowError
from intentpm.foundation.handles import refuse_to_cross
from intentpm.runtime._native.draws import Distribution, Drawer
from intentpm.runtime._native.store import Table
from intentpm.runtime.arguments import as_array, whole_number
from intentpm.runtime.array_types import Weights

Keys = npt.NDArray[np.int64]
DistributionName = Literal["uniform", "log-uniform"]
Scheme = Literal["naive", "preloc", "pool", "local"]

POOL_SIZE = 1024
POOL_USES = 16
LOCAL_KEYS_ENOUGH = 256
"""``local`` draws from no fewer local keys than this, or than a quarter of what a rank owns of a small table."""
POOL_STREAM = 2**32 - 1
"""Stands for a worker's number in the seed of the pool's random stream."""


@dataclass(slots=True)
class Sample:
    """A sample that was prepared: pass it to ``pull_sample`` of the worker that prepared it (``prepare_sample``).

    Attributes: ``sampling`` and ``worker``, which prepared it; ``size``, how many keys it has; ``keys``, int64 [size]
    once drawn, None before; ``used``, how many were pulled so far.
    """

    sampling: "Sampling"
    worker: Any
    size: int
    keys: Keys | None = None
    used: int = 0

    @property
    def left(self) -> int:
        """Keys not yet pulled."""
        return self.size - self.used

    def __reduce_ex__(self, protocol: Any) -> NoReturn:
        refuse_to_cross(self, "draw here, and pass the keys on")


@dataclass(slots=True)
class _Pool:
    """Keys that all workers of the rank take from in turn. Guarded by: ``lock``."""

    drawer: Drawer
    random: np.random.Generator
    lock: threading.Lock = field(default_factory=threading.Lock)
    keys: Keys = field(default_factory=lambda: np.empty(0, np.int64))
    taken: int = 0
    uses: int = 0


class Sampling:
    """How the keys of samples of one table are drawn on this rank. Made by ``ParameterManager.create_sampling``.

    Attributes: ``table``, ``scheme``, ``replacement``, ``pool_size`` and ``pool_uses``, as declared.
    Threads: any number of workers use it at the same time; each has a random stream of its own.
    """

    def __init__(
        self,
        table: Table,
        distribution: DistributionName | Weights,
        scheme: Scheme,
        replacement: bool,
        pool_size: int,
        pool_uses: int,
        seed: int | None,
        rank: int,
        size: int,
    ) -> None:
        """``ParameterManager.create_sampling`` explains the arguments; ``size`` is the number of ranks."""
        if scheme not in get_args(Scheme):
            raise SampleError(f"scheme={scheme!r}: choose one of {', '.join(get_args(Scheme))}")
        pool_size, pool_uses = whole_number(pool_size, "pool_size"), whole_number(pool_uses, "pool_uses")
        for name, value in (("pool_size", pool_size), ("pool_uses", pool_uses)):
            if value < 1:
                raise SampleError(f"{name}={value}: needs at least 1")
        if seed is not None and whole_number(seed, "seed") < 0:
            raise SampleError(f"seed={seed}: needs 0 or more")
        self.table = table
        self.scheme: Scheme = scheme
        self.replacement = replacement
        self.pool_size, self.pool_uses = pool_size, pool_uses
        self._distribution = _distribution(table, distribution)
        self._entropy = np.random.SeedSequence(seed).entropy
        self._rank = rank
        self._branch: tuple[int, ...] = ()
        self._min_local_keys = min(LOCAL_KEYS_ENOUGH, -(-table.num_keys // (4 * size)))
        self._drawers: dict[int, Drawer] = {}
        self._held: dict[int, tuple[int, int]] = {}  # by worker: how many owned keys it keeps here during which clock
        self._past_drawn = self._past_drawn_local = 0
        self._past_departed = 0.0
        self._pool = self._new_pool()
        if scheme == "pool" and not replacement:
            self._check_distinct(pool_size, "pool_size")

    def branch_off(self, branch: tuple[int, ...]) -> None:
        """What is drawn from now on follows from the seed and these numbers, >= 0. Samples that were drawn stay.

        No worker draws from it meanwhile, or it may go on for once as it was.
        """
        self._branch = branch
        for worker_id in list(self._drawers):
            self._forget(worker_id)
        pool, self._pool = self._pool, self._new_pool()
        self._count_past(pool.drawer)

    def _new_pool(self) -> _Pool:
        stream = self._random_stream(POOL_STREAM)
        return _Pool(Drawer(self.table, self._distribution, stream), np.random.Generator(stream))

    def prepare(self, worker: Any, size: int, start: int, end: int | None) -> Sample:
        """What ``Worker.prepare_sample`` does."""
        size, start = whole_number(size, "n"), whole_number(start, "start")
        last = start + 1 if end is None else whole_number(end, "end")
        if last <= start:
            raise WindowError(f"window [{start}, {last}) of a sample is empty: end must be after start")
        if size < 0:
            raise SampleError(f"a sample of {size} keys: needs 0 or more")
        self._check_size(size)
        sample = Sample(self, worker, size)
        if self.scheme == "preloc":
            sample.keys = self._drawer(worker).draw(size, not self.replacement)
        elif self.scheme == "pool":
            sample.keys = self._take_from_pool(size)
        if sample.keys is not None:
            worker.intent(self.table, sample.keys, start, last)
        return sample

    def take(self, sample: Sample, worker: Any, count: int | None) -> Keys:
        """The next ``count`` keys of a sample (None: all that are left)."""
        if sample.worker is not worker:
            raise SampleError(f"{sample.worker!r} prepared this sample, {worker!r} cannot pull it")
        count = sample.left if count is None else whole_number(count, "count")
        if not 0 <= count <= sample.left:
            raise SampleError(f"cannot pull {count} keys of a sample with {sample.left} of {sample.size} left")
        if sample.keys is None:
            sample.keys = (
                self._draw_local(worker, sample.size)
                if self.scheme == "local"
                else self._drawer(worker).draw(sample.size, not self.replacement)
            )
        keys = sample.keys[sample.used : sample.used + count]
        sample.used += count
        return keys

    def stats(self) -> dict[str, float]:
        """What was drawn on this rank so far. Any thread.

        ``drawn``: keys. ``drawn_local``: of these, by scheme ``local`` from the keys of this rank; it drew the others
        from the target because there were too few. ``local_keys``: keys ``local`` knows to be owned here, mean over
        workers.
        ``departure``: how far ``local`` departs from the target, as the total variation distance between the
        distribution drawn from and the target at the time of each draw, mean over draws: 0 (not at all) to 1.
        Relocations that move the local keys about bring the long-run frequencies closer to the target than this.
        """
        drawers = [self._pool.drawer, *self._drawers.values()]
        drawn = self._past_drawn + sum(drawer.drawn for drawer in drawers)
        departed = self._past_departed + sum(drawer.departure * drawer.drawn for drawer in drawers)
        return {
            "drawn": drawn,
            "drawn_local": self._past_drawn_local + sum(drawer.drawn_local for drawer in drawers),
            "local_keys": sum(drawer.local_keys_now for drawer in drawers) / max(1, len(drawers) - 1),
            "departure": departed / drawn if drawn else 0.0,
        }

    def _drawer(self, worker: Any) -> Drawer:
        drawer = self._drawers.get(worker.worker_id)
        if drawer is None:
            stream = self._random_stream(worker.worker_id)
            drawer = Drawer(self.table, self._distribution, stream, self._min_local_keys)
            self._drawers[worker.worker_id] = drawer
            weakref.finalize(worker, self._forget, worker.worker_id).atexit = False
        return drawer

    def _draw_local(self, worker: Any, size: int) -> Keys:
        """Keys owned here, which stay until the worker's clock advances: the write to one that left before would be
        remote, and on a link that is full the worker would wait for it in every step.

        Of a worker whose clock does not advance, about as many are held as the table has at most.
        """
        drawer, clock = self._drawer(worker), worker.clock
        before = drawer.drawn_local
        keys = drawer.draw_local(size, not self.replacement)
        owned = np.unique(keys[: drawer.drawn_local - before])  # many intents of one key would pin it for good
        held_at, held = self._held.get(worker.worker_id, (clock, 0))
        if held_at != clock:
            held = 0
        if len(owned) and held < self.table.num_keys:
            worker.intent(self.table, owned, clock)
            self._held[worker.worker_id] = clock, held + len(owned)
        return keys

    def _forget(self, worker_id: int) -> None:
        """Of a worker that is gone, or begins another stream: its counts stay."""
        self._held.pop(worker_id, None)
        drawer = self._drawers.pop(worker_id, None)
        if drawer is not None:
            self._count_past(drawer)

    def _count_past(self, drawer: Drawer) -> None:
        self._past_drawn += drawer.drawn
        self._past_drawn_local += drawer.drawn_local
        self._past_departed += drawer.departure * drawer.drawn

    def _random_stream(self, worker_id: int) -> np.random.BitGenerator:
        return np.random.SFC64(np.random.SeedSequence(self._entropy, spawn_key=(self._rank, worker_id, *self._branch)))

    def _check_size(self, size: int) -> None:
        if not self.replacement:
            self._check_distinct(size, "a sample without replacement")
        if not self.replacement and self.scheme == "pool" and size > self.pool_size:
            raise SampleError(
                f"a sample of {size} keys without replacement from a pool of {self.pool_size}: raise pool_size"
            )

    def _check_distinct(self, size: int, what: str) -> None:
        possible = self._distribution.possible_keys
        if size > possible:
            raise SampleError(
                f"{what} of {size} keys: table {self.table.name!r} has only {possible} keys with a probability above 0"
            )

    def _take_from_pool(self, size: int) -> Keys:
        pool = self._pool
        parts: list[Keys] = []
        missing = size
        with pool.lock:
            while missing > 0:
                # Distinct keys must come from one use of the pool: the next one has the same keys again.
                needed = 1 if self.replacement else missing
                if len(pool.keys) - pool.taken < needed:
                    self._refresh(pool)
                part = pool.keys[pool.taken : pool.taken + missing]
                pool.taken += len(part)
                missing -= len(part)
                parts.append(part)
            return np.concatenate(parts) if parts else np.empty(0, np.int64)

    def _refresh(self, pool: _Pool) -> None:
        """The pool's keys once more in another order, or new ones after ``pool_uses`` times."""
        if len(pool.keys) and pool.uses < self.pool_uses:
            pool.keys = pool.random.permutation(pool.keys)
        else:
            pool.keys = pool.drawer.draw(self.pool_size, not self.replacement)
            pool.uses = 0
        pool.uses += 1
        pool.taken = 0

    def __reduce_ex__(self, protocol: Any) -> NoReturn:
        refuse_to_cross(self, "draw here, and pass the keys on")

    def __repr__(self) -> str:
        kind = "with" if self.replacement else "without"
        return f"<intentpm.Sampling of {self.table.name!r}, {self.scheme}, {kind} replacement>"


def _distribution(table: Table, wanted: DistributionName | Weights) -> Distribution:
    if isinstance(wanted, str):
        if wanted not in get_args(DistributionName):
            raise SampleError(
                f"distribution={wanted!r}: choose {', '.join(get_args(DistributionName))} or an array of weights"
            )
        return Distribution(table.num_keys, wanted)
    try:
        weights = as_array(wanted, f"the weights for table {table.name!r}")
    except (ShapeError, DtypeError) as error:
        raise SampleError(str(error)) from None
    if weights.shape != (table.num_keys,):
        raise SampleError(
            f"weights have shape {weights.shape}: table {table.name!r} needs one number for each of its "
            f"{table.num_keys} keys"
        )
    weights = weights.astype(np.float64)
    bad = np.flatnonzero(~(np.isfinite(weights) & (weights >= 0)))
    if len(bad):
        raise SampleError(f"the weight of key {bad[0]} is {weights[bad[0]]}: needs a finite number >= 0")
    total = weights.sum()
    if not 0 < total < np.inf:
        raise SampleError(f"the weights add up to {total}: needs a finite number above 0")
    return Distribution(table.num_keys, "weighted", weights)
