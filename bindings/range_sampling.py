"""Samples of a range of the key space, drawn by the parameter manager's sampling of the table that it lies in."""

from typing import Any, cast, get_args

import numpy as np
import numpy.typing as npt

from intentpm.adapm.key_space import Integers, KeySpace
from intentpm.foundation.errors import KeyRangeError, SampleError
from intentpm.runtime.arguments import whole_number
from intentpm.runtime.manager import ParameterManager
from intentpm.runtime.sampling import DistributionName, Sample, Sampling, Scheme

POOL_SIZE, POOL_USES = 250, 1
"""AdaPM's."""


class RangeSampling:
    """Draws among the keys of [first, end) whose values are of the length that most of them have.

    Of others the values would not fit where a program has them put. Threads: any number of workers.
    """

    def __init__(
        self,
        manager: ParameterManager,
        tables: list[Any],
        space: KeySpace,
        scheme: str,
        with_replacement: bool,
        distribution: str,
        first: int,
        end: int,
    ) -> None:
        """Raises SampleError, KeyRangeError, DtypeError."""
        if scheme not in get_args(Scheme):
            raise SampleError(f"scheme={scheme!r}: choose one of {', '.join(get_args(Scheme))}")
        if distribution not in get_args(DistributionName):
            raise SampleError(f"distribution={distribution!r}: choose one of {', '.join(get_args(DistributionName))}")
        first, end = whole_number(first, "min"), whole_number(end, "max")
        if not 0 <= first < end <= space.num_keys:
            raise KeyRangeError(f"min={first}, max={end}: needs 0 <= min < max <= {space.num_keys}")
        keys = np.arange(first, end)
        part = max(space.parts(keys), key=lambda part: len(part.rows))
        self._space = space
        self._table = part.table
        offsets = part.rows - part.rows[0] if part.positions is None else part.positions
        weights = _weights(cast(DistributionName, distribution), part.rows, offsets, int(space.rows[part.table]))
        seed = 0 if manager.config.seed is None else manager.config.seed
        self._sampling: Sampling = manager.create_sampling(
            tables[part.table],
            weights,
            cast(Scheme, scheme),
            bool(with_replacement),
            pool_size=POOL_SIZE,
            pool_uses=POOL_USES,
            seed=seed,
        )

    @property
    def length(self) -> int:
        """Floats in the value of each key that is drawn."""
        return int(self._space.lengths[self._table])

    def prepare(self, worker: Any, count: int, start: int, end: int) -> Sample:
        return worker.prepare_sample(self._sampling, count, start, end)

    def take(self, sample: Sample, worker: Any, count: int) -> Integers:
        """The next ``count`` keys of a sample. Raises SampleError when fewer are left."""
        return self._space.keys_of(self._table, sample.sampling.take(sample, worker, count))


def _weights(
    distribution: DistributionName, rows: Integers, offsets: Integers, num_rows: int
) -> DistributionName | npt.NDArray[np.float64]:
    """Of a table's rows, of which ``rows`` are drawn, ``offsets`` keys after the first of the range.

    log-uniform: P(offset) is proportional to log((offset + 2) / (offset + 1)).
    """
    if len(rows) == num_rows and (distribution == "uniform" or offsets[-1] == num_rows - 1):
        return distribution
    weights = np.zeros(num_rows)
    weights[rows] = 1.0 if distribution == "uniform" else np.log1p(1.0 / (offsets + 1.0))
    return weights
