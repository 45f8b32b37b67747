"""Weights of 16 bits, rounded at random: the mean is right, small steps add up, a seed gives the same bits again."""

from typing import Any

import numpy as np
import pytest

import intentpm
from intentpm import optim
from intentpm.foundation.errors import DtypeError, OptimizerError
from intentpm.runtime._native.store import resolve_dtype

ALL = (optim.SGD, optim.Adagrad, optim.RowwiseAdagrad, optim.Adam, optim.PartialRowwiseAdam)
KEYS, ITEMS = 2000, 8
DTYPES = ("float16", "bfloat16")
UNIT_AT_1 = {"float16": 2.0**-10, "bfloat16": 2.0**-7}
"""Distance from 1 to the next number above."""


@pytest.fixture
def pm() -> Any:
    with intentpm.init() as manager:
        yield manager


def stepped(
    pm: Any, name: str, dtype: str, optimizer: Any, steps: int = 1, gradient: float = 1.0, init: float = 1.0
) -> Any:
    """All rows after so many equal steps, as float64 [KEYS, ITEMS]."""
    table, worker = pm.create_table(name, KEYS, ITEMS, dtype, init=init, optimizer=optimizer), pm.worker()
    gradients = np.full((KEYS, ITEMS), gradient, resolve_dtype(dtype))
    for _ in range(steps):
        worker.push_grad(table, range(KEYS), gradients)
    return worker.pull(table, range(KEYS)).astype(np.float64)


def at_random(lr: float, seed: int = 0) -> Any:
    return optim.SGD(lr=lr, rounding="stochastic", rounding_seed=seed)


@pytest.mark.parametrize("share", [0.125, 0.5, 0.75])
@pytest.mark.parametrize("sign", [-1.0, 1.0])
@pytest.mark.parametrize("dtype", DTYPES)
def test_the_mean_error_is_zero(pm: Any, dtype: str, sign: float, share: float) -> None:
    """A step from +-1 to between two neighbours. 16,000 numbers: their mean is within five standard errors."""
    step = share * UNIT_AT_1[dtype]
    rows = stepped(pm, "t", dtype, at_random(step), gradient=-sign, init=sign)
    assert set(np.unique(rows * sign)) == {1.0, 1.0 + UNIT_AT_1[dtype]}
    error = 5 * UNIT_AT_1[dtype] * np.sqrt(share * (1 - share) / rows.size)
    assert abs((rows * sign).mean() - (1.0 + step)) < error
    # Neither the rows nor the places in a row go up and down together.
    up = rows * sign > 1.0
    assert np.abs(np.corrcoef(up.T) - np.eye(up.shape[1])).max() < 0.15
    assert up.mean(axis=0).std() < 5 * np.sqrt(share * (1 - share) / KEYS)


@pytest.mark.parametrize("dtype", DTYPES)
def test_small_steps_do_not_vanish(pm: Any, dtype: str) -> None:
    """1,000 steps of 1 / 50 of the distance to the next number: rounded to nearest, not one of them is seen."""
    step, steps = UNIT_AT_1[dtype] / 50, 1000
    nearest = stepped(pm, "nearest", dtype, optim.SGD(lr=step), steps, -1.0)
    assert np.all(nearest == 1.0)
    rows = stepped(pm, "stochastic", dtype, at_random(step), steps, -1.0)
    # Each step adds a variance of at most step * unit.
    error = 5 * np.sqrt(steps * step * UNIT_AT_1[dtype] / rows.size)
    assert abs(rows.mean() - (1.0 + steps * step)) < error


def test_subnormal_float16(pm: Any) -> None:
    unit = 2.0**-24
    rows = stepped(pm, "t", "float16", at_random(0.25 * unit), gradient=-1.0, init=3 * unit)
    assert set(np.unique(rows)) == {3 * unit, 4 * unit}
    assert abs(rows.mean() / unit - 3.25) < 5 * np.sqrt(0.1875 / rows.size)


@pytest.mark.parametrize("dtype", DTYPES)
def test_what_can_be_said_exactly_is_and_the_largest_number_is_no_infinity(pm: Any, dtype: str) -> None:
    assert np.all(stepped(pm, "exact", dtype, at_random(0.5), gradient=-1.0) == 1.5)
    largest = 65504.0 if dtype == "float16" else float(np.array(0x7F7F, np.uint16).view(resolve_dtype(dtype)))
    assert np.all(stepped(pm, "largest", dtype, at_random(1e-3), gradient=-1.0, init=largest) == largest)
    assert np.all(np.isnan(stepped(pm, "nan", dtype, at_random(1.0), gradient=np.nan)))


@pytest.mark.parametrize("optimizer", ALL)
@pytest.mark.parametrize("dtype", DTYPES)
def test_a_seed_gives_the_same_bits_and_another_seed_others(pm: Any, optimizer: Any, dtype: str) -> None:
    first, same, other = (
        stepped(pm, name, dtype, optimizer(lr=1e-4, rounding="stochastic", rounding_seed=seed), 5, 0.3)
        for name, seed in (("first", 1), ("same", 1), ("other", 2))
    )
    assert np.array_equal(first, same)
    assert not np.array_equal(first, other)
    # And it is the optimizer's step that is rounded.
    nearest = stepped(pm, "nearest", "float32", optimizer(lr=1e-4), 5, float(np.array(0.3, resolve_dtype(dtype))))
    assert abs(first.mean() - nearest.mean()) < 6 * np.sqrt(5 * 1e-4 * UNIT_AT_1[dtype] / first.size)


def test_its_state_counts_the_steps_of_a_row(pm: Any) -> None:
    optimizer = optim.Adagrad(lr=0.1, initial_accumulator=0.5, rounding="stochastic", rounding_seed=3)
    table, worker = pm.create_table("t", KEYS, ITEMS, "float16", optimizer=optimizer), pm.worker()
    before = worker.pull_state(table, range(KEYS))
    assert list(before) == ["sum", "rounding"]
    assert before["rounding"].dtype == np.uint32
    assert np.all(before["sum"] == 0.5)
    assert len(np.unique(before["rounding"])) == KEYS
    worker.push_grad(table, [3, 3, 5], np.ones((3, ITEMS), np.float16))
    after = worker.pull_state(table, range(KEYS))
    assert np.array_equal(np.flatnonzero(after["rounding"] != before["rounding"]), [3, 5])
    assert np.all(after["rounding"][[3, 5]] - before["rounding"][[3, 5]] == 1)
    assert np.all(after["sum"][3] == 4.5)
    assert np.all(after["sum"][5] == 1.5)


def test_what_cannot_be_rounded_so(pm: Any) -> None:
    with pytest.raises(OptimizerError, match="rounding='down': needs nearest or stochastic"):
        optim.SGD(rounding="down")  # type: ignore[arg-type]
    with pytest.raises(OptimizerError, match="rounding_seed=7 is used by rounding"):
        optim.SGD(rounding_seed=7)
    for seed in (-1, 1 << 64, 1.0, True):
        with pytest.raises(OptimizerError, match="rounding_seed"):
            optim.SGD(rounding="stochastic", rounding_seed=seed)  # type: ignore[arg-type]
    with pytest.raises(DtypeError, match="float32 cannot be rounded at random: use float16 or bfloat16"):
        pm.create_table("t", 4, 4, "float32", optimizer=at_random(0.1))
    with pytest.raises(OptimizerError, match='rounding="stochastic" needs storage="host"'):
        pm.create_table("t", 4, 4, "float16", optimizer=at_random(0.1), storage="gpu")
