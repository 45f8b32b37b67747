"""Seconds as people give them, made into times to wait: the one way from a Python number to a deadline.

Past, zero and negative mean now; huge and infinite mean LONGEST_S, which nobody outlives and every sum still holds.
What is no number of seconds (nan, text, None, True) is a ConfigError with the name of the argument.
"""

import math

from intentpm.foundation.errors import ConfigError

LONGEST_S = 1e9
"""31 years. In nanoseconds a clock can be added to it, and it can be taken seven times, within 63 bits."""
LONGEST_CALL_S = 86_400.0
"""For one system call, after which its caller looks at the clock again: poll and sockets hold 24 days at most."""


def wait_s(seconds: object, name: str = "timeout", unit: str = "seconds") -> float:
    """``seconds`` as a float from 0 to LONGEST_S; anything that ``float`` takes for a number.

    Raises ConfigError naming ``name`` and ``unit``.
    """
    if isinstance(seconds, str | bytes | bytearray | bool):
        raise ConfigError(f"{name}={seconds!r}: needs a number of {unit}")
    try:
        value = float(seconds)  # type: ignore[arg-type]
    except OverflowError:  # an integer beyond all floats
        value = math.inf if seconds > 0 else 0.0  # type: ignore[operator]
    except (TypeError, ValueError):
        raise ConfigError(f"{name}={seconds!r}: needs a number of {unit}") from None
    if math.isnan(value):
        raise ConfigError(f"{name}={seconds!r}: needs a number of {unit}")
    return min(max(value, 0.0), LONGEST_S)


def wait_ns(seconds: object, name: str = "timeout") -> int:
    """The same in nanoseconds, from 0 to FOREVER_NS; 0 for what is past alone."""
    value = wait_s(seconds, name)
    return max(1, round(value * 1e9)) if value > 0 else 0


def call_s(seconds: float) -> float:
    """For one system call that waits ``seconds``: at most LONGEST_CALL_S."""
    return min(max(0.0, seconds), LONGEST_CALL_S)
