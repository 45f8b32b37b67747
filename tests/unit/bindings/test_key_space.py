"""The map from keys to tables, against one that looks at every key."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from intentpm.adapm.buffers import Layout
from intentpm.adapm.key_space import KeySpace
from intentpm.foundation.errors import DtypeError, KeyRangeError, ShapeError

LENGTHS = st.lists(st.sampled_from([1, 2, 7, 50]), min_size=1, max_size=40)


def places(lengths: list[int]) -> list[tuple[int, int]]:
    """(length, row) of each key: rows are counted per length, in the order of the keys."""
    seen: dict[int, int] = {}
    found = []
    for length in lengths:
        found.append((length, seen.get(length, 0)))
        seen[length] = seen.get(length, 0) + 1
    return found


@given(lengths=LENGTHS, data=st.data())
def test_every_key_has_its_row(lengths: list[int], data: st.DataObject) -> None:
    space = KeySpace(len(lengths), np.array(lengths))
    keys = np.array(data.draw(st.lists(st.integers(0, len(lengths) - 1), max_size=30)), np.int64)
    expected = places(lengths)
    found: dict[int, tuple[int, int]] = {}
    for part in space.parts(keys):
        positions = range(len(keys)) if part.positions is None else part.positions
        found.update(
            (int(position), (int(space.lengths[part.table]), int(row)))
            for position, row in zip(positions, part.rows, strict=True)
        )
        assert (space.keys_of(part.table, part.rows) == keys[list(positions)]).all()
    assert found == {position: expected[key] for position, key in enumerate(keys)}
    assert space.lengths_of(keys).tolist() == [lengths[key] for key in keys]
    assert sorted(zip(space.lengths.tolist(), space.rows.tolist(), strict=True)) == sorted(
        (length, lengths.count(length)) for length in set(lengths)
    )


@given(lengths=LENGTHS, data=st.data())
def test_values_lie_in_the_order_of_the_keys(lengths: list[int], data: st.DataObject) -> None:
    space = KeySpace(len(lengths), np.array(lengths))
    keys = np.array(data.draw(st.lists(st.integers(0, len(lengths) - 1), max_size=30)), np.int64)
    flat = np.concatenate([np.full(lengths[key], position, np.float32) for position, key in enumerate(keys)] or [[]])
    layout = Layout(space, keys, flat.size)
    for part in layout.parts:
        rows = layout.rows(part, flat)
        rows = flat[layout.indices(part)] if rows is None else rows
        positions = np.arange(len(keys)) if part.positions is None else part.positions
        assert rows.shape == (len(part.rows), space.lengths[part.table])
        assert (rows == positions[:, np.newaxis]).all()


def test_what_lies_together_is_not_copied() -> None:
    space = KeySpace(6, np.array([2, 2, 5, 2, 2, 5]))
    flat = np.zeros(2 + 2 + 5 + 5, np.float32)
    layout = Layout(space, np.array([3, 0, 5, 2]), flat.size)
    for part in layout.parts:
        assert np.shares_memory(layout.rows(part, flat), flat)
    mixed = Layout(space, np.array([3, 5, 0]), 9)
    assert mixed.rows(mixed.parts[0], flat[:9]) is None


def test_runs_take_no_memory_per_key() -> None:
    lengths = np.full(1_000_000, 32)
    lengths[:4] = [1_000_000, 1024, 1_000_000, 1]
    space = KeySpace(len(lengths), lengths)
    assert sum(array.nbytes for array in vars(space).values() if isinstance(array, np.ndarray)) < 1000
    assert [(part.table, part.rows.tolist()) for part in space.parts(np.array([2, 0]))] == [(3, [1, 0])]


@pytest.mark.parametrize("lengths", [4, np.float32(4.0), np.full(10, 4.0), [4] * 10])
def test_one_length_for_all(lengths: object) -> None:
    space = KeySpace(10, lengths)
    assert (space.is_uniform, space.lengths.tolist(), space.rows.tolist()) == (True, [4], [10])


@pytest.mark.parametrize(
    ("lengths", "error", "message"),
    [
        ([4] * 9, ShapeError, "9 lengths: setup\\(\\) said that there are 10 keys"),
        (0, ShapeError, "key 0 has length 0"),
        ([4] * 9 + [-1], ShapeError, "key 9 has length -1"),
        (2.5, DtypeError, "whole numbers"),
        (float("nan"), DtypeError, "whole numbers"),
        ("4", DtypeError, "value_lengths"),
        (None, DtypeError, "value_lengths"),
    ],
)
def test_lengths_that_are_none(lengths: object, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        KeySpace(10, lengths)


@pytest.mark.parametrize("bad", [-1, 10, 2**40])
def test_a_key_out_of_range(bad: int) -> None:
    with pytest.raises(KeyRangeError, match=rf"key {bad} is outside the key range \[0, 10\)"):
        KeySpace(10, 4).check(np.array([3, bad, 0]))
