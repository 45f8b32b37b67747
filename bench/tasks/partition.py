"""Who trains which rating, and in which order: users are dealt to ranks, items to blocks that the ranks take in turn.

The order is that of DSGD (Gemulla et al., KDD 2011), with more blocks than ranks, as FPSGD has them (Zhuang et al.,
RecSys 2013): N ranks, 4 N blocks, and in part s of an epoch rank r trains its ratings of the items of block 4 r + s,
modulo 4 N. So an item is at one rank at a time, and its updates follow one another as on a single rank. Without it, N
ranks each move a popular item nearly all the way within a batch, and the sum of their steps goes too far.

Nothing holds the ranks together. Blocks have as many ratings as one another, so equally fast ranks move on together.
When a rank has done a block, the next begins with it three parts later: so much time its items have for their way, and
so far a rank may lag before it shares some with another.
"""

import heapq

import numpy as np
from numpy.typing import NDArray

from intentpm.bench.tasks.ratings import TRAIN, Int32, Int64, Ratings

BLOCKS_PER_RANK = 4
"""Fewer where an item has more ratings than such a block would have."""
HEAVY_KEYS = 4096
"""Keys dealt out one by one, largest first; the others are so light that any even cut will do."""


def rank_of_users(ratings: Ratings, size: int) -> Int32:
    """The rank that trains each user's ratings: int32 (users,), the same on every rank.

    A user's ratings stay together, so a user's row is used by one rank only and needs to be nowhere else.
    """
    return _deal(np.bincount(ratings.user[ratings.split == TRAIN], minlength=ratings.users), size)


class ItemBlocks:
    """The items in blocks, dealt alike on every rank, and the order in which the ranks take them.

    ``of_item``: the block of each item, int32 (items,). ``per_rank``: how many there are for each of the ranks.
    """

    def __init__(self, ratings: Ratings, ranks: int) -> None:
        counts = np.bincount(ratings.item[ratings.split == TRAIN], minlength=ratings.items)
        even = int(counts.sum()) // (ranks * max(1, int(counts.max(initial=0))))
        self.per_rank = 1 if ranks == 1 else min(max(1, even), BLOCKS_PER_RANK)
        self.of_item = _deal(counts, ranks * self.per_rank)
        self._blocks = ranks * self.per_rank

    def order(self, items: NDArray[np.int32], rank: int, given: Int64) -> Int64:
        """In which order ``rank`` takes its ratings, which are of ``items``: block by block from its own on, as in
        ``given`` within each. int64 (R,), positions."""
        part = (self.of_item[items[given]] - self.per_rank * rank) % self._blocks
        return given[np.argsort(part, kind="stable")]


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
