"""Who trains which rating, and in which order: users are dealt to ranks, items to blocks that the ranks take in turn.

The order is that of DSGD (Gemulla et al., KDD 2011): an epoch has as many sub-epochs as there are ranks, and in
sub-epoch s rank r trains its ratings of the items of block (r + s) mod N. So an item is at one rank at a time, and its
updates follow one another as on a single rank. Without it, N ranks each move a popular item nearly all the way within a
batch, and the sum of their steps goes too far. Nothing holds the ranks together: blocks have as many ratings as one
another, so equally fast ranks move on together, and around one that lags some items are shared for a while.
"""

import heapq

import numpy as np
from numpy.typing import NDArray

from intentpm.bench.tasks.ratings import TRAIN, Int32, Int64, Ratings

HEAVY_KEYS = 4096
"""Keys dealt out one by one, largest first; the others are so light that any even cut will do."""


def rank_of_users(ratings: Ratings, size: int) -> Int32:
    """The rank that trains each user's ratings: int32 (users,), the same on every rank.

    A user's ratings stay together, so a user's row is used by one rank only and needs to be nowhere else.
    """
    return _deal(np.bincount(ratings.user[ratings.split == TRAIN], minlength=ratings.users), size)


def block_of_items(ratings: Ratings, size: int) -> Int32:
    """The block of each item: int32 (items,), the same on every rank."""
    return _deal(np.bincount(ratings.item[ratings.split == TRAIN], minlength=ratings.items), size)


def blocked_order(blocks: NDArray[np.int32], rank: int, size: int, random: np.random.Generator) -> Int64:
    """In which order ``rank`` takes its ratings, whose items lie in ``blocks``: block by block from its own on, at
    random within each. int64 (R,), positions."""
    order = random.permutation(len(blocks))
    return order[np.argsort((blocks[order] - rank) % size, kind="stable")]


def _deal(counts: Int64, size: int) -> Int32:
    """Deals keys that have ``counts`` ratings into ``size`` shares with as many ratings as one another: each key's.

    The heaviest go to the least loaded share, then the rest, in the order of a hash of nothing but their number, fills
    the shares up evenly.
    """
    order = np.argsort(-counts, kind="stable")
    share_of = np.zeros(len(counts), np.int32)
    loads = [(0, share) for share in range(size)]
    for key in order[:HEAVY_KEYS]:
        load, share = loads[0]
        share_of[key] = share
        heapq.heapreplace(loads, (load + int(counts[key]), share))
    light = order[HEAVY_KEYS:]
    if len(light):
        light = np.random.default_rng(0).permutation(light)
        in_order = np.array([load for load, _ in sorted(loads, key=lambda pair: pair[1])])
        share_of[light] = _fill_up(counts[light], in_order)
    return share_of


def _fill_up(counts: Int64, loads: Int64) -> Int32:
    """Cuts a list of keys into one stretch per share so that loads + counts come out even: the share of each."""
    target = max(int(loads.max()), -(-int(loads.sum() + counts.sum()) // len(loads)))
    bounds = np.cumsum(target - loads)
    return np.minimum(np.searchsorted(bounds, np.cumsum(counts), side="left"), len(loads) - 1).astype(np.int32)
