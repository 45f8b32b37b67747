"""The transports by name, loaded when asked for: a missing library costs only the transport that needs it."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib import import_module

from intentpm.foundation.errors import ConfigError, TransportUnavailableError
from intentpm.transports.base import Transport

_LOCATIONS: Mapping[str, tuple[str, str]] = {
    "ucx": ("intentpm.transports.ucx", "UcxTransport"),
    "tcp": ("intentpm.transports.tcp", "TcpTransport"),
    "loopback": ("intentpm.transports.loopback", "LoopbackNetwork"),
}
_AUTO_ORDER = ("ucx", "tcp")


@dataclass(frozen=True)
class Availability:
    """Whether a transport can be used here; ``reason`` says why not (empty: it can)."""

    name: str
    usable: bool
    reason: str = ""


def names() -> tuple[str, ...]:
    """All transports there are, fastest first."""
    return tuple(_LOCATIONS)


def load(name: str) -> Callable[..., Transport]:
    """Returns the class of transport ``name``. "loopback" gives LoopbackNetwork, whose ``transport(rank)`` makes them.

    Raises
        ConfigError: there is no transport of that name.
        TransportUnavailableError: it cannot be used here, and why.
    """
    if name not in _LOCATIONS:
        raise ConfigError(f"transport={name!r}: choose auto, {', '.join(_LOCATIONS)}")
    module, attribute = _LOCATIONS[name]
    try:
        found: Callable[..., Transport] = getattr(import_module(module), attribute)
    except TransportUnavailableError:
        raise
    # A broken library under a transport may raise anything while it loads; the job can still run on another one.
    except Exception as error:
        raise TransportUnavailableError(f"transport {name} cannot be loaded: {error}") from error
    return found


def available() -> dict[str, Availability]:
    """Tries to load every transport; by name, in order of preference. Imports their libraries."""
    return {name: _check(name) for name in _LOCATIONS}


def _check(name: str) -> Availability:
    try:
        load(name)
    except TransportUnavailableError as error:
        return Availability(name, False, str(error))
    return Availability(name, True)


def choose(name: str) -> str:
    """Resolves "auto" to the fastest transport that loads here; any other name must be usable.

    Raises ConfigError (no such name) or TransportUnavailableError (with the reason of each that was tried).
    """
    if name != "auto":
        load(name)
        return name
    reasons = []
    for candidate in _AUTO_ORDER:
        status = _check(candidate)
        if status.usable:
            return candidate
        reasons.append(status.reason)
    raise TransportUnavailableError("; ".join(reasons))
