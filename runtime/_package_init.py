"""intentpm: an adaptive, zero-tuning parameter manager for distributed training of sparse models.

Start with ``intentpm.init``.
"""

from intentpm.foundation.errors import (
    ClosedError,
    CollectiveMismatchError,
    ConfigError,
    DtypeError,
    Error,
    ForkError,
    HandleError,
    KeyRangeError,
    MemoryBudgetError,
    PeerLostError,
    SampleError,
    ShapeError,
    TransportError,
    TransportUnavailableError,
    VersionMismatchError,
    WaitTimeoutError,
    WindowError,
)
from intentpm.launch.bootstrap import init
from intentpm.launch.launchers import clean_environment

__all__ = [
    "ClosedError",
    "CollectiveMismatchError",
    "ConfigError",
    "DtypeError",
    "Error",
    "ForkError",
    "HandleError",
    "KeyRangeError",
    "MemoryBudgetError",
    "PeerLostError",
    "SampleError",
    "ShapeError",
    "TransportError",
    "TransportUnavailableError",
    "VersionMismatchError",
    "WaitTimeoutError",
    "WindowError",
    "__version__",  # noqa: F822
    "clean_environment",
    "init",
]


def __getattr__(name: str) -> str:
    # Reading the installed metadata costs more than the rest of the import: only on demand.
    if name == "__version__":
        from importlib.metadata import version

        return version("intentpm")
    raise AttributeError(f"module 'intentpm' has no attribute {name!r}")
