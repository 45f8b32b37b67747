"""intentpm: an adaptive, zero-tuning parameter manager for distributed training of sparse models.

Start with ``intentpm.init``.
"""

from importlib import import_module
from typing import TYPE_CHECKING

from intentpm import optim
from intentpm.foundation.errors import (
    CheckpointError,
    ClosedError,
    CollectiveMismatchError,
    ConfigError,
    DeviceError,
    DtypeError,
    Error,
    ForkError,
    HandleError,
    KeyRangeError,
    MemoryBudgetError,
    OptimizerError,
    PeerLostError,
    RankLost,
    SampleError,
    SaveInterruptedError,
    ShapeError,
    TransportError,
    TransportUnavailableError,
    VersionMismatchError,
    WaitTimeoutError,
    WindowError,
)
from intentpm.launch.bootstrap import init
from intentpm.launch.launchers import clean_environment

if TYPE_CHECKING:
    from intentpm.checkpoint.series import latest
    from intentpm.runtime._native.store import Table
    from intentpm.runtime.explain import KeyReport
    from intentpm.runtime.futures import Future
    from intentpm.runtime.loading import Restored
    from intentpm.runtime.manager import ParameterManager
    from intentpm.runtime.periodic_saves import PeriodicSaves
    from intentpm.runtime.rank_losses import RolledBack
    from intentpm.runtime.sampling import Sample, Sampling
    from intentpm.runtime.saving import Saving
    from intentpm.runtime.worker import Worker

    __version__: str

__all__ = [
    "CheckpointError",
    "ClosedError",
    "CollectiveMismatchError",
    "ConfigError",
    "DeviceError",
    "DtypeError",
    "Error",
    "ForkError",
    "Future",
    "HandleError",
    "KeyRangeError",
    "KeyReport",
    "MemoryBudgetError",
    "OptimizerError",
    "ParameterManager",
    "PeerLostError",
    "PeriodicSaves",
    "RankLost",
    "Restored",
    "RolledBack",
    "Sample",
    "SampleError",
    "Sampling",
    "SaveInterruptedError",
    "Saving",
    "ShapeError",
    "Table",
    "TransportError",
    "TransportUnavailableError",
    "VersionMismatchError",
    "WaitTimeoutError",
    "WindowError",
    "Worker",
    "__version__",
    "clean_environment",
    "init",
    "latest",
    "optim",
]

# For annotations and isinstance. They bring numpy and the native modules along, for which ``intentpm --help`` and a
# script that only starts others need not wait: loaded when asked for.
_LATER = {
    "Future": "runtime.futures",
    "KeyReport": "runtime.explain",
    "ParameterManager": "runtime.manager",
    "PeriodicSaves": "runtime.periodic_saves",
    "Restored": "runtime.loading",
    "RolledBack": "runtime.rank_losses",
    "Saving": "runtime.saving",
    "Sample": "runtime.sampling",
    "Sampling": "runtime.sampling",
    "Table": "runtime._native.store",
    "Worker": "runtime.worker",
    "latest": "checkpoint.series",
}

if not TYPE_CHECKING:  # a type checker would take any name for an attribute

    def __getattr__(name):
        if name == "__version__":  # reading the installed metadata costs more than the rest of the import
            from importlib.metadata import version

            found = version("intentpm")
        elif name in _LATER:
            found = getattr(import_module(f"intentpm.{_LATER[name]}"), name)
        else:
            raise AttributeError(f"module 'intentpm' has no attribute {name!r}")
        globals()[name] = found
        return found


def __dir__() -> list[str]:
    return sorted(__all__)
