"""Planted defects; ``mutations.pxd`` is the contract."""

from contextlib import contextmanager

NAMES = {
    "writes not settled": MUTATION_WRITES_NOT_SETTLED,
    "parking dropped": MUTATION_PARKING_DROPPED,
    "deltas twice": MUTATION_DELTAS_TWICE,
    "fence open": MUTATION_FENCE_OPEN,
    "home not told": MUTATION_HOME_NOT_TOLD,
    "records first": MUTATION_RECORDS_FIRST,
    "sync without news": MUTATION_SYNC_WITHOUT_NEWS,
    "parking refused": MUTATION_PARKING_REFUSED,
    "same always": MUTATION_SAME_ALWAYS,
    "news never ripe": MUTATION_NEWS_NEVER_RIPE,
    "rounding forgotten": MUTATION_ROUNDING_FORGOTTEN,
    "holders not passed on": MUTATION_HOLDERS_NOT_PASSED_ON,
    "last news untold": MUTATION_LAST_NEWS_UNTOLD,
    "writes not spread": MUTATION_WRITES_NOT_SPREAD,
    "kept lost": MUTATION_KEPT_LOST,
    "kept twice": MUTATION_KEPT_TWICE,
    "steps recounted": MUTATION_STEPS_RECOUNTED,
    "late write lost": MUTATION_LATE_WRITE_LOST,
    "copy left out": MUTATION_COPY_LEFT_OUT,
    "saved twice": MUTATION_SAVED_TWICE,
    "cut unsettled": MUTATION_CUT_UNSETTLED,
    "cut untold": MUTATION_CUT_UNTOLD,
    "fetched kept": MUTATION_FETCHED_KEPT,
    "releases miscounted": MUTATION_RELEASES_MISCOUNTED,
    "gathered kept": MUTATION_GATHERED_KEPT,
    "rests for good": MUTATION_RESTS_FOR_GOOD,
    "state forgotten": MUTATION_STATE_FORGOTTEN,
    "lag untold": MUTATION_LAG_UNTOLD,
}
OF_BUDGETS = {
    "copy uncounted": MUTATION_COPY_UNCOUNTED,
    "pressure ignored": MUTATION_PRESSURE_IGNORED,
}
"""Found by the programs that have a budget."""
OF_LOSSES = {
    "old epoch heard": MUTATION_OLD_EPOCH_HEARD,
    "old epoch kept": MUTATION_OLD_EPOCH_KEPT,
    "older replica": MUTATION_OLDER_REPLICA,
    "key left lost": MUTATION_KEY_LEFT_LOST,
    "holdings kept": MUTATION_HOLDINGS_KEPT,
    "older checkpoint": MUTATION_OLDER_CHECKPOINT,
    "rollback untold": MUTATION_ROLLBACK_UNTOLD,
    "unsure untold": MUTATION_UNSURE_UNTOLD,
}
"""Found by the programs in which ranks are lost."""
OF_DEVICES = {
    "row left away": MUTATION_ROW_LEFT_AWAY,
    "write unnoted": MUTATION_WRITE_UNNOTED,
    "exchange not awaited": MUTATION_EXCHANGE_NOT_AWAITED,
}
"""Found by the programs whose rows lie on devices."""
OF_TIERS = {
    "arrival not awaited": MUTATION_ARRIVAL_NOT_AWAITED,
    "intended evicted": MUTATION_INTENDED_EVICTED,
    "moving row written": MUTATION_MOVING_ROW_WRITTEN,
    "dirty row dropped": MUTATION_DIRTY_ROW_DROPPED,
}
"""Found by the programs whose devices have room for some of the rows."""


@contextmanager
def plant(*names: str):
    """Breaks the runtime of this process in the named ways, inside the with block. For tests only."""
    global planted
    planted = sum((NAMES | OF_BUDGETS | OF_LOSSES | OF_DEVICES | OF_TIERS)[name] for name in names)
    try:
        yield
    finally:
        planted = 0
