"""Units of rows, and how people read them."""

import math

SHOWN = {"s": ("us", 1e6), "share": ("%", 100.0), "rows/s": ("M rows/s", 1e-6), "B/s": ("GB/s", 1e-9)}
"""Unit of a row -> the unit shown, and how many of it make one."""
MORE_IS_BETTER = frozenset({"rows/s", "B/s", "1/s"})


def shown_unit(unit: str) -> str:
    """The unit in which values of ``unit`` are shown."""
    return SHOWN.get(unit, (unit, 1.0))[0]


def scaled(value: float, unit: str) -> float:
    """``value`` in the unit shown."""
    return value * SHOWN.get(unit, (unit, 1.0))[1]


def with_unit(value: float, unit: str) -> str:
    """Such as "0.08 us"."""
    return f"{plain(scaled(value, unit))} {shown_unit(unit)}"


def plain(number: float) -> str:
    """Three significant digits, without exponent."""
    if not math.isfinite(number):
        return "-"
    if number == 0 or abs(number) >= 100:
        return f"{number:,.0f}"
    decimals = max(0, min(4, 2 - math.floor(math.log10(abs(number)))))
    return f"{number:.{decimals}f}"
