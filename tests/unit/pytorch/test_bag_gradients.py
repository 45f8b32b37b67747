"""From the gradients of bags to those of the rows in them: as index_add_, bit for bit."""

from typing import Any

import numpy as np
import pytest
import torch

from intentpm.torch.bag_gradients import add_to_rows

RANDOM = np.random.default_rng(3)


def expected(num_rows: int, bags: Any, places: Any, bag_of_each: Any) -> Any:
    """In the order of the batch, as it is added natively."""
    rows = np.zeros((num_rows, bags.shape[1]), bags.dtype)
    for place, bag in zip(places, bag_of_each, strict=True):
        rows[place] += bags[bag]
    return rows


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("dim", [1, 7, 64])
def test_bags_of_one_length(dtype: Any, dim: int) -> None:
    bags, places = RANDOM.normal(size=(50, dim)).astype(dtype), RANDOM.integers(30, size=200)
    rows = np.zeros((30, dim), dtype)
    add_to_rows(rows, bags, places, None)
    assert (rows == expected(30, bags, places, np.arange(50).repeat(4))).all()
    with_torch = torch.zeros(30, dim, dtype=torch.from_numpy(bags).dtype).index_add_(
        0, torch.from_numpy(places), torch.from_numpy(bags.repeat(4, axis=0))
    )
    np.testing.assert_allclose(rows, with_torch.numpy(), rtol=1e-5, atol=1e-6)


def test_bags_that_start_anywhere_some_empty() -> None:
    bags, places = RANDOM.normal(size=(5, 3)).astype(np.float32), RANDOM.integers(4, size=9)
    rows = np.zeros((4, 3), np.float32)
    add_to_rows(rows, bags, places, np.array([0, 0, 4, 9, 9]))
    assert (rows == expected(4, bags, places, [1, 1, 1, 1, 2, 2, 2, 2, 2])).all()


def test_no_bags_and_no_places() -> None:
    rows = np.zeros((4, 3), np.float32)
    add_to_rows(rows, np.zeros((0, 3), np.float32), np.zeros(0, np.int64), None)
    add_to_rows(rows, np.ones((2, 3), np.float32), np.zeros(0, np.int64), None)
    add_to_rows(rows, np.ones((2, 3), np.float32), np.zeros(0, np.int64), np.zeros(2, np.int64))
    assert not rows.any()


@pytest.mark.parametrize(
    ("places", "starts"),
    [([0, 4], None), ([0, -1], None), ([0, 1], [0, 3]), ([0, 1], [2, 0]), ([0, 1], [-1, 0])],
)
def test_nothing_is_written_beside_the_rows(places: list[int], starts: list[int] | None) -> None:
    bags = np.ones((2, 3), np.float32)
    with pytest.raises(ValueError, match="have to"):
        add_to_rows(np.zeros((4, 3), np.float32), bags, np.array(places), None if starts is None else np.array(starts))


@pytest.mark.parametrize(
    ("rows", "bags", "places", "starts"),
    [
        (np.zeros((4, 3)), np.ones((2, 3), np.float32), np.zeros(2, np.int64), None),
        (np.zeros((4, 3), np.float16), np.ones((2, 3), np.float16), np.zeros(2, np.int64), None),
        (np.zeros((4, 3)), np.ones((2, 3)), np.zeros(2, np.int32), None),
        (np.zeros((4, 3)), np.ones((2, 2)), np.zeros(2, np.int64), None),
        (np.zeros((4, 3)), np.ones((2, 3)), np.zeros(3, np.int64), None),
        (np.zeros((4, 3)), np.ones((2, 3)), np.zeros(2, np.int64), np.zeros(1, np.int64)),
        (np.zeros((4, 6))[:, ::2], np.ones((2, 3)), np.zeros(2, np.int64), None),
    ],
)
def test_what_does_not_fit_together_is_refused(rows: Any, bags: Any, places: Any, starts: Any) -> None:
    with pytest.raises(ValueError, match=r"rows|places|starts|arrays"):
        add_to_rows(rows, bags, places, starts)
    assert not rows.any()
