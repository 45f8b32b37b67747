"""Every error intentpm raises. A message says what happened, to which key, table or rank, and what to do."""

from pathlib import Path
from typing import Any


class Error(Exception):
    """Base of all intentpm errors."""


class ConfigError(Error, ValueError):
    """An option of ``init`` or an ``INTENTPM_*`` variable has a value that cannot be used."""


class KeyRangeError(Error, IndexError):
    """A key is negative or not below the table's ``num_keys``. Nothing of the call was applied."""


class ShapeError(Error, ValueError):
    """An array does not have the shape the call needs. Nothing of the call was applied."""


class DtypeError(Error, TypeError):
    """An argument does not have the type, or the dtype, the call needs. Nothing of the call was applied."""


class OptimizerError(Error, ValueError):
    """An optimizer's argument cannot be used, or the table has no optimizer or cannot have one. Nothing was applied."""


class WindowError(Error, ValueError):
    """The end of an intent's window is not after its start."""


class SampleError(Error, ValueError):
    """A sampling cannot be declared, or a sample prepared or pulled, as asked. Nothing was drawn."""


class ClosedError(Error, RuntimeError):
    """The parameter manager, worker or transport was used after it was closed."""


class ForkError(Error, RuntimeError):
    """A forked child touched the parameter manager of its parent. Start children with spawn or forkserver."""


class HandleError(Error, TypeError):
    """A handle (manager, table, worker, future, ...) was pickled or copied; the message says what to do instead."""


class WaitTimeoutError(Error, TimeoutError):
    """A deadline passed; the message names what was waited for."""


class MemoryBudgetError(Error, MemoryError):
    """The rows would not fit in ``memory_budget``, or the operating system refused the memory."""


class DeviceError(Error, RuntimeError):
    """There is no such GPU, or no driver for it, or it failed; the message has the driver's own words."""


class CollectiveMismatchError(Error, RuntimeError):
    """The ranks did not make the same collective calls in the same order, or with the same arguments."""


class VersionMismatchError(Error, RuntimeError):
    """The ranks run different versions of intentpm, or of its protocol."""


class TransportError(Error, ConnectionError):
    """A transport could not start or connect; the message says what was tried."""


class TransportUnavailableError(TransportError):
    """The transport asked for is not installed or cannot work on this machine; the message says why."""


class NotWrittenError(Error, OSError):
    """A file could not be written; the message says why, and where its contents were kept.

    ``kept`` is that place (a Path), None when they could be written nowhere.
    """

    def __init__(self, message: str, kept: Path | None = None) -> None:
        super().__init__(message)
        self.kept = kept


class CheckpointError(Error, OSError):
    """A checkpoint could not be written or read; the message names the file and says what to do.

    A save that fails leaves every earlier checkpoint as it was.
    """


class SaveInterruptedError(CheckpointError):
    """A rank was lost while a checkpoint was made, and the others go on (``init(on_loss="continue")``): save again."""


def save_interrupted() -> SaveInterruptedError:
    return SaveInterruptedError("a rank was lost before this one knew that all was saved: save again")


class RankLost(Error):  # noqa: N818  what happened, not what was wrong: training can go on
    """With ``init(on_loss="continue")``: ranks were lost, and the others have formed anew. Training can go on.

    Raised once in each worker, by its first call after the loss or the one that was under way, and by a collective
    call that was under way. What that call was to write may be written, in part or not at all.

    Attributes
        ranks: those that were lost. living: those that are left.
        rolled_back: ``RolledBack`` entries, the same on every rank: keys whose owner was lost, and what their rows are
            now. All other rows have every write of the living ranks' calls that have returned, but those that are
            ``unsure``; and of the lost ranks at least what they had synchronised (``wait_sync``, remote writes).
        unsure: table name -> keys int64 [K]: writes of this rank to its replicas of these, since its last
            ``wait_sync``, were under way by way of a lost rank, and may be missing.
    """

    def __init__(
        self, message: str, ranks: list[int], living: list[int], rolled_back: list[Any], unsure: dict[str, Any]
    ) -> None:
        super().__init__(message)
        self.ranks, self.living, self.rolled_back, self.unsure = ranks, living, rolled_back, unsure

    def __reduce__(self) -> tuple[type["RankLost"], tuple[Any, ...]]:
        return (type(self), (str(self), self.ranks, self.living, self.rolled_back, self.unsure))


class PeerLostError(Error, ConnectionError):
    """A rank died, became silent for ``peer_timeout`` or left while it was still needed.

    ``rank`` is the rank that was lost.
    """

    def __init__(self, rank: int, message: str) -> None:
        super().__init__(message)
        self.rank = rank

    def __reduce__(self) -> tuple[type["PeerLostError"], tuple[int, str]]:
        return (type(self), (self.rank, str(self)))
