"""Counts the worlds this process has opened."""

import itertools

_counter = itertools.count()


def next_generation() -> int:
    """0 for the first world of this process, then 1, ... Ranks that open worlds in the same order agree on it."""
    return next(_counter)
