"""What the values of options may be, whether arguments of ``init`` or variables: each fault is named with its
option."""

import re
from numbers import Integral, Real
from typing import Any

from intentpm.foundation.errors import ConfigError

TEXTS = ("transport", "host", "secret", "device")
NUMBERS = ("peer_timeout", "start_timeout", "sync_interval", "sync_threshold", "clock_timeout", "spin_us")
BYTES = ("memory_budget", "device_memory")
WHOLE_NUMBERS = (*BYTES, "seed", "port")
MOST_BYTES = 2**63 - 1

_SIZE = re.compile(r"\s*(\d+(?:\.\d+)?)\s*(?:([kmgt])(i?)b?|b)?\s*", re.IGNORECASE)
_POWERS = {"k": 1, "m": 2, "g": 3, "t": 4}


def check_value(name: str, value: Any) -> Any:
    """``value`` of option ``name`` in its one form. Raises ConfigError. Its range is for ``Config`` to check."""
    if value is None:
        return None
    if name in BYTES and isinstance(value, str):
        value = parse_bytes(value, name)
    said = f"{name}={value!r}: needs"
    if name in TEXTS:
        if not isinstance(value, str):
            raise ConfigError(f"{said} a str, not {type(value).__name__}")
        if not value or not value.isprintable():
            raise ConfigError(f"{said} printable characters")
    elif name in NUMBERS:
        if isinstance(value, bool) or not isinstance(value, Real) or value != value:
            raise ConfigError(f"{said} a number")
        return float(value)
    elif name in WHOLE_NUMBERS:
        if isinstance(value, bool) or not isinstance(value, Integral):
            raise ConfigError(f"{said} a whole number" + (", or a text as '8GiB'" if name in BYTES else ""))
        value = int(value)
        if name == "seed" and value < 0:
            raise ConfigError(f"{said} a whole number >= 0")
        if name in BYTES and value > MOST_BYTES:
            raise ConfigError(f"{said} at most {MOST_BYTES} bytes")
    return value


def parse_bytes(text: str, name: str = "memory_budget") -> int:
    """A number of bytes: "8000000000", "8 GB" (10^9 each), "7.5GiB" (2^30 each). Raises ConfigError."""
    match = _SIZE.fullmatch(text)
    if match is None:
        raise ConfigError(f"{name}={text!r}: needs bytes, as 8000000000, '8GB' (10^9 each) or '7.5GiB' (2^30 each)")
    number, unit, binary = match.groups()
    return int(float(number) * (1024 if binary else 1000) ** _POWERS[unit.lower()]) if unit else int(float(number))
