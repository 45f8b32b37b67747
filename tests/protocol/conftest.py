"""Fixtures of the simulated programs."""

import gc
import os
from collections.abc import Iterator

import pytest


@pytest.fixture(scope="module")
def one_core() -> Iterator[None]:
    """One thread of a simulation runs at any time; on one core handing over is three times as fast."""
    cores = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(cores)})
    yield
    os.sched_setaffinity(0, cores)
    gc.collect()
