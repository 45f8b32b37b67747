"""The interfaces through which the outside world reaches the runtime."""

from typing import Protocol


class World(Protocol):
    """The ranks of this job, as the launcher knows them. Implementations live in ``intentpm.launch``.

    One thread at a time may call its methods. ``allgather`` is collective.
    """

    rank: int
    size: int
    local_ranks: int
    """How many ranks run on this rank's host (this one included); decides how long threads may spin."""
    launcher: str
    """"alone", "local" (``intentpm run``), "mpi", "slurm" or "torchrun"."""
    secret: bytes
    """At least 16 bytes known to the ranks of this job alone; authenticates transport connections."""

    def allgather(self, payload: bytes, timeout_s: float) -> list[bytes]:
        """Returns every rank's payload, in rank order.

        Raises WaitTimeoutError naming the ranks that did not come within ``timeout_s``.
        """
        ...

    def close(self) -> None:
        """Releases what bootstrap needed. Idempotent."""
        ...
