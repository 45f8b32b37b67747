"""The distinct keys of a batch."""

import numpy as np
import pytest

from intentpm.runtime._native.distinct import distinct_keys


@pytest.mark.parametrize("count", [0, 1, 2, 63, 64, 65, 10_000])
@pytest.mark.parametrize("num_keys", [1, 50, 2**62])
def test_they_come_in_the_order_of_the_batch_with_the_place_of_each_key(count: int, num_keys: int) -> None:
    keys = np.random.default_rng(count).integers(num_keys, size=count)
    distinct, places = distinct_keys(keys)
    assert (distinct[places] == keys).all()
    assert sorted(distinct) == sorted(set(keys.tolist()))
    assert list(distinct) == list(dict.fromkeys(keys.tolist()))


def test_keys_that_fall_on_one_place_of_the_map_are_told_apart() -> None:
    keys = np.arange(1_000) << 32
    distinct, places = distinct_keys(np.repeat(keys, 3))
    assert (distinct == keys).all()
    assert (places == np.repeat(np.arange(1_000), 3)).all()


def test_an_array_that_is_a_view_is_read_as_it_looks() -> None:
    keys = np.arange(20)[::-2]
    assert (distinct_keys(keys)[0] == keys).all()


def test_other_arrays_are_refused() -> None:
    with pytest.raises(TypeError, match="int32 of 1 dimensions"):
        distinct_keys(np.zeros(3, np.int32))
    with pytest.raises(TypeError, match="int64 of 2 dimensions"):
        distinct_keys(np.zeros((3, 3), np.int64))
