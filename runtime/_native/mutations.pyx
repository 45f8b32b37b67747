"""Planted defects; ``mutations.pxd`` is the contract."""

from contextlib import contextmanager

NAMES = {
    "writes not settled": MUTATION_WRITES_NOT_SETTLED,
}


@contextmanager
def plant(name: str):
    """Breaks the runtime of this process in the named way, inside the with block. For tests only."""
    global planted
    planted = NAMES[name]
    try:
        yield
    finally:
        planted = 0
