"""The world of a rank that is a thread or a simulated task of this process."""

from dataclasses import dataclass


@dataclass
class InProcessWorld:
    """Implements ``intentpm.runtime.types.World``; whoever makes it connects the ranks' transports itself."""

    rank: int
    size: int
    launcher: str = "test"
    secret: bytes = b"all ranks in one process"

    def __post_init__(self) -> None:
        self.local_ranks = self.size

    def allgather(self, payload: bytes, timeout_s: float) -> list[bytes]:
        raise NotImplementedError("ranks in one process are connected without bootstrap")

    def close(self) -> None:
        pass
