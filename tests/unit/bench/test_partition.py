"""The partition of ratings over ranks, and the order in which a rank takes its own."""

import numpy as np
import pytest

from intentpm.bench.tasks.partition import BLOCKS_PER_RANK, ItemBlocks, rank_of_users
from intentpm.bench.tasks.ratings import TEST, TRAIN, GeneratorSpec, generate_ratings

SIZES = [1, 2, 3, 7]


@pytest.fixture(scope="module")
def small():
    return generate_ratings(GeneratorSpec(users=3_000, items=2_000, ratings=100_000, rank=1), seed=3)


@pytest.fixture(scope="module")
def wide():
    return generate_ratings(GeneratorSpec(users=50_000, items=5_000, ratings=200_000, rank=1))


@pytest.fixture(params=["small", "wide"])
def ratings(request):
    return request.getfixturevalue(request.param)


def loads(ratings, share_of, keys, size):
    return np.bincount(share_of[keys[ratings.split == TRAIN]], minlength=size)


@pytest.mark.parametrize("size", SIZES)
def test_ranks_get_equal_parts(ratings, size):
    ranks = rank_of_users(ratings, size)
    assert ranks.shape == (ratings.users,)
    of_rank = loads(ratings, ranks, ratings.user, size)
    assert of_rank.max() <= 1.01 * of_rank.min()
    assert np.array_equal(ranks, rank_of_users(ratings, size))


def test_more_ranks_than_users():
    ratings = generate_ratings(GeneratorSpec(users=4, items=400, ratings=40, rank=1))
    assert (ratings.split == TEST).any()
    assert len(np.unique(rank_of_users(ratings, 10))) == 4


@pytest.mark.parametrize("size", SIZES)
def test_blocks_of_items_have_equally_many_ratings(ratings, size):
    blocks = ItemBlocks(ratings, size)
    assert blocks.of_item.shape == (ratings.items,)
    of_block = loads(ratings, blocks.of_item, ratings.item, size * blocks.per_rank)
    assert of_block.max() <= 1.01 * of_block.min()
    assert np.array_equal(blocks.of_item, ItemBlocks(ratings, size).of_item)


def test_there_are_fewer_blocks_where_an_item_has_more_ratings_than_one(wide):
    per_rank = [ItemBlocks(wide, size).per_rank for size in (1, 2, 4, 7, 100)]
    assert per_rank == [1, BLOCKS_PER_RANK, 4, 2, 1]


def parts_of_blocks(ratings, blocks, rank):
    """In which part of its epoch the rank takes each block."""
    given = np.random.default_rng(1).permutation(len(ratings))
    order = blocks.order(ratings.item, rank, given)
    assert np.array_equal(np.sort(order), np.arange(len(ratings)))
    taken = blocks.of_item[ratings.item[order]]
    in_turn = taken[np.flatnonzero(np.diff(taken, prepend=-1))]
    first = order[taken == in_turn[0]]
    assert np.array_equal(first, given[np.isin(given, first)]), "in the given order within a block"
    return np.argsort(in_turn)


def test_a_block_is_at_one_rank_at_a_time_and_has_time_for_its_way(small):
    blocks = ItemBlocks(small, 4)
    parts = np.array([parts_of_blocks(small, blocks, rank) for rank in range(4)])
    assert parts[:, ::BLOCKS_PER_RANK].argmin(1).tolist() == [0, 1, 2, 3], "each begins with its own"
    assert (np.diff(np.sort(parts, axis=0), axis=0) == BLOCKS_PER_RANK).all()
    assert BLOCKS_PER_RANK > 1, "else it is begun by one rank the moment another has done it"


@pytest.mark.parametrize("rank", [0, 3])
def test_without_blocks_ratings_are_taken_as_they_are_given(small, rank):
    given = np.random.default_rng(5).permutation(len(small))
    assert np.array_equal(ItemBlocks(small, 1).order(small.item, rank, given), given)
