"""Which tables the local cases are measured on."""

from pathlib import Path

NUM_KEYS, DIMS = (100_000, 10_000_000), (1, 16, 64, 256)
USUAL = (1_000_000, 64)
MAX_TABLE_BYTES = 2_560_000_000
"""10^7 rows of 64 float32."""
FREE_SHARE = 4
"""A table takes at most this part (1/4) of the memory that is free; the baseline's array takes as much again."""


def chosen_tables(every: bool) -> list[tuple[int, int]]:
    """Pairs of rows and float32 values per row. A small table stays in the caches or near, a large one does not.

    A table of 10^7 long rows would not fit beside its baseline: it gets as many rows as the memory allows.
    """
    if not every:
        return [USUAL]
    most_bytes = min(MAX_TABLE_BYTES, _free_memory_bytes() // FREE_SHARE)
    return [(min(num_keys, round_down(most_bytes // (4 * dim))), dim) for dim in DIMS for num_keys in NUM_KEYS]


def round_down(number: int) -> int:
    """To 1, 2 or 5 times a power of ten, so that runs with slightly different free memory measure the same."""
    power: int = 10 ** (len(str(number)) - 1)
    return max(digit * power for digit in (1, 2, 5) if digit * power <= number)


def _free_memory_bytes() -> int:
    """What the system would hand out without swapping."""
    lines = Path("/proc/meminfo").read_text().splitlines()
    kib = next(int(line.split()[1]) for line in lines if line.startswith("MemAvailable:"))
    return kib * 1024
