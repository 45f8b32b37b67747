"""What the parameter manager moved, as far as the training tasks report it."""

from collections.abc import Iterable
from dataclasses import astuple, dataclass
from typing import Any, Self


@dataclass(frozen=True, slots=True)
class Traffic:
    """Counts since start, of one rank or summed over ranks. Subtract two to get what happened between them."""

    bytes_sent: int = 0
    bytes_received: int = 0
    local: int = 0
    """Keys accessed that were owned here."""
    replica: int = 0
    """Keys accessed in a replica held here."""
    remote: int = 0
    """Keys accessed over the network."""

    @classmethod
    def read(cls, pm: Any, tables: Iterable[str]) -> Self:
        """This rank's traffic since start; accesses to ``tables`` only."""
        stats = pm.stats()
        counts = [stats["tables"][name] for name in tables]
        kinds = (sum(int(count[kind]) for count in counts) for kind in ("local", "replica", "remote"))
        return cls(int(stats["bytes_sent"]), int(stats["bytes_received"]), *kinds)

    def vector(self) -> tuple[int, ...]:
        """The counts in the order of the fields."""
        return astuple(self)

    def __sub__(self, earlier: "Traffic") -> "Traffic":
        return Traffic(*(new - old for new, old in zip(self.vector(), earlier.vector(), strict=True)))

    @property
    def local_share(self) -> float:
        """Share of the accessed keys that needed no network, 0 to 1; 1 if none was accessed."""
        here = self.local + self.replica
        return here / (here + self.remote) if here + self.remote else 1.0
