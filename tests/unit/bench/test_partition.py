"""The partition of ratings over ranks, and the order in which a rank takes its own."""

import numpy as np
import pytest

from intentpm.bench.tasks.partition import block_of_items, blocked_order, rank_of_users
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
    blocks = block_of_items(ratings, size)
    assert blocks.shape == (ratings.items,)
    of_block = loads(ratings, blocks, ratings.item, size)
    assert of_block.max() <= 1.01 * of_block.min()


@pytest.mark.parametrize("rank", [0, 2])
def test_a_rank_takes_block_after_block_from_its_own_on(rank):
    blocks = np.random.default_rng(0).integers(0, 4, 1_000).astype(np.int32)
    order = blocked_order(blocks, rank, 4, np.random.default_rng(1))
    assert sorted(order.tolist()) == list(range(1_000))
    changes = blocks[order][np.flatnonzero(np.diff(blocks[order], prepend=-1))]
    assert changes.tolist() == [(rank + sub_epoch) % 4 for sub_epoch in range(4)]
    first = order[: (blocks == rank).sum()]
    assert not np.array_equal(first, np.sort(first)), "at random within a block"


def test_one_rank_takes_its_ratings_at_random():
    order = blocked_order(np.zeros(1_000, np.int32), 0, 1, np.random.default_rng(5))
    assert np.array_equal(order, np.random.default_rng(5).permutation(1_000))
